//! A step's arrays on the device, brought there in one piece.

use std::sync::Arc;

use super::super::batch;
use super::device::{Address, Device};
use super::memory::Scratch;
use crate::model::ops::{Batch, DeviceError, Span};

/// Arrays begin at multiples of so many words.
const ALIGNMENT: usize = 4;
/// Of a span, as kernels read it.
const SPAN_WORDS: usize = 5;

#[derive(Default)]
pub struct CudaStep {
    memory: Scratch,
    words: Vec<u32>,
    sorted_slots: Vec<u32>,
    /// Those with the fewest rows first, so that any who want few are the first ones; of these the shortest contexts first.
    spans: Vec<Span>,
    pub num_rows: usize,
    pub num_logit_rows: usize,
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
        batch::check(batch, &mut self.sorted_slots);
        self.num_rows = batch.tokens.len();
        self.num_logit_rows = batch.logit_rows.len();
        self.spans.clone_from(&batch.spans);
        self.spans.sort_by_key(|span| (span.num_rows, span.first_position));
        self.words.clear();
        self.starts.tokens = self.append(&batch.tokens);
        self.starts.positions = self.append(&batch.positions);
        self.starts.slots = self.append(&batch.slots);
        self.starts.logit_rows = self.append(&batch.logit_rows);
        self.starts.tables = self.append(&batch.tables);
        self.starts.spans = self.append(&[]);
        for Span { row_start, num_rows, first_position, table_start, num_blocks } in &self.spans {
            self.words.extend([row_start, num_rows, first_position, table_start, num_blocks]);
        }
        let memory = self.memory.reserve(device, size_of_val(&self.words[..]))?;
        memory.write(0, &self.words)
    }

    fn append(&mut self, values: &[u32]) -> usize {
        let start = self.words.len().next_multiple_of(ALIGNMENT);
        self.words.resize(start, 0);
        self.words.extend_from_slice(values);
        start
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
