//! A step's arrays on the device, brought there in one piece.

use std::sync::Arc;

use super::super::batch;
use super::attention::SPLIT_TOKENS;
use super::device::{Address, Device};
use super::graphs::Bucket;
use super::memory::Scratch;
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::{Batch, DeviceError, Span};

/// Arrays begin at multiples of so many words.
const ALIGNMENT: usize = 4;
/// Of a span, as kernels read it.
const SPAN_WORDS: usize = 5;
/// Of a row that fills up a step: nothing of it is stored.
const NO_SLOT: u32 = u32::MAX;
/// Blocks of a split's positions.
const SPLIT_BLOCKS: usize = SPLIT_TOKENS / BLOCK_TOKENS;

#[derive(Default)]
pub struct CudaStep {
    memory: Scratch,
    words: Vec<u32>,
    sorted_slots: Vec<u32>,
    /// Those with the fewest rows first, so that any who want few are the first ones; of these the shortest contexts first.
    spans: Vec<Span>,
    pub num_rows: usize,
    pub num_logit_rows: usize,
    /// Of its rows, those that a batch has; the others fill it up.
    pub num_batch_rows: usize,
    /// Splits that attention is launched for; `None`: as many as its spans see.
    pub max_splits: Option<usize>,
    starts: Starts,
}

/// Where each array begins, in words.
#[derive(Default, Clone, Copy)]
struct Starts {
    tokens: usize,
    positions: usize,
    slots: usize,
    logit_rows: usize,
    spans: usize,
    tables: usize,
}

impl CudaStep {
    pub fn set(&mut self, device: &Arc<dyn Device>, batch: &Batch) -> Result<(), DeviceError> {
        self.lay_out(batch, batch.tokens.len(), batch.logit_rows.len());
        self.max_splits = None;
        self.send(device, 0)
    }

    /// A batch of single rows, filled up: what is launched, and where arrays begin, depends on the bucket alone.
    pub fn set_filled(&mut self, device: &Arc<dyn Device>, batch: &Batch, bucket: Bucket) -> Result<(), DeviceError> {
        let Bucket { rows, splits } = bucket;
        self.lay_out(batch, rows, rows);
        self.max_splits = Some(splits);
        self.send(device, self.starts.tables + rows * splits * SPLIT_BLOCKS)
    }

    /// Rows beyond the batch's have no slot, and spans of no rows.
    fn lay_out(&mut self, batch: &Batch, num_rows: usize, num_logit_rows: usize) {
        batch::check(batch, &mut self.sorted_slots);
        self.num_batch_rows = batch.tokens.len();
        (self.num_rows, self.num_logit_rows) = (num_rows, num_logit_rows);
        self.spans.clone_from(&batch.spans);
        self.spans.sort_by_key(|span| (span.num_rows, span.first_position));
        self.words.clear();
        self.starts.tokens = self.append(&batch.tokens, num_rows, 0);
        self.starts.positions = self.append(&batch.positions, num_rows, 0);
        self.starts.slots = self.append(&batch.slots, num_rows, NO_SLOT);
        self.starts.logit_rows = self.append(&batch.logit_rows, num_logit_rows, 0);
        self.starts.spans = self.append(&[], 0, 0);
        for Span { row_start, num_rows, first_position, table_start, num_blocks } in &self.spans {
            self.words.extend([row_start, num_rows, first_position, table_start, num_blocks]);
        }
        for row in batch.tokens.len()..num_rows {
            self.words.extend([0; SPAN_WORDS]);
            // Launches are for a row of each span.
            let (row_start, num_rows) = (row as u32, 1);
            self.spans.push(Span { row_start, num_rows, first_position: 0, table_start: 0, num_blocks: 0 });
        }
        self.starts.tables = self.append(&batch.tables, batch.tables.len(), 0);
    }

    /// Brings the words to the device, where there is then room for at least so many.
    fn send(&mut self, device: &Arc<dyn Device>, num_words: usize) -> Result<(), DeviceError> {
        let memory = self.memory.reserve(device, self.words.len().max(num_words) * size_of::<u32>())?;
        memory.write(0, &self.words)
    }

    /// Says where they begin; `fill` follows them up to `count`.
    fn append(&mut self, values: &[u32], count: usize, fill: u32) -> usize {
        let start = self.words.len().next_multiple_of(ALIGNMENT);
        self.words.resize(start, 0);
        self.words.extend_from_slice(values);
        self.words.resize(start + count, fill);
        start
    }

    /// Whether it is laid out for a bucket.
    pub fn is_filled(&self) -> bool {
        self.max_splits.is_some()
    }

    fn address(&self, start: usize) -> Address {
        self.memory.address() + (start * size_of::<u32>()) as u64
    }

    pub fn tokens(&self) -> Address {
        self.address(self.starts.tokens)
    }

    pub fn positions(&self) -> Address {
        self.address(self.starts.positions)
    }

    pub fn slots(&self) -> Address {
        self.address(self.starts.slots)
    }

    pub fn logit_rows(&self) -> Address {
        self.address(self.starts.logit_rows)
    }

    pub fn tables(&self) -> Address {
        self.address(self.starts.tables)
    }

    /// Spans of at most `max_rows` rows, and the others.
    pub fn spans(&self, max_rows: usize) -> [Spans<'_>; 2] {
        let few = self.spans.partition_point(|span| span.num_rows as usize <= max_rows);
        let of = |first: usize, spans| Spans { spans, address: self.address(self.starts.spans + first * SPAN_WORDS) };
        [of(0, &self.spans[..few]), of(few, &self.spans[few..])]
    }
}

/// Some spans of a step.
#[derive(Clone, Copy)]
pub struct Spans<'a> {
    pub spans: &'a [Span],
    pub address: Address,
}

impl<'a> Spans<'a> {
    pub fn split_at(self, count: usize) -> [Spans<'a>; 2] {
        let (first, rest) = self.spans.split_at(count);
        let behind = self.address + (count * SPAN_WORDS * size_of::<u32>()) as u64;
        [Spans { spans: first, ..self }, Spans { spans: rest, address: behind }]
    }

    /// Rows of the longest, 0 where there are none.
    pub fn max_rows(&self) -> usize {
        self.spans.iter().map(|span| span.num_rows as usize).max().unwrap_or(0)
    }
}
