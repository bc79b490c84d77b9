//! Reference logits that transformers computed (tests/fixtures/models), against the decoder.

mod harness;
mod naive;

use garrick::model::ops::{KvDtype, Ops};
use harness::{Golden, Model, max_difference, median_rms, rms};
use naive::Naive;

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

fn check_bf16<O: Ops>(name: &str, new_ops: impl Fn() -> O, is_moe: bool) {
    let golden = Golden::read(name);
    for case in cases(name, golden.prompts.len()) {
        let mut model = Model::load(new_ops(), name, KvDtype::Bf16, case.max_model_len);
        for i in case.prompts {
            let (prompt, expected) = (&golden.prompts[i], &golden.logits[i]);
            let logits = model.prefill(prompt, 16);
            let error = if is_moe { median_rms(&logits, expected, model.vocab) } else { rms(&logits, expected) };
            let bound = golden.bf16_error[i].rms;
            assert!(error <= bound, "{name}, prompt {i}: rms error {error} above {bound}");
            assert!(error > 0.0, "{name}, prompt {i}: the cache cannot have been bf16");
        }
    }
}

macro_rules! goldens {
    ($($test:ident: $name:literal, moe: $moe:literal;)*) => {$(
        mod $test {
            use super::*;

            #[test]
            fn naive_f32() {
                check_f32($name, Naive::new, &[usize::MAX, 5]);
            }

            #[test]
            fn naive_bf16() {
                check_bf16($name, Naive::new, $moe);
            }
        }
    )*};
}

goldens! {
    gemma2: "gemma2", moe: false;
    gemma3: "gemma3", moe: false;
    granite: "granite", moe: false;
    llama: "llama", moe: false;
    llama_biased: "llama-biased", moe: false;
    llama_head80_gqa8: "llama-head80-gqa8", moe: false;
    llama_linear_rope: "llama-linear-rope-old-style", moe: false;
    llama_yarn: "llama-yarn-head64", moe: false;
    llama3_scaled_rope_tied: "llama3-scaled-rope-tied", moe: false;
    mistral_window: "mistral-window", moe: false;
    mixtral: "mixtral", moe: true;
    olmo2: "olmo2", moe: false;
    phi3: "phi3", moe: false;
    phi3_longrope: "phi3-longrope", moe: false;
    qwen2_old_style: "qwen2-head128-old-style", moe: false;
    qwen2_tied: "qwen2-tied", moe: false;
    qwen3: "qwen3", moe: false;
    qwen3_moe: "qwen3-moe", moe: true;
    qwen3_moe_no_renorm: "qwen3-moe-no-renorm", moe: true;
    smollm3_nope: "smollm3-nope", moe: false;
}
