//! The level of every machine: arrays of eight lanes in plain Rust. Multiplication and addition are rounded
//! separately, because a fused one is a slow library call where the processor lacks it.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of every function is that of the trait")]

use half::{bf16, f16};

use super::{NO_DOT, Simd};

#[derive(Clone, Copy)]
pub struct Scalar;

const LANES: usize = 8;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (i, o) in out.iter_mut().enumerate() {
        *o = f(i);
    }
    out
}

impl Simd for Scalar {
    const WIDTH: usize = LANES;
    const NUM_REGISTERS: usize = 16;
    const TILES: bool = false;
    type F = [f32; LANES];
    type I = [u32; LANES];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        p.cast::<[f32; LANES]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        p.cast::<[f32; LANES]>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn any_less(a: Self::F, b: Self::F) -> bool {
        (0..LANES).any(|i| a[i] < b[i])
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        // Adding 1.5 * 2^23 leaves no bits for a fraction; beyond 2^22 the callers' values are clamped.
        const SHIFT: f32 = 12_582_912.0;
        each(|i| (x[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    unsafe fn power_of_two(n: Self::F) -> Self::F {
        each(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        let half = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
        (half[0] + half[2]) + (half[1] + half[3])
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::F) -> f32 {
        let mut largest = v[0];
        for &x in &v[1..] {
            largest = if largest > x { largest } else { x };
        }
        largest
    }

    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_second(_p: *const u8) {}

    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        let bytes = p.cast::<[i8; LANES]>().read_unaligned();
        each(|i| f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        let bits = p.cast::<[u16; LANES]>().read_unaligned();
        each(|i| bf16::from_bits(u16::from_le(bits[i])).to_f32())
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        let bits = p.cast::<[u16; LANES]>().read_unaligned();
        each(|i| f16::from_bits(u16::from_le(bits[i])).to_f32())
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        let bytes = p.cast::<[u8; LANES]>().read_unaligned();
        each(|i| f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn load_bf16_pair(p: *const u8) -> (Self::F, Self::F) {
        let bits = p.cast::<[u32; LANES]>().read_unaligned();
        let even = each(|i| f32::from_bits(u32::from_le(bits[i]) << 16));
        let odd = each(|i| f32::from_bits(u32::from_le(bits[i]) & 0xffff_0000));
        (even, odd)
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u8, v: Self::F) {
        p.cast::<[u16; LANES]>().write_unaligned(v.map(|x| bf16::from_f32(x).to_bits()));
    }

    #[inline(always)]
    unsafe fn load_words(p: *const u8) -> Self::I {
        p.cast::<Self::I>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn splat_word(p: *const u8) -> Self::I {
        [p.cast::<u32>().read_unaligned(); LANES]
    }
    #[inline(always)]
    unsafe fn dot_bf16(_: Self::F, _: Self::I, _: Self::I) -> Self::F {
        unreachable!("{NO_DOT}")
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x as u32; LANES]
    }
    #[inline(always)]
    unsafe fn from_i32(v: Self::I) -> Self::F {
        each(|i| v[i] as i32 as f32)
    }
    #[inline(always)]
    unsafe fn dot_u8(mut acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        for i in 0..LANES {
            for byte in 0..4 {
                let (w, x) = ((w[i] >> (8 * byte)) as u8, (x[i] >> (8 * byte)) as i8);
                acc[i] = acc[i].wrapping_add((i32::from(w) * i32::from(x)) as u32);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn dot_u7(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        Self::dot_u8(acc, w, x)
    }
    #[inline(always)]
    unsafe fn bits(v: Self::I, left: i32, mask: u8) -> Self::I {
        let mask = u32::from_ne_bytes([mask; 4]);
        v.map(|x| if left < 0 { x >> -left & mask } else { x << left & mask })
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn byte_to_f32<const BITS: u32>(v: Self::I) -> Self::F {
        each(|i| (v[i] >> BITS & 0xff) as f32)
    }
}
