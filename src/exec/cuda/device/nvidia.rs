//! An NVIDIA GPU through the CUDA driver, which is looked for at run time: nothing of CUDA is needed to build or start.
//!
//! Owns one stream, and the kernels loaded for the chip. Invariants: no function of cudarc is called, nor one of its errors
//! printed, before the driver's library is known to be there; it panics otherwise. What the host and the GPU copy goes
//! through pinned memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::super::module::{self, Cubin};
use super::cublaslt::{self, CublasLt, WORKSPACE_BYTES};
use super::libraries::Opened;
use super::pinned::{self, PinnedPiece};
use super::staging::Staging;
use super::{Address, Device, GraphId, Product, Shape};
use crate::model::ops::DeviceError;

/// Dynamic shared memory that a kernel may have without being asked.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// Why there is no GPU to be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    #[error("no CUDA driver (libcuda.so.1) was found")]
    NoDriver,
    #[error("the CUDA driver finds no device")]
    NoDevice,
    #[error("the CUDA driver does not start: {0}")]
    Driver(String),
    #[error("{0}")]
    NoKernels(String),
}

/// A GPU that the driver knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub ordinal: usize,
    pub name: String,
    /// Compute capability, as (9, 0).
    pub capability: (i32, i32),
    pub total_bytes: usize,
    pub free_bytes: usize,
    /// The chip that its kernels are built for, as `sm_90a`.
    pub kernels: String,
    /// Whether the program has them; otherwise they are compiled, once.
    pub is_prebuilt: bool,
}

impl Gpu {
    /// What kernels for it alone are compiled for.
    pub fn chip(&self) -> String {
        module::chips(self.capability).swap_remove(0)
    }
}

/// The GPUs of this machine that there are or may be kernels for. Never panics, whatever is missing.
pub fn gpus() -> Result<Vec<Gpu>, Absent> {
    // SAFETY: it only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Absent::NoDriver);
    }
    let failed = |e: DriverError| match e.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => Absent::NoDevice,
        code => Absent::Driver(format!("{code:?}")),
    };
    let count = CudaContext::device_count().map_err(failed)?;
    if count < 1 {
        return Err(Absent::NoDevice);
    }
    let (mut usable, mut obstacle) = (Vec::new(), Absent::NoDevice);
    for ordinal in 0..count as usize {
        let context = CudaContext::new(ordinal).map_err(failed)?;
        let (free_bytes, total_bytes) = context.mem_get_info().map_err(failed)?;
        let (name, capability) = (context.name().map_err(failed)?, context.compute_capability().map_err(failed)?);
        if capability < module::OLDEST {
            let (major, minor) = capability;
            obstacle =
                Absent::NoKernels(format!("{name} has compute capability {major}.{minor}, and 8.0 is the least"));
            continue;
        }
        let (kernels, is_prebuilt) = module::name(capability);
        usable.push(Gpu { ordinal, name, capability, total_bytes, free_bytes, kernels, is_prebuilt });
    }
    if usable.is_empty() { Err(obstacle) } else { Ok(usable) }
}

pub struct Nvidia {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    /// Those that have been launched.
    kernels: Mutex<HashMap<&'static str, Kernel>>,
    staging: Mutex<Staging<PinnedPiece>>,
    allocations: AtomicU64,
    /// With a workspace, which is the stream's.
    products: Option<(Arc<CublasLt>, Address)>,
    name: String,
    capability: (i32, i32),
}

#[derive(Clone)]
struct Kernel {
    function: CudaFunction,
    /// That it has been allowed.
    shared_bytes: u32,
}

impl Nvidia {
    /// Loads these kernels for one of [`gpus`].
    pub fn open(gpu: &Gpu, cubins: Vec<Cubin>) -> Result<Nvidia, DeviceError> {
        let context = CudaContext::new(gpu.ordinal).map_err(|e| error("cannot be opened", e))?;
        // SAFETY: streams share nothing but weights, which are there before the second one is made.
        unsafe { context.disable_event_tracking() };
        let load = |cubin: Cubin| context.load_module(Ptx::from_binary(cubin.bytes)).map_err(|e| error(&cubin.name, e));
        let modules = cubins.into_iter().map(load).collect::<Result<_, _>>()?;
        Nvidia::with_stream(context.clone(), modules, gpu.name.clone(), gpu.capability)
    }

    fn with_stream(
        context: Arc<CudaContext>,
        modules: Vec<Arc<CudaModule>>,
        name: String,
        capability: (i32, i32),
    ) -> Result<Nvidia, DeviceError> {
        let stream = context.new_stream().map_err(|e| error("no stream", e))?;
        let (kernels, staging, allocations) = Default::default();
        Ok(Nvidia { context, stream, modules, kernels, staging, allocations, products: None, name, capability })
    }

    fn new_piece(&self) -> Result<PinnedPiece, DeviceError> {
        PinnedPiece::new(&self.context, &self.stream)
    }

    /// Has products done by cuBLASLt from now on, if it starts. Says which it is, as `cuBLASLt 13.0.2`.
    pub fn use_cublaslt(&mut self, opened: &Opened) -> Result<String, String> {
        let workspace = self.allocate(WORKSPACE_BYTES).map_err(|e| e.to_string())?;
        // SAFETY: found by its name. `allocate` has bound the context to this thread.
        match unsafe { CublasLt::open(opened) } {
            Ok(products) => {
                let about = products.about().to_owned();
                self.products = Some((Arc::new(products), workspace));
                Ok(about)
            }
            Err(reason) => {
                // SAFETY: allocated above, for this only.
                unsafe { self.free(workspace) };
                Err(format!("{}: {reason}", opened.path.display()))
            }
        }
    }

    /// A kernel by name, allowed to have this much shared memory.
    fn kernel(&self, name: &'static str, shared_bytes: u32) -> Result<CudaFunction, DeviceError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = match kernels.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let function = self.modules.iter().find_map(|module| module.load_function(name).ok());
                let function = function.ok_or_else(|| DeviceError::Failed(format!("no kernel is called {name}")))?;
                entry.insert(Kernel { function, shared_bytes: PLAIN_SHARED_BYTES })
            }
        };
        if shared_bytes > kernel.shared_bytes {
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel.function.set_attribute(most, shared_bytes as i32).map_err(|e| error(name, e))?;
            kernel.shared_bytes = shared_bytes;
        }
        Ok(kernel.function.clone())
    }

    /// Its stream, with the device as the calling thread's.
    pub(super) fn current_stream(&self) -> Result<*mut c_void, DeviceError> {
        self.bind()?;
        Ok(self.stream.cu_stream().cast())
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|e| error("context", e))
    }
}

/// What the driver says. After most errors of a kernel the context is of no use any more.
pub(super) fn error(what: &str, DriverError(code): DriverError) -> DeviceError {
    let message = format!("{what}: {code:?}");
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY
        | CUresult::CUDA_ERROR_INVALID_VALUE
        | CUresult::CUDA_ERROR_NOT_FOUND
        | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => DeviceError::Failed(message),
        _ => DeviceError::Lost(message),
    }
}

impl Device for Nvidia {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn free_bytes(&self) -> Result<usize, DeviceError> {
        self.context.mem_get_info().map(|(free, _)| free).map_err(|e| error("memory", e))
    }

    fn beside(&self) -> Result<Arc<dyn Device>, DeviceError> {
        self.finish()?;
        let mut other =
            Nvidia::with_stream(self.context.clone(), self.modules.clone(), self.name.clone(), self.capability)?;
        if let Some((products, _)) = &self.products {
            other.products = Some((products.clone(), other.allocate(WORKSPACE_BYTES)?));
        }
        Ok(Arc::new(other))
    }

    fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.bind()?;
        self.allocations.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the content is unspecified by contract, and of plain bytes.
        unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|e| match e.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = self.context.mem_get_info().map_or(0, |(free, _)| free);
                let mib = |bytes: usize| bytes >> 20;
                DeviceError::Failed(format!("{} has no {} MiB left, only {}", self.name, mib(bytes), mib(free)))
            }
            _ => error("memory", e),
        })
    }

    unsafe fn free(&self, address: Address) {
        // The driver waits for what was asked for. A lost context takes its memory with it, so nothing can be done then.
        if self.bind().is_ok() {
            // SAFETY: the caller's promise.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), DeviceError> {
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise.
        unsafe { staging.upload(|| self.new_piece(), to, from) }
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<(), DeviceError> {
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise.
        unsafe { staging.download(|| self.new_piece(), to, from) }
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) }.map_err(|e| error("clear", e))
    }

    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: &mut [*mut c_void]) -> Result<(), DeviceError> {
        self.bind()?;
        let function = self.kernel(kernel, shape.shared_bytes)?;
        let [x, y, z] = shape.grid;
        let stream = self.stream.cu_stream();
        // SAFETY: the caller's promise.
        let started = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (shape.block, 1, 1),
                shape.shared_bytes,
                stream,
                args,
            )
        };
        started.map_err(|e| error(kernel, e))
    }

    unsafe fn multiply(&self, product: &Product) -> Option<Result<(), DeviceError>> {
        let (products, workspace) = self.products.as_ref()?;
        if let Err(error) = self.bind() {
            return Some(Err(error));
        }
        // SAFETY: the caller's promise; a runtime's stream is a driver's.
        unsafe { products.multiply(product, *workspace, self.stream.cu_stream().cast()) }
    }

    fn multiplies_fp8(&self) -> bool {
        self.products.is_some() && self.capability == cublaslt::FP8_CAPABILITY
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.bind()?;
        self.stream.synchronize().map_err(|e| error("a kernel", e))
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.bind()?;
        // What other threads do with the context does not concern it.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(self.stream.cu_stream(), mode) }.map_err(|e| error("capture", e))
    }

    fn end_capture(&self) -> Result<GraphId, DeviceError> {
        self.bind()?;
        pinned::end_capture(&self.stream)
    }

    unsafe fn launch_graph(&self, graph: GraphId) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::graph::launch(graph as sys::CUgraphExec, self.stream.cu_stream()) }
            .map_err(|e| error("a graph", e))
    }

    unsafe fn free_graph(&self, graph: GraphId) {
        // Its last launch may still be under way.
        if self.finish().is_ok() {
            // SAFETY: the caller's promise.
            unsafe { pinned::free_graph(graph) };
        }
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        if let Some((products, workspace)) = self.products.take()
            && self.bind().is_ok()
        {
            drop(products);
            // SAFETY: nobody else has it.
            unsafe { self.free(workspace) };
        }
    }
}
