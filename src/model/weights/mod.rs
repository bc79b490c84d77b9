//! Named tensors of a checkpoint, wherever they lie.
//!
//! Owns the bytes (memory maps or buffers), what they mean, and their names. Never knows what a tensor is for.

mod bind;
pub mod blocks;
mod columns;
mod dtype;
mod error;
mod mapped;
mod nested;
pub mod safetensors;
#[cfg(test)]
mod tests;

pub use bind::{LayerTensors, MlpTensors, ModelTensors, NormTensors, bind};
pub use dtype::Dtype;
pub use error::WeightsError;
pub use mapped::map;
pub use nested::text_part;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

/// Bytes that stay put for as long as any [`Tensor`] looks at them.
pub trait Bytes: Send + Sync {
    fn as_bytes(&self) -> &[u8];

    /// Nobody is going to read `range` soon: what can be had again need not stay in memory.
    fn release(&self, _range: Range<usize>) {}
}

/// A tensor: a shared view of little-endian elements, row-major. Its rows lie along the last dimension, of whole blocks
/// where the elements are quantised. Cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    pub name: Arc<str>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    bytes: Arc<dyn Bytes>,
    range: Range<usize>,
}

/// A buffer that a loader filled itself.
impl Bytes for Vec<u8> {
    fn as_bytes(&self) -> &[u8] {
        self
    }
}

/// Elements that are worth a task of their own when many are converted.
const MIN_TASK_ELEMENTS: usize = 1 << 14;

impl Tensor {
    /// Panics when `range` does not hold exactly `shape` elements: callers check untrusted headers first.
    pub fn new(name: Arc<str>, dtype: Dtype, shape: Vec<usize>, bytes: Arc<dyn Bytes>, range: Range<usize>) -> Self {
        assert_eq!(size(dtype, &shape), range.len(), "tensor {name}");
        assert!(range.end <= bytes.as_bytes().len(), "tensor {name}");
        Self { name, dtype, shape, bytes, range }
    }

    pub fn data(&self) -> &[u8] {
        &self.bytes.as_bytes()[self.range.clone()]
    }

    pub fn num_bytes(&self) -> usize {
        self.range.len()
    }

    /// A device has taken the elements: a mapped file's pages need not stay in memory.
    pub fn release(&self) {
        self.bytes.release(self.range.clone());
    }

    /// Items `rows` along the first dimension, sharing the bytes. Panics where that would cut a block (a quantised
    /// vector has no rows to take).
    pub fn rows(&self, rows: Range<usize>) -> Tensor {
        assert!(rows.end <= self.shape[0], "tensor {}", self.name);
        let item_bytes = size(self.dtype, &self.shape[1..]);
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let start = self.range.start + rows.start * item_bytes;
        let range = start..start + rows.len() * item_bytes;
        Tensor { name: self.name.clone(), dtype: self.dtype, shape, bytes: self.bytes.clone(), range }
    }

    /// Item `i` along the first dimension, without that dimension, sharing the bytes.
    pub fn index(&self, i: usize) -> Tensor {
        let mut item = self.rows(i..i + 1);
        item.shape.remove(0);
        item
    }

    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements of a row: the last dimension.
    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Row `row` (counted over all dimensions but the last) as float32, exactly: quantised elements are what ggml's
    /// reference makes of them, bit for bit. Panics where there is no such row, or `out` has not its length.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols(), "tensor {}", self.name);
        let bytes = self.dtype.row_bytes(out.len());
        blocks::decode(self.dtype, &self.data()[row * bytes..][..bytes], out);
    }

    /// All elements as float32, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.num_elements()];
        let cols = self.cols().clamp(1, out.len().max(1));
        let rows = out.par_chunks_mut(cols).with_min_len(MIN_TASK_ELEMENTS.div_ceil(cols));
        rows.enumerate().for_each(|(row, out)| self.read_row(row, out));
        out
    }
}

/// Bytes of a tensor. Panics where its rows are no whole blocks.
fn size(dtype: Dtype, shape: &[usize]) -> usize {
    let cols = shape.last().copied().unwrap_or(1);
    assert!(cols.is_multiple_of(dtype.block_len()), "shape {shape:?} cuts {dtype} blocks");
    shape.iter().product::<usize>() / dtype.block_len() * dtype.block_bytes()
}
