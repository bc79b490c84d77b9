//! Golden models from disk, and sequences fed through a decoder in every way a scheduler might.

use std::path::{Path, PathBuf};

use garrick::kv::BLOCK_TOKENS;
use garrick::model::TokenId;
use garrick::model::decoder::Decoder;
use garrick::model::ops::{Batch, KvDtype, Ops, Span};
use garrick::model::shard::Shard;
use garrick::model::source::{self, ModelSource};
use garrick::model::weights::safetensors;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Golden {
    pub prompts: Vec<Vec<TokenId>>,
    pub greedy: Vec<Vec<TokenId>>,
    pub margins: Vec<Vec<f32>>,
    pub bf16_error: Vec<Bf16Error>,
    /// Per prompt, `[positions, vocab]`.
    #[serde(skip)]
    pub logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
pub struct Bf16Error {
    pub rms: f32,
}

/// The project's folder: the environment variable `GARRICK_PROJECT` where the tests run elsewhere than they were built.
pub fn project() -> PathBuf {
    std::env::var_os("GARRICK_PROJECT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

pub fn folder(name: &str) -> PathBuf {
    project().join("tests/fixtures/models").join(name)
}

impl Golden {
    pub fn read(name: &str) -> Self {
        let folder = folder(name);
        let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let mut golden: Golden = serde_json::from_str(&text).unwrap();
        let tensors = safetensors::open_file(&folder.join("golden.safetensors")).unwrap();
        golden.logits = (0..golden.prompts.len()).map(|i| tensors[&format!("logits.{i}")].to_f32()).collect();
        golden
    }
}

/// Rows of one sequence for one step.
pub struct Rows<'a> {
    pub tokens: &'a [TokenId],
    pub start: usize,
    pub table: &'a [u32],
}

/// A batch that asks for the logits of every row.
pub fn batch(sequences: &[Rows]) -> Batch {
    let mut batch = Batch::default();
    for rows in sequences {
        let end = rows.start + rows.tokens.len();
        let table = &rows.table[..end.div_ceil(BLOCK_TOKENS)];
        batch.spans.push(Span {
            row_start: batch.tokens.len() as u32,
            num_rows: rows.tokens.len() as u32,
            first_position: rows.start as u32,
            table_start: batch.tables.len() as u32,
            num_blocks: table.len() as u32,
        });
        batch.tokens.extend(rows.tokens);
        batch.positions.extend(rows.start as u32..end as u32);
        batch.slots.extend((rows.start..end).map(|p| table[p / BLOCK_TOKENS] * 16 + (p % BLOCK_TOKENS) as u32));
        batch.tables.extend(table);
    }
    batch.logit_rows = (0..batch.tokens.len() as u32).collect();
    batch
}

/// A loaded model with a KV cache.
pub struct Model<O: Ops> {
    pub ops: O,
    pub decoder: Decoder<O>,
    pub vocab: usize,
}

pub const NUM_BLOCKS: usize = 64;

impl<O: Ops> Model<O> {
    pub fn load(ops: O, name: &str, dtype: KvDtype, max_model_len: Option<usize>) -> Self {
        Self::open(ops, &folder(name), dtype, max_model_len)
    }

    pub fn open(ops: O, path: &Path, dtype: KvDtype, max_model_len: Option<usize>) -> Self {
        Self::open_shard(ops, path, dtype, max_model_len, Shard::WHOLE)
    }

    pub fn open_shard(ops: O, path: &Path, dtype: KvDtype, max_model_len: Option<usize>, shard: Shard) -> Self {
        let source = source::open(path, max_model_len, &mut |_, _| ()).unwrap();
        Self::of_source(ops, &source, dtype, shard)
    }

    pub fn of_source(mut ops: O, source: &ModelSource, dtype: KvDtype, shard: Shard) -> Self {
        let ModelSource { spec, tensors, .. } = source;
        let mut last = (0, 1);
        let mut progress = |done, total| last = (done, total);
        let decoder = Decoder::load_shard(&mut ops, spec, tensors, shard, &mut progress).unwrap();
        assert_eq!(last.0, last.1, "the bytes of all tensors, and those that were loaded");
        ops.allocate_kv(decoder.spec(), dtype, NUM_BLOCKS).expect("memory for KV");
        Self { ops, decoder, vocab: spec.vocab_size }
    }

    pub fn step(&mut self, sequences: &[Rows]) -> Vec<f32> {
        self.decoder.forward(&mut self.ops, &batch(sequences)).expect("a step").to_vec()
    }

    /// The logits of some of a sequence's rows.
    pub fn wanted(&mut self, sequence: &Rows, rows: &[u32]) -> Vec<f32> {
        let mut batch = batch(std::slice::from_ref(sequence));
        batch.logit_rows = rows.to_vec();
        self.decoder.forward(&mut self.ops, &batch).expect("a step").to_vec()
    }

    /// Logits at every position, `chunk` tokens a step.
    pub fn prefill(&mut self, tokens: &[TokenId], chunk: usize) -> Vec<f32> {
        let table = scattered_table();
        let mut logits = Vec::with_capacity(tokens.len() * self.vocab);
        for (i, tokens) in tokens.chunks(chunk).enumerate() {
            logits.extend(self.step(&[Rows { tokens, start: i * chunk, table: &table }]));
        }
        logits
    }

    /// The greedy continuation of a prompt that [`Model::prefill`] has just run, from its last logits.
    pub fn continue_greedily(&mut self, prompt_len: usize, last: &[f32], count: usize) -> Vec<TokenId> {
        let table = scattered_table();
        let mut tokens = vec![best(last)];
        while tokens.len() < count {
            let start = prompt_len + tokens.len() - 1;
            let logits = self.step(&[Rows { tokens: &tokens[tokens.len() - 1..], start, table: &table }]);
            tokens.push(best(&logits));
        }
        tokens
    }
}

/// Blocks in no particular order, as a used pool hands them out.
pub fn scattered_table() -> Vec<u32> {
    (0..NUM_BLOCKS as u32).map(|i| (i * 37 + 11) % NUM_BLOCKS as u32).collect()
}

pub fn best(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as TokenId
}

/// Largest difference and where, as (difference, position). NaN counts as infinite.
pub fn max_difference(found: &[f32], expected: &[f32], vocab: usize) -> (f32, usize) {
    assert_eq!(found.len(), expected.len());
    let mut worst = (0.0, 0);
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let difference = if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
        if difference > worst.0 {
            worst = (difference, i / vocab);
        }
    }
    worst
}

pub fn rms(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let sum: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / found.len() as f64).sqrt() as f32
}

/// Median over positions of the rms at each.
pub fn median_rms(found: &[f32], expected: &[f32], vocab: usize) -> f32 {
    let mut each: Vec<f32> = found.chunks(vocab).zip(expected.chunks(vocab)).map(|(a, b)| rms(a, b)).collect();
    each.sort_by(f32::total_cmp);
    each[each.len() / 2]
}
