//! Weights: `exp` of numbers that are not above zero, in plain float32 arithmetic and rounded to multiples of [`UNIT`].
//!
//! The same bits on every machine (the C library's differ), simple enough for the compiler to vectorise, and with sums that
//! are exact: whoever adds them up, in whatever order, a GPU among them (kernels/weight.h is the twin), gets the same.

use crate::model::draws::UNIT;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Adding this rounds to an integer and leaves it in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts, the first with so few bits that its products are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below this the result would be subnormal; it is zero.
const LOWEST: f32 = -87.0;
/// From here on float32 has multiples of [`UNIT`] only; adding this to anything below rounds it to one.
const COARSE: f32 = UNIT * (1 << 23) as f32;
/// Weights, none above one, of which float64 holds the sum exactly.
const EXACT: usize = 4096;
const LANES: usize = 8;

/// `e^x` for `x <= 0` to within two units in the last place, and 0 where `x < -87` or `x` is not a number.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let clamped = if x >= LOWEST { x } else { LOWEST };
    let rounded = clamped * LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // e^r on [-ln 2 / 2, ln 2 / 2]: the minimax polynomial of Cephes.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    let exponent = (rounded.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32).wrapping_add(127);
    let power = f32::from_bits((exponent as u32) << 23);
    if x >= LOWEST { e * power } else { 0.0 }
}

/// `e^x` for `x <= 0`, rounded to a multiple of [`UNIT`].
#[inline(always)]
pub(super) fn weight(x: f32) -> f32 {
    let e = exp(x);
    if e >= COARSE { e } else { e + COARSE - COARSE }
}

/// A weight as a number of [`UNIT`]s.
#[inline(always)]
pub(super) fn units(weight: f32) -> u64 {
    (weight * (1.0 / UNIT)) as i64 as u64
}

/// The sum of what `weight` makes of each value, in [`UNIT`]s.
#[inline(always)]
pub(super) fn total(values: &[f32], weight: impl Fn(f32) -> f32) -> u64 {
    values.chunks(EXACT).map(|chunk| exact_total(chunk, &weight)).sum()
}

/// Of at most [`EXACT`] values.
#[inline(always)]
fn exact_total(values: &[f32], weight: impl Fn(f32) -> f32) -> u64 {
    let mut lanes = [0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(weight(x));
        }
    }
    let sum = lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(weight(x))).sum::<f64>();
    (sum * f64::from(1.0 / UNIT)) as u64
}

/// The first of `weights` at which their running sum in [`UNIT`]s exceeds `target`, if it does.
pub(super) fn first_beyond(weights: &[f32], target: u64) -> Option<usize> {
    let mut reached = 0;
    for (i, chunk) in weights.chunks(EXACT).enumerate() {
        let sum = exact_total(chunk, |weight| weight);
        if reached + sum > target {
            let beyond = |&weight: &f32| {
                reached += units(weight);
                reached > target
            };
            return chunk.iter().position(beyond).map(|at| i * EXACT + at);
        }
        reached += sum;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_real_one() {
        assert_eq!(exp(0.0), 1.0);
        for i in 0..=870_000 {
            let x = -(i as f32) / 10_000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
    }

    #[test]
    fn ends() {
        assert!(exp(-87.0) > 0.0);
        for x in [-87.1, -1e30, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!((exp(x), weight(x)), (0.0, 0.0), "{x}");
        }
    }

    #[test]
    fn weights_are_multiples_of_the_unit_and_nearest_to_exp() {
        for i in 0..=400_000 {
            let x = -(i as f32) / 10_000.0;
            let (weight, exact) = (weight(x), f64::from(exp(x)));
            let count = f64::from(weight) / f64::from(UNIT);
            assert_eq!((count.fract(), units(weight)), (0.0, count as u64), "{x}");
            assert!((f64::from(weight) - exact).abs() <= f64::from(UNIT) / 2.0, "{x}");
        }
        assert_eq!((weight(-29.0), units(weight(0.0))), (0.0, 1 << 40));
    }

    /// The largest sum that there is, and one whose float32 sum would depend on the order.
    #[test]
    fn sums_are_exact() {
        assert_eq!(total(&[0.0; 1 << 20], weight), 1 << 60);
        let values: Vec<f32> = (0..20_011).map(|i| -((i * 7919 % 20_011) as f32) / 700.0).collect();
        let expected: u64 = values.iter().map(|&x| units(weight(x))).sum();
        assert_eq!(total(&values, weight), expected);
        let weights: Vec<f32> = values.iter().map(|&x| weight(x)).collect();
        let mut reached = 0;
        for (i, &w) in weights.iter().enumerate().filter(|(_, w)| units(**w) > 0).step_by(97) {
            reached = weights[..i].iter().map(|&w| units(w)).sum();
            assert_eq!(first_beyond(&weights, reached), Some(i));
            assert_eq!(first_beyond(&weights, reached + units(w) - 1), Some(i));
        }
        assert!(reached > 0 && first_beyond(&weights, expected).is_none());
    }
}
