//! CUDA as a device: [`Ops`] as launches of the kernels in `kernels/`, whose README is their specification.
//!
//! Owns the KV memory, activations and the order of launches; weights are shared between lanes of one device. Never knows
//! about sequences, sampling or plans, nor whether a driver or the emulator runs the kernels ([`device::Device`]).
//!
//! Invariants: nothing waits for the device but [`Ops::read`] and [`Ops::finish`]; the first error is kept until one of them
//! or [`Ops::allocate_kv`] gives it back, and nothing is launched in between. Batch invariance is that of the kernels: each
//! states it, and the choice between them never changes a row's bits.
//!
//! The residual stream, logits and sums are float32; what matrix products take and give, K and V, and weights are bfloat16
//! (but see [`KvDtype`]), or weights are quantised.

mod attention;
mod builds;
pub mod compile;
pub mod device;
mod fp8;
mod graphs;
pub mod kernels;
mod kv;
mod largest;
mod launch;
mod memory;
mod module;
mod moe;
mod ops;
mod parts;
mod product;
mod quant;
mod rows;
mod sampling;
mod sources;
mod step;
#[cfg(test)]
pub(super) mod tests;
mod weights;

use std::sync::Arc;

use self::attention::Records;
use self::device::{Address, Communicator, Device};
use self::graphs::Graphs;
use self::kv::CudaKv;
pub use self::kv::kv_bytes_per_block;
pub use self::largest::{Limits, reserve_on_ranks};
use self::launch::Launch;
use self::memory::Scratch;
pub use self::moe::CudaExperts;
use self::moe::MoeBuffers;
pub use self::rows::CudaRows;
use self::rows::Element;
use self::sampling::Sampling;
pub use self::step::CudaStep;
pub use self::weights::{CudaMatrix, CudaRope, CudaVector, Stored};
use super::format::Format;
use crate::model::ops::DeviceError;

/// Values that one block of a grid goes through in an operation on single values.
const VALUES_PER_BLOCK: usize = 2048;
/// Blocks that share such an operation at most.
const MAX_CHUNKS: usize = 1024;
/// Values of such an operation; kernels count in 31 bits.
const MOST_VALUES: usize = 1 << 30;

/// One lane of a device.
pub struct CudaOps {
    device: Arc<dyn Device>,
    kv: Option<CudaKv>,
    error: Option<DeviceError>,
    /// `None`: as the checkpoint has them.
    weights: Option<Format>,
    stored: Vec<Stored>,
    /// Float32 rows that a product wants in bfloat16.
    rounded: Scratch,
    /// Rows in FP8, and their scales.
    fp8: Scratch,
    records: Records,
    moe: MoeBuffers,
    graphs: Graphs,
    sampling: Sampling,
    host: Vec<f32>,
    /// This rank's end of a group of devices that compute one model together.
    communicator: Option<Arc<dyn Communicator>>,
    /// Every rank's part of a sum, and this one's where it was not float32.
    parts: Scratch,
    widened: CudaRows,
}

impl CudaOps {
    pub fn new(device: Arc<dyn Device>) -> CudaOps {
        CudaOps {
            device,
            kv: None,
            error: None,
            weights: None,
            stored: Vec::new(),
            rounded: Scratch::default(),
            fp8: Scratch::default(),
            records: Records::default(),
            moe: MoeBuffers::default(),
            graphs: Graphs::default(),
            sampling: Sampling::default(),
            host: Vec::new(),
            communicator: None,
            parts: Scratch::default(),
            widened: CudaRows::default(),
        }
    }

    /// One rank of several, whose model is a shard: sums are taken over all of them. It has no graphs: a rank waits for the
    /// others inside of a step, which a capture would not have.
    pub fn of_group(device: Arc<dyn Device>, communicator: Arc<dyn Communicator>) -> CudaOps {
        CudaOps { communicator: Some(communicator), ..CudaOps::new(device).with_graphs(0) }
    }

    /// Weights in this format, as far as their roles allow; `None`: as the checkpoint has them. What is not quantised is
    /// bfloat16.
    pub fn with_weights(self, weights: Option<Format>) -> CudaOps {
        CudaOps { weights, ..self }
    }

    /// The weights that this lane loaded, by format. Those of a [`CudaOps::fork`] were loaded by another.
    pub fn stored(&self) -> &[Stored] {
        &self.stored
    }

    /// Whether the device multiplies weights in FP8 as they are, where there are many rows.
    pub fn multiplies_fp8(&self) -> bool {
        self.device.multiplies_fp8()
    }

    /// Another lane on the same device, with an order of launches, KV memory and activations of its own.
    pub fn fork(&self) -> CudaOps {
        let fork = match self.device.beside() {
            Ok(device) => CudaOps::new(device),
            Err(error) => CudaOps { error: Some(error), ..CudaOps::new(self.device.clone()) },
        };
        fork.with_graphs(self.graphs.max_rows())
    }

    /// With graphs of decode steps of at most so many rows, of as many as there may be; 0: without.
    pub fn with_graphs(self, max_rows: usize) -> CudaOps {
        CudaOps { graphs: Graphs::new(max_rows), ..self }
    }

    /// Bytes that the device has left; or what went wrong in loading.
    pub fn free_bytes(&mut self) -> Result<usize, DeviceError> {
        self.outcome()?;
        self.device.free_bytes()
    }

    /// Runs this unless something has failed before.
    fn run(&mut self, operation: impl FnOnce(&mut Self) -> Result<(), DeviceError>) {
        if self.error.is_none()
            && let Err(error) = operation(self)
        {
            self.error = Some(error);
        }
    }

    /// Loads this, or what stands for it where loading fails, now or before.
    fn load<T>(&mut self, load: impl FnOnce(&Arc<dyn Device>) -> Result<T, DeviceError>, missing: T) -> T {
        if self.error.is_none() {
            match load(&self.device) {
                Ok(loaded) => return loaded,
                Err(error) => self.error = Some(error),
            }
        }
        missing
    }

    /// What has failed. A device that is not lost starts anew after it.
    fn outcome(&mut self) -> Result<(), DeviceError> {
        match self.error.take() {
            None => Ok(()),
            Some(error) => {
                if matches!(error, DeviceError::Lost(_)) {
                    self.error = Some(error.clone());
                }
                Err(error)
            }
        }
    }

    /// Starts a launch.
    ///
    /// # Safety
    /// As [`Launch::start`].
    unsafe fn start(&self, launch: Launch) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { launch.start(&*self.device) }
    }

    /// Rows as bfloat16, which they are already or become elsewhere.
    fn as_bf16(&mut self, x: &CudaRows) -> Result<Address, DeviceError> {
        if x.element() == Element::Bf16 {
            return Ok(x.address());
        }
        let to = self.rounded.reserve(&self.device, x.count() * Element::Bf16.bytes())?.address();
        let launch = Launch::new("to_bf16", [chunks(x.count()), 1, 1]).address(to).address(x.address()).int(x.count());
        // SAFETY: both have as many values.
        unsafe { self.start(launch)? };
        Ok(to)
    }
}

/// Blocks that share so many values; none where there are none.
fn chunks(values: usize) -> usize {
    values.div_ceil(VALUES_PER_BLOCK).min(MAX_CHUNKS)
}

/// So many values in parts that a kernel can count: first and number. All logits of long prompts are more.
fn slices(values: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..values).step_by(MOST_VALUES).map(move |first| (first, MOST_VALUES.min(values - first)))
}
