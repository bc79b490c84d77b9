//! The CUDA device: on a GPU where there is one, otherwise the same launches and kernels on the emulator.
//!
//! The environment variable `GARRICK_GOLDENS_ON` insists on one of them: `gpu` fails without a GPU, `emulator` leaves it
//! alone. The emulator's library comes from `scripts/check-kernels.sh shim`. Where it is missing the tests are skipped and
//! say so, except in CI, where its absence is a failure.

use std::sync::Arc;

use garrick::exec::Executor;
use garrick::exec::cuda::CudaOps;
use garrick::exec::cuda::device::libraries::{Missing, Places, Wanted};
use garrick::exec::cuda::device::{Device, Emulator, Order, gpus, open_gpu};
use garrick::sample::{History, SampleSpec, SamplingParams, TokenLogprobs};
use garrick::sched::plan::{PromptLogprobs, SeqOutput, SeqRows};

use super::executor::{MODEL, executor_on, plan, rows};
use super::*;
use crate::harness::project;

/// Makes the device anew, whose memory then holds nothing of another model.
pub type NewOps = Box<dyn Fn() -> CudaOps>;

fn ops(device: impl Device + 'static) -> CudaOps {
    CudaOps::new(Arc::new(device))
}

/// The first GPU, or the emulator with threads that take turns in this order; `None` where there is neither.
pub fn cuda(order: Order) -> Option<NewOps> {
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
    let emulator = emulator(order)?;
    Some(Box::new(move || CudaOps::new(emulator())))
}

/// Makes the emulator anew.
pub fn emulator(order: Order) -> Option<Box<dyn Fn() -> Arc<dyn Device>>> {
    let library = project().join("target/kernels/libgarrick_kernels_shim.so");
    if !library.exists() {
        let message = format!("{} is missing: run scripts/check-kernels.sh shim", library.display());
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
        eprintln!("skipped: {message}");
        return None;
    }
    // SAFETY: built from this tree by the script.
    Some(Box::new(move || Arc::new(unsafe { Emulator::open(&library, order) }.unwrap())))
}

/// The same with products by cuBLASLt: on a GPU the real one, on the emulator the stand-in; `None` where there is none. And whether
/// it is the stand-in.
pub fn with_cublaslt() -> Option<(NewOps, bool)> {
    let on = std::env::var("GARRICK_GOLDENS_ON");
    let gpu = if on.as_deref() == Ok("emulator") { None } else { gpus().ok().map(|mut gpus| gpus.swap_remove(0)) };
    assert!(gpu.is_some() || on.as_deref() != Ok("gpu"), "GARRICK_GOLDENS_ON=gpu, and a GPU");
    let stand_in = project().join("target/kernels/stand-in");
    let places = if gpu.is_some() { Places::new(None) } else { Places::new(stand_in.to_str()) };
    let library = match places.open(Wanted::CublasLt) {
        Ok(opened) => opened,
        Err(missing @ Missing::NotFound { .. }) => {
            assert!(gpu.is_some() || std::env::var("CI").as_deref() != Ok("true"), "scripts/check-kernels.sh shim");
            eprintln!("skipped: {missing}");
            return None;
        }
        Err(missing) => panic!("{missing}"),
    };
    let is_stand_in = gpu.is_none();
    let new_ops: NewOps = Box::new(move || match &gpu {
        Some(gpu) => {
            let mut device = open_gpu(gpu).unwrap();
            println!("products by {}", device.use_cublaslt(&library).unwrap());
            ops(device)
        }
        None => {
            let shim = project().join("target/kernels/libgarrick_kernels_shim.so");
            // SAFETY: both were built from this tree by the script.
            unsafe {
                let mut device = Emulator::open(&shim, Order::Forward).unwrap();
                device.use_cublaslt(&library).unwrap();
                ops(device)
            }
        }
    });
    Some((new_ops, is_stand_in))
}

/// Products that the stand-in did for this thread, and what it found wrong.
pub fn stand_in() -> (i32, String) {
    use std::ffi::{CStr, c_char, c_int};
    let path = project().join("target/kernels/stand-in/libcublasLt.so.13");
    // SAFETY: built from this tree by the script; the functions have these types, and nothing is called after it is closed.
    unsafe {
        let library = libloading::Library::new(path).unwrap();
        let multiplied = library.get::<unsafe extern "C" fn() -> c_int>(b"stand_in_multiplied\0").unwrap();
        let complaint = library.get::<unsafe extern "C" fn() -> *const c_char>(b"stand_in_complaint\0").unwrap();
        (multiplied(), CStr::from_ptr(complaint()).to_string_lossy().into_owned())
    }
}

/// Nothing here compares rows of different steps: what a library gives for a row may depend on the others.
fn check_with_cublaslt(name: &str, is_moe: bool) {
    let Some((device, is_stand_in)) = with_cublaslt() else { return };
    check_rounded(name, &device, KvDtype::Bf16, is_moe);
    if is_stand_in {
        let (multiplied, complaint) = stand_in();
        assert_eq!(complaint, "", "{name}");
        assert!(multiplied > 0, "{name}: the library multiplied nothing");
    }
}

macro_rules! with_cublaslt {
    ($test:ident, $name:literal, $is_moe:literal) => {
        mod $test {
            #[test]
            fn rounded_with_cublaslt() {
                super::check_with_cublaslt($name, $is_moe);
            }
        }
    };
}

mod library {
    use super::check_with_cublaslt;

    models!(with_cublaslt);
}

/// How far rounding of activations may carry logits, over what PyTorch's own bfloat16 run of the model shows.
pub const ALLOWED: f32 = 1.5;

fn check_rounded(name: &str, new_ops: impl Fn() -> CudaOps, dtype: KvDtype, is_moe: bool) {
    let golden = Golden::read(name);
    for case in cases(name, golden.prompts.len()) {
        let mut model = Model::load(new_ops(), name, dtype, case.max_model_len);
        for i in case.prompts {
            let logits = model.prefill(&golden.prompts[i], 48);
            check_error(name, &golden, i, &logits, is_moe, &format!("{dtype:?}"));
        }
    }
}

/// Logits of all positions of a prompt against the reference's.
pub fn check_error(name: &str, golden: &Golden, prompt: usize, logits: &[f32], is_moe: bool, how: &str) {
    let expected = &golden.logits[prompt];
    let vocab = expected.len() / golden.prompts[prompt].len();
    let error = if is_moe { median_rms(logits, expected, vocab) } else { rms(logits, expected) };
    let bound = ALLOWED * golden.bf16_error[prompt].rms;
    println!("{name}, prompt {prompt}, {how}: rms error {error}, {} of the bound", error / bound);
    assert!(error <= bound, "{name}, prompt {prompt}, {how}: rms error {error} above {bound}");
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

/// K and V in bytes, by the tiles and by the plain kernel: how far each format carries logits away from those with K and V
/// in float32, all else being equal.
#[test]
fn narrow_caches() {
    for name in ["llama-yarn-head64", "gemma2"] {
        let Some(device) = cuda(Order::Forward) else { return };
        let golden = Golden::read(name);
        let logits = |dtype: KvDtype| -> Vec<f32> {
            let mut model = Model::load(device(), name, dtype, None);
            golden.prompts[..4].iter().flat_map(|prompt| model.prefill(prompt, 48)).collect()
        };
        let wide = logits(KvDtype::F32);
        let [bf16, int8, fp8] = [KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8].map(|dtype| rms(&logits(dtype), &wide));
        println!(
            "{name}: rms of the difference to f32: bf16 {bf16}, int8 {int8}, fp8 {fp8} ({} of int8's)",
            fp8 / int8
        );
        assert!(bf16 < int8 && int8 < fp8, "{name}: bf16 {bf16}, int8 {int8}, fp8 {fp8}");
        assert!(fp8 <= FP8_OVER_INT8 * int8, "{name}: {} of int8's", fp8 / int8);
    }
}

/// FP8 has three bits behind the first one of a number, however small; int8 has as many as there are under the largest.
/// Measured on the emulator: 3.4 by the tiles, 2.8 by the plain kernel.
const FP8_OVER_INT8: f32 = 4.0;

/// More alternatives than the device finds: the host answers for the whole sequence.
const HOSTS: u8 = 33;

/// Every way of drawing, the `i`-th of them.
fn way(i: u64, top: Option<u8>) -> SampleSpec {
    let mut params = SamplingParams { seed: i, logprobs: top, ..SamplingParams::default() };
    match i % 5 {
        0 => params.temperature = 0.0,
        1 => params.top_k = 40,
        2 => (params.top_p, params.min_p) = (0.9, 0.01),
        3 => (params.repetition_penalty, params.frequency_penalty) = (1.3, 0.4),
        _ => params.logit_bias = vec![(17, 4.0), (18, -100.0)],
    }
    let history = History { prompt: Arc::new([1, 2, 3, 3]), output: vec![4, 5, 4] };
    let history = params.needs_history().then_some(history);
    SampleSpec { params: Arc::new(params), choice: 0, index: 3, history, banned: Arc::new([9]) }
}

/// Steps of sequences that draw in every way: several choices, drafts of which some are right, scored prompts, and a prompt
/// that draws nothing. `top` says how many alternatives the sequence asks for.
fn outputs(ops: CudaOps, top: impl Fn(u64) -> Option<u8>) -> Vec<Vec<SeqOutput>> {
    let golden = Golden::read(MODEL);
    let mut executor = executor_on(ops);
    let block = |seq: u64| [seq as u32];
    let prompts: Vec<SeqRows> = (0..10)
        .map(|seq| {
            let mut prompt = rows(seq, &golden.prompts[1], 0, &block(seq));
            let choice = |choice| SampleSpec { choice, ..way(seq, top(seq)) };
            prompt.samples = (0..1 + seq as u32 % 3).map(choice).collect();
            let prompt_top = top(seq).unwrap_or(3);
            prompt.prompt_logprobs = (seq % 4 == 0).then_some(PromptLogprobs { top: prompt_top, next: None });
            prompt
        })
        .collect();
    let first = executor.step(&plan(prompts)).unwrap().rows;
    let start = golden.prompts[1].len() as u32;
    let right: Vec<u32> = {
        let decode = |output: &SeqOutput| {
            let mut decode = rows(output.seq.0, &[output.sampled[0].token], start, &block(output.seq.0));
            decode.samples = vec![way(output.seq.0, None)];
            decode
        };
        let rows = executor.step(&plan(first.iter().map(decode).collect())).unwrap().rows;
        rows.iter().map(|output| output.sampled[0].token).collect()
    };
    let drafted = |(output, right): (&SeqOutput, &u32)| {
        let seq = output.seq.0;
        let wrong = (right + 1) % 320;
        let drafts = if seq % 2 == 0 { [*right, wrong, 5] } else { [wrong, *right, 5] };
        let mut drafted = rows(seq, &[output.sampled[0].token, drafts[0], drafts[1], drafts[2]], start, &block(seq));
        drafted.num_drafts = 3;
        drafted.samples = vec![way(seq, top(seq)); 4];
        drafted
    };
    let mut second: Vec<SeqRows> = first.iter().zip(&right).map(drafted).collect();
    second.insert(4, rows(77, &golden.prompts[4][..20], 0, &[30, 31]));
    let second = executor.step(&plan(second)).unwrap().rows;
    for (i, output) in second.iter().filter(|output| output.seq.0 != 77).enumerate() {
        let num_right = output.sampled.len();
        assert_eq!(output.sampled[0].token, right[i]);
        assert!(if i % 2 == 0 { num_right >= 2 } else { num_right == 1 }, "drafts are taken as far as they are right");
    }
    assert!(second[4].sampled.is_empty());
    vec![first, second]
}

#[test]
fn tokens_and_logprobs_are_the_same_found_on_the_device_and_on_the_host() {
    let Some(device) = emulated(Order::Forward) else { return };
    let on_host = outputs(device(), |_| Some(HOSTS));
    // On the device; and beside sequences that are the host's.
    let on_device =
        [outputs(device(), |_| Some(4)), outputs(device(), |seq| Some(if seq % 3 == 0 { HOSTS } else { 4 }))];
    for found in on_device.iter().flat_map(|steps| steps.iter().zip(&on_host)).flat_map(|(a, b)| a.iter().zip(b)) {
        let (device, host) = found;
        let same = |device: &TokenLogprobs, host: &TokenLogprobs| {
            let num = device.top.len().min(host.top.len());
            assert!(num >= 4);
            let numbers = |l: &TokenLogprobs| (l.token, l.logprob, l.rank, l.top[..num].to_vec());
            assert_eq!(numbers(device), numbers(host));
        };
        assert_eq!((device.seq, device.sampled.len()), (host.seq, host.sampled.len()));
        for (device, host) in device.sampled.iter().zip(&host.sampled) {
            assert_eq!(device.token, host.token);
            same(device.logprobs.as_ref().unwrap(), host.logprobs.as_ref().unwrap());
        }
        assert_eq!(device.prompt_logprobs.len(), host.prompt_logprobs.len());
        device.prompt_logprobs.iter().zip(&host.prompt_logprobs).for_each(|(device, host)| same(device, host));
    }
    // Without log-probabilities the tokens are those, too.
    let tokens = |steps: &[Vec<SeqOutput>]| -> Vec<Vec<u32>> {
        steps.iter().flatten().map(|output| output.sampled.iter().map(|s| s.token).collect()).collect()
    };
    assert_eq!(tokens(&outputs(device(), |_| None)), tokens(&on_host));
}
