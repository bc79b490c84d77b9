//! One launch of a kernel: its shape and its parameters' values.

use std::ffi::c_void;

use smallvec::SmallVec;

use super::device::{Device, Shape};
use super::memory::Buffer;
use crate::model::ops::DeviceError;

/// Threads of a block, for kernels whose entry in kernels/README.md names no others.
pub const THREADS: u32 = 256;
/// More parameters than any kernel has.
const MAX_PARAMS: usize = 24;

/// A kernel, and what it gets. Parameters follow in the order of kernels/README.md, each in eight bytes, of which the
/// kernel reads the first four where it has an int or a float.
pub struct Launch {
    kernel: &'static str,
    shape: Shape,
    params: SmallVec<[u64; MAX_PARAMS]>,
}

impl Launch {
    pub fn new(kernel: &'static str, grid: [usize; 3]) -> Launch {
        let grid = grid.map(|n| u32::try_from(n).expect("a grid's side fits 32 bits"));
        Launch { kernel, shape: Shape { grid, block: THREADS, shared_bytes: 0 }, params: SmallVec::new() }
    }

    pub fn threads(mut self, threads: u32) -> Launch {
        self.shape.block = threads;
        self
    }

    pub fn shared(mut self, bytes: usize) -> Launch {
        self.shape.shared_bytes = bytes as u32;
        self
    }

    pub fn buffer(self, buffer: &Buffer) -> Launch {
        self.address(buffer.address())
    }

    /// 0: null.
    pub fn address(mut self, address: u64) -> Launch {
        self.params.push(address);
        self
    }

    pub fn int(mut self, value: usize) -> Launch {
        let value = i32::try_from(value).expect("a kernel's number fits 31 bits");
        self.params.push(value as u64);
        self
    }

    pub fn float(mut self, value: f32) -> Launch {
        self.params.push(value.to_bits().into());
        self
    }

    /// Starts it, unless its grid is empty: then there is nothing to do.
    ///
    /// # Safety
    /// The parameters are those that kernels/README.md lists for the kernel, and what they point to is as it says.
    pub unsafe fn start(mut self, device: &dyn Device) -> Result<(), DeviceError> {
        if self.shape.grid.contains(&0) {
            return Ok(());
        }
        let mut args: SmallVec<[*mut c_void; MAX_PARAMS]> =
            self.params.iter_mut().map(|param| std::ptr::from_mut(param).cast()).collect();
        // SAFETY: each argument points at its value, which outlives the call; the rest is the caller's promise.
        unsafe { device.launch(self.kernel, self.shape, &mut args) }
    }
}
