//! The tensor formats that are read, and what their blocks mean.
//!
//! A quantised row is a sequence of blocks of 32 elements; nothing crosses a row. All arithmetic is in float32, in
//! the order of the formulas, so the values are bit for bit those of ggml's reference (and of gguf-py).

use half::{bf16, f16};

use crate::model::weights::Dtype;

/// Elements of one quantised block.
const BLOCK: usize = 32;
const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// `d: f16, q: [i8; 32]`: `x[i] = d * q[i]`.
    Q8_0,
    /// `d: f16, q: [u8; 16]`: `x[i] = d * (low(q[i]) - 8)`, `x[i + 16] = d * (high(q[i]) - 8)`.
    Q4_0,
    /// `d: f16, m: f16, q: [u8; 16]`: `x[i] = d * low(q[i]) + m`, `x[i + 16] = d * high(q[i]) + m`.
    Q4_1,
}

impl Format {
    /// By the number that ggml gives it; the error says what the number is and what is supported.
    pub(super) fn from_number(number: u32) -> Result<Format, String> {
        match number {
            0 => Ok(Format::F32),
            1 => Ok(Format::F16),
            2 => Ok(Format::Q4_0),
            3 => Ok(Format::Q4_1),
            8 => Ok(Format::Q8_0),
            30 => Ok(Format::Bf16),
            _ => Err(match other_name(number) {
                Some(name) => format!("has type {name}, which is not supported; supported: {SUPPORTED}"),
                None => format!("has the unknown type {number}; supported: {SUPPORTED}"),
            }),
        }
    }

    /// What its elements are once loaded.
    pub fn dtype(self) -> Dtype {
        match self {
            Format::F16 => Dtype::F16,
            Format::Bf16 => Dtype::Bf16,
            Format::F32 | Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => Dtype::F32,
        }
    }

    pub fn is_quantised(self) -> bool {
        matches!(self, Format::Q8_0 | Format::Q4_0 | Format::Q4_1)
    }

    /// Elements and bytes of the smallest unit.
    fn block(self) -> (u64, u64) {
        match self {
            Format::F32 => (1, 4),
            Format::F16 | Format::Bf16 => (1, 2),
            Format::Q8_0 => (BLOCK as u64, 34),
            Format::Q4_0 => (BLOCK as u64, 18),
            Format::Q4_1 => (BLOCK as u64, 20),
        }
    }

    /// Bytes of a tensor of this shape (slowest dimension first).
    pub(super) fn size(self, shape: &[u64]) -> Result<u64, String> {
        let (elements, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if shape.contains(&0) || row % elements != 0 {
            return Err(format!("has shape {shape:?}; rows of {self:?} need a multiple of {elements} elements"));
        }
        let count = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let size = count.and_then(|n| (n / elements).checked_mul(bytes)).filter(|&n| n <= isize::MAX as u64 / 8);
        size.ok_or_else(|| format!("has shape {shape:?}, which is too large"))
    }

    /// Writes one row (or any whole blocks) of a quantised tensor as float32; `out` has the row's elements.
    pub(super) fn dequantise(self, row: &[u8], out: &mut [f32]) {
        match self {
            Format::Q8_0 => blocks::<34>(row, out, q8_0),
            Format::Q4_0 => blocks::<18>(row, out, q4_0),
            Format::Q4_1 => blocks::<20>(row, out, q4_1),
            Format::F32 => each::<4>(row, out, f32::from_le_bytes),
            Format::F16 => each::<2>(row, out, |b| f16::from_le_bytes(b).to_f32()),
            Format::Bf16 => each::<2>(row, out, |b| bf16::from_le_bytes(b).to_f32()),
        }
    }
}

fn each<const N: usize>(row: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    row.as_chunks().0.iter().zip(out).for_each(|(bytes, x)| *x = read(*bytes));
}

fn blocks<const N: usize>(row: &[u8], out: &mut [f32], read: impl Fn(&[u8; N], &mut [f32; BLOCK])) {
    row.as_chunks().0.iter().zip(out.as_chunks_mut().0).for_each(|(bytes, x)| read(bytes, x));
}

fn q8_0(block: &[u8; 34], out: &mut [f32; BLOCK]) {
    let d = scale(block, 0);
    for (x, &q) in out.iter_mut().zip(&block[2..]) {
        *x = d * f32::from(q as i8);
    }
}

fn q4_0(block: &[u8; 18], out: &mut [f32; BLOCK]) {
    let d = scale(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = d * (f32::from(q & 15) - 8.0);
        out[i + BLOCK / 2] = d * (f32::from(q >> 4) - 8.0);
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; BLOCK]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + BLOCK / 2] = d * f32::from(q >> 4) + m;
    }
}

fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Names of ggml's other types, so that a refusal says what the file's publisher called it.
fn other_name(number: u32) -> Option<&'static str> {
    Some(match number {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}
