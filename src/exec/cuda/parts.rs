//! Sums over the ranks of a group.
//!
//! Every rank gets every other's part and adds them up itself, in the order of ranks: so all have the same bits, and those of
//! a row do not depend on the rows beside it, as they would where a ring of devices takes turns by position.

use super::launch::Launch;
use super::rows::{CudaRows, Element};
use super::{CudaOps, chunks};
use crate::model::ops::DeviceError;

impl CudaOps {
    /// `rows` becomes the sum of all ranks' in float32; see [`crate::model::ops::Ops::all_reduce`].
    pub fn add_parts(&mut self, rows: &mut CudaRows) -> Result<(), DeviceError> {
        let Some(communicator) = self.communicator.clone() else { return Ok(()) };
        if rows.element() == Element::Bf16 {
            self.widened.reshape(&self.device, rows.rows(), rows.width(), Element::F32)?;
            let launch = Launch::new("to_f32", [chunks(rows.count()), 1, 1])
                .address(self.widened.address())
                .address(rows.address())
                .int(rows.count());
            // SAFETY: both have as many values.
            unsafe { self.start(launch)? };
            std::mem::swap(rows, &mut self.widened);
        }
        let bytes = rows.count() * Element::F32.bytes();
        let num_ranks = communicator.num_ranks();
        let parts = self.parts.reserve(&self.device, num_ranks * bytes)?.address();
        // SAFETY: so many bytes of this rank, and room for all ranks'.
        unsafe { communicator.all_gather(rows.address(), parts, bytes)? };
        let launch = Launch::new("add_parts", [chunks(rows.count()), 1, 1])
            .address(rows.address())
            .address(parts)
            .int(num_ranks)
            .int(rows.count());
        // SAFETY: a part of as many values from each rank.
        unsafe { self.start(launch) }
    }
}
