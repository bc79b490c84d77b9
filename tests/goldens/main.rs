//! Reference logits that transformers computed (tests/fixtures/models), against the decoder.

/// Calls a macro for each golden model: a module's name, the folder's, and whether it is a mixture of experts.
macro_rules! models {
    ($check:ident) => {
        $check!(gemma2, "gemma2", false);
        $check!(gemma3, "gemma3", false);
        $check!(granite, "granite", false);
        $check!(llama, "llama", false);
        $check!(llama_biased, "llama-biased", false);
        $check!(llama_head80_gqa8, "llama-head80-gqa8", false);
        $check!(llama_linear_rope, "llama-linear-rope-old-style", false);
        $check!(llama_yarn, "llama-yarn-head64", false);
        $check!(llama3_scaled_rope_tied, "llama3-scaled-rope-tied", false);
        $check!(mistral_window, "mistral-window", false);
        $check!(mixtral, "mixtral", true);
        $check!(olmo2, "olmo2", false);
        $check!(phi3, "phi3", false);
        $check!(phi3_longrope, "phi3-longrope", false);
        $check!(qwen2_old_style, "qwen2-head128-old-style", false);
        $check!(qwen2_tied, "qwen2-tied", false);
        $check!(qwen3, "qwen3", false);
        $check!(qwen3_moe, "qwen3-moe", true);
        $check!(qwen3_moe_no_renorm, "qwen3-moe-no-renorm", true);
        $check!(smollm3_nope, "smollm3-nope", false);
    };
}

mod cuda;
mod executor;
mod fp8;
mod harness;
mod naive;
mod parallel;
mod quantised;
mod routed;

use garrick::exec::cpu::{Compute, CpuOps, CpuOptions, Isa};
use garrick::model::ops::{KvDtype, Ops};
use harness::{Golden, Model, Rows, folder, max_difference, median_rms, rms, scattered_table};
use naive::Naive;
use routed::{Route, Routed};

const MAX_DIFFERENCE: f32 = 2e-3;
/// Past a smaller gap between the two best logits, a continuation may rightly differ.
const SURE_MARGIN: f32 = 4e-3;

/// How to run one prompt of a golden model.
struct Case {
    max_model_len: Option<usize>,
    prompts: std::ops::Range<usize>,
    /// The prompt whose continuation crosses the border between longrope's short and long factors.
    crosses_border: Option<usize>,
}

fn cases(name: &str, num_prompts: usize) -> Vec<Case> {
    if name == "phi3-longrope" {
        let short = Case { max_model_len: Some(64), prompts: 0..5, crosses_border: Some(4) };
        let long = Case { max_model_len: Some(512), prompts: 5..6, crosses_border: None };
        return vec![short, long];
    }
    vec![Case { max_model_len: None, prompts: 0..num_prompts, crosses_border: None }]
}

fn check_f32<O: Ops>(name: &str, new_ops: impl Fn() -> O, chunks: &[usize]) {
    let golden = Golden::read(name);
    for case in cases(name, golden.prompts.len()) {
        let mut model = Model::load(new_ops(), name, KvDtype::F32, case.max_model_len);
        for i in case.prompts {
            let (prompt, expected) = (&golden.prompts[i], &golden.logits[i]);
            for chunk in chunks {
                let logits = model.prefill(prompt, *chunk);
                let (difference, position) = max_difference(&logits, expected, model.vocab);
                assert!(
                    difference <= MAX_DIFFERENCE,
                    "{name}, prompt {i}, chunks of {chunk}: {difference} at position {position}"
                );
            }
            if case.crosses_border == Some(i) {
                continue;
            }
            let logits = model.prefill(prompt, prompt.len());
            let last = &logits[logits.len() - model.vocab..];
            let tokens = model.continue_greedily(prompt.len(), last, golden.greedy[i].len());
            let sure = golden.margins[i].iter().take_while(|margin| **margin >= SURE_MARGIN).count();
            assert_eq!(tokens[..sure], golden.greedy[i][..sure], "{name}, continuation of prompt {i}");
        }
    }
}

/// With bf16 K and V, rounding may turn a near-tie between two experts, and everything after it follows: there, the
/// median position is judged. In this prompt the tie falls on position 6 of 64, in the first layer, so that most
/// positions come after; [`check_forced`] shows that nothing but that tie is behind the difference.
const EARLY_TIE: (&str, usize) = ("mixtral", 4);

fn check_bf16<O: Ops>(name: &str, new_ops: impl Fn() -> O, is_moe: bool) {
    let golden = Golden::read(name);
    for case in cases(name, golden.prompts.len()) {
        let mut model = Model::load(new_ops(), name, KvDtype::Bf16, case.max_model_len);
        for i in case.prompts {
            let (prompt, expected) = (&golden.prompts[i], &golden.logits[i]);
            let logits = model.prefill(prompt, 16);
            let error = if is_moe { median_rms(&logits, expected, model.vocab) } else { rms(&logits, expected) };
            let bound = golden.bf16_error[i].rms;
            assert!(error <= bound || EARLY_TIE == (name, i), "{name}, prompt {i}: rms error {error} above {bound}");
            assert!(error > 0.0, "{name}, prompt {i}: the cache cannot have been bf16");
        }
    }
}

/// Activations rounded too. What is rounded differs from PyTorch's run, so that one prompt may come out worse and the next
/// better: all of them together are judged.
fn check_bf16_compute<O: Ops>(name: &str, new_ops: impl Fn() -> O) {
    let golden = Golden::read(name);
    let (mut squares, mut allowed) = (0.0, 0.0);
    for case in cases(name, golden.prompts.len()) {
        let mut model = Model::load(new_ops(), name, KvDtype::Bf16, case.max_model_len);
        for i in case.prompts.filter(|i| EARLY_TIE != (name, *i)) {
            let error = rms(&model.prefill(&golden.prompts[i], 16), &golden.logits[i]);
            let num_logits = golden.logits[i].len() as f32;
            squares += error.powi(2) * num_logits;
            allowed += golden.bf16_error[i].rms.powi(2) * num_logits;
        }
    }
    assert!(squares <= allowed, "{name}: {} times the rms error of PyTorch's bfloat16", (squares / allowed).sqrt());
}

/// Mixture of experts with bf16 K and V, and the experts that the float32 run chose.
fn check_forced<O: Ops>(name: &str, new_ops: impl Fn() -> O) {
    let golden = Golden::read(name);
    let mut reference = Model::load(Routed::new(new_ops(), None), name, KvDtype::F32, None);
    let mut model = Model::load(Routed::new(new_ops(), None), name, KvDtype::Bf16, None);
    for (i, prompt) in golden.prompts.iter().enumerate() {
        let expected = &golden.logits[i];
        reference.ops.restart(None);
        reference.prefill(prompt, 1);
        let routes = reference.ops.chosen.clone();
        // Forcing what would be chosen anyway changes nothing: the wrapper computes what the device does.
        reference.ops.restart(Some(routes.clone()));
        let (difference, position) = max_difference(&reference.prefill(prompt, 1), expected, reference.vocab);
        assert!(difference <= MAX_DIFFERENCE, "{name}, prompt {i}: {difference} at position {position}");

        model.ops.restart(Some(routes.clone()));
        let error = rms(&model.prefill(prompt, 1), expected);
        let bound = golden.bf16_error[i].rms;
        assert!(error <= bound, "{name}, prompt {i}: rms error {error} above {bound} with forced routing");

        if EARLY_TIE == (name, i) {
            model.ops.restart(None);
            model.prefill(prompt, 1);
            let differs = |(a, b): (&Route, &Route)| a.experts != b.experts;
            let first = routes.iter().zip(&model.ops.chosen).position(differs).expect("an expert chosen differently");
            assert_eq!(first, 6 * model.decoder.spec().layers.len(), "position 6, first layer");
            assert!(routes[first].margin < 0.01, "not a tie: {}", routes[first].margin);
        }
    }
}

/// Sequences of different lengths in one batch, prompt chunks beside decodes, are to the bit what each is alone; and so
/// is the last row of one where no other is asked for.
fn check_batched<O: Ops>(name: &str, new_ops: impl Fn() -> O) {
    let golden = Golden::read(name);
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        let mut together = Model::load(new_ops(), name, dtype, None);
        let mut alone = Model::load(new_ops(), name, dtype, None);
        let tables: Vec<Vec<u32>> = scattered_table().chunks(10).map(<[u32]>::to_vec).collect();
        // The first `split` tokens of each prompt in one step, the rest (or up to 20 of it) in another.
        let splits = [1, 3, 16, 16, 63, 130];
        for step in 0..2 {
            let rows = |i: usize| {
                let prompt = &golden.prompts[i];
                let split = splits[i];
                let (start, end) = if step == 0 { (0, split) } else { (split, prompt.len().min(split + 20)) };
                Rows { tokens: &prompt[start..end], start, table: &tables[i] }
            };
            let sequences: Vec<Rows> = (0..splits.len()).map(rows).filter(|rows| !rows.tokens.is_empty()).collect();
            let logits = together.step(&sequences);
            let mut rest = &logits[..];
            for sequence in &sequences {
                let (own, after) = rest.split_at(sequence.tokens.len() * together.vocab);
                rest = after;
                let expected = alone.step(std::slice::from_ref(sequence));
                let is_same = own.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(is_same, "{name}, {dtype:?}: {} rows from {}", sequence.tokens.len(), sequence.start);
                let last = alone.wanted(sequence, &[sequence.tokens.len() as u32 - 1]);
                let is_same = last.iter().zip(&own[own.len() - last.len()..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(is_same && last.len() == alone.vocab, "{name}, {dtype:?}: the last row of {}", sequence.start);
            }
        }
    }
}

/// The CPU device with each instruction set that this machine has; with two threads where it has the best.
fn cpus(compute: Compute) -> Vec<impl Fn() -> CpuOps> {
    let threads = |isa| if isa == Isa::detect() { 2 } else { 1 };
    let new = |isa| {
        let options = CpuOptions { threads: threads(isa), isa: Some(isa), compute, ..CpuOptions::default() };
        move || CpuOps::new(options).unwrap()
    };
    Isa::available().map(new).collect()
}

/// The contract of `Ops`, followed to the letter, gives the reference's logits.
#[test]
fn naive() {
    for entry in std::fs::read_dir(folder("")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check_f32(path.file_name().unwrap().to_str().unwrap(), Naive::new, &[usize::MAX]);
        }
    }
}

/// The tests below name the models, so that each passes or fails by itself.
#[test]
fn every_model_has_its_tests() {
    let source = include_str!("main.rs");
    for entry in std::fs::read_dir(folder("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || source.contains(&format!(", \"{name}\", ")), "{name} is not tested");
    }
}

/// Every check of one golden model on the CPU.
macro_rules! on_cpu {
    ($test:ident, $name:literal, $is_moe:literal) => {
        mod $test {
            use super::*;

            #[test]
            fn f32() {
                for device in cpus(Compute::F32) {
                    check_f32($name, device, &[usize::MAX, 16, 5, 1]);
                }
            }

            #[test]
            fn bf16() {
                for device in cpus(Compute::F32) {
                    check_bf16($name, &device, $is_moe);
                    if $is_moe {
                        check_forced($name, &device);
                    }
                }
            }

            /// Activations rounded too, where the machine multiplies bfloat16.
            #[test]
            fn bf16_compute() {
                for device in cpus(Compute::Bf16) {
                    check_bf16_compute($name, device);
                }
            }

            #[test]
            fn batched() {
                for device in cpus(Compute::F32) {
                    check_batched($name, device);
                }
            }
        }
    };
}

mod cpu {
    use super::*;

    models!(on_cpu);
}
