//! The kernels on the CPU: each thread of a block a fiber, blocks one after the other. For tests: right, and slow.
//!
//! The library is made of the same `.cu` files by `kernels/cpu_shim`, whose header states the C interface used here.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use libloading::{Library, Symbol};

use super::cublaslt::{CublasLt, WORKSPACE_BYTES};
use super::libraries::Opened;
use super::{Address, Device, Product, Shape};
use crate::model::ops::DeviceError;

type Launch = unsafe extern "C" fn(*const c_char, *const u32, *const u32, usize, *mut *mut c_void, u32) -> c_int;
type ErrorText = unsafe extern "C" fn() -> *const c_char;

const ALIGNMENT: usize = 256;
const EMULATED_BYTES: usize = 1 << 30;
/// What fresh memory is filled with: as float32 and as bfloat16 not a number, so that whoever reads it is found out.
const FRESH: u8 = 0xff;

/// In which order the threads of a block take turns. A result that depends on it is a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Forward,
    Reverse,
    Random(u16),
}

pub struct Emulator {
    /// None: memory alone.
    library: Option<Library>,
    order: u32,
    layouts: Mutex<HashMap<Address, Layout>>,
    products: Option<CublasLt>,
}

impl Emulator {
    /// # Safety
    /// The library at `path` is one that `kernels/cpu_shim` makes: loading it runs its code.
    pub unsafe fn open(path: &Path, order: Order) -> Result<Emulator, DeviceError> {
        // SAFETY: the caller's promise.
        let library = unsafe { Library::new(path) }.map_err(|e| DeviceError::Lost(e.to_string()))?;
        let order = match order {
            Order::Forward => 0,
            Order::Reverse => 1,
            Order::Random(seed) => 2 + u32::from(seed),
        };
        Ok(Emulator { library: Some(library), order, layouts: Mutex::default(), products: None })
    }

    /// Has products done by a cuBLASLt that works on the host's memory: a stand-in for tests. Says which it is.
    ///
    /// # Safety
    /// The library is one.
    pub unsafe fn use_cublaslt(&mut self, opened: &Opened) -> Result<String, String> {
        let workspace = self.allocate(WORKSPACE_BYTES).map_err(|e| e.to_string())?;
        // SAFETY: the caller's promise; the workspace is not freed before this device.
        let products = unsafe { CublasLt::open(opened, workspace)? };
        Ok(self.products.insert(products).about().to_owned())
    }

    /// Memory without kernels, for devices that have other ones.
    #[cfg(test)]
    pub fn bare() -> Emulator {
        Emulator { library: None, order: 0, layouts: Mutex::default(), products: None }
    }

    /// Allocations that nobody gave back.
    #[cfg(test)]
    pub fn num_allocations(&self) -> usize {
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn error(library: &Library) -> DeviceError {
        // SAFETY: the shim's function takes nothing and returns a string that stands until this thread's next launch.
        let text = unsafe {
            let function: Result<Symbol<ErrorText>, _> = library.get(b"garrick_shim_error\0");
            function.map(|function| CStr::from_ptr(function()).to_string_lossy().into_owned())
        };
        DeviceError::Failed(text.unwrap_or_else(|e| e.to_string()))
    }
}

impl Device for Emulator {
    fn name(&self) -> String {
        "emulated on the CPU".into()
    }

    /// As much as a small GPU has.
    fn free_bytes(&self) -> Result<usize, DeviceError> {
        Ok(EMULATED_BYTES)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT)
            .map_err(|_| DeviceError::Failed(format!("{bytes} bytes are more than the address space holds")))?;
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc(layout) };
        if memory.is_null() {
            return Err(DeviceError::Failed(format!("no memory for {bytes} bytes")));
        }
        // SAFETY: just allocated with this size.
        unsafe { memory.write_bytes(FRESH, layout.size()) };
        let address = memory as Address;
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).insert(address, layout);
        Ok(address)
    }

    unsafe fn free(&self, address: Address) {
        let layout = self.layouts.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        let layout = layout.expect("memory of this device, given back once");
        // SAFETY: allocated with this layout, and given back once.
        unsafe { dealloc(address as *mut u8, layout) };
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(to as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: &mut [*mut c_void]) -> Result<(), DeviceError> {
        let Some(library) = &self.library else {
            return Err(DeviceError::Failed(format!("there are no kernels to find {kernel} among")));
        };
        let name = CString::new(kernel).expect("names of kernels are plain");
        let (grid, block) = (shape.grid, [shape.block, 1, 1]);
        // SAFETY: the function is the shim's, with this signature; the rest is the caller's promise.
        let code = unsafe {
            let launch: Symbol<Launch> =
                library.get(b"garrick_shim_launch\0").map_err(|e| DeviceError::Lost(e.to_string()))?;
            let shared = shape.shared_bytes as usize;
            launch(name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared, args.as_mut_ptr(), self.order)
        };
        if code == 0 { Ok(()) } else { Err(Emulator::error(library)) }
    }

    unsafe fn multiply(&self, product: &Product) -> Option<Result<(), DeviceError>> {
        // SAFETY: the caller's promise; there are no streams here.
        unsafe { self.products.as_ref()?.multiply(product, null_mut()) }
    }

    fn finish(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl Drop for Emulator {
    /// What nobody gave back: the workspace.
    fn drop(&mut self) {
        self.products = None;
        for (address, layout) in self.layouts.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            // SAFETY: allocated with this layout, and not freed: it was still listed.
            unsafe { dealloc(address as *mut u8, layout) };
        }
    }
}
