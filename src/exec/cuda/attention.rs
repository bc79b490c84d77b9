//! Which attention kernels a step takes.
//!
//! Spans of few rows are shared out over their context, many rows over the rows. Both give a row the same bits
//! (kernels/README.md), so the choice may depend on the batch; which of them and the plain kernel it is depends on the model
//! and the type of the cache alone.

use std::sync::Arc;

use super::device::{Address, Device};
use super::kv::CudaKv;
use super::launch::Launch;
use super::memory::Scratch;
use super::rows::{CudaRows, Element};
use super::step::{CudaStep, Spans};
use crate::model::ops::{Attention, DeviceError, KvDtype, Span};

/// Threads of a block of any attention kernel.
const THREADS: u32 = 128;
/// Positions of a split, and of a tile of K and V.
pub const SPLIT_TOKENS: usize = 512;
const TILE_TOKENS: usize = 64;
/// Queries, pairs of a row and a head, of a tile of decode.
pub const DECODE_QUERIES: usize = 16;
/// Bytes of records, beyond which spans are decoded in several launches. Each launch has records for as many splits as its
/// longest context: one long context among many short ones would otherwise take a gigabyte.
const MOST_RECORD_BYTES: usize = 64 << 20;

/// A block's shared memory, as kernels/README.md has it.
struct Shape {
    head_dim: usize,
    /// Of K and V, in bytes; of one byte with scales.
    element: usize,
}

impl Shape {
    /// A row of a tile of bfloat16.
    fn row(&self) -> usize {
        (self.head_dim + 8) * 2
    }

    fn is_large(&self) -> bool {
        self.head_dim > 128
    }

    /// `buffers` halves of tiles of K and V.
    fn ring(&self, buffers: usize) -> usize {
        match self.element {
            1 => {
                let tiles = if self.is_large() { 1 } else { 2 };
                TILE_TOKENS * (buffers * (self.head_dim + 4) + tiles * self.row() + 2 * 4)
            }
            _ => TILE_TOKENS * buffers * self.row(),
        }
    }

    fn prefill_queries(&self) -> usize {
        if self.is_large() { 32 } else { 128 }
    }

    fn prefill(&self) -> usize {
        let (buffers, totals) = if self.is_large() { (2, 2112) } else { (3, 4160) };
        self.ring(buffers) + self.prefill_queries() * self.row() + totals
    }

    fn decode(&self) -> usize {
        let (buffers, weights) = match (self.is_large(), self.element) {
            (true, 1) => (2, 2),
            (true, _) => (2, 1),
            (false, 1) => (3, 2),
            (false, _) => (4, 1),
        };
        self.ring(buffers) + DECODE_QUERIES * (self.row() + 4 * 4 + weights * (TILE_TOKENS + 8) * 2)
    }
}

/// A kernel's name by what the cache holds and the head's dimensions; `None` where only the plain one serves.
macro_rules! by_dtype_and_dim {
    ($prefix:literal, $dtype:expr, $dim:expr) => {
        match ($dtype, $dim) {
            (KvDtype::Bf16, 64) => Some(concat!($prefix, "_bf16_d64")),
            (KvDtype::Bf16, 80) => Some(concat!($prefix, "_bf16_d80")),
            (KvDtype::Bf16, 96) => Some(concat!($prefix, "_bf16_d96")),
            (KvDtype::Bf16, 128) => Some(concat!($prefix, "_bf16_d128")),
            (KvDtype::Bf16, 256) => Some(concat!($prefix, "_bf16_d256")),
            (KvDtype::Int8, 64) => Some(concat!($prefix, "_int8_d64")),
            (KvDtype::Int8, 80) => Some(concat!($prefix, "_int8_d80")),
            (KvDtype::Int8, 96) => Some(concat!($prefix, "_int8_d96")),
            (KvDtype::Int8, 128) => Some(concat!($prefix, "_int8_d128")),
            (KvDtype::Int8, 256) => Some(concat!($prefix, "_int8_d256")),
            (KvDtype::Fp8, 64) => Some(concat!($prefix, "_fp8_d64")),
            (KvDtype::Fp8, 80) => Some(concat!($prefix, "_fp8_d80")),
            (KvDtype::Fp8, 96) => Some(concat!($prefix, "_fp8_d96")),
            (KvDtype::Fp8, 128) => Some(concat!($prefix, "_fp8_d128")),
            (KvDtype::Fp8, 256) => Some(concat!($prefix, "_fp8_d256")),
            _ => None,
        }
    };
}

/// Where attention reads and what it computes.
pub struct Attend<'a> {
    pub device: &'a Arc<dyn Device>,
    pub step: &'a CudaStep,
    pub kv: &'a CudaKv,
    pub layer: usize,
    pub attention: &'a Attention,
    pub qkv: &'a CudaRows,
}

impl Attend<'_> {
    /// `out` becomes `[rows, num_heads * head_dim]`; `records` is room for decode's splits.
    pub fn run(&self, records: &mut Records, out: &mut CudaRows) -> Result<(), DeviceError> {
        let Attention { num_heads, num_kv_heads, head_dim, .. } = *self.attention;
        assert_eq!(self.qkv.width(), (num_heads + 2 * num_kv_heads) * head_dim, "width of a fused q, k, v row");
        assert_eq!(self.qkv.rows(), self.step.num_rows, "rows of the batch");
        out.reshape(self.device, self.qkv.rows(), num_heads * head_dim, Element::Bf16)?;
        let decode = by_dtype_and_dim!("attention_decode", self.kv.dtype, head_dim);
        let prefill = by_dtype_and_dim!("attention_prefill", self.kv.dtype, head_dim);
        let (Some(decode), Some(prefill)) = (decode, prefill) else {
            let [_, all] = self.step.spans(0);
            return self.plain(all, out);
        };
        let group = num_heads / num_kv_heads;
        let [mut few, many] = self.step.spans(DECODE_QUERIES / group);
        while !few.spans.is_empty() {
            let [now, later] = few.split_at(self.launch_of(few));
            self.decode(decode, now, records, out)?;
            few = later;
        }
        self.prefill(prefill, many, records, out)
    }

    fn shape(&self) -> Shape {
        let element = if matches!(self.kv.dtype, KvDtype::Int8 | KvDtype::Fp8) { 1 } else { 2 };
        Shape { head_dim: self.attention.head_dim, element }
    }

    /// The parameters that all kernels have, from `qkv` on.
    fn common(&self, launch: Launch, spans: Spans) -> Launch {
        let Attention { num_heads, num_kv_heads, scale, softcap, window, .. } = *self.attention;
        let [k, v, k_scales, v_scales] = self.kv.addresses(self.layer);
        launch
            .address(self.qkv.address())
            .address(k)
            .address(v)
            .address(k_scales)
            .address(v_scales)
            .address(spans.address)
            .address(self.step.tables())
            .float(scale)
            .float(softcap.unwrap_or(0.0))
            .int(window.unwrap_or(0))
            .int(num_heads)
            .int(num_kv_heads)
    }

    fn plain(&self, spans: Spans, out: &CudaRows) -> Result<(), DeviceError> {
        let kernel = match self.kv.dtype {
            KvDtype::F32 => "attention_plain_f32",
            KvDtype::Bf16 => "attention_plain_bf16",
            KvDtype::Int8 => "attention_plain_int8",
            KvDtype::Fp8 => "attention_plain_fp8",
        };
        let grid = [spans.max_rows(), self.attention.num_heads, spans.spans.len()];
        let launch = Launch::new(kernel, grid).threads(THREADS).address(out.address());
        let launch = self.common(launch, spans).int(self.attention.head_dim);
        // SAFETY: the step is checked, its blocks are the cache's, and the shapes are asserted in `run`.
        unsafe { launch.start(&**self.device) }
    }

    fn prefill(
        &self,
        kernel: &'static str,
        spans: Spans,
        records: &mut Records,
        out: &CudaRows,
    ) -> Result<(), DeviceError> {
        let Attention { num_heads, num_kv_heads, .. } = *self.attention;
        let shape = self.shape();
        let tiles = (spans.max_rows() * (num_heads / num_kv_heads)).div_ceil(shape.prefill_queries());
        // Only rows with several splits before their end leave any.
        let totals = if self.max_splits(spans) > 1 { out.count() } else { 0 };
        let totals = records.values.reserve(self.device, totals * 4)?.address();
        let launch = Launch::new(kernel, [tiles, num_kv_heads, spans.spans.len()])
            .threads(THREADS)
            .shared(shape.prefill())
            .address(out.address())
            .address(totals);
        // SAFETY: as in `plain`.
        unsafe { self.common(launch, spans).start(&**self.device) }
    }

    fn decode(
        &self,
        kernel: &'static str,
        spans: Spans,
        records: &mut Records,
        out: &CudaRows,
    ) -> Result<(), DeviceError> {
        let Attention { num_heads, num_kv_heads, head_dim, window, .. } = *self.attention;
        let (max_rows, max_splits) = (spans.max_rows(), self.max_splits(spans));
        // A row's only split needs no record.
        let num_records = if max_splits > 1 { spans.spans.len() * max_rows * num_heads * max_splits } else { 0 };
        let [values, sums] = records.reserve(self.device, num_records, head_dim)?;
        let tiles = (max_rows * (num_heads / num_kv_heads)).div_ceil(DECODE_QUERIES);
        let launch = Launch::new(kernel, [max_splits * tiles, num_kv_heads, spans.spans.len()])
            .threads(THREADS)
            .shared(self.shape().decode())
            .address(out.address())
            .address(values)
            .address(sums);
        let launch = self.common(launch, spans).int(max_rows).int(max_splits);
        // SAFETY: as in `plain`; every split of every row and head has a record.
        unsafe { launch.start(&**self.device)? };
        if max_splits == 1 {
            return Ok(());
        }
        let merge = Launch::new("attention_merge", [num_heads, max_rows, spans.spans.len()])
            .threads(THREADS)
            .address(out.address())
            .address(values)
            .address(sums)
            .address(spans.address)
            .int(window.unwrap_or(0))
            .int(num_heads)
            .int(head_dim)
            .int(max_rows)
            .int(max_splits);
        // SAFETY: as above.
        unsafe { merge.start(&**self.device) }
    }

    /// How many of the first spans one launch decodes; nothing but their number counts, where the step says how many splits
    /// there are.
    fn launch_of(&self, spans: Spans) -> usize {
        if !self.step.is_filled() {
            return launch_of(self.attention, spans.spans);
        }
        let splits = self.max_splits(spans);
        let fit = MOST_RECORD_BYTES / (self.attention.num_heads * splits * record_bytes(self.attention));
        if splits == 1 { spans.spans.len() } else { fit.clamp(1, spans.spans.len()) }
    }

    /// Splits that any of the spans sees; of single rows at most, where the step says so.
    fn max_splits(&self, spans: Spans) -> usize {
        if let Some(splits) = self.step.max_splits {
            let of_window = |window: usize| (window - 1).div_ceil(SPLIT_TOKENS) + 1;
            return self.attention.window.map_or(splits, |window| splits.min(of_window(window)));
        }
        spans.spans.iter().map(|span| splits(self.attention, span)).max().unwrap_or(0)
    }
}

/// How many of the first spans one launch decodes: one, or as many as have room for their records.
fn launch_of(attention: &Attention, spans: &[Span]) -> usize {
    let (mut rows, mut most) = (0, 0);
    let fits = |(count, span): (usize, &Span)| {
        rows = rows.max(span.num_rows as usize);
        most = most.max(splits(attention, span));
        let records = (count + 1) * rows * attention.num_heads * most;
        count == 0 || most == 1 || records * record_bytes(attention) <= MOST_RECORD_BYTES
    };
    spans.iter().enumerate().map(fits).take_while(|fits| *fits).count()
}

/// Of a head's values, and their base and sum.
fn record_bytes(attention: &Attention) -> usize {
    (attention.head_dim + 2) * size_of::<f32>()
}

/// Splits that a span sees.
fn splits(attention: &Attention, span: &Span) -> usize {
    let first_row = span.first_position as usize;
    let first = attention.window.map_or(0, |window| (first_row + 1).saturating_sub(window));
    let last = first_row + span.num_rows as usize - 1;
    last / SPLIT_TOKENS - first / SPLIT_TOKENS + 1
}

/// What decode leaves of each split, before they are merged; and what prefill's rows have summed up so far, which is `values`
/// again, as the two kernels run one after the other.
#[derive(Default)]
pub struct Records {
    values: Scratch,
    sums: Scratch,
}

impl Records {
    fn reserve(
        &mut self,
        device: &Arc<dyn Device>,
        count: usize,
        head_dim: usize,
    ) -> Result<[Address; 2], DeviceError> {
        let values = self.values.reserve(device, count * head_dim * 4)?.address();
        Ok([values, self.sums.reserve(device, count * 8)?.address()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_context_does_not_give_many_short_ones_its_records() {
        let attention =
            Attention { num_heads: 32, num_kv_heads: 8, head_dim: 128, scale: 1.0, softcap: None, window: None };
        let span = |context: u32| Span {
            row_start: 0,
            num_rows: 1,
            first_position: context - 1,
            table_start: 0,
            num_blocks: context.div_ceil(16),
        };
        let mut spans = vec![span(512); 255];
        assert_eq!(launch_of(&attention, &spans), 255);
        spans.push(span(131_072));
        assert_eq!(launch_of(&attention, &spans), 255);
        assert_eq!(launch_of(&attention, &spans[255..]), 1);
        // 32 heads of 256 splits of 520 bytes are 4.06 MiB: 15 spans have room in 64.
        assert_eq!(launch_of(&attention, &vec![span(131_072); 40]), 15);
        // One span has its launch, whatever it takes; a window leaves few splits.
        let wide = Attention { num_heads: 4096, ..attention };
        assert_eq!(launch_of(&wide, &spans[255..]), 1);
        let window = Attention { window: Some(512), ..attention };
        assert_eq!(launch_of(&window, &vec![span(131_072); 40]), 40);
    }
}
