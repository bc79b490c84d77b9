//! Products in float32, whatever the weights are stored as: a block is widened once, then used by all rows.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use std::marker::PhantomData;

use super::super::isa::Simd;
use super::super::isa::element::Element;
use super::{MAX_BLOCK_VALUES, Method, Ready};

pub struct Float<E>(PhantomData<E>);

impl<E: Element> Method for Float<E> {
    const WIDENS: bool = !E::IS_F32;

    fn x_bytes(k: usize) -> usize {
        4 * k
    }

    fn depth(width: usize, vectors: usize) -> usize {
        // Even, as bfloat16 wants it, and a quarter of a small first-level cache on AVX2.
        (MAX_BLOCK_VALUES / (width * vectors)).min(256)
    }

    #[inline(always)]
    unsafe fn prepare<S: Simd, const N: usize>(weights: *const u8, depth: usize, scratch: *mut f32) -> *const u8 {
        if E::IS_F32 {
            return weights;
        }
        let mut k = 0;
        if E::PAIRS_INTERLEAVED {
            while k < depth {
                let from = weights.add(k * N * S::WIDTH * E::BYTES);
                let to = scratch.add(k * N * S::WIDTH);
                for n in 0..N {
                    let (even, odd) = E::load_pair::<S>(from.add(2 * n * S::WIDTH * E::BYTES));
                    S::store(to.add(n * S::WIDTH), even);
                    S::store(to.add((N + n) * S::WIDTH), odd);
                }
                k += 2;
            }
        } else {
            while k < depth * N {
                S::store(scratch.add(k * S::WIDTH), E::load::<S>(weights.add(k * S::WIDTH * E::BYTES)));
                k += 1;
            }
        }
        scratch.cast()
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const N: usize>(
        acc: &mut [[S::F; N]; R],
        x: *const u8,
        stride: usize,
        block: &Ready,
    ) -> usize {
        add_f32::<S, R, N>(acc, x, stride, block)
    }
}

/// [`Method::add`] for float32 activations and widened weights.
#[inline(always)]
pub unsafe fn add_f32<S: Simd, const R: usize, const N: usize>(
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
