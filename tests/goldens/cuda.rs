//! The CUDA device: on a GPU where there is one, otherwise the same launches and kernels on the emulator.
//!
//! The environment variable `GARRICK_GOLDENS_ON` insists on one of them: `gpu` fails without a GPU, `emulator` leaves it
//! alone. The emulator's library comes from `scripts/check-kernels.sh shim`. Where it is missing the tests are skipped and
//! say so, except in CI, where its absence is a failure.

use std::sync::Arc;

use garrick::exec::cuda::CudaOps;
use garrick::exec::cuda::device::{Device, Emulator, Order, gpus, open_gpu};

use super::*;
use crate::harness::project;

/// Makes the device anew, whose memory then holds nothing of another model.
type NewOps = Box<dyn Fn() -> CudaOps>;

fn ops(device: impl Device + 'static) -> CudaOps {
    CudaOps::new(Arc::new(device))
}

/// The first GPU, or the emulator with threads that take turns in this order; `None` where there is neither.
fn cuda(order: Order) -> Option<NewOps> {
    match std::env::var("GARRICK_GOLDENS_ON").as_deref() {
        Ok("gpu") => Some(real().expect("GARRICK_GOLDENS_ON=gpu, and a GPU")),
        Ok("emulator") => emulated(order),
        Ok(other) => panic!("GARRICK_GOLDENS_ON is gpu or emulator, not {other:?}"),
        Err(_) => real().ok().or_else(|| emulated(order)),
    }
}

fn real() -> Result<NewOps, String> {
    let gpu = gpus().map_err(|e| e.to_string())?.swap_remove(0);
    println!("on {} with the kernels for {}", gpu.name, gpu.kernels);
    Ok(Box::new(move || ops(open_gpu(&gpu).unwrap())))
}

fn emulated(order: Order) -> Option<NewOps> {
    let library = project().join("target/kernels/libgarrick_kernels_shim.so");
    if !library.exists() {
        let message = format!("{} is missing: run scripts/check-kernels.sh shim", library.display());
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
        eprintln!("skipped: {message}");
        return None;
    }
    // SAFETY: built from this tree by the script.
    Some(Box::new(move || ops(unsafe { Emulator::open(&library, order) }.unwrap())))
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
                if let Some(device) = cuda(Order::Random(1)) {
                    check_rounded($name, &device, KvDtype::Bf16, $is_moe);
                    check_rounded($name, &device, KvDtype::F32, $is_moe);
                }
            }

            #[test]
            fn batched() {
                if let Some(device) = cuda(Order::Reverse) {
                    check_batched($name, &device);
                }
            }
        }
    };
}

models!(on_cuda);
