//! Element types of stored numbers (weights, KV) as the kernels read them.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]

use super::Simd;

/// A stored number format. Its functions ask for the level's instructions and for readable bytes.
pub trait Element: Copy {
    const BYTES: usize;

    /// Reads `S::WIDTH` elements.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

#[derive(Clone, Copy)]
pub struct F32;
#[derive(Clone, Copy)]
pub struct F16;
#[derive(Clone, Copy)]
pub struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        S::load(p.cast())
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        S::load_f16(p)
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        S::load_bf16(p)
    }
}
