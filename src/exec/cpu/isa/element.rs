//! Element types of stored numbers (weights, KV) as the kernels read them.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]

use super::{MAX_WIDTH, Simd};

/// A stored number format. Its functions ask for the level's instructions and for readable bytes.
pub trait Element: Copy {
    const BYTES: usize;
    /// Whether [`Element::load_pair`] splits by even and odd places rather than into halves.
    const PAIRS_INTERLEAVED: bool;

    const IS_F32: bool = false;

    /// Reads `S::WIDTH` elements.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// Reads `2 * S::WIDTH` elements as two vectors.
    unsafe fn load_pair<S: Simd>(p: *const u8) -> (S::F, S::F);

    /// Reads `n < S::WIDTH` elements; the other lanes are zero.
    #[inline(always)]
    unsafe fn load_first<S: Simd>(p: *const u8, n: usize) -> S::F {
        let mut bytes = [0u8; 4 * MAX_WIDTH];
        std::ptr::copy_nonoverlapping(p, bytes.as_mut_ptr(), n * Self::BYTES);
        Self::load::<S>(bytes.as_ptr())
    }
}

#[derive(Clone, Copy)]
pub struct F32;
#[derive(Clone, Copy)]
pub struct F16;
#[derive(Clone, Copy)]
pub struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    const IS_F32: bool = true;
    const PAIRS_INTERLEAVED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        S::load(p.cast())
    }
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(p: *const u8) -> (S::F, S::F) {
        (S::load(p.cast()), S::load(p.add(4 * S::WIDTH).cast()))
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    const PAIRS_INTERLEAVED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        S::load_f16(p)
    }
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(p: *const u8) -> (S::F, S::F) {
        (S::load_f16(p), S::load_f16(p.add(2 * S::WIDTH)))
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    const PAIRS_INTERLEAVED: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        S::load_bf16(p)
    }
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(p: *const u8) -> (S::F, S::F) {
        S::load_bf16_pair(p)
    }
}
