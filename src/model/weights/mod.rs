//! Named tensors of a checkpoint, wherever they lie.
//!
//! Owns the bytes (memory maps or dequantised buffers) and their names. Never knows what a tensor is for.

mod bind;
mod error;
mod mapped;
mod nested;
pub mod safetensors;
#[cfg(test)]
mod tests;

pub use bind::{LayerTensors, MlpTensors, ModelTensors, NormTensors, bind};
pub use error::WeightsError;
pub use mapped::map;
pub use nested::text_part;

use std::ops::Range;
use std::sync::Arc;

/// Element types that tensors may have once loaded (quantised GGUF blocks become F32).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// Bytes that stay put for as long as any [`Tensor`] looks at them.
pub trait Bytes: Send + Sync {
    fn as_bytes(&self) -> &[u8];

    /// Nobody is going to read `range` soon: what can be had again need not stay in memory.
    fn release(&self, _range: Range<usize>) {}
}

/// A tensor: a shared view of little-endian elements, row-major. Cheap to clone.
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

impl Tensor {
    /// Panics when `range` does not hold exactly `shape` elements: callers check untrusted headers first.
    pub fn new(name: Arc<str>, dtype: Dtype, shape: Vec<usize>, bytes: Arc<dyn Bytes>, range: Range<usize>) -> Self {
        assert_eq!(shape.iter().product::<usize>() * dtype.bytes(), range.len(), "tensor {name}");
        assert!(range.end <= bytes.as_bytes().len(), "tensor {name}");
        Self { name, dtype, shape, bytes, range }
    }

    pub fn data(&self) -> &[u8] {
        &self.bytes.as_bytes()[self.range.clone()]
    }

    /// A device has taken the elements: a mapped file's pages need not stay in memory.
    pub fn release(&self) {
        self.bytes.release(self.range.clone());
    }

    /// Rows `rows` of a matrix, sharing the bytes.
    pub fn rows(&self, rows: Range<usize>) -> Tensor {
        let row_bytes = self.shape[1..].iter().product::<usize>() * self.dtype.bytes();
        assert!(rows.end <= self.shape[0], "tensor {}", self.name);
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let start = self.range.start + rows.start * row_bytes;
        let range = start..start + rows.len() * row_bytes;
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

    /// All elements as float32, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let data = self.data();
        match self.dtype {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::Bf16 => data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        }
    }

    /// The same tensor with float32 elements of its own.
    pub fn widen(&self) -> Tensor {
        let bytes: Vec<u8> = self.to_f32().iter().flat_map(|x| x.to_le_bytes()).collect();
        let range = 0..bytes.len();
        Tensor::new(self.name.clone(), Dtype::F32, self.shape.clone(), Arc::new(bytes), range)
    }
}
