//! Products of quantised weights: with float32 activations, or with activations rounded to eight bits in groups, whose
//! products are summed exactly within a group.
//!
//! An activation is `scale * q`, q in -127..=127 and the scale a 127th of its group's largest. A group of weights
//! `s * (w - zero)` then adds `s * scale * (Σ w·q - zero * Σ q)`; one with a minimum `s * scale * Σ w·q + min * scale * Σ q`.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use std::marker::PhantomData;

use super::super::isa::{Isa, Kernel, Simd};
use super::super::matrix::{GROUP, Quantised};
use super::super::memory::{Scratch, Shared};
use super::super::pool::Pool;
use super::float::Widen;
use super::{Method, Ready, each_row};

/// Words of four bytes of a group of activations.
const WORDS: usize = GROUP / 4;

impl<Q: Quantised> Widen for Q {
    #[inline(always)]
    unsafe fn widen<S: Simd, const N: usize>(weights: *const u8, depth: usize, scratch: *mut f32) -> *const f32 {
        let lanes = N * S::WIDTH;
        for index in 0..depth / GROUP {
            let record = weights.add(index * lanes * Q::LANE_BYTES);
            let to = scratch.add(index * GROUP * lanes);
            for n in 0..N {
                let scale = scale::<S, Q>(record, lanes, n);
                let min = if Q::HAS_MIN { min::<S, Q>(record, lanes, n) } else { S::splat(0.0) };
                for word in 0..Q::DATA_BYTES / 4 {
                    let numbers = S::load_words(record.add((word * lanes + n * S::WIDTH) * 4));
                    let to = to.add(4 * word * lanes + n * S::WIDTH);
                    if Q::HALF_BYTES {
                        let (low, high) = S::nibbles(numbers);
                        widen_word::<S, Q>(low, scale, min, to, lanes);
                        widen_word::<S, Q>(high, scale, min, to.add(GROUP / 2 * lanes), lanes);
                    } else {
                        widen_word::<S, Q>(numbers, scale, min, to, lanes);
                    }
                }
            }
        }
        scratch
    }
}

#[inline(always)]
unsafe fn scale<S: Simd, Q: Quantised>(record: *const u8, lanes: usize, n: usize) -> S::F {
    S::load_f16(record.add(Q::DATA_BYTES * lanes + 2 * n * S::WIDTH))
}

#[inline(always)]
unsafe fn min<S: Simd, Q: Quantised>(record: *const u8, lanes: usize, n: usize) -> S::F {
    S::load_f16(record.add((Q::DATA_BYTES + 2) * lanes + 2 * n * S::WIDTH))
}

/// Four `k` of a vector of outputs, to places `lanes` apart.
#[inline(always)]
unsafe fn widen_word<S: Simd, Q: Quantised>(numbers: S::I, scale: S::F, min: S::F, to: *mut f32, lanes: usize) {
    let values = [
        S::byte_to_f32::<0>(numbers),
        S::byte_to_f32::<8>(numbers),
        S::byte_to_f32::<16>(numbers),
        S::byte_to_f32::<24>(numbers),
    ];
    for (i, value) in values.into_iter().enumerate() {
        let weight = if Q::HAS_MIN {
            S::add(S::mul(scale, value), min)
        } else {
            S::mul(scale, S::sub(value, S::splat(f32::from(Q::ZERO))))
        };
        S::store(to.add(i * lanes), weight);
    }
}

/// Quantised weights with quantised activations.
pub struct Int8Dot<Q>(PhantomData<Q>);

impl<Q: Quantised> Method for Int8Dot<Q> {
    const WIDENS: bool = false;

    fn depth(_: usize, _: usize) -> usize {
        8 * GROUP
    }

    fn x_bytes(k: usize) -> usize {
        k / GROUP * size_of::<Activations>()
    }

    #[inline(always)]
    unsafe fn prepare<S: Simd, const N: usize>(weights: *const u8, _: usize, _: *mut f32) -> *const u8 {
        weights
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const N: usize>(
        acc: &mut [[S::F; N]; R],
        x: *const u8,
        stride: usize,
        &Ready { w, depth, ahead }: &Ready,
    ) -> usize {
        let lanes = N * S::WIDTH;
        let groups = depth.div_ceil(GROUP);
        let lines = Q::DATA_BYTES / 4;
        for index in 0..groups {
            let record = w.add(index * lanes * Q::LANE_BYTES);
            let x = x.add(index * size_of::<Activations>());
            let mut sums = [[S::splat_i32(0); N]; R];
            for r in 0..R {
                let x = &*x.add(r * stride).cast::<Activations>();
                sums[r] = [S::splat_i32(-x.sum * i32::from(Q::ZERO)); N];
            }
            for word in 0..Q::DATA_BYTES / 4 {
                let place = ahead.wrapping_add(128 * (index * lines + word));
                S::prefetch_second(place);
                S::prefetch_second(place.wrapping_add(64));
                let at = record.add(word * lanes * 4);
                let mut low = [S::splat_i32(0); N];
                let mut high = low;
                for n in 0..N {
                    let numbers = S::load_words(at.add(n * S::WIDTH * 4));
                    (low[n], high[n]) = if Q::HALF_BYTES { S::nibbles(numbers) } else { (numbers, numbers) };
                }
                for r in 0..R {
                    let q = (*x.add(r * stride).cast::<Activations>()).q.as_ptr().cast::<u8>();
                    let first = S::splat_word(q.add(4 * word));
                    for n in 0..N {
                        sums[r][n] = if Q::HALF_BYTES {
                            S::dot_u4(sums[r][n], low[n], first)
                        } else {
                            S::dot_u8(sums[r][n], low[n], first)
                        };
                    }
                    if Q::HALF_BYTES {
                        let second = S::splat_word(q.add(4 * (word + WORDS / 2)));
                        for n in 0..N {
                            sums[r][n] = S::dot_u4(sums[r][n], high[n], second);
                        }
                    }
                }
            }
            for n in 0..N {
                let scale = scale::<S, Q>(record, lanes, n);
                for r in 0..R {
                    let x = &*x.add(r * stride).cast::<Activations>();
                    acc[r][n] = S::fma(S::from_i32(sums[r][n]), S::mul(scale, S::splat(x.scale)), acc[r][n]);
                    if Q::HAS_MIN {
                        let sum = S::splat(x.scale * x.sum as f32);
                        acc[r][n] = S::fma(min::<S, Q>(record, lanes, n), sum, acc[r][n]);
                    }
                }
            }
        }
        128 * groups * lines
    }
}

/// A group of activations.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Activations {
    q: [i8; GROUP],
    scale: f32,
    sum: i32,
}

/// Quantises rows of `k` values, a last group padded with zeros; gives their bytes and those of a row.
pub fn quantise<'a>(isa: Isa, pool: &mut Pool, x: &[f32], k: usize, scratch: &'a mut Scratch) -> (&'a [u8], usize) {
    let groups = k.div_ceil(GROUP);
    let (rows, stride) = (x.len() / k, groups * size_of::<Activations>());
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(scratch.get(rows * stride / 4));
    let to = Shared::new(bytemuck::cast_slice_mut::<u8, Activations>(bytes));
    each_row(pool, rows, &|row| {
        // SAFETY: each row is quantised by one thread, into its own groups.
        let to = unsafe { to.slice(row * groups, groups) };
        // SAFETY: an executor's level is available; `to` has a group for each `GROUP` values.
        unsafe { isa.run(Quantise { from: &x[row * k..][..k], to }) };
    });
    (bytes, stride)
}

/// `to` has a group for each [`GROUP`] values of `from`, the last of which may be fewer.
struct Quantise<'a> {
    from: &'a [f32],
    to: &'a mut [Activations],
}

impl Kernel for Quantise<'_> {
    /// Plain loops, which the compiler turns into the level's instructions.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (from, to) in self.from.chunks(GROUP).zip(self.to) {
            let mut values = [0f32; GROUP];
            values[..from.len()].copy_from_slice(from);
            let largest = values.iter().fold(0f32, |max, x| if x.abs() > max { x.abs() } else { max });
            let scale = largest / 127.0;
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut sum = 0;
            for (q, x) in to.q.iter_mut().zip(values) {
                *q = (x * inverse).round_ties_even() as i8;
                sum += i32::from(*q);
            }
            (to.scale, to.sum) = (scale, sum);
        }
    }
}
