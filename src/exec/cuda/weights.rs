//! Weights on the device: matrices in bfloat16 or quantised, vectors and rotary tables in float32.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::device::{Address, Device};
use super::fp8;
use super::memory::Buffer;
use super::quant::{Packing, Records};
use super::rows::Element;
use crate::exec::format::Format;
use crate::model::ops::{DeviceError, Role};
use crate::model::spec::RopeSpec;
use crate::model::weights::{Dtype, Tensor};

/// Values that are rounded or packed, and copied, at a time.
const MAX_PIECE_VALUES: usize = 4 << 20;

/// `[rows, cols]`, in sections of neighbouring rows: a file may hold q in one format and v in another. A matrix of bfloat16
/// is one section.
pub struct CudaMatrix {
    sections: Vec<Section>,
    pub rows: usize,
    pub cols: usize,
    role: Role,
}

/// Rows of one format. Without memory where loading them failed.
pub struct Section {
    memory: Option<Buffer>,
    /// `None`: bfloat16, row-major.
    pub packing: Option<Packing>,
    pub first_row: usize,
    pub rows: usize,
}

impl Section {
    pub fn address(&self) -> Address {
        self.memory.as_ref().map_or(0, Buffer::address)
    }

    /// Whether one kernel serves both, as products of the same shape.
    pub fn is_like(&self, other: &Section) -> bool {
        (self.packing, self.first_row, self.rows) == (other.packing, other.first_row, other.rows)
    }
}

/// Weights of a format, of all matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub format: Format,
    pub bytes: usize,
}

impl Stored {
    fn add(all: &mut Vec<Stored>, format: Format, bytes: usize) {
        match all.iter_mut().find(|stored| stored.format == format) {
            Some(stored) => stored.bytes += bytes,
            None => all.push(Stored { format, bytes }),
        }
    }
}

/// The format of each part, where this one was asked for; `None`: as the file has them. Where one is not quantised, all are
/// bfloat16, so that they make one product.
fn formats(asked: Option<Format>, role: Role, parts: &[Tensor]) -> Vec<Format> {
    let asked = asked.and_then(|format| format.spared(role, parts));
    let formats: Vec<Format> = parts.iter().map(|part| asked.unwrap_or(Format::of(part.dtype))).collect();
    let all_packed = formats.iter().all(|format| Packing::of(*format).is_some());
    if all_packed { formats } else { vec![Format::Bf16; parts.len()] }
}

impl CudaMatrix {
    /// See [`crate::model::ops::Ops::load_matrix`]. A piece of the tensors at a time passes through the host's memory.
    pub fn load(
        device: &Arc<dyn Device>,
        asked: Option<Format>,
        role: Role,
        parts: &[Tensor],
        stored: &mut Vec<Stored>,
    ) -> Result<CudaMatrix, DeviceError> {
        let cols = parts[0].shape[1];
        let formats = formats(asked, role, parts);
        let parts: Vec<(&Tensor, Format)> = parts.iter().zip(formats).collect();
        let (mut first_row, mut sections) = (0, Vec::new());
        for parts in parts.chunk_by(|(_, a), (_, b)| Packing::of(*a) == Packing::of(*b)) {
            let rows = parts.iter().map(|(part, _)| part.shape[0]).sum();
            let packing = Packing::of(parts[0].1);
            let row_bytes = packing.map_or(cols * size_of::<bf16>(), |packing| {
                let (groups, records) = packing.row_bytes(cols);
                groups + records
            });
            let memory = Buffer::new(device, rows * row_bytes)?;
            Loading { memory: &memory, packing, rows, cols }.write(parts)?;
            parts.iter().for_each(|(part, format)| Stored::add(stored, *format, part.shape[0] * row_bytes));
            sections.push(Section { memory: Some(memory), packing, first_row, rows });
            first_row += rows;
        }
        Ok(CudaMatrix { sections, rows: first_row, cols, role })
    }

    /// In place of one that could not be loaded.
    pub fn missing(role: Role, parts: &[Tensor]) -> CudaMatrix {
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        let section = Section { memory: None, packing: None, first_row: 0, rows };
        CudaMatrix { sections: vec![section], rows, cols: parts[0].shape[1], role }
    }

    /// In the order of their rows.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// What a product with it gives: logits, of tokens or experts, and parts of sums are not rounded.
    pub fn product(&self) -> Element {
        if self.role == Role::Projection { Element::Bf16 } else { Element::F32 }
    }
}

/// A section on its way to the device.
struct Loading<'a> {
    memory: &'a Buffer,
    packing: Option<Packing>,
    rows: usize,
    cols: usize,
}

impl Loading<'_> {
    fn write(&self, parts: &[(&Tensor, Format)]) -> Result<(), DeviceError> {
        let piece_rows = (MAX_PIECE_VALUES / self.cols.max(1)).max(1);
        let mut row = 0;
        for (part, format) in parts {
            for first in (0..part.shape[0]).step_by(piece_rows) {
                let piece = part.rows(first..part.shape[0].min(first + piece_rows));
                match self.packing {
                    None => self.write_bf16(row, &piece)?,
                    Some(packing) => self.write_packed(packing, *format, row, &piece)?,
                }
                row += piece.shape[0];
                piece.release();
            }
        }
        Ok(())
    }

    /// As the piece lies there where it is bfloat16.
    fn write_bf16(&self, row: usize, piece: &Tensor) -> Result<(), DeviceError> {
        let offset = row * self.cols * size_of::<bf16>();
        if piece.dtype == Dtype::Bf16 {
            return self.memory.write(offset, piece.data());
        }
        let rounded: Vec<bf16> = piece.to_f32().into_par_iter().map(bf16::from_f32).collect();
        self.memory.write(offset, &rounded)
    }

    fn write_packed(&self, packing: Packing, format: Format, row: usize, piece: &Tensor) -> Result<(), DeviceError> {
        let (group_bytes, record_bytes) = packing.row_bytes(self.cols);
        let rows = piece.shape[0];
        let (mut groups, mut records) = (vec![0u8; rows * group_bytes], vec![0u8; rows * record_bytes]);
        let of_rows = groups.par_chunks_mut(group_bytes.max(1)).zip(records.par_chunks_mut(record_bytes.max(1)));
        of_rows.enumerate().for_each_init(
            || vec![0.0; self.cols],
            |values, (row, (groups, records))| {
                if packing.records == Records::Row {
                    piece.read_row(row, values);
                    return fp8::put_row(values, groups, records);
                }
                format.each_group(piece, row, values, |kind, index, group| {
                    packing.put(kind, index, group, groups, records);
                });
            },
        );
        self.memory.write(row * group_bytes, &groups)?;
        self.memory.write(self.rows * group_bytes + row * record_bytes, &records)
    }
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
