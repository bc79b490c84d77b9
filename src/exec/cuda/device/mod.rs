//! What runs kernels: a GPU's driver, or the same kernels compiled for the CPU.
//!
//! Everything above speaks of addresses and of kernels by name, so one launch code serves both, and is tested without a GPU.

mod emulator;
mod group;
mod nccl;
mod nvidia;

use std::ffi::c_void;

pub use self::emulator::{Emulator, Order};
pub use self::group::{Communicator, Threads};
pub use self::nccl::connect;
pub use self::nvidia::{Absent, Gpu, Nvidia, gpus};
use super::module;
use crate::model::ops::DeviceError;

/// An address in the device's memory.
pub type Address = u64;

/// A kernel's grid, in blocks, and block, in threads; `shared_bytes` of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared_bytes: u32,
}

/// A GPU with its kernels loaded.
pub fn open_gpu(gpu: &Gpu) -> Result<Nvidia, DeviceError> {
    Nvidia::open(gpu, module::prebuilt(gpu.capability)?)
}

/// Memory, and kernels in one order: what is asked for first is done first, if perhaps later.
///
/// Functions that take addresses trust them: see each one's contract.
pub trait Device: Send + Sync {
    /// What people are told, as `NVIDIA H200`.
    fn name(&self) -> String;
    /// Bytes that are left.
    fn free_bytes(&self) -> Result<usize, DeviceError>;
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
    /// Starts a kernel; `args` point at its parameters' values, in order.
    ///
    /// # Safety
    /// The parameters are those that kernels/README.md lists for the kernel, and what they point to is as it says.
    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: &mut [*mut c_void]) -> Result<(), DeviceError>;
    /// Waits until all is done.
    fn finish(&self) -> Result<(), DeviceError>;
}
