//! Named tensors of a checkpoint, wherever they lie.
//!
//! Owns the bytes (memory maps or dequantised buffers) and their names. Never knows what a tensor is for.

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
}
