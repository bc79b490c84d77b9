//! Products of quantised weights with activations rounded to eight bits in groups, whose products are summed exactly
//! within a group.
//!
//! An activation is `scale * q`, q in -127..=127 and the scale a 127th of its group's largest. A group of weights
//! `s * (w - zero)` then adds `s * scale * (Σ w·q - zero * Σ q)`; one with a minimum `s * scale * Σ w·q + min * scale * Σ q`.
//! Where the halves of a group have scales of their own, each half is such a sum.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use std::marker::PhantomData;

use super::super::isa::{Isa, Kernel, Simd};
use super::super::matrix::{Factors, GROUP, Quantised};
use super::super::memory::{Scratch, Shared};
use super::super::pool::Pool;
use super::each_row;
use super::groups::{Place, QUADS};
use super::tile::{Method, Ready, Stored};

/// Quantised weights with quantised activations.
pub struct Int8Dot<Q>(PhantomData<Q>);

impl<Q: Quantised> Method for Int8Dot<Q> {
    const DOTS: bool = true;

    fn depth(_: usize, _: usize) -> usize {
        8 * GROUP
    }

    fn x_bytes(k: usize) -> usize {
        k / GROUP * size_of::<Activations>()
    }

    fn widens(_: usize, _: usize) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn widen<S: Simd, const N: usize>(_: &Stored, _: *mut f32) {}

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const N: usize>(
        acc: &mut [[S::F; N]; R],
        x: *const u8,
        stride: usize,
        &Ready { stored, ahead, .. }: &Ready,
    ) -> usize {
        // Vectors whose sums are in registers at once, with some for the operands. What they add up to may wait in memory:
        // it is needed once a group.
        let together = const { together::<S, Q>(R, N) };
        let groups = stored.depth.div_ceil(GROUP);
        for index in 0..groups {
            let place = Place::new::<Q>(&stored, N * S::WIDTH, stored.k / GROUP + index);
            let rows = Rows { first: x.add(index * size_of::<Activations>()), stride };
            for line in 0..2 * QUADS {
                S::prefetch_second(ahead.wrapping_add(64 * (2 * QUADS * index + line)));
            }
            let mut n = 0;
            while n < N {
                match together {
                    4 => group::<S, Q, R, N, 4>(acc, rows, place, n),
                    2 => group::<S, Q, R, N, 2>(acc, rows, place, n),
                    _ => group::<S, Q, R, N, 1>(acc, rows, place, n),
                }
                n += together;
            }
        }
        128 * QUADS * groups
    }
}

/// How many vectors' sums are in registers at once, of so many: all where what they add up to has room beside them, and
/// where it must wait in memory anyway; else two, if they fit.
const fn together<S: Simd, Q: Quantised>(rows: usize, vectors: usize) -> usize {
    let sums = rows * halves::<Q>();
    let have_room = 4 * (sums + rows) + 6 <= S::NUM_REGISTERS;
    // Half bytes are taken apart once for all vectors of a word, so that four rows gain more by it than they lose.
    let fill = (rows > 4 || Q::KIND.has_half_bytes()) && 4 * sums + 6 <= S::NUM_REGISTERS;
    match vectors {
        4 if have_room || fill => 4,
        2.. if 2 * sums + 6 <= S::NUM_REGISTERS => 2,
        _ => 1,
    }
}

/// Sums of a group that have a scale of their own.
const fn halves<Q: Quantised>() -> usize {
    match Q::KIND.factors {
        Factors::Halves => 2,
        Factors::None | Factors::ScaleAndMin => 1,
    }
}

/// A group of activations in each of some rows, `stride` bytes apart.
#[derive(Clone, Copy)]
struct Rows {
    first: *const u8,
    stride: usize,
}

impl Rows {
    #[inline(always)]
    unsafe fn row<'a>(self, r: usize) -> &'a Activations {
        &*self.first.add(r * self.stride).cast()
    }
}

/// One group of the vectors `first..first + T`.
#[inline(always)]
unsafe fn group<S: Simd, Q: Quantised, const R: usize, const N: usize, const T: usize>(
    acc: &mut [[S::F; N]; R],
    rows: Rows,
    place: Place,
    first: usize,
) {
    let mut sums = [[[S::splat_i32(0); 2]; T]; R];
    for r in 0..R {
        for half in 0..halves::<Q>() {
            let correction = S::splat_i32(-rows.row(r).sum::<Q>(half) * i32::from(Q::KIND.zero));
            for t in 0..T {
                sums[r][t][half] = correction;
            }
        }
    }
    dot_half::<S, Q, R, T, 0>(&mut sums, rows, place, first);
    dot_half::<S, Q, R, T, 1>(&mut sums, rows, place, first);
    for t in 0..T {
        let n = first + t;
        for half in 0..halves::<Q>() {
            let scale = place.scale::<S, Q>(n, half);
            for r in 0..R {
                let scale = S::mul(scale, S::splat(rows.row(r).scale));
                acc[r][n] = S::fma(S::from_i32(sums[r][t][half]), scale, acc[r][n]);
            }
        }
        if Q::KIND.has_min {
            let min = place.min::<S, Q>(n);
            for r in 0..R {
                let x = rows.row(r);
                acc[r][n] = S::fma(min, S::splat(x.scale * x.sum::<Q>(0) as f32), acc[r][n]);
            }
        }
    }
}

/// Adds the products of half a group to the sums that it belongs to.
#[inline(always)]
unsafe fn dot_half<S: Simd, Q: Quantised, const R: usize, const T: usize, const HALF: usize>(
    sums: &mut [[[S::I; 2]; T]; R],
    rows: Rows,
    place: Place,
    first: usize,
) {
    let half = if halves::<Q>() == 2 { HALF } else { 0 };
    for word in 0..QUADS / 2 {
        let mut numbers = [S::splat_i32(0); T];
        for t in 0..T {
            numbers[t] = place.numbers::<S, Q, HALF>(first + t, word);
        }
        for r in 0..R {
            let x = S::splat_word(rows.row(r).q.as_ptr().add(GROUP / 2 * HALF + 4 * word).cast());
            for t in 0..T {
                let sum = &mut sums[r][t][half];
                *sum = if Q::KIND.bits < 8 { S::dot_u7(*sum, numbers[t], x) } else { S::dot_u8(*sum, numbers[t], x) };
            }
        }
    }
}

/// A group of activations.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Activations {
    q: [i8; GROUP],
    scale: f32,
    /// Of the halves of `q`.
    sums: [i16; 2],
}

impl Activations {
    /// The sum of `q`, or of this half where halves count.
    #[inline(always)]
    fn sum<Q: Quantised>(&self, half: usize) -> i32 {
        i32::from(if halves::<Q>() == 2 { self.sums[half] } else { self.sums[0] + self.sums[1] })
    }
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
            let mut sums = [0; 2];
            for (k, (q, x)) in to.q.iter_mut().zip(values).enumerate() {
                *q = (x * inverse).round_ties_even() as i8;
                sums[2 * k / GROUP] += i16::from(*q);
            }
            (to.scale, to.sums) = (scale, sums);
        }
    }
}
