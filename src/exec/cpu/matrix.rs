//! Weight matrices in memory.
//!
//! Owns their layout: today rows of the checkpoint's own bytes, memory-mapped and never copied, so that stacked
//! parts (q, k, v; gate, up) are a list of row ranges. Never knows what a matrix is for. Everything that reads
//! weights asks here where a row lies; a repacked layout changes this file and the kernels in `gemm`.

use std::sync::Arc;

use crate::model::weights::{Dtype, Tensor};

/// `[out, in]`, shared: a clone refers to the same bytes, also in another executor.
#[derive(Clone)]
pub struct CpuMatrix(Arc<Stacked>);

struct Stacked {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    parts: Vec<Part>,
}

struct Part {
    first_row: usize,
    data: *const u8,
    /// Keeps `data` where it is.
    _tensor: Tensor,
}

// SAFETY: the pointers refer to bytes that their tensors keep in place and that nobody writes.
unsafe impl Send for Stacked {}
// SAFETY: as above.
unsafe impl Sync for Stacked {}

impl CpuMatrix {
    /// Stacks `parts` by rows. Panics where they are no matrices of one width and dtype (the decoder checks the
    /// shapes of the checkpoint first).
    pub fn new(parts: &[Tensor]) -> CpuMatrix {
        let first = parts.first().expect("a matrix has at least one part");
        let (dtype, cols) = (first.dtype, first.shape.last().copied().unwrap_or(0));
        let mut rows = 0;
        let mut stacked = Vec::with_capacity(parts.len());
        for tensor in parts {
            assert_eq!(tensor.shape.len(), 2, "{} is no matrix: shape {:?}", tensor.name, tensor.shape);
            assert_eq!(tensor.shape[1], cols, "{} and {} differ in width", tensor.name, first.name);
            assert_eq!(tensor.dtype, dtype, "{} and {} differ in dtype", tensor.name, first.name);
            stacked.push(Part { first_row: rows, data: tensor.data().as_ptr(), _tensor: tensor.clone() });
            rows += tensor.shape[0];
        }
        CpuMatrix(Arc::new(Stacked { dtype, rows, cols, parts: stacked }))
    }

    pub fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.0.cols
    }

    /// The first of `cols` elements of row `row`, in `dtype`, unaligned.
    #[inline]
    pub fn row(&self, row: usize) -> *const u8 {
        assert!(row < self.0.rows, "row {row} of a matrix with {} rows", self.0.rows);
        let part = self.0.parts.iter().rfind(|part| part.first_row <= row).expect("the first part starts at row 0");
        // SAFETY: the row lies inside the part, whose tensor holds `shape` elements.
        unsafe { part.data.add((row - part.first_row) * self.0.cols * self.0.dtype.bytes()) }
    }
}
