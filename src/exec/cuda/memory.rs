//! Memory of a device, given back when it is dropped.

use std::sync::Arc;

use bytemuck::Pod;

use super::device::{Address, Device};
use crate::model::ops::DeviceError;

/// One allocation.
pub struct Buffer {
    device: Arc<dyn Device>,
    address: Address,
    bytes: usize,
}

impl Buffer {
    /// Of unspecified content.
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Buffer, DeviceError> {
        let address = device.allocate(bytes)?;
        Ok(Buffer { device: device.clone(), address, bytes })
    }

    pub fn of<T: Pod>(device: &Arc<dyn Device>, values: &[T]) -> Result<Buffer, DeviceError> {
        let buffer = Buffer::new(device, size_of_val(values))?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    pub fn zeroed(device: &Arc<dyn Device>, bytes: usize) -> Result<Buffer, DeviceError> {
        let buffer = Buffer::new(device, bytes)?;
        // SAFETY: all of the allocation.
        unsafe { device.clear(buffer.address, bytes)? };
        Ok(buffer)
    }

    pub fn address(&self) -> Address {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies values to the bytes from `offset` on; panics where they do not fit.
    pub fn write<T: Pod>(&self, offset: usize, values: &[T]) -> Result<(), DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.bytes), "a buffer of {}", self.bytes);
        // SAFETY: inside the allocation.
        unsafe { self.device.upload(self.address + offset as u64, bytes) }
    }

    /// Copies values from the start; panics where there are fewer.
    pub fn read<T: Pod>(&self, values: &mut [T]) -> Result<(), DeviceError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        assert!(bytes.len() <= self.bytes, "{} bytes of a buffer of {}", bytes.len(), self.bytes);
        // SAFETY: inside the allocation.
        unsafe { self.device.download(bytes, self.address) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: nobody else has the address once this is gone, but kernels that were started before.
        unsafe { self.device.free(self.address) };
    }
}

/// Of a buffer that grows: small ones need not grow often, large ones not have much to spare.
const MIN_SCRATCH: usize = 4 << 10;
const SCRATCH_STEP: usize = 32 << 20;

/// A buffer that grows and is kept.
#[derive(Default)]
pub struct Scratch(Option<Buffer>);

impl Scratch {
    /// At least so many bytes, of unspecified content; the ones before are gone if there were fewer.
    pub fn reserve(&mut self, device: &Arc<dyn Device>, bytes: usize) -> Result<&Buffer, DeviceError> {
        if self.0.as_ref().is_none_or(|buffer| buffer.bytes < bytes) {
            // Freed first, so that both are never there at once.
            self.0 = None;
            let size = bytes.clamp(MIN_SCRATCH, SCRATCH_STEP).next_power_of_two();
            self.0 = Some(Buffer::new(device, bytes.next_multiple_of(size))?);
        }
        Ok(self.0.as_ref().expect("just made"))
    }

    pub fn address(&self) -> Address {
        self.0.as_ref().map_or(0, Buffer::address)
    }
}
