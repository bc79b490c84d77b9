//! How K and V are multiplied: as float32, widened from pairs, or by dot products of pairs.
//!
//! Scores and the mix of values are the same product. Its one operand, here `x` (queries, or softmax weights), is read a
//! number at a time into all lanes; the other, `w` (K, or V), lies in words of one or two numbers (see [`super::super::kv`]).
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use super::super::isa::Simd;

/// All functions ask for the level's instructions.
pub trait Form {
    /// Numbers in a word.
    const WORD: usize;
    /// Bytes of a number of `x`.
    const X_BYTES: usize;
    /// A vector of words.
    type Words<S: Simd>: Copy;

    /// Reads `S::WIDTH` words.
    unsafe fn load<S: Simd>(p: *const u8) -> Self::Words<S>;
    /// Writes `S::WIDTH` numbers of `x`.
    unsafe fn store_x<S: Simd>(p: *mut u8, x: S::F);
    /// `acc[n] += x · w[n]` over one word, in order; reads [`Form::WORD`] numbers at `x`.
    unsafe fn add<S: Simd, const N: usize>(acc: &mut [S::F; N], w: &[Self::Words<S>; N], x: *const u8);
}

/// Float32 words, float32 products.
pub struct Single;

impl Form for Single {
    const WORD: usize = 1;
    const X_BYTES: usize = 4;
    type Words<S: Simd> = S::F;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        S::load(p.cast())
    }

    #[inline(always)]
    unsafe fn store_x<S: Simd>(p: *mut u8, x: S::F) {
        S::store(p.cast(), x);
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize>(acc: &mut [S::F; N], w: &[S::F; N], x: *const u8) {
        let x = S::splat(*x.cast());
        for n in 0..N {
            acc[n] = S::fma(x, w[n], acc[n]);
        }
    }
}

/// Pairs of bfloat16, float32 products.
pub struct Pair;

impl Form for Pair {
    const WORD: usize = 2;
    const X_BYTES: usize = 4;
    type Words<S: Simd> = (S::F, S::F);

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> (S::F, S::F) {
        S::load_bf16_pair(p)
    }

    #[inline(always)]
    unsafe fn store_x<S: Simd>(p: *mut u8, x: S::F) {
        S::store(p.cast(), x);
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize>(acc: &mut [S::F; N], w: &[(S::F, S::F); N], x: *const u8) {
        let x: *const f32 = x.cast();
        let (even, odd) = (S::splat(*x), S::splat(*x.add(1)));
        for n in 0..N {
            acc[n] = S::fma(odd, w[n].1, S::fma(even, w[n].0, acc[n]));
        }
    }
}

/// Pairs of bfloat16 times pairs of bfloat16: only at levels with the dot product.
pub struct Dot;

impl Form for Dot {
    const WORD: usize = 2;
    const X_BYTES: usize = 2;
    type Words<S: Simd> = S::I;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::I {
        S::load_words(p)
    }

    #[inline(always)]
    unsafe fn store_x<S: Simd>(p: *mut u8, x: S::F) {
        S::store_bf16(p, x);
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize>(acc: &mut [S::F; N], w: &[S::I; N], x: *const u8) {
        let x = S::splat_word(x);
        for n in 0..N {
            acc[n] = S::dot_bf16(acc[n], w[n], x);
        }
    }
}

/// Rows of `x`: the word `step` of row `r` is at `base + r * row + step * step_bytes`.
#[derive(Clone, Copy)]
pub struct Rows {
    pub base: *const u8,
    pub row: usize,
    pub step_bytes: usize,
}

/// `acc[r][n] += Σ x[r] · w[n]` over `steps` words, from the first to the last; those of `w[n]` are `stride` bytes apart.
#[inline(always)]
pub unsafe fn multiply<S: Simd, F: Form, const R: usize, const N: usize>(
    acc: &mut [[S::F; N]; R],
    x: Rows,
    w: [*const u8; N],
    stride: usize,
    steps: std::ops::Range<usize>,
) {
    for step in steps {
        let mut words = [F::load::<S>(w[0].add(step * stride)); N];
        for n in 1..N {
            words[n] = F::load::<S>(w[n].add(step * stride));
        }
        for r in 0..R {
            F::add::<S, N>(&mut acc[r], &words, x.base.add(r * x.row + step * x.step_bytes));
        }
    }
}
