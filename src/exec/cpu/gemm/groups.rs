//! Quantised weights in a panel, as the kernels read them, and how they become float32.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait, or stands above it")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use super::super::isa::Simd;
use super::super::matrix::{Factors, GROUP, HALF_ZERO, Kind, Quantised};
use super::float::{Visit, Widen};
use super::tile::Stored;

/// Words of four neighbouring numbers in a group.
pub const QUADS: usize = GROUP / 4;

/// Where a group lies in a panel of `lanes` outputs. Its functions read vector `n` of them, which must be there, at a
/// level that is.
#[derive(Clone, Copy)]
pub struct Place {
    shared: *const u8,
    group: *const u8,
    lanes: usize,
}

impl Place {
    #[inline(always)]
    pub unsafe fn new<Q: Quantised>(&Stored { panel, groups, .. }: &Stored, lanes: usize, index: usize) -> Place {
        // Only these have a number of groups that is not the type's.
        let kind = if const { Q::KIND.is_fitted() } { Kind { groups, ..Q::KIND } } else { Q::KIND };
        Place { shared: panel.add(kind.record(index) * lanes), group: panel.add(kind.group(index) * lanes), lanes }
    }

    #[inline(always)]
    unsafe fn word<S: Simd>(&self, n: usize, word: usize) -> S::I {
        S::load_words(self.group.add((word * self.lanes + n * S::WIDTH) * 4))
    }

    #[inline(always)]
    unsafe fn factor<S: Simd, Q: Quantised>(&self, n: usize, i: usize) -> S::F {
        S::load_u8(self.group.add((Q::KIND.data_bytes() + i) * self.lanes + n * S::WIDTH))
    }

    /// Four numbers of this half of the group from its `4 * word` on, one in each byte.
    #[inline(always)]
    pub unsafe fn numbers<S: Simd, Q: Quantised, const HALF: usize>(&self, n: usize, word: usize) -> S::I {
        if !Q::KIND.has_half_bytes() {
            return self.word::<S>(n, QUADS / 2 * HALF + word);
        }
        // The half is a constant, so that the shift is one.
        let low = S::bits(self.word::<S>(n, word), -4 * HALF as i32, 15);
        let bits = Q::KIND.high_bits();
        if bits == 0 {
            return low;
        }
        let place = word * bits;
        let left = if HALF == 0 { 4 } else { 0 } - (place % 4) as i32;
        let high = S::bits(self.word::<S>(n, 4 + place / 4), left, ((1 << bits) - 1) << 4);
        S::or(low, high)
    }

    /// Of the numbers in this half of the group.
    #[inline(always)]
    pub unsafe fn scale<S: Simd, Q: Quantised>(&self, n: usize, half: usize) -> S::F {
        let scale = S::load_f16(self.shared.add(2 * n * S::WIDTH));
        match Q::KIND.factors {
            Factors::None => scale,
            Factors::ScaleAndMin => S::mul(scale, self.factor::<S, Q>(n, 0)),
            Factors::Halves => S::mul(scale, S::sub(self.factor::<S, Q>(n, half), S::splat(f32::from(HALF_ZERO)))),
        }
    }

    /// Only where the kind has one.
    #[inline(always)]
    pub unsafe fn min<S: Simd, Q: Quantised>(&self, n: usize) -> S::F {
        let min = S::load_f16(self.shared.add(2 * (self.lanes + n * S::WIDTH)));
        match Q::KIND.factors {
            Factors::ScaleAndMin => S::mul(min, self.factor::<S, Q>(n, 1)),
            Factors::None | Factors::Halves => min,
        }
    }
}

impl<Q: Quantised> Widen for Q {
    const WIDENS: bool = true;
    const STEP: usize = GROUP;

    /// The product of scale and number is exact (11 bits of float16, 7 of a factor and 6 of a number at most), and so is
    /// that with what stands for zero: fused or not, a weight is rounded once, as the file's formula has it.
    #[inline(always)]
    unsafe fn visit<S: Simd, V: Visit<S, N>, const N: usize>(stored: &Stored, visit: &mut V) {
        let first = stored.k / GROUP;
        for index in first..first + stored.depth / GROUP {
            let place = Place::new::<Q>(stored, N * S::WIDTH, index);
            visit_half::<S, Q, V, N, 0>(place, (index - first) * GROUP, visit);
            visit_half::<S, Q, V, N, 1>(place, (index - first) * GROUP + GROUP / 2, visit);
        }
    }
}

/// Half a group, whose first weight is `k`.
#[inline(always)]
unsafe fn visit_half<S: Simd, Q: Quantised, V: Visit<S, N>, const N: usize, const HALF: usize>(
    place: Place,
    k: usize,
    visit: &mut V,
) {
    let mut scale = [S::splat(0.0); N];
    let mut min = scale;
    for n in 0..N {
        scale[n] = place.scale::<S, Q>(n, HALF);
        min[n] =
            if Q::KIND.has_min { place.min::<S, Q>(n) } else { S::mul(scale[n], S::splat(-f32::from(Q::KIND.zero))) };
    }
    for word in 0..QUADS / 2 {
        let mut numbers = [S::splat_i32(0); N];
        for n in 0..N {
            numbers[n] = place.numbers::<S, Q, HALF>(n, word);
        }
        let k = k + 4 * word;
        visit.take(k, weights::<S, 0, N>(&numbers, &scale, &min));
        visit.take(k + 1, weights::<S, 8, N>(&numbers, &scale, &min));
        visit.take(k + 2, weights::<S, 16, N>(&numbers, &scale, &min));
        visit.take(k + 3, weights::<S, 24, N>(&numbers, &scale, &min));
    }
}

/// The weights of byte `BITS / 8`.
#[inline(always)]
unsafe fn weights<S: Simd, const BITS: u32, const N: usize>(
    numbers: &[S::I; N],
    scale: &[S::F; N],
    min: &[S::F; N],
) -> [S::F; N] {
    let mut weights = [S::splat(0.0); N];
    for n in 0..N {
        weights[n] = S::fma(scale[n], S::byte_to_f32::<BITS>(numbers[n]), min[n]);
    }
    weights
}
