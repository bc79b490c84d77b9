//! Weights on the device: matrices in bfloat16, vectors and rotary tables in float32.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::device::{Address, Device};
use super::memory::Buffer;
use super::rows::Element;
use crate::model::ops::{DeviceError, Role};
use crate::model::spec::RopeSpec;
use crate::model::weights::{Dtype, Tensor};

/// Values that are rounded and copied at a time.
const MAX_PIECE_VALUES: usize = 4 << 20;

/// `[rows, cols]` of bfloat16, row-major. Without memory where loading it failed.
pub struct CudaMatrix {
    memory: Option<Buffer>,
    pub rows: usize,
    pub cols: usize,
    role: Role,
}

impl CudaMatrix {
    /// See [`crate::model::ops::Ops::load_matrix`]. A piece of the tensors at a time passes through the host's memory.
    pub fn load(device: &Arc<dyn Device>, role: Role, parts: &[Tensor]) -> Result<CudaMatrix, DeviceError> {
        let cols = parts[0].shape[1];
        let rows: usize = parts.iter().map(|part| part.shape[0]).sum();
        let memory = Buffer::new(device, rows * cols * size_of::<bf16>())?;
        let piece_rows = (MAX_PIECE_VALUES / cols.max(1)).max(1);
        let mut offset = 0;
        for part in parts {
            for first in (0..part.shape[0]).step_by(piece_rows) {
                let piece = part.rows(first..part.shape[0].min(first + piece_rows));
                offset += write(&memory, offset, &piece)?;
                piece.release();
            }
        }
        Ok(CudaMatrix { memory: Some(memory), rows, cols, role })
    }

    /// In place of one that could not be loaded.
    pub fn missing(role: Role, parts: &[Tensor]) -> CudaMatrix {
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        CudaMatrix { memory: None, rows, cols: parts[0].shape[1], role }
    }

    pub fn address(&self) -> Address {
        self.memory.as_ref().map_or(0, Buffer::address)
    }

    /// What a product with it gives: logits, of tokens or experts, and parts of sums are not rounded.
    pub fn product(&self) -> Element {
        if self.role == Role::Projection { Element::Bf16 } else { Element::F32 }
    }
}

/// Writes a tensor as bfloat16, as it lies there where it is that; says how many bytes.
fn write(memory: &Buffer, offset: usize, piece: &Tensor) -> Result<usize, DeviceError> {
    if piece.dtype == Dtype::Bf16 {
        memory.write(offset, piece.data())?;
        return Ok(piece.data().len());
    }
    let rounded: Vec<bf16> = piece.to_f32().into_par_iter().map(bf16::from_f32).collect();
    memory.write(offset, &rounded)?;
    Ok(size_of_val(&rounded[..]))
}

/// Float32 values. Without memory where loading them failed.
pub struct CudaVector(pub Option<Buffer>);

impl CudaVector {
    pub fn address(&self) -> Address {
        self.0.as_ref().map_or(0, Buffer::address)
    }
}

/// Cos and sin, `[max_positions, rotary_dim / 2]` each.
pub struct CudaRope {
    memory: Option<[Buffer; 2]>,
    pub rotary_dim: usize,
}

impl CudaRope {
    /// Angles are float32 products, as in PyTorch, where `position * inv_freq` is rounded before cos and sin are taken.
    pub fn load(device: &Arc<dyn Device>, rope: &RopeSpec, max_positions: usize) -> Result<CudaRope, DeviceError> {
        let table = |of: fn(f64) -> f64| -> Result<Buffer, DeviceError> {
            let mut values = Vec::with_capacity(max_positions * rope.inv_freq.len());
            for position in 0..max_positions {
                let angles = rope.inv_freq.iter().map(|f| f64::from(position as f32 * f));
                values.extend(angles.map(|angle| of(angle) as f32 * rope.attention_factor));
            }
            Buffer::of(device, &values)
        };
        Ok(CudaRope { memory: Some([table(f64::cos)?, table(f64::sin)?]), rotary_dim: rope.rotary_dim })
    }

    /// In place of one that could not be loaded.
    pub fn missing(rope: &RopeSpec) -> CudaRope {
        CudaRope { memory: None, rotary_dim: rope.rotary_dim }
    }

    /// Of cos and of sin.
    pub fn addresses(&self) -> [Address; 2] {
        self.memory.as_ref().map_or([0; 2], |tables| tables.each_ref().map(Buffer::address))
    }
}
