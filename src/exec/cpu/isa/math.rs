//! exp, tanh and the activations, lane by lane: a lane's value never depends on its neighbours.
//!
//! exp: argument reduction by multiples of ln 2 in two parts (Cody & Waite) and the Taylor polynomial of degree 7
//! on |r| <= ln 2 / 2, whose remainder is below a tenth of an ulp; measured error under 2 ulp.
//! tanh: `-e / (e + 2)` with `e = exp(-2|x|) - 1`, which is put together without cancellation; under 3 ulp
//! everywhere, near zero too.
#![allow(unsafe_op_in_unsafe_fn, reason = "all functions only need the level's instructions")]

use super::Simd;
use crate::model::spec::Activation;

const LN2_HIGH: f32 = 0.693_145_75;
const LN2_LOW: f32 = 1.428_606_8e-6;

/// Splits `x` into `n * ln 2 + r` and gives `(n, r, (exp(r) - 1 - r) / r²)`.
#[inline(always)]
unsafe fn reduce<S: Simd>(x: S::F) -> (S::F, S::F, S::F) {
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    let r = S::fma(n, S::splat(-LN2_HIGH), x);
    let r = S::fma(n, S::splat(-LN2_LOW), r);
    let mut p = S::splat(1.0 / 5040.0);
    p = S::fma(p, r, S::splat(1.0 / 720.0));
    p = S::fma(p, r, S::splat(1.0 / 120.0));
    p = S::fma(p, r, S::splat(1.0 / 24.0));
    p = S::fma(p, r, S::splat(1.0 / 6.0));
    p = S::fma(p, r, S::splat(0.5));
    (n, r, p)
}

/// `e^x`; 0 below about -103.97, infinity above 88.72, NaN for NaN.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // With NaN these give their second argument, the NaN.
    let x = S::min(S::splat(89.0), S::max(S::splat(-104.0), x));
    let (n, r, p) = reduce::<S>(x);
    let y = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
    // In two steps: n reaches 128 at one end and -150 at the other, more than one exponent field holds.
    let first = S::round(S::mul(n, S::splat(0.5)));
    let second = S::sub(n, first);
    S::mul(S::mul(y, S::power_of_two(first)), S::power_of_two(second))
}

/// `2^x` for `x` up to 126: 0 from -126.5 down, NaN for NaN.
#[inline(always)]
pub unsafe fn exp2<S: Simd>(x: S::F) -> S::F {
    // At -127 the power of two is zero. With NaN this gives its second argument, the NaN.
    let x = S::max(S::splat(-127.0), x);
    let n = S::round(x);
    let r = S::sub(x, n);
    // The Taylor polynomial of degree 7 on |r| <= 1/2.
    let mut p = S::splat(1.525_273_4e-5);
    for factor in [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
        p = S::fma(p, r, S::splat(factor));
    }
    S::mul(p, S::power_of_two(n))
}

/// `tanh x`.
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    let zero = S::splat(0.0);
    let negative = S::sub(zero, x);
    let magnitude = S::max(negative, x);
    // At 10, tanh is 1 to the last bit.
    let t = S::mul(S::min(S::splat(10.0), magnitude), S::splat(-2.0));
    let (n, r, p) = reduce::<S>(t);
    // exp(t) - 1 = 2^n (exp(r) - 1) + (2^n - 1), exact in its parts, so no digits are lost near zero.
    let scale = S::power_of_two(n);
    let small = S::fma(S::mul(r, r), p, r);
    let e = S::fma(small, scale, S::sub(scale, S::splat(1.0)));
    let y = S::div(S::sub(zero, e), S::add(e, S::splat(2.0)));
    S::select_less(x, zero, S::sub(zero, y), y)
}

/// `activation(x)`.
#[inline(always)]
pub unsafe fn activate<S: Simd>(activation: Activation, x: S::F) -> S::F {
    let one = S::splat(1.0);
    match activation {
        Activation::Silu => S::div(x, S::add(one, exp::<S>(S::sub(S::splat(0.0), x)))),
        Activation::GeluTanh => {
            let cubic = S::mul(S::mul(x, x), x);
            let inner = S::mul(S::fma(cubic, S::splat(0.044_715), x), S::splat(0.797_884_6));
            S::mul(S::mul(S::splat(0.5), x), S::add(one, tanh::<S>(inner)))
        }
    }
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub unsafe fn soft_cap<S: Simd>(x: S::F, cap: f32) -> S::F {
    S::mul(S::splat(cap), tanh::<S>(S::div(x, S::splat(cap))))
}
