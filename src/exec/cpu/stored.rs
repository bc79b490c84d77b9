//! What a device's weights are in memory, and what its products make of them.

use super::gemm::Compute;
use super::isa::Isa;
use super::matrix::{CpuMatrix, Format};

/// All matrices of one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub format: Format,
    pub bytes: usize,
    /// What activations are rounded to before them, whatever was asked for.
    pub compute: Compute,
}

impl Stored {
    /// Adds a matrix to those of its format.
    pub(super) fn add(all: &mut Vec<Stored>, matrix: &CpuMatrix, asked: Compute, isa: Isa) {
        for section in matrix.sections() {
            let (format, bytes) = (section.layout.format, section.layout.bytes());
            match all.iter_mut().find(|stored| stored.format == format) {
                Some(stored) => stored.bytes += bytes,
                None => all.push(Stored { format, bytes, compute: asked.rounding(isa, format) }),
            }
        }
    }

    /// What keeps these from being computed as asked, if they are not.
    pub fn obstacle(&self, asked: Compute, isa: Isa) -> Option<String> {
        match asked {
            _ if asked == self.compute => None,
            Compute::F32 => None,
            Compute::Bf16 if self.format == Format::Bf16 => Some(format!("{isa} has no bfloat16 dot product")),
            Compute::Bf16 => Some("it is for bf16 weights, which engine.weights=bf16 makes".into()),
            Compute::Int8 => Some("it is for quantised weights, which engine.weights=int8 makes".into()),
        }
    }
}
