//! SmolLM2-135M-Instruct, a real model, against what transformers computed from the same file in float32
//! (tests/fixtures/smollm2/golden.json): prompts, tokens, first logits, greedy continuations.
//!
//! The file is not in the repository: `scripts/fetch-smollm2.sh` fetches it. Without it these tests say so and pass,
//! except in CI, where its absence is a failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use garrick::exec::cpu::{CpuOps, CpuOptions, Isa};
use garrick::kv::BLOCK_TOKENS;
use garrick::model::TokenId;
use garrick::model::decoder::Decoder;
use garrick::model::gguf;
use garrick::model::ops::{Batch, KvDtype, Ops, Span};
use garrick::model::source::ModelSource;
use garrick::model::text::{ChatInput, ChatTemplate};
use serde::Deserialize;

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const MAX_LOGIT_DIFFERENCE: f32 = 5e-3;
const NUM_BLOCKS: usize = 16;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    messages: serde_json::Value,
    prompt: String,
    prompt_ids: Vec<TokenId>,
    ids: Vec<TokenId>,
    text: String,
    /// What stands before the first choice that was too close to call.
    sure_text: String,
    /// The eight largest logits after the prompt.
    first: BTreeMap<TokenId, f32>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2/golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The model, or `None` with a word about it where it was not fetched.
fn open() -> Option<ModelSource> {
    let path = match std::env::var_os("GARRICK_SMOLLM2") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/smollm2").join(FILE),
    };
    let path = if path.is_dir() { path.join(FILE) } else { path };
    if !path.exists() {
        let message = format!("{} is missing: run scripts/fetch-smollm2.sh", path.display());
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
        eprintln!("skipped, {message}");
        return None;
    }
    Some(gguf::open(&path, None, &mut |_, _| {}).unwrap())
}

#[test]
fn text_is_that_of_transformers() {
    let Some(source) = open() else { return };
    assert_eq!((source.name.as_str(), source.eos_tokens.as_slice()), ("SmolLM2-135M-Instruct.Q4_1", &[0, 2][..]));
    assert_eq!((source.spec.max_positions, source.spec.tied_head), (8192, true));
    let template = ChatTemplate::from_source(&source.chat).unwrap().expect("a chat template");
    for case in golden().cases {
        let input = ChatInput {
            messages: &case.messages,
            tools: None,
            add_generation_prompt: true,
            kwargs: &serde_json::Map::new(),
            bos_token: &source.chat.bos_token,
            eos_token: &source.chat.eos_token,
            now: jiff::civil::date(2025, 1, 1).at(0, 0, 0, 0),
        };
        assert_eq!(template.render(&input).unwrap(), case.prompt);
        for add_special in [false, true] {
            assert_eq!(source.tokenizer.encode(&case.prompt, add_special).unwrap(), case.prompt_ids, "{}", case.prompt);
        }
        assert_eq!(source.tokenizer.decode(&case.ids, true), case.text);
    }
}

#[test]
fn continuations_are_those_of_transformers() {
    let Some(source) = open() else { return };
    // Scalar kernels are held to the vector ones elsewhere; a whole model on them would take minutes.
    for isa in Isa::available().filter(|isa| *isa != Isa::Scalar || Isa::detect() == Isa::Scalar) {
        let ops = CpuOps::new(CpuOptions { threads: 0, isa: Some(isa), ..CpuOptions::default() }).unwrap();
        check_continuations(ops, &source, golden().cases);
    }
}

fn check_continuations<O: Ops>(mut ops: O, source: &ModelSource, cases: Vec<Case>) {
    let mut decoder = Decoder::load(&mut ops, &source.spec, &source.tensors, &mut |_, _| {}).unwrap();
    ops.allocate_kv(&source.spec, KvDtype::F32, NUM_BLOCKS).expect("memory for KV");
    for case in cases {
        let mut logits = decoder.forward(&mut ops, &rows(&case.prompt_ids, 0)).unwrap().to_vec();
        for (&token, &expected) in &case.first {
            let found = logits[token as usize];
            assert!((found - expected).abs() <= MAX_LOGIT_DIFFERENCE, "{:?}: {found}, not {expected}", case.prompt);
        }
        let mut ids = Vec::new();
        while ids.len() < case.ids.len() {
            let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as TokenId;
            ids.push(best);
            if source.eos_tokens.contains(&best) {
                break;
            }
            logits = decoder.forward(&mut ops, &rows(&[best], case.prompt_ids.len() + ids.len() - 1)).unwrap().to_vec();
        }
        let text = source.tokenizer.decode(&ids, true);
        assert!(text.starts_with(&case.sure_text), "{text:?} does not begin with {:?}", case.sure_text);
    }
}

/// Consecutive tokens of the only sequence; the logits of the last are wanted.
fn rows(tokens: &[TokenId], start: usize) -> Batch {
    let end = start + tokens.len();
    let num_blocks = end.div_ceil(BLOCK_TOKENS);
    assert!(num_blocks <= NUM_BLOCKS);
    Batch {
        tokens: tokens.to_vec(),
        positions: (start as u32..end as u32).collect(),
        slots: (start as u32..end as u32).collect(),
        spans: vec![Span {
            row_start: 0,
            num_rows: tokens.len() as u32,
            first_position: start as u32,
            table_start: 0,
            num_blocks: num_blocks as u32,
        }],
        tables: (0..num_blocks as u32).collect(),
        logit_rows: vec![tokens.len() as u32 - 1],
    }
}
