//! Writes the logits of a prompt to a file: for `scripts/bench-rounding`, which compares them with others'.
//!
//! Usage: logits MODEL WEIGHTS COMPUTE KV OUTPUT, with number formats as `garrick serve` takes them and token ids, with
//! spaces between them, on standard input. OUTPUT becomes `[tokens, vocab]` in float32, little-endian.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use garrick::exec::cpu::{Compute, CpuOps, CpuOptions, Format};
use garrick::kv::BLOCK_TOKENS;
use garrick::model::decoder::Decoder;
use garrick::model::ops::{Batch, KvDtype, Ops, Span};
use garrick::model::source;

/// Tokens of a step.
const CHUNK: usize = 64;

fn weights(word: &str) -> Result<Option<Format>, String> {
    match word {
        "auto" => Ok(None),
        "f32" => Ok(Some(Format::F32)),
        "f16" => Ok(Some(Format::F16)),
        "bf16" => Ok(Some(Format::Bf16)),
        "int8" => Ok(Some(Format::Int8)),
        "int4" => Ok(Some(Format::Int4)),
        other => Err(format!("weights: {other} is none of auto, f32, f16, bf16, int8, int4")),
    }
}

fn compute(word: &str) -> Result<Compute, String> {
    match word {
        "f32" => Ok(Compute::F32),
        "bf16" => Ok(Compute::Bf16),
        "int8" => Ok(Compute::Int8),
        other => Err(format!("compute: {other} is none of f32, bf16, int8")),
    }
}

fn kv(word: &str) -> Result<KvDtype, String> {
    match word {
        "f32" => Ok(KvDtype::F32),
        "bf16" => Ok(KvDtype::Bf16),
        "int8" => Ok(KvDtype::Int8),
        other => Err(format!("kv: {other} is none of f32, bf16, int8")),
    }
}

/// Tokens from `start` on of a sequence whose blocks lie in order; every row's logits are wanted.
fn batch(tokens: &[u32], start: usize) -> Batch {
    let (start, end) = (start as u32, (start + tokens.len()) as u32);
    let num_blocks = end.div_ceil(BLOCK_TOKENS as u32);
    Batch {
        tokens: tokens.to_vec(),
        positions: (start..end).collect(),
        slots: (start..end).collect(),
        spans: vec![Span { row_start: 0, num_rows: end - start, first_position: start, table_start: 0, num_blocks }],
        tables: (0..num_blocks).collect(),
        logit_rows: (0..end - start).collect(),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds an argument of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [model, weights_word, compute_word, kv_word, output] = &arguments[..] else {
        eprintln!("usage: logits MODEL WEIGHTS COMPUTE KV OUTPUT < token ids");
        return Ok(());
    };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let tokens: Vec<u32> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;

    let source = source::open(Path::new(model), None, &mut |_, _| ())?;
    if tokens.len() > source.spec.max_positions || tokens.iter().any(|t| *t as usize >= source.spec.vocab_size) {
        return Err("more tokens than the context holds, or one outside the vocabulary".into());
    }
    let options =
        CpuOptions { weights: weights(weights_word)?, compute: compute(compute_word)?, ..CpuOptions::default() };
    let mut ops = CpuOps::new(options)?;
    let mut decoder = Decoder::load(&mut ops, &source.spec, &source.tensors, &mut |_, _| ())?;
    for stored in ops.stored() {
        eprintln!("{}, {} MiB, computed in {}", stored.format, stored.bytes >> 20, stored.compute);
    }
    ops.allocate_kv(&source.spec, kv(kv_word)?, tokens.len().div_ceil(BLOCK_TOKENS))?;
    let mut output = BufWriter::new(File::create(output)?);
    for (i, chunk) in tokens.chunks(CHUNK).enumerate() {
        let logits = decoder.forward(&mut ops, &batch(chunk, i * CHUNK))?;
        output.write_all(&logits.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    output.flush()?;
    Ok(())
}
