//! The CUDA device on the emulator: the launches and the kernels that a GPU gets, run on the CPU.
//!
//! The library comes from `scripts/check-kernels.sh shim`. Where it is missing the tests are skipped and say so, except in
//! CI, where its absence is a failure.

use std::path::Path;
use std::sync::Arc;

use garrick::exec::cuda::CudaOps;
use garrick::exec::cuda::device::{Emulator, Order};

use super::*;

/// A device whose threads take turns in this order; `None` where the library is missing.
fn emulated(order: Order) -> Option<impl Fn() -> CudaOps> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernels/libgarrick_kernels_shim.so");
    if !library.exists() {
        let message = format!("{} is missing: run scripts/check-kernels.sh shim", library.display());
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
        eprintln!("skipped: {message}");
        return None;
    }
    Some(move || {
        // SAFETY: built from this tree by the script.
        let device = unsafe { Emulator::open(&library, order) }.unwrap();
        CudaOps::new(Arc::new(device))
    })
}

/// How far rounding of activations may carry logits, over what PyTorch's own bfloat16 run of the model shows.
const ALLOWED: f32 = 1.5;

fn check_rounded(name: &str, new_ops: impl Fn() -> CudaOps, dtype: KvDtype, is_moe: bool) {
    let golden = Golden::read(name);
    for case in cases(name, golden.prompts.len()) {
        let mut model = Model::load(new_ops(), name, dtype, case.max_model_len);
        for i in case.prompts {
            let expected = &golden.logits[i];
            let logits = model.prefill(&golden.prompts[i], 48);
            let error = if is_moe { median_rms(&logits, expected, model.vocab) } else { rms(&logits, expected) };
            let bound = ALLOWED * golden.bf16_error[i].rms;
            println!("{name}, prompt {i}, {dtype:?}: rms error {error}, {} of the bound", error / bound);
            assert!(error <= bound, "{name}, prompt {i}, {dtype:?}: rms error {error} above {bound}");
        }
    }
}

macro_rules! on_cuda {
    ($test:ident, $name:literal, $is_moe:literal) => {
        mod $test {
            use super::*;

            #[test]
            fn rounded() {
                if let Some(device) = emulated(Order::Random(1)) {
                    check_rounded($name, &device, KvDtype::Bf16, $is_moe);
                    check_rounded($name, &device, KvDtype::F32, $is_moe);
                }
            }

            #[test]
            fn batched() {
                if let Some(device) = emulated(Order::Reverse) {
                    check_batched($name, &device);
                }
            }
        }
    };
}

models!(on_cuda);
