//! Matrix products by NVIDIA's cuBLASLt (CUDA 12 or 13), where it is installed.
//!
//! Owns a handle and what the library's heuristic chose for each shape. Invariants: sums are float32, also where
//! a product's depth is divided among blocks, whose parts are added in the workspace in a fixed order, so a step run twice
//! gives the same bits; the choice depends on the shape alone, never on what was asked before. It does depend on the number
//! of rows, and with it a row's bits: whoever wants a row independent of its company takes the own kernels.
//!
//! Reference: cuBLAS 13.0 documentation, "Using the cuBLASLt API". Types and numbers are those of `cublasLt.h`.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use super::libraries::{Opened, c_functions};
use super::{Address, Factors, Product};
use crate::exec::cuda::rows::Element;
use crate::model::ops::DeviceError;

/// What NVIDIA recommends for Hopper and later, the most of all chips.
pub const WORKSPACE_BYTES: usize = 32 << 20;
/// The GPUs on which products of FP8 may have a scale for each row.
pub const FP8_CAPABILITY: (i32, i32) = (9, 0);
/// Shapes whose choice is kept; with more, all are asked for anew.
const MAX_SHAPES: usize = 1024;
/// The best alignment that the library asks for, and what `Device::allocate` gives.
const MAX_ALIGNMENT: u64 = 256;

type Handle = *mut c_void;
type Description = *mut c_void;
type Layout = *mut c_void;
type Preference = *mut c_void;
type Status = c_int;

const ALLOC_FAILED: Status = 3;
const INVALID_VALUE: Status = 7;
const ARCH_MISMATCH: Status = 8;
const MAPPING_ERROR: Status = 11;
const EXECUTION_FAILED: Status = 13;
const INTERNAL_ERROR: Status = 14;
const NOT_SUPPORTED: Status = 15;

/// `cudaDataType_t`.
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
const R_8F_E4M3: c_int = 28;
/// `cublasComputeType_t`.
const COMPUTE_32F: c_int = 68;
/// `cublasOperation_t`.
static OP_T: i32 = 1;
/// `cublasLtMatmulDescAttributes_t`.
const DESC_TRANSA: c_int = 3;
const DESC_A_SCALE_POINTER: c_int = 17;
const DESC_B_SCALE_POINTER: c_int = 18;
const DESC_A_SCALE_MODE: c_int = 31;
const DESC_B_SCALE_MODE: c_int = 32;
/// `cublasLtMatmulMatrixScale_t`: a float32 for each row of the product's, or column; of compute capability 9.0 alone.
static OUTER_VEC_32F: i32 = 3;
/// `cublasLtMatmulPreferenceAttributes_t`.
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const PREF_REDUCTION_SCHEME_MASK: c_int = 3;
/// Of A; those of B, C and D follow.
const PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5;
/// `cublasLtReductionScheme_t`: not in place, whose order is left open, nor in the output's type.
const REDUCTION_IN_COMPUTE_TYPE: u32 = 2;

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Choice {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

c_functions! {
    struct Functions {
        version = "cublasLtGetVersion": fn() -> usize;
        create = "cublasLtCreate": fn(*mut Handle) -> Status;
        destroy = "cublasLtDestroy": fn(Handle) -> Status;
        create_description = "cublasLtMatmulDescCreate": fn(*mut Description, c_int, c_int) -> Status;
        set_description = "cublasLtMatmulDescSetAttribute": fn(Description, c_int, *const c_void, usize) -> Status;
        destroy_description = "cublasLtMatmulDescDestroy": fn(Description) -> Status;
        create_layout = "cublasLtMatrixLayoutCreate": fn(*mut Layout, c_int, u64, u64, i64) -> Status;
        destroy_layout = "cublasLtMatrixLayoutDestroy": fn(Layout) -> Status;
        create_preference = "cublasLtMatmulPreferenceCreate": fn(*mut Preference) -> Status;
        set_preference = "cublasLtMatmulPreferenceSetAttribute": fn(Preference, c_int, *const c_void, usize) -> Status;
        destroy_preference = "cublasLtMatmulPreferenceDestroy": fn(Preference) -> Status;
        choose = "cublasLtMatmulAlgoGetHeuristic":
            fn(Handle, Description, Layout, Layout, Layout, Layout, Preference, c_int, *mut Choice, *mut c_int) -> Status;
        multiply = "cublasLtMatmul":
            fn(
                Handle, Description, *const c_void, *const c_void, Layout, *const c_void, Layout, *const c_void,
                *const c_void, Layout, *mut c_void, Layout, *const Algorithm, *mut c_void, usize, *mut c_void
            ) -> Status;
    }
}

/// As `13.0.2`.
pub fn version(library: &Opened) -> Result<String, String> {
    // SAFETY: the types are those of cublasLt.h.
    let functions = unsafe { Functions::load(library)? };
    // SAFETY: it takes nothing.
    Ok(shown_version(unsafe { (functions.version)() }))
}

/// What a choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    /// Rounded up, see [`rows_asked_for`].
    m: usize,
    n: usize,
    k: usize,
    out: Element,
    is_fp8: bool,
    /// Of the least aligned matrix, in bytes.
    alignment: u32,
}

pub struct CublasLt {
    functions: Functions,
    handle: Handle,
    /// `None`: the library has nothing for the shape.
    choices: Mutex<HashMap<Shape, Option<Algorithm>>>,
    about: String,
}

// SAFETY: the handle may be used by several threads (documentation, "Thread Safety").
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// On the device whose context is this thread's.
    ///
    /// # Safety
    /// The library is cuBLASLt.
    pub unsafe fn open(library: &Opened) -> Result<CublasLt, String> {
        // SAFETY: the types are those of cublasLt.h.
        let functions = unsafe { Functions::load(library)? };
        let mut handle = null_mut();
        // SAFETY: it takes nothing.
        let version = unsafe { (functions.version)() };
        // SAFETY: a place for a handle.
        check("cublasLtCreate", unsafe { (functions.create)(&mut handle) })?;
        let about = format!("cuBLASLt {}", shown_version(version));
        Ok(CublasLt { functions, handle, choices: Mutex::default(), about })
    }

    /// As `cuBLASLt 13.0.2`.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Starts a product on a stream; `None` where the library has nothing for it.
    ///
    /// # Safety
    /// As [`super::Device::multiply`]; the workspace has [`WORKSPACE_BYTES`], and the stream is the one that everything with it
    /// goes to.
    pub unsafe fn multiply(
        &self,
        product: &Product,
        workspace: Address,
        stream: *mut c_void,
    ) -> Option<Result<(), DeviceError>> {
        // SAFETY: the caller's promise.
        match unsafe { self.started(product, workspace, stream) } {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(status) => Some(Err(self.error(status))),
        }
    }

    unsafe fn started(&self, product: &Product, workspace: Address, stream: *mut c_void) -> Result<bool, Status> {
        let Some(algorithm) = self.choice(product)? else { return Ok(false) };
        let layouts = Layouts::new(&self.functions, product, product.m)?;
        let described = Described::new(&self.functions, product.factors)?;
        let (one, zero) = (1f32, 0f32);
        let out = product.out as *mut c_void;
        // SAFETY: the layouts are the matrices', by the caller's promise; alpha and beta are read before it returns.
        let status = unsafe {
            (self.functions.multiply)(
                self.handle,
                described.description,
                (&raw const one).cast(),
                product.w as *const c_void,
                layouts.w,
                product.x as *const c_void,
                layouts.x,
                (&raw const zero).cast(),
                out,
                layouts.out,
                out,
                layouts.out,
                &algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream,
            )
        };
        match status {
            0 => Ok(true),
            // What was chosen for a few rows more does not do for these.
            INVALID_VALUE | NOT_SUPPORTED | ARCH_MISMATCH => {
                let Product { m, n, k, .. } = *product;
                tracing::debug!("{} does not take [{m}, {k}] x [{n}, {k}] (status {status})", self.about);
                Ok(false)
            }
            status => Err(status),
        }
    }

    /// What to run for a shape, asked for once.
    fn choice(&self, product: &Product) -> Result<Option<Algorithm>, Status> {
        let alignment = (product.out | product.x | product.w | MAX_ALIGNMENT).trailing_zeros();
        let shape = Shape {
            m: rows_asked_for(product.m),
            n: product.n,
            k: product.k,
            out: product.element,
            is_fp8: matches!(product.factors, Factors::Fp8 { .. }),
            alignment: 1 << alignment,
        };
        let mut choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(choice) = choices.get(&shape) {
            return Ok(*choice);
        }
        let choice = self.ask(product, shape)?;
        if choices.len() >= MAX_SHAPES {
            choices.clear();
        }
        choices.insert(shape, choice);
        Ok(choice)
    }

    fn ask(&self, product: &Product, shape: Shape) -> Result<Option<Algorithm>, Status> {
        let layouts = Layouts::new(&self.functions, product, shape.m)?;
        let described = Described::new(&self.functions, product.factors)?;
        let limits = Limits::new(&self.functions, shape.alignment)?;
        let (mut choice, mut found) = (Choice::default(), 0);
        // SAFETY: all are this library's and stand until it returns; there is room for the one choice asked for.
        let status = unsafe {
            let Layouts { w, x, out, .. } = layouts;
            let (handle, description) = (self.handle, described.description);
            (self.functions.choose)(handle, description, w, x, out, out, limits.preference, 1, &mut choice, &mut found)
        };
        match status {
            0 => Ok((found > 0 && choice.state == 0).then_some(choice.algorithm)),
            INVALID_VALUE | NOT_SUPPORTED | ARCH_MISMATCH => Ok(None),
            status => Err(status),
        }
    }

    fn error(&self, status: Status) -> DeviceError {
        let message = format!("{}: {}", self.about, shown_status(status));
        match status {
            EXECUTION_FAILED | INTERNAL_ERROR | MAPPING_ERROR => DeviceError::Lost(message),
            _ => DeviceError::Failed(message),
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: this library's, and nobody else has it.
        unsafe { (self.functions.destroy)(self.handle) };
    }
}

/// What sets an attribute of a description or a preference.
type Set = unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> Status;

/// Sets an attribute of the library's `object`, whose setter this is.
fn put<T: bytemuck::Pod>(set: Set, object: *mut c_void, attribute: c_int, value: &T) -> Result<(), Status> {
    let value: *const T = value;
    // SAFETY: the attribute's type is T, and it is copied.
    let status = unsafe { set(object, attribute, value.cast(), size_of::<T>()) };
    if status == 0 { Ok(()) } else { Err(status) }
}

/// What a product computes: float32 sums, the left matrix transposed, and where FP8 has its scales.
struct Described<'a> {
    functions: &'a Functions,
    description: Description,
}

impl<'a> Described<'a> {
    fn new(functions: &'a Functions, factors: Factors) -> Result<Described<'a>, Status> {
        let mut described = Described { functions, description: null_mut() };
        // SAFETY: a place for a description.
        match unsafe { (functions.create_description)(&mut described.description, COMPUTE_32F, R_32F) } {
            0 => {}
            status => return Err(status),
        }
        let set = functions.set_description;
        put(set, described.description, DESC_TRANSA, &OP_T)?;
        if let Factors::Fp8 { x_scales, w_scales } = factors {
            for (mode, pointer, scales) in [
                (DESC_A_SCALE_MODE, DESC_A_SCALE_POINTER, w_scales),
                (DESC_B_SCALE_MODE, DESC_B_SCALE_POINTER, x_scales),
            ] {
                put(set, described.description, mode, &OUTER_VEC_32F)?;
                put(set, described.description, pointer, &scales)?;
            }
        }
        Ok(described)
    }
}

impl Drop for Described<'_> {
    fn drop(&mut self) {
        if !self.description.is_null() {
            // SAFETY: made by this library, and used by nobody any more.
            unsafe { (self.functions.destroy_description)(self.description) };
        }
    }
}

/// The library's matrices are column-major, so a row-major one is its transpose: `out` is `[n, m]`, the transpose of `w`
/// (`[k, n]`) times `x` (`[k, m]`).
struct Layouts<'a> {
    functions: &'a Functions,
    w: Layout,
    x: Layout,
    out: Layout,
}

impl<'a> Layouts<'a> {
    fn new(functions: &'a Functions, product: &Product, m: usize) -> Result<Layouts<'a>, Status> {
        let Product { n, k, .. } = *product;
        let out_type = match product.element {
            Element::F32 => R_32F,
            Element::Bf16 => R_16BF,
        };
        let factor_type = match product.factors {
            Factors::Bf16 => R_16BF,
            Factors::Fp8 { .. } => R_8F_E4M3,
        };
        // Dropped with what was made, where the next fails.
        let mut layouts = Layouts { functions, w: null_mut(), x: null_mut(), out: null_mut() };
        let create = |layout: &mut Layout, of: c_int, rows: usize, cols: usize| {
            // SAFETY: a place for a layout; dense columns.
            let status = unsafe { (functions.create_layout)(layout, of, rows as u64, cols as u64, rows as i64) };
            if status == 0 { Ok(()) } else { Err(status) }
        };
        create(&mut layouts.w, factor_type, k, n)?;
        create(&mut layouts.x, factor_type, k, m)?;
        create(&mut layouts.out, out_type, n, m)?;
        Ok(layouts)
    }
}

impl Drop for Layouts<'_> {
    fn drop(&mut self) {
        for layout in [self.w, self.x, self.out].into_iter().filter(|layout| !layout.is_null()) {
            // SAFETY: made by this library, and used by nobody any more.
            unsafe { (self.functions.destroy_layout)(layout) };
        }
    }
}

/// What a choice must keep to.
struct Limits<'a> {
    functions: &'a Functions,
    preference: Preference,
}

impl<'a> Limits<'a> {
    fn new(functions: &'a Functions, alignment: u32) -> Result<Limits<'a>, Status> {
        let mut limits = Limits { functions, preference: null_mut() };
        // SAFETY: a place for a preference.
        match unsafe { (functions.create_preference)(&mut limits.preference) } {
            0 => {}
            status => return Err(status),
        }
        let workspace = WORKSPACE_BYTES as u64;
        let set = functions.set_preference;
        put(set, limits.preference, PREF_MAX_WORKSPACE_BYTES, &workspace)?;
        put(set, limits.preference, PREF_REDUCTION_SCHEME_MASK, &REDUCTION_IN_COMPUTE_TYPE)?;
        for matrix in 0..4 {
            put(set, limits.preference, PREF_MIN_ALIGNMENT_A_BYTES + matrix, &alignment)?;
        }
        Ok(limits)
    }
}

impl Drop for Limits<'_> {
    fn drop(&mut self) {
        if !self.preference.is_null() {
            // SAFETY: made by this library, and used by nobody any more.
            unsafe { (self.functions.destroy_preference)(self.preference) };
        }
    }
}

/// Row counts share a choice in steps of at least an eighth of the next power of two, so that there are few, and the choice
/// is the one for the most rows among them.
fn rows_asked_for(rows: usize) -> usize {
    rows.next_multiple_of((rows.next_power_of_two() / 8).max(1))
}

/// From `130002` (CUBLAS_VERSION).
fn shown_version(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

fn shown_status(status: Status) -> String {
    let name = match status {
        1 => "not initialised, as without a driver",
        ALLOC_FAILED => "no memory",
        INVALID_VALUE => "an invalid value",
        ARCH_MISMATCH => "not for this chip",
        MAPPING_ERROR => "memory cannot be mapped",
        EXECUTION_FAILED => "a kernel failed",
        INTERNAL_ERROR => "an internal error",
        NOT_SUPPORTED => "not supported",
        _ => return format!("status {status}"),
    };
    format!("{name} (status {status})")
}

fn check(what: &str, status: Status) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("{what}: {}", shown_status(status))) }
}

#[cfg(test)]
mod tests;
