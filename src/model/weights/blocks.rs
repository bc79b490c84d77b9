//! What the bytes of a row mean: plain elements, and ggml's quantised blocks (its `ggml-common.h` and
//! `ggml-quants.c` are the published layouts and formulas).
//!
//! All arithmetic is in float32, in the order of the formulas, so the values are bit for bit those of ggml's
//! reference. `low` and `high` are the halves of a byte; all numbers of several bytes are little-endian.

use half::{bf16, f16};

use super::Dtype;

/// Elements of a block of the older formats.
const BLOCK: usize = 32;
/// Elements of a super-block of the K formats: eight blocks of 32, or sixteen of 16, with scales of their own.
const SUPER_BLOCK: usize = 256;

/// The elements of whole blocks as float32. Panics where `out` has not their number.
pub(super) fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), dtype.row_bytes(out.len()), "a row of {} {dtype} elements", out.len());
    match dtype {
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::Q8_0 => blocks(bytes, out, q8_0),
        Dtype::Q4_0 => blocks(bytes, out, q4_0),
        Dtype::Q4_1 => blocks(bytes, out, q4_1),
        Dtype::Q5_0 => blocks(bytes, out, q5_0),
        Dtype::Q5_1 => blocks(bytes, out, q5_1),
        Dtype::Q4K => blocks(bytes, out, q4_k),
        Dtype::Q5K => blocks(bytes, out, q5_k),
        Dtype::Q6K => blocks(bytes, out, q6_k),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    bytes.as_chunks().0.iter().zip(out).for_each(|(bytes, x)| *x = read(*bytes));
}

fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0).for_each(|(bytes, x)| read(bytes, x));
}

/// `d: f16, q: [i8; 32]`: `x[i] = d * q[i]`.
fn q8_0(block: &[u8; 34], out: &mut [f32; BLOCK]) {
    let d = half_at(block, 0);
    for (x, &q) in out.iter_mut().zip(&block[2..]) {
        *x = d * f32::from(q as i8);
    }
}

/// `d: f16, q: [u8; 16]`: `x[i] = d * (low(q[i]) - 8)`, `x[i + 16] = d * (high(q[i]) - 8)`.
fn q4_0(block: &[u8; 18], out: &mut [f32; BLOCK]) {
    let d = half_at(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = d * (f32::from(q & 15) - 8.0);
        out[i + BLOCK / 2] = d * (f32::from(q >> 4) - 8.0);
    }
}

/// `d: f16, m: f16, q: [u8; 16]`: `x[i] = d * low(q[i]) + m`, `x[i + 16] = d * high(q[i]) + m`.
fn q4_1(block: &[u8; 20], out: &mut [f32; BLOCK]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + BLOCK / 2] = d * f32::from(q >> 4) + m;
    }
}

/// `d: f16, h: u32, q: [u8; 16]`: as [`q4_0`] with bit `i` of `h` as the fifth bit of element `i`, less 16.
fn q5_0(block: &[u8; 22], out: &mut [f32; BLOCK]) {
    let d = half_at(block, 0);
    let q = five_bits(&block[2..]);
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * (f32::from(q(i)) - 16.0);
    }
}

/// `d: f16, m: f16, h: u32, q: [u8; 16]`: as [`q4_1`] with bit `i` of `h` as the fifth bit of element `i`.
fn q5_1(block: &[u8; 24], out: &mut [f32; BLOCK]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let q = five_bits(&block[4..]);
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(q(i)) + m;
    }
}

/// Element `i` of `h: [u8; 4], q: [u8; 16]`.
fn five_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let (high, low) = bytes.split_at(4);
    move |i| (low[i % 16] >> (i / 16 * 4)) & 15 | (high[i / 8] >> (i % 8) & 1) << 4
}

/// `d: f16, m: f16, scales: [u8; 12], q: [u8; 128]`: eight blocks of 32 with a scale and a minimum of six bits each
/// ([`scale_and_min`]); every 32 bytes of `q` hold two blocks, one in the low halves, one in the high ones.
/// `x = (d * scale) * q - (m * min)`.
fn q4_k(block: &[u8; 144], out: &mut [f32; SUPER_BLOCK]) {
    let ranges = ranges(block);
    for (pair, q) in block[16..].chunks_exact(32).enumerate() {
        for (half, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (scale, min) = ranges(half);
            for (x, q) in out[32 * half..][..32].iter_mut().zip(q) {
                *x = scale * f32::from((q >> shift) & 15) - min;
            }
        }
    }
}

/// As [`q4_k`], with a fifth bit for every element between scales and `q`: `h: [u8; 32]`, whose bit `b` of byte `i`
/// belongs to element `i` of block `b`.
fn q5_k(block: &[u8; 176], out: &mut [f32; SUPER_BLOCK]) {
    let ranges = ranges(block);
    let high = &block[16..48];
    for (pair, q) in block[48..].chunks_exact(32).enumerate() {
        for (half, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (scale, min) = ranges(half);
            for ((x, q), h) in out[32 * half..][..32].iter_mut().zip(q).zip(high) {
                let q = (q >> shift) & 15 | (h >> half & 1) << 4;
                *x = scale * f32::from(q) - min;
            }
        }
    }
}

/// `low: [u8; 128], high: [u8; 64], scales: [i8; 16], d: f16`: sixteen blocks of 16 in two halves of 128 elements.
/// In a half, element `32 * k + i` has its low four bits in byte `i + 32 * (k % 2)` (its high half for `k` of 2 and 3)
/// and its upper two at bit `2 * k` of byte `i`. `x = (d * scale) * (q - 32)`.
fn q6_k(block: &[u8; 210], out: &mut [f32; SUPER_BLOCK]) {
    let d = half_at(block, 208);
    for half in 0..2 {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales = &block[192 + 8 * half..][..8];
        for (k, out) in out[128 * half..][..128].chunks_exact_mut(32).enumerate() {
            for (i, x) in out.iter_mut().enumerate() {
                let q = (low[i + 32 * (k % 2)] >> (4 * (k / 2))) & 15 | (high[i] >> (2 * k) & 3) << 4;
                let scale = f32::from(scales[2 * k + i / 16] as i8);
                *x = d * scale * (f32::from(q) - 32.0);
            }
        }
    }
}

/// Scale and minimum of each of the eight blocks of a Q4_K or Q5_K super-block.
fn ranges(block: &[u8]) -> impl Fn(usize) -> (f32, f32) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    move |i| {
        let (scale, min) = scale_and_min(block, i);
        (d * f32::from(scale), m * f32::from(min))
    }
}

/// The six-bit scale and minimum of block `i` of a Q4_K or Q5_K super-block, from its bytes 4 to 15. The first four scales
/// are the low six bits of the first four bytes, the minima those of the next four. The others have their low four bits in
/// the halves of the last four bytes and the upper two on top of the first eight.
pub fn scale_and_min(block: &[u8], i: usize) -> (u8, u8) {
    let packed = &block[4..16];
    match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => (packed[i + 4] & 15 | (packed[i - 4] >> 6) << 4, packed[i + 4] >> 4 | (packed[i] >> 6) << 4),
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
