//! The CUDA device on the emulator: the launches and the kernels that a GPU gets, run on the CPU.
//!
//! The library comes from `scripts/check-kernels.sh shim`. Where it is missing the tests are skipped and say so, except in
//! CI, where its absence is a failure.

use std::path::Path;
use std::sync::Arc;

use garrick::exec::Executor;
use garrick::exec::cuda::CudaOps;
use garrick::exec::cuda::device::{Emulator, Order};

use super::executor::{MODEL, executor_on, greedy, plan, rows};
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

/// Where only the best tokens are wanted they are found on the device; asked for log-probabilities too, on the host.
#[test]
fn the_best_tokens_are_the_same_found_on_the_device_and_on_the_host() {
    let Some(device) = emulated(Order::Forward) else { return };
    let golden = Golden::read(MODEL);
    let outputs = [None, Some(0)].map(|logprobs| {
        let mut executor = executor_on(device());
        let mut prompts = vec![rows(7, &golden.prompts[3], 0, &[9, 4]), rows(3, &golden.prompts[1], 0, &[2])];
        prompts[0].samples = vec![greedy(0, logprobs), greedy(1, logprobs)];
        prompts[1].samples = vec![greedy(0, logprobs)];
        let first = executor.step(&plan(prompts)).unwrap().rows;
        // Drafts: one that is right, one that is not, and one behind it.
        let drawn = first[1].sampled[0].token;
        let mut probe = rows(3, &[drawn], golden.prompts[1].len() as u32, &[2]);
        probe.samples = vec![greedy(0, logprobs)];
        let right = executor.step(&plan(vec![probe])).unwrap().rows[0].sampled[0].token;
        let wrong = (right + 1) % 320;
        let mut drafted = rows(3, &[drawn, right, wrong, 5], golden.prompts[1].len() as u32, &[2]);
        drafted.num_drafts = 3;
        drafted.samples = vec![greedy(0, logprobs); 4];
        // And a prompt that draws nothing.
        let second = executor.step(&plan(vec![drafted, rows(8, &golden.prompts[4][..20], 0, &[11, 12])])).unwrap().rows;
        assert_eq!(second[0].sampled[0].token, right);
        assert!((2..=3).contains(&second[0].sampled.len()), "drafts are taken as far as they are right");
        let tokens = |output: &garrick::sched::plan::SeqOutput| -> Vec<u32> {
            assert!(output.sampled.iter().all(|sampled| sampled.logprobs.is_some() == logprobs.is_some()));
            output.sampled.iter().map(|sampled| sampled.token).collect()
        };
        first.iter().chain(&second).map(tokens).collect::<Vec<_>>()
    });
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0].iter().map(Vec::len).collect::<Vec<_>>()[..2], [2, 1]);
    assert!(outputs[0][3].is_empty());
}
