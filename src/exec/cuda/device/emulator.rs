//! The kernels on the CPU: each thread of a block a fiber, blocks one after the other. For tests: right, and slow.
//!
//! The library is made of the same `.cu` files by `kernels/cpu_shim`, whose header states the C interface used here.
//!
//! Kernels are done when their launch returns; copies only when something must come after them.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libloading::{Library, Symbol};

use super::cublaslt::{CublasLt, WORKSPACE_BYTES};
use super::emulated::{Copies, EmulatedPiece, Graphs, Work, Written};
use super::libraries::Opened;
use super::staging::Staging;
use super::{Address, Device, Factors, GraphId, Product, Shape};
use crate::model::ops::DeviceError;

type Launch = unsafe extern "C" fn(*const c_char, *const u32, *const u32, usize, *mut *mut c_void, u32) -> c_int;
type ErrorText = unsafe extern "C" fn() -> *const c_char;

const ALIGNMENT: usize = 256;
/// As much as a small GPU has.
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
    library: Option<Arc<Library>>,
    order: u32,
    memory: Arc<Mutex<Memory>>,
    allocations: AtomicU64,
    copies: Arc<Copies>,
    staging: Mutex<Staging<EmulatedPiece>>,
    graphs: Mutex<Graphs>,
    /// With a workspace.
    products: Option<(Arc<CublasLt>, Address)>,
}

struct Memory {
    layouts: BTreeMap<Address, Layout>,
    free_bytes: usize,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { layouts: BTreeMap::new(), free_bytes: EMULATED_BYTES }
    }
}

impl Memory {
    /// The start of the allocation that has this address.
    fn start_of(&self, address: Address) -> Option<Address> {
        let (start, layout) = self.layouts.range(..=address).next_back()?;
        (address < start + layout.size() as u64).then_some(*start)
    }
}

impl Drop for Memory {
    /// What nobody gave back: workspaces.
    fn drop(&mut self) {
        for (address, layout) in &self.layouts {
            // SAFETY: allocated with this layout, and not freed: it was still listed.
            unsafe { dealloc(*address as *mut u8, *layout) };
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        Ok(Emulator::with(Some(Arc::new(library)), order, Arc::default()))
    }

    fn with(library: Option<Arc<Library>>, order: u32, memory: Arc<Mutex<Memory>>) -> Emulator {
        Emulator {
            library,
            order,
            memory,
            allocations: AtomicU64::new(0),
            copies: Arc::default(),
            staging: Mutex::default(),
            graphs: Mutex::default(),
            products: None,
        }
    }

    /// The same with so many bytes of memory.
    pub fn with_bytes(self, bytes: usize) -> Emulator {
        lock(&self.memory).free_bytes = bytes;
        self
    }

    /// Runs a kernel to its end.
    ///
    /// # Safety
    /// As [`Device::launch`].
    unsafe fn run(&self, kernel: &'static str, shape: Shape, args: &mut [*mut c_void]) -> Result<(), DeviceError> {
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

    /// Has products done by a cuBLASLt that works on the host's memory: a stand-in for tests. Says which it is.
    ///
    /// # Safety
    /// The library is one.
    pub unsafe fn use_cublaslt(&mut self, opened: &Opened) -> Result<String, String> {
        let workspace = self.allocate(WORKSPACE_BYTES).map_err(|e| e.to_string())?;
        // SAFETY: the caller's promise.
        let products = unsafe { CublasLt::open(opened)? };
        let about = products.about().to_owned();
        self.products = Some((Arc::new(products), workspace));
        Ok(about)
    }

    /// Memory without kernels, for devices that have other ones.
    #[cfg(test)]
    pub fn bare() -> Emulator {
        Emulator::with(None, 0, Arc::default())
    }

    /// Allocations that nobody gave back.
    #[cfg(test)]
    pub fn num_allocations(&self) -> usize {
        lock(&self.memory).layouts.len()
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

    fn free_bytes(&self) -> Result<usize, DeviceError> {
        Ok(lock(&self.memory).free_bytes)
    }

    fn beside(&self) -> Result<Arc<dyn Device>, DeviceError> {
        self.finish()?;
        let mut other = Emulator::with(self.library.clone(), self.order, self.memory.clone());
        if let Some((products, _)) = &self.products {
            other.products = Some((products.clone(), other.allocate(WORKSPACE_BYTES)?));
        }
        Ok(Arc::new(other))
    }

    fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        lock(&self.graphs).refuse("memory is asked for")?;
        self.allocations.fetch_add(1, Ordering::Relaxed);
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT)
            .map_err(|_| DeviceError::Failed(format!("{bytes} bytes are more than the address space holds")))?;
        let mut all = lock(&self.memory);
        let Some(left) = all.free_bytes.checked_sub(layout.size()) else {
            let mib = |bytes: usize| bytes >> 20;
            let message = format!("{} has no {} MiB left, only {}", self.name(), mib(bytes), mib(all.free_bytes));
            return Err(DeviceError::Failed(message));
        };
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc(layout) };
        if memory.is_null() {
            return Err(DeviceError::Failed(format!("no memory for {bytes} bytes")));
        }
        // SAFETY: just allocated with this size.
        unsafe { memory.write_bytes(FRESH, layout.size()) };
        all.free_bytes = left;
        all.layouts.insert(memory as Address, layout);
        Ok(memory as Address)
    }

    unsafe fn free(&self, address: Address) {
        let _ = lock(&self.graphs).refuse("memory is given back");
        // What is wrong with a copy comes out for whoever asks for something after it.
        let _ = self.copies.complete();
        let mut all = lock(&self.memory);
        let layout = all.layouts.remove(&address).expect("memory of this device, given back once");
        all.free_bytes += layout.size();
        // SAFETY: allocated with this layout, and given back once.
        unsafe { dealloc(address as *mut u8, layout) };
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), DeviceError> {
        lock(&self.graphs).refuse("an upload")?;
        // SAFETY: the caller's promise.
        unsafe { lock(&self.staging).upload(|| Ok(EmulatedPiece::new(&self.copies)), to, from) }
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<(), DeviceError> {
        lock(&self.graphs).refuse("a download")?;
        // SAFETY: the caller's promise.
        unsafe { lock(&self.staging).download(|| Ok(EmulatedPiece::new(&self.copies)), to, from) }
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DeviceError> {
        lock(&self.graphs).refuse("a clear")?;
        self.copies.complete()?;
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(to as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: &mut [*mut c_void]) -> Result<(), DeviceError> {
        let mut graphs = lock(&self.graphs);
        if graphs.is_capturing() {
            // SAFETY: eight bytes each.
            let params: Vec<u64> = args.iter().map(|arg| unsafe { arg.cast::<u64>().read() }).collect();
            let memory = lock(&self.memory);
            let memory = params.iter().filter_map(|param| memory.start_of(*param)).collect();
            graphs.write(Written { work: Work::Kernel { kernel, shape, params }, memory });
            return Ok(());
        }
        drop(graphs);
        self.copies.complete()?;
        // SAFETY: the caller's promise.
        unsafe { self.run(kernel, shape, args) }
    }

    unsafe fn multiply(&self, product: &Product) -> Option<Result<(), DeviceError>> {
        let (products, workspace) = self.products.as_ref()?;
        let mut graphs = lock(&self.graphs);
        if graphs.is_capturing() {
            let memory = lock(&self.memory);
            let scales = match product.factors {
                Factors::Bf16 => [0; 2],
                Factors::Fp8 { x_scales, w_scales } => [x_scales, w_scales],
            };
            let addresses = [product.out, product.x, product.w, *workspace, scales[0], scales[1]];
            let memory = addresses.into_iter().filter_map(|address| memory.start_of(address)).collect();
            graphs.write(Written { work: Work::Product(*product), memory });
            return Some(Ok(()));
        }
        drop(graphs);
        if let Err(error) = self.copies.complete() {
            return Some(Err(error));
        }
        // SAFETY: the caller's promise; there are no streams here.
        unsafe { products.multiply(product, *workspace, null_mut()) }
    }

    fn multiplies_fp8(&self) -> bool {
        self.products.is_some()
    }

    fn finish(&self) -> Result<(), DeviceError> {
        lock(&self.graphs).refuse("to wait")?;
        self.copies.complete()
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        lock(&self.graphs).begin()
    }

    fn end_capture(&self) -> Result<GraphId, DeviceError> {
        lock(&self.graphs).end()
    }

    unsafe fn launch_graph(&self, graph: GraphId) -> Result<(), DeviceError> {
        lock(&self.graphs).refuse("a graph")?;
        self.copies.complete()?;
        let launches = lock(&self.graphs).get(graph);
        let launches = launches.ok_or_else(|| DeviceError::Failed("no such graph".into()))?;
        for Written { work, memory } in launches.iter() {
            if !memory.iter().all(|start| lock(&self.memory).layouts.contains_key(start)) {
                return Err(DeviceError::Failed(format!("memory that {work} of a graph uses was given back")));
            }
            match work {
                Work::Kernel { kernel, shape, params } => {
                    let mut params = params.clone();
                    let mut args: Vec<*mut c_void> =
                        params.iter_mut().map(|param| std::ptr::from_mut(param).cast()).collect();
                    // SAFETY: the caller's promise.
                    unsafe { self.run(kernel, *shape, &mut args)? };
                }
                // SAFETY: the caller's promise.
                Work::Product(product) => match unsafe { self.multiply(product) } {
                    Some(done) => done?,
                    None => return Err(DeviceError::Failed("a product of a graph is not done any more".into())),
                },
            }
        }
        Ok(())
    }

    unsafe fn free_graph(&self, graph: GraphId) {
        lock(&self.graphs).free(graph);
    }
}
