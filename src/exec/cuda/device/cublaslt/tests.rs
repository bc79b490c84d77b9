//! The binding against `kernels/tests/cublaslt_stand_in.cpp`, which looks at all that it is handed.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

use half::bf16;

use super::*;
use crate::exec::cuda::device::libraries::{Places, Wanted};

/// The stand-in, and what this thread has done with it.
struct StandIn(Opened);

impl StandIn {
    /// `None`, said aloud, where it is not built; in CI that is a failure.
    fn find() -> Option<StandIn> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernels/stand-in");
        if !folder.join("libcublasLt.so.13").exists() {
            let message = format!("{} has no library: run scripts/check-kernels.sh shim", folder.display());
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
            eprintln!("skipped: {message}");
            return None;
        }
        Some(StandIn(Places::new(folder.to_str()).open(Wanted::CublasLt).unwrap()))
    }

    fn call<F: Copy>(&self, name: &str) -> F {
        // SAFETY: each use below names the type that the file gives the function.
        *unsafe { self.0.library.get::<F>(name.as_bytes()) }.unwrap()
    }

    fn count(&self, what: &str) -> i32 {
        let function: unsafe extern "C" fn() -> c_int = self.call(&format!("stand_in_{what}\0"));
        // SAFETY: it takes nothing.
        unsafe { function() }
    }

    /// The next call of this kind fails so.
    fn fail(&self, kind: &str, status: Status) {
        let function: unsafe extern "C" fn(c_int) = self.call(&format!("stand_in_fail_{kind}\0"));
        // SAFETY: it takes a status.
        unsafe { function(status) };
    }

    fn complaint(&self) -> String {
        let function: unsafe extern "C" fn() -> *const c_char = self.call("stand_in_complaint\0");
        // SAFETY: it gives a string that stands as long as the thread.
        unsafe { CStr::from_ptr(function()) }.to_string_lossy().into_owned()
    }

    fn open(&self) -> Result<CublasLt, String> {
        // SAFETY: the stand-in.
        unsafe { CublasLt::open(&self.0) }
    }
}

#[repr(align(256))]
#[derive(Clone, Copy)]
struct Line([u8; 256]);

/// Memory at a multiple of 256.
struct Workspace(Vec<Line>);

impl Workspace {
    fn new(bytes: usize) -> Workspace {
        Workspace(vec![Line([0; 256]); bytes.div_ceil(256)])
    }
}

thread_local! {
    static WORKSPACE: Workspace = Workspace::new(WORKSPACE_BYTES);
}

/// As long as the test runs.
fn workspace() -> Address {
    WORKSPACE.with(|workspace| workspace.0.as_ptr() as Address)
}

/// Small whole numbers, whose products and sums are exact in any order.
fn factors(rows: usize, cols: usize, seed: usize) -> (Workspace, Vec<f32>) {
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7 + i / cols * 3 + seed) % 9) as f32 - 4.0).collect();
    let mut memory = Workspace::new(2 * values.len());
    let rounded: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
    let bytes: &[u8] = bytemuck::cast_slice(&rounded);
    for (line, piece) in memory.0.iter_mut().zip(bytes.chunks(256)) {
        line.0[..piece.len()].copy_from_slice(piece);
    }
    (memory, values)
}

/// The product's values and what it should be; `None` where the library has nothing for it.
fn product(cublaslt: &CublasLt, [m, n, k]: [usize; 3], element: Element) -> Option<(Vec<f32>, Vec<f32>)> {
    let ((x, x_values), (w, w_values)) = (factors(m, k, 1), factors(n, k, 5));
    let out = Workspace::new(m * n * element.bytes());
    let address = |memory: &Workspace| memory.0.as_ptr() as Address;
    let product =
        Product { out: address(&out), x: address(&x), w: address(&w), m, n, k, element, factors: Factors::Bf16 };
    // SAFETY: the matrices have these shapes.
    unsafe { cublaslt.multiply(&product, workspace(), null_mut()) }?.unwrap();
    let bytes: Vec<u8> = out.0.iter().flat_map(|line| line.0).collect();
    let short = |bits: &[u8]| bf16::from_le_bytes([bits[0], bits[1]]).to_f32();
    let found: Vec<f32> = match element {
        Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Element::Bf16 => bytes.chunks_exact(2).map(short).collect(),
    };
    let expected = (0..m * n).map(|i| {
        let (row, col) = (i / n, i % n);
        let sum = (0..k).map(|j| x_values[row * k + j] * w_values[col * k + j]).sum::<f32>();
        if element == Element::Bf16 { bf16::from_f32(sum).to_f32() } else { sum }
    });
    Some((found[..m * n].to_vec(), expected.collect()))
}

#[test]
fn products_are_those_of_rows_with_rows_and_nothing_is_left_behind() {
    let Some(stand_in) = StandIn::find() else { return };
    let cublaslt = stand_in.open().unwrap();
    assert_eq!(cublaslt.about(), "cuBLASLt 13.0.2");
    for shape in [[1, 1, 8], [3, 5, 16], [17, 24, 40], [70, 9, 8], [2, 130, 64]] {
        for element in [Element::F32, Element::Bf16] {
            let (found, expected) = product(&cublaslt, shape, element).unwrap();
            assert_eq!(found, expected, "{shape:?} {element:?}");
        }
    }
    assert_eq!((stand_in.complaint().as_str(), stand_in.count("multiplied")), ("", 10));
    // The handle.
    assert_eq!(stand_in.count("alive"), 1);
    drop(cublaslt);
    assert_eq!(stand_in.count("alive"), 0);
}

#[test]
fn a_choice_is_asked_for_once_whatever_the_order() {
    let Some(stand_in) = StandIn::find() else { return };
    let cublaslt = stand_in.open().unwrap();
    let asked = |m: usize, n: usize, element: Element| {
        let before = stand_in.count("chosen");
        product(&cublaslt, [m, n, 8], element).unwrap();
        stand_in.count("chosen") - before
    };
    assert_eq!((asked(33, 4, Element::F32), asked(33, 4, Element::F32)), (1, 0));
    // 33 to 40 rows share the choice for 40, fewer first or more first; other columns or results do not.
    assert_eq!((asked(40, 4, Element::F32), asked(41, 4, Element::F32), asked(48, 4, Element::F32)), (0, 1, 0));
    assert_eq!((asked(33, 4, Element::Bf16), asked(33, 5, Element::F32)), (1, 1));
    assert_eq!(stand_in.complaint(), "");
}

#[test]
fn what_is_kept_is_bounded() {
    let Some(stand_in) = StandIn::find() else { return };
    let cublaslt = stand_in.open().unwrap();
    for n in 1..=MAX_SHAPES + 1 {
        product(&cublaslt, [1, n, 8], Element::F32).unwrap();
    }
    assert_eq!(cublaslt.choices.lock().unwrap().len(), 1);
    product(&cublaslt, [1, 1, 8], Element::F32).unwrap();
    assert_eq!(stand_in.count("chosen") as usize, MAX_SHAPES + 2);
}

#[test]
fn matrices_that_are_less_aligned_are_said_to_be() {
    let Some(stand_in) = StandIn::find() else { return };
    let cublaslt = stand_in.open().unwrap();
    let ((x, _), (w, _), out) = (factors(4, 8, 1), factors(4, 8, 5), Workspace::new(256));
    let address = |memory: &Workspace| memory.0.as_ptr() as Address;
    for offset in [0, 16, 32, 2] {
        let product = Product {
            out: address(&out),
            x: address(&x) + offset,
            w: address(&w),
            m: 3,
            n: 4,
            k: 8,
            element: Element::F32,
            factors: Factors::Bf16,
        };
        // SAFETY: three rows from there lie in four.
        unsafe { cublaslt.multiply(&product, workspace(), null_mut()) }.unwrap().unwrap();
    }
    assert_eq!((stand_in.complaint().as_str(), stand_in.count("chosen")), ("", 4));
}

#[test]
fn what_the_library_does_not_do_is_left_to_others_and_asked_for_once() {
    let Some(stand_in) = StandIn::find() else { return };
    let cublaslt = stand_in.open().unwrap();
    for _ in 0..2 {
        assert!(product(&cublaslt, [2, 3, 9], Element::F32).is_none());
    }
    assert_eq!((stand_in.count("chosen"), stand_in.count("multiplied")), (1, 0));
    stand_in.fail("multiply", NOT_SUPPORTED);
    assert!(product(&cublaslt, [2, 3, 8], Element::F32).is_none());
    assert!(product(&cublaslt, [2, 3, 8], Element::F32).is_some());
    assert_eq!((stand_in.complaint().as_str(), stand_in.count("alive")), ("", 1));
}

#[test]
fn an_error_says_what_failed_and_whether_the_device_is_lost() {
    let Some(stand_in) = StandIn::find() else { return };
    stand_in.fail("create", 1);
    let refused = stand_in.open().err().unwrap();
    assert_eq!(refused, "cublasLtCreate: not initialised, as without a driver (status 1)");
    let cublaslt = stand_in.open().unwrap();
    let ((x, _), (w, _), out) = (factors(1, 8, 1), factors(1, 8, 5), Workspace::new(256));
    let address = |memory: &Workspace| memory.0.as_ptr() as Address;
    let one = Product {
        out: address(&out),
        x: address(&x),
        w: address(&w),
        m: 1,
        n: 1,
        k: 8,
        element: Element::F32,
        factors: Factors::Bf16,
    };
    let text = |what: &str| format!("cuBLASLt 13.0.2: {what}");
    for (kind, status, expected) in [
        ("choose", INTERNAL_ERROR, DeviceError::Lost(text("an internal error (status 14)"))),
        ("multiply", EXECUTION_FAILED, DeviceError::Lost(text("a kernel failed (status 13)"))),
        ("multiply", ALLOC_FAILED, DeviceError::Failed(text("no memory (status 3)"))),
        ("multiply", 99, DeviceError::Failed(text("status 99"))),
    ] {
        stand_in.fail(kind, status);
        // SAFETY: the matrices have these shapes.
        assert_eq!(unsafe { cublaslt.multiply(&one, workspace(), null_mut()) }, Some(Err(expected)));
    }
    drop(cublaslt);
    assert_eq!(stand_in.count("alive"), 0);
}

#[test]
fn a_library_that_is_something_else_is_refused() {
    let Some(stand_in) = StandIn::find() else { return };
    let shim = stand_in.0.path.parent().and_then(Path::parent).unwrap().join("libgarrick_kernels_shim.so");
    // SAFETY: built by the same script.
    let library = Box::leak(Box::new(unsafe { libloading::Library::new(&shim) }.unwrap()));
    // SAFETY: none of its functions is called.
    let refused = unsafe { CublasLt::open(&Opened { path: PathBuf::new(), library }) };
    assert_eq!(refused.err().unwrap(), "it has no function cublasLtGetVersion");
}

#[test]
fn row_counts_share_a_choice_with_a_few_more() {
    for rows in 1..5000 {
        let asked = rows_asked_for(rows);
        assert!(asked >= rows && asked <= rows + rows.div_ceil(4), "{rows}: {asked}");
        assert_eq!(rows_asked_for(asked), asked);
        assert!(rows_asked_for(rows + 1) >= asked);
    }
    assert_eq!([1, 8, 9, 16, 17, 1000].map(rows_asked_for), [1, 8, 10, 16, 20, 1024]);
}
