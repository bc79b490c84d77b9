//! Products of bfloat16 weights with activations rounded to bfloat16, two `k` at a time, summed in float32.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use super::super::isa::{Isa, Kernel, Simd};
use super::super::memory::{Scratch, Shared};
use super::super::pool::Pool;
use super::each_row;
use super::tile::{Method, Ready, Stored};

pub struct Bf16Dot;

impl Method for Bf16Dot {
    const DOTS: bool = true;

    fn x_bytes(k: usize) -> usize {
        2 * k
    }

    fn depth(_: usize, _: usize) -> usize {
        // Four vectors of sixteen pairs make 32 KiB.
        256
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
        &Ready { stored: Stored { panel, k, depth, .. }, ahead, .. }: &Ready,
    ) -> usize {
        // An odd last `k` stands beside zeros, in the weights and in `x`.
        let pairs = depth.div_ceil(2);
        let w = panel.add(2 * k * N * S::WIDTH);
        for pair in 0..pairs {
            S::prefetch_second(ahead.wrapping_add(64 * pair));
            let mut weights = [S::load_words(w.add(pair * N * S::WIDTH * 4)); N];
            for n in 1..N {
                weights[n] = S::load_words(w.add((pair * N + n) * S::WIDTH * 4));
            }
            for r in 0..R {
                let x = S::splat_word(x.add(r * stride + 4 * pair));
                for n in 0..N {
                    acc[r][n] = S::dot_bf16(acc[r][n], weights[n], x);
                }
            }
        }
        64 * pairs
    }
}

/// Bytes of a row of `k` values, rounded up to pairs.
fn stride(k: usize) -> usize {
    2 * k.next_multiple_of(2)
}

/// Rounds rows of `k` values to bfloat16 (nearest, ties to even), an odd one padded with zero; gives their bytes and those
/// of a row.
pub fn round<'a>(isa: Isa, pool: &mut Pool, x: &[f32], k: usize, scratch: &'a mut Scratch) -> (&'a [u8], usize) {
    let (rows, stride) = (x.len() / k, stride(k));
    let rounded = scratch.get(rows * stride / 4);
    let to = Shared::new(rounded);
    each_row(pool, rows, &|row| {
        let to = to.ptr().wrapping_add(row * stride / 4).cast();
        // SAFETY: an executor's level is available; each row is written by one thread, into its own `stride` bytes.
        unsafe { isa.run(Round { from: &x[row * k..][..k], to }) };
    });
    (bytemuck::cast_slice(rounded), stride)
}

/// `to` has room for `from.len()` bfloat16, rounded up to an even number.
struct Round<'a> {
    from: &'a [f32],
    to: *mut u8,
}

impl Kernel for Round<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.from.len();
        let mut i = 0;
        while i + S::WIDTH <= n {
            S::store_bf16(self.to.add(2 * i), S::load(self.from.as_ptr().add(i)));
            i += S::WIDTH;
        }
        let to: *mut u16 = self.to.cast();
        for i in i..n {
            to.add(i).write_unaligned(half::bf16::from_f32(self.from[i]).to_bits());
        }
        if n % 2 == 1 {
            to.add(n).write_unaligned(0);
        }
    }
}
