//! Products in float32, whatever the weights are stored as: a block is widened once, then used by all rows.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use std::marker::PhantomData;

use super::super::isa::Simd;
use super::super::isa::element::{Bf16, Element, F16, F32};
use super::{MAX_BLOCK_VALUES, Method, Ready};

/// Stored weights, and how they become float32.
pub trait Widen {
    /// Whether [`Widen::widen`] makes new values.
    const WIDENS: bool = true;
    /// A block of `depth` as `[depth][N * S::WIDTH]` float32: in `scratch`, or the weights themselves.
    unsafe fn widen<S: Simd, const N: usize>(weights: *const u8, depth: usize, scratch: *mut f32) -> *const f32;
}

impl Widen for F32 {
    const WIDENS: bool = false;

    #[inline(always)]
    unsafe fn widen<S: Simd, const N: usize>(weights: *const u8, _: usize, _: *mut f32) -> *const f32 {
        weights.cast()
    }
}

impl Widen for F16 {
    #[inline(always)]
    unsafe fn widen<S: Simd, const N: usize>(weights: *const u8, depth: usize, scratch: *mut f32) -> *const f32 {
        for i in 0..depth * N {
            S::store(scratch.add(i * S::WIDTH), F16::load::<S>(weights.add(i * S::WIDTH * F16::BYTES)));
        }
        scratch
    }
}

impl Widen for Bf16 {
    /// `depth` is even: two `k` of an output stand together.
    #[inline(always)]
    unsafe fn widen<S: Simd, const N: usize>(weights: *const u8, depth: usize, scratch: *mut f32) -> *const f32 {
        for k in (0..depth).step_by(2) {
            let from = weights.add(k * N * S::WIDTH * Bf16::BYTES);
            let to = scratch.add(k * N * S::WIDTH);
            for n in 0..N {
                let (even, odd) = S::load_bf16_pair(from.add(2 * n * S::WIDTH * Bf16::BYTES));
                S::store(to.add(n * S::WIDTH), even);
                S::store(to.add((N + n) * S::WIDTH), odd);
            }
        }
        scratch
    }
}

pub struct Float<W>(PhantomData<W>);

impl<W: Widen> Method for Float<W> {
    const WIDENS: bool = W::WIDENS;

    fn depth(width: usize, vectors: usize) -> usize {
        // A multiple of what any format keeps together, and a quarter of a small first-level cache on AVX2.
        (MAX_BLOCK_VALUES / (width * vectors)).min(256)
    }

    fn x_bytes(k: usize) -> usize {
        4 * k
    }

    #[inline(always)]
    unsafe fn prepare<S: Simd, const N: usize>(weights: *const u8, depth: usize, scratch: *mut f32) -> *const u8 {
        W::widen::<S, N>(weights, depth, scratch).cast()
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const N: usize>(
        acc: &mut [[S::F; N]; R],
        x: *const u8,
        stride: usize,
        &Ready { w, depth, ahead }: &Ready,
    ) -> usize {
        let (x, w): (*const f32, *const f32) = (x.cast(), w.cast());
        let stride = stride / 4;
        for k in 0..depth {
            S::prefetch_second(ahead.wrapping_add(64 * k));
            let mut weights = [S::splat(0.0); N];
            for n in 0..N {
                weights[n] = S::load(w.add((k * N + n) * S::WIDTH));
            }
            for r in 0..R {
                let x = S::splat(*x.add(r * stride + k));
                for n in 0..N {
                    acc[r][n] = S::fma(x, weights[n], acc[r][n]);
                }
            }
        }
        64 * depth
    }
}
