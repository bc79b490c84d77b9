//! The largest steps that a lane may be given, run before there is a KV cache: activations then have the memory that they
//! will ever want, and what is free can be shared out.
//!
//! Invariant: no step within the [`Limits`] asks for activation memory afterwards.

use super::CudaOps;
use super::attention::DECODE_QUERIES;
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::super::device::{Device, Emulator, Order};
    use super::super::tests::emulator;
    use super::*;
    use crate::model::source;

    const LIMITS: Limits = Limits { batch_tokens: 70, sequences: 9, drafts: 3 };

    /// A model of 512 positions on the emulator, if its library is there; CI insists.
    fn load(name: &str, bytes: usize) -> Option<(Arc<Emulator>, CudaOps, Decoder<CudaOps>)> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let device = Arc::new(emulator(Order::Forward)?.with_bytes(bytes));
        let mut ops = CudaOps::new(device.clone());
        let source = source::open(&project.join("tests/fixtures/models").join(name), None, &mut |_, _| ()).unwrap();
        let decoder = Decoder::load(&mut ops, &source.spec, &source.tensors, &mut |_, _| ()).unwrap();
        Some((device, ops, decoder))
    }

    fn check(name: &str) {
        let Some((device, mut ops, mut decoder)) = load(name, 1 << 30) else { return };
        ops.reserve_activations(&mut decoder, KvDtype::Bf16, LIMITS).unwrap();
        let free = device.free_bytes().unwrap();
        let spec = decoder.spec().clone();
        let kv = ops.allocate_kv(&spec, KvDtype::Bf16, 70).unwrap();
        // Scratch for addresses of the regions, and nothing else.
        assert!(
            (kv..kv + (64 << 10)).contains(&(free - device.free_bytes().unwrap())),
            "the trial's cache was given back"
        );
        let before = device.allocations();
        for (spans, num_logits) in [
            (vec![70], 70),
            (vec![70], 1),
            (vec![4; 9], 36),
            (vec![4, 4, 1, 1, 1, 1, 1, 1, 56], 3),
            (vec![1; 9], 9),
            (vec![1; 5], 5),
            (vec![8; 8], 0),
        ] {
            let mut batch = at_the_end(spec.max_positions, &spans, 70);
            let num_rows = batch.tokens.len() as u32;
            batch.logit_rows = (num_rows - num_logits..num_rows).collect();
            for _ in 0..3 {
                decoder.forward(&mut ops, &batch).unwrap();
            }
            assert_eq!(device.allocations(), before, "{name}: {spans:?} with {num_logits} logits");
        }
    }

    #[test]
    fn no_step_asks_for_memory_afterwards() {
        check("llama-yarn-head64");
        check("mixtral");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let Some((_, mut ops, mut decoder)) = load("llama", 2 << 20) else { return };
        let limits = Limits { batch_tokens: 4096, ..LIMITS };
        let message = ops.reserve_activations(&mut decoder, KvDtype::Bf16, limits).unwrap_err().to_string();
        assert!(message.contains("MiB left"), "{message}");
    }
}
