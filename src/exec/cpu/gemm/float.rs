//! Products in float32, whatever the weights are stored as: a block is widened once, then used by all rows; for a row or
//! two, weights go from their stored form into the product.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use std::marker::PhantomData;

use super::super::isa::Simd;
use super::super::isa::element::{Bf16, Element, F16, F32};
use super::tile::{MAX_BLOCK_VALUES, Method, Ready, Stored};

/// Up to so many rows weights are not widened first.
const MAX_DIRECT_ROWS: usize = 2;

/// Stored weights, and how they become float32.
pub trait Widen {
    /// Whether the stored form is another one.
    const WIDENS: bool;
    /// Neighbouring `k` that [`Widen::visit`] needs together.
    const STEP: usize;
    /// Shows the weights of a block, a whole number of steps, one `k` after the other; counted from the first one.
    unsafe fn visit<S: Simd, V: Visit<S, N>, const N: usize>(stored: &Stored, visit: &mut V);
}

/// Takes the weights at a `k`.
pub trait Visit<S: Simd, const N: usize> {
    unsafe fn take(&mut self, k: usize, weights: [S::F; N]);
}

/// Elements one after the other.
macro_rules! widen_elements {
    ($($element:ty, $widens:literal;)*) => {
        $(
            impl Widen for $element {
                const WIDENS: bool = $widens;
                const STEP: usize = 1;

                #[inline(always)]
                unsafe fn visit<S: Simd, V: Visit<S, N>, const N: usize>(stored: &Stored, visit: &mut V) {
                    let first = stored.panel.add(stored.k * N * S::WIDTH * <$element>::BYTES);
                    for k in 0..stored.depth {
                        let mut weights = [S::splat(0.0); N];
                        for n in 0..N {
                            weights[n] = <$element>::load::<S>(first.add((k * N + n) * S::WIDTH * <$element>::BYTES));
                        }
                        visit.take(k, weights);
                    }
                }
            }
        )*
    };
}

widen_elements! {
    F32, false;
    F16, true;
}

impl Widen for Bf16 {
    const WIDENS: bool = true;
    /// Two `k` of an output stand together.
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn visit<S: Simd, V: Visit<S, N>, const N: usize>(stored: &Stored, visit: &mut V) {
        let first = stored.panel.add(stored.k * N * S::WIDTH * Bf16::BYTES);
        for k in (0..stored.depth).step_by(2) {
            let mut even = [S::splat(0.0); N];
            let mut odd = even;
            for n in 0..N {
                (even[n], odd[n]) = S::load_bf16_pair(first.add((k * N + 2 * n) * S::WIDTH * Bf16::BYTES));
            }
            visit.take(k, even);
            visit.take(k + 1, odd);
        }
    }
}

/// Keeps weights as `[k][N * S::WIDTH]`.
struct Store(*mut f32);

impl<S: Simd, const N: usize> Visit<S, N> for Store {
    #[inline(always)]
    unsafe fn take(&mut self, k: usize, weights: [S::F; N]) {
        for n in 0..N {
            S::store(self.0.add((k * N + n) * S::WIDTH), weights[n]);
        }
    }
}

/// Adds the products with `R` rows of `x`, `stride` values apart.
struct Multiply<'a, S: Simd, const R: usize, const N: usize> {
    acc: &'a mut [[S::F; N]; R],
    x: *const f32,
    stride: usize,
}

impl<S: Simd, const R: usize, const N: usize> Visit<S, N> for Multiply<'_, S, R, N> {
    #[inline(always)]
    unsafe fn take(&mut self, k: usize, weights: [S::F; N]) {
        for r in 0..R {
            let x = S::splat(*self.x.add(r * self.stride + k));
            for n in 0..N {
                self.acc[r][n] = S::fma(x, weights[n], self.acc[r][n]);
            }
        }
    }
}

pub struct Float<W>(PhantomData<W>);

impl<W: Widen> Method for Float<W> {
    const DOTS: bool = false;

    fn depth(width: usize, vectors: usize) -> usize {
        // A multiple of what any format keeps together, and a quarter of a small first-level cache on AVX2.
        (MAX_BLOCK_VALUES / (width * vectors)).min(256)
    }

    fn x_bytes(k: usize) -> usize {
        4 * k
    }

    fn widens(rows: usize, depth: usize) -> bool {
        W::WIDENS && (rows > MAX_DIRECT_ROWS || !depth.is_multiple_of(W::STEP))
    }

    #[inline(always)]
    unsafe fn widen<S: Simd, const N: usize>(stored: &Stored, scratch: *mut f32) {
        let whole = Stored { depth: stored.depth.next_multiple_of(W::STEP), ..*stored };
        W::visit::<S, _, N>(&whole, &mut Store(scratch));
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const N: usize>(
        acc: &mut [[S::F; N]; R],
        x: *const u8,
        stride: usize,
        Ready { stored, widened, ahead }: &Ready,
    ) -> usize {
        let mut products = Multiply { acc, x: x.cast(), stride: stride / 4 };
        if const { W::WIDENS && R <= MAX_DIRECT_ROWS } && widened.is_null() {
            W::visit::<S, _, N>(stored, &mut products);
            return 0;
        }
        let w = if W::WIDENS { *widened } else { stored.panel.cast::<f32>().add(stored.k * N * S::WIDTH) };
        for k in 0..stored.depth {
            S::prefetch_second(ahead.wrapping_add(64 * k));
            let mut weights = [S::splat(0.0); N];
            for n in 0..N {
                weights[n] = S::load(w.add((k * N + n) * S::WIDTH));
            }
            products.take(k, weights);
        }
        64 * stored.depth
    }
}
