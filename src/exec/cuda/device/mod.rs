//! What runs kernels: a GPU's driver, or the same kernels compiled for the CPU.
//!
//! Everything above speaks of addresses and of kernels by name, so one launch code serves both, and is tested without a GPU.

mod cublaslt;
mod emulated;
mod emulator;
mod group;
pub mod libraries;
mod nccl;
mod nvidia;
mod nvrtc;
mod pinned;
mod staging;
#[cfg(test)]
mod tests;

use std::ffi::c_void;
use std::sync::Arc;

pub use self::emulator::{Emulator, Order};
pub use self::group::{Communicator, Threads};
use self::libraries::Places;
pub use self::nccl::connect;
pub use self::nvidia::{Absent, Gpu, Nvidia, gpus};
pub use self::nvrtc::Nvrtc;
use super::compile::Progress;
use super::kernels::KernelOptions;
use super::rows::Element;
use crate::model::ops::DeviceError;

/// An address in the device's memory.
pub type Address = u64;

/// Launches that a device keeps, see [`Device::end_capture`].
pub type GraphId = u64;

/// A kernel's grid, in blocks, and block, in threads; `shared_bytes` of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared_bytes: u32,
}

/// What the matrices of a product hold.
#[derive(Debug, Clone, Copy)]
pub enum Factors {
    Bf16,
    /// E4M3; each row of x and of w is to be multiplied by its scale, float32 at these addresses.
    Fp8 {
        x_scales: Address,
        w_scales: Address,
    },
}

/// `out = x · wᵀ`: x `[m, k]` and w `[n, k]` of factors, out `[m, n]` of `element`, row-major and dense; sums are float32.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    pub out: Address,
    pub x: Address,
    pub w: Address,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub element: Element,
    pub factors: Factors,
}

/// A GPU with its kernels loaded, from where they are found without anything configured.
pub fn open_gpu(gpu: &Gpu) -> Result<Nvidia, DeviceError> {
    let options = KernelOptions { libraries: Places::new(None), folder: None };
    open_gpu_with(gpu, &options, &mut |_, _| ())
}

/// A GPU with its kernels loaded; they may be compiled first.
pub fn open_gpu_with(gpu: &Gpu, options: &KernelOptions, progress: Progress) -> Result<Nvidia, DeviceError> {
    let (cubins, origin) = options.load(gpu.capability, progress)?;
    tracing::info!("cuda:{} ({}) has kernels of {origin}", gpu.ordinal, gpu.name);
    Nvidia::open(gpu, cubins)
}

/// Memory, and kernels in one order: what is asked for first is done first, if perhaps later.
///
/// Functions that take addresses trust them: see each one's contract.
pub trait Device: Send + Sync {
    /// What people are told, as `NVIDIA H200`.
    fn name(&self) -> String;
    /// Bytes that are left.
    fn free_bytes(&self) -> Result<usize, DeviceError>;
    /// The same device and memory with an order of its own, for another lane. What was asked for here is done before.
    fn beside(&self) -> Result<Arc<dyn Device>, DeviceError>;
    /// How often memory was asked for here.
    fn allocations(&self) -> u64;
    /// Bytes at a multiple of 256, of unspecified content.
    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError>;
    /// Gives back what [`Device::allocate`] gave, when all that was asked for before is done.
    ///
    /// # Safety
    /// It is given back once, and not used any more.
    unsafe fn free(&self, address: Address);
    /// Copies to the device. `from` may change as soon as this returns.
    ///
    /// # Safety
    /// `to` is followed by that many bytes of one allocation.
    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), DeviceError>;
    /// Copies from the device, when all that was asked for before is done.
    ///
    /// # Safety
    /// `from` is followed by that many bytes of one allocation.
    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<(), DeviceError>;
    /// Sets bytes to zero.
    ///
    /// # Safety
    /// `to` is followed by that many bytes of one allocation.
    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DeviceError>;
    /// Starts a kernel; `args` point at its parameters' values, in order, eight bytes each.
    ///
    /// # Safety
    /// The parameters are those that kernels/README.md lists for the kernel, and what they point to is as it says.
    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: &mut [*mut c_void]) -> Result<(), DeviceError>;
    /// Starts a matrix product by a library, whose results for a row may depend on the number of rows. `None`: the device has
    /// none, or it does not do this product.
    ///
    /// # Safety
    /// The addresses are followed by as many values of one allocation each; no dimension is 0.
    unsafe fn multiply(&self, _product: &Product) -> Option<Result<(), DeviceError>> {
        None
    }
    /// Whether [`Device::multiply`] may do products of FP8.
    fn multiplies_fp8(&self) -> bool {
        false
    }
    /// Waits until all is done.
    fn finish(&self) -> Result<(), DeviceError>;

    // ── graphs ─────────────────────────────────────────────────────────────────────────────────
    /// From now on kernels that are launched here are kept with their parameters' values instead of being started. Anything
    /// else that is asked for before [`Device::end_capture`] fails and spoils the capture.
    fn begin_capture(&self) -> Result<(), DeviceError>;
    /// What was launched since, as one graph; an error where the capture was spoiled. Either way it is over.
    fn end_capture(&self) -> Result<GraphId, DeviceError>;
    /// Starts all of a graph's kernels, one after the other.
    ///
    /// # Safety
    /// The graph is this device's and not freed, and what its kernels' parameters point to is still as they want it.
    unsafe fn launch_graph(&self, graph: GraphId) -> Result<(), DeviceError>;
    /// Gives a graph back, when its launches are done.
    ///
    /// # Safety
    /// It is given back once, and not used any more.
    unsafe fn free_graph(&self, graph: GraphId);
}
