//! Some columns of a matrix as a tensor of its own.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::{Bytes, Tensor};

/// The same bytes of each row. They are copied, one row after the other, when somebody reads them.
struct Columns {
    from: Tensor,
    /// Of a row, in bytes.
    range: Range<usize>,
    copied: OnceLock<Vec<u8>>,
}

impl Bytes for Columns {
    fn as_bytes(&self) -> &[u8] {
        self.copied.get_or_init(|| {
            // By one thread: a pool's thread that waited here for the others might take a task that waits for this.
            let row_bytes = self.from.dtype.row_bytes(self.from.cols());
            let mut copied = Vec::with_capacity(self.range.len() * self.from.shape[0]);
            for row in self.from.data().chunks_exact(row_bytes) {
                copied.extend_from_slice(&row[self.range.clone()]);
            }
            self.from.release();
            copied
        })
    }
}

impl Tensor {
    /// Columns of a matrix. Their bytes are copied when they are first read. Panics where that would cut a block, and where
    /// there are no such columns.
    pub fn columns(&self, columns: Range<usize>) -> Tensor {
        let [rows, cols] = self.shape[..] else { panic!("tensor {} is no matrix", self.name) };
        assert!(!columns.is_empty() && columns.end <= cols, "tensor {}", self.name);
        let range = self.dtype.row_bytes(columns.start)..self.dtype.row_bytes(columns.end);
        let (name, dtype) = (self.name.clone(), self.dtype);
        let (shape, all) = (vec![rows, columns.len()], 0..rows * range.len());
        let bytes = Arc::new(Columns { from: self.clone(), range, copied: OnceLock::new() });
        Tensor { name, dtype, shape, bytes, range: all }
    }
}
