//! The largest steps that a lane may be given, run before there is a KV cache: activations then have the memory that they
//! will ever want, and what is free can be shared out.
//!
//! Invariant: no step within the [`Limits`] asks for activation memory afterwards.

#[cfg(test)]
mod tests;

use std::sync::OnceLock;
use std::thread;

use super::CudaOps;
use super::attention::DECODE_QUERIES;
use crate::base::panics;
use crate::kv::BLOCK_TOKENS;
use crate::model::decoder::Decoder;
use crate::model::ops::{Batch, DeviceError, KvDtype, Ops, Span};
use crate::model::spec::Spec;

/// What a step holds at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub batch_tokens: usize,
    pub sequences: usize,
    /// Tokens guessed for one sequence.
    pub drafts: usize,
}

impl CudaOps {
    /// Runs the largest steps on a KV cache of their own, which is given back.
    pub fn reserve_activations(
        &mut self,
        decoder: &mut Decoder<CudaOps>,
        dtype: KvDtype,
        limits: Limits,
    ) -> Result<(), DeviceError> {
        let spec = decoder.spec().clone();
        self.allocate_kv(&spec, dtype, limits.batch_tokens.div_ceil(BLOCK_TOKENS))?;
        for batch in largest(&spec, limits) {
            decoder.start(self, &batch);
            self.finish()?;
        }
        self.kv = None;
        Ok(())
    }
}

/// [`CudaOps::reserve_activations`] on all ranks of a group at once, as each waits for the others inside of a step. The first
/// rank to fail releases the others, and is named.
pub fn reserve_on_ranks(
    ranks: &mut [(CudaOps, Decoder<CudaOps>)],
    dtype: KvDtype,
    limits: Limits,
) -> Result<(), (usize, DeviceError)> {
    let communicators: Vec<_> = ranks.iter().filter_map(|(ops, _)| ops.communicator.clone()).collect();
    let first_failure = OnceLock::new();
    let release = || communicators.iter().for_each(|communicator| communicator.abort());
    let reserve = |rank: usize, ops: &mut CudaOps, decoder: &mut Decoder<CudaOps>| {
        let outcome = panics::caught(|| ops.reserve_activations(decoder, dtype, limits))
            .unwrap_or_else(|panic| Err(DeviceError::Lost(panic.to_string())));
        if let Err(error) = outcome {
            let _ = first_failure.set((rank, error));
            release();
        }
    };
    thread::scope(|scope| {
        for (rank, (ops, decoder)) in ranks.iter_mut().enumerate() {
            let reserve = &reserve;
            scope.spawn(move || reserve(rank, ops, decoder));
        }
    });
    first_failure.into_inner().map_or(Ok(()), Err)
}

/// Every sequence is at the end of the longest context, which attention's splits are counted by, and has as many rows as
/// decode takes; a prompt fills the rest. Once all logits are wanted, as where a prompt's are scored, once all but one, for
/// which rows are gathered. Then a row of each sequence, as a graph has them.
fn largest(spec: &Spec, limits: Limits) -> [Batch; 3] {
    let Limits { batch_tokens, sequences, drafts } = limits;
    let group = spec.num_heads / spec.num_kv_heads;
    let own = (1 + drafts).min(DECODE_QUERIES / group).clamp(1, spec.max_positions);
    let sequences = sequences.clamp(1, batch_tokens);
    let mut mixed = vec![own; sequences.min(batch_tokens / own).max(1)];
    let mut left = batch_tokens.saturating_sub(own * mixed.len());
    while left > 0 {
        let rows = left.min(spec.max_positions);
        mixed.push(rows);
        left -= rows;
    }
    let mut all = at_the_end(spec.max_positions, &mixed, batch_tokens);
    all.logit_rows = (0..all.tokens.len() as u32).collect();
    let but_one = Batch { logit_rows: all.logit_rows[1..].to_vec(), ..all.clone() };
    let mut decode = at_the_end(spec.max_positions, &vec![1; sequences], batch_tokens);
    decode.logit_rows = (0..sequences as u32).collect();
    [all, but_one, decode]
}

/// Spans of so many rows each, the last at the last position. All read the same blocks, each row has a slot of its own.
fn at_the_end(max_positions: usize, spans: &[usize], num_slots: usize) -> Batch {
    let (table_blocks, kv_blocks) = (max_positions.div_ceil(BLOCK_TOKENS), num_slots.div_ceil(BLOCK_TOKENS));
    let mut batch = Batch { tables: (0..table_blocks).map(|i| (i % kv_blocks) as u32).collect(), ..Batch::default() };
    for &num_rows in spans {
        let (row_start, first) = (batch.tokens.len() as u32, (max_positions - num_rows) as u32);
        batch.positions.extend(first..max_positions as u32);
        batch.slots.extend((0..num_rows as u32).map(|i| row_start + i));
        batch.tokens.resize(batch.tokens.len() + num_rows, 0);
        batch.spans.push(Span {
            row_start,
            num_rows: num_rows as u32,
            first_position: first,
            table_start: 0,
            num_blocks: table_blocks as u32,
        });
    }
    batch
}
