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
use crate::model::ops::{Attention, DeviceError, KvDtype};

/// Threads of a block of any attention kernel.
const THREADS: u32 = 128;
/// Positions of a split, and of a tile of K and V.
pub const SPLIT_TOKENS: usize = 512;
const TILE_TOKENS: usize = 64;
/// Queries, pairs of a row and a head, of a tile of decode.
pub const DECODE_QUERIES: usize = 16;

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
        let [few, many] = self.step.spans(DECODE_QUERIES / group);
        self.decode(decode, few, records, out)?;
        self.prefill(prefill, many, out)
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
        };
        let grid = [spans.max_rows(), self.attention.num_heads, spans.spans.len()];
        let launch = Launch::new(kernel, grid).threads(THREADS).address(out.address());
        let launch = self.common(launch, spans).int(self.attention.head_dim);
        // SAFETY: the step is checked, its blocks are the cache's, and the shapes are asserted in `run`.
        unsafe { launch.start(&**self.device) }
    }

    fn prefill(&self, kernel: &'static str, spans: Spans, out: &CudaRows) -> Result<(), DeviceError> {
        let Attention { num_heads, num_kv_heads, head_dim, .. } = *self.attention;
        let queries = if head_dim == 256 { 32 } else { 64 };
        let tiles = (spans.max_rows() * (num_heads / num_kv_heads)).div_ceil(queries);
        let launch = Launch::new(kernel, [tiles, num_kv_heads, spans.spans.len()])
            .threads(THREADS)
            .shared(tile_bytes(head_dim) + queries * head_dim * 4)
            .address(out.address());
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
        let num_records = spans.spans.len() * max_rows * num_heads * max_splits;
        let [values, sums] = records.reserve(self.device, num_records, head_dim)?;
        let tiles = (max_rows * (num_heads / num_kv_heads)).div_ceil(DECODE_QUERIES);
        let launch = Launch::new(kernel, [max_splits * tiles, num_kv_heads, spans.spans.len()])
            .threads(THREADS)
            .shared(tile_bytes(head_dim))
            .address(values)
            .address(sums);
        let launch = self.common(launch, spans).int(max_rows).int(max_splits);
        // SAFETY: as in `plain`; every split of every row and head has a record.
        unsafe { launch.start(&**self.device)? };
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

    /// Splits that any of the spans sees; of single rows at most, where the step says so.
    fn max_splits(&self, spans: Spans) -> usize {
        if let Some(splits) = self.step.max_splits {
            let of_window = |window: usize| (window - 1).div_ceil(SPLIT_TOKENS) + 1;
            return self.attention.window.map_or(splits, |window| splits.min(of_window(window)));
        }
        let of = |span: &crate::model::ops::Span| {
            let first_row = span.first_position as usize;
            let first = self.attention.window.map_or(0, |window| (first_row + 1).saturating_sub(window));
            let last = first_row + span.num_rows as usize - 1;
            last / SPLIT_TOKENS - first / SPLIT_TOKENS + 1
        };
        spans.spans.iter().map(of).max().unwrap_or(0)
    }
}

/// Bytes of a tile of K and one of V, and of their scales.
fn tile_bytes(head_dim: usize) -> usize {
    2 * TILE_TOKENS * (head_dim + 8) * 2 + 2 * TILE_TOKENS * 4
}

/// What decode leaves of each split, before they are merged.
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
