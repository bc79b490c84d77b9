//! From float32 to a quantised format: which scale and minimum, which numbers.

use half::f16;

use super::group::Group;
use super::kind::{GROUP, Kind};

/// What a record's weights share.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    scale: f16,
    min: f16,
}

/// Multiples of a 127th of the largest.
pub fn symmetric(values: &[f32]) -> Range {
    let largest = values.iter().fold(0f32, |max, x| max.max(x.abs()));
    Range { scale: f16::from_f32(largest / 127.0), min: f16::ZERO }
}

/// Sixteen levels with a small sum of squared errors.
///
/// With the numbers fixed that sum is a quadratic in scale and minimum, whose lowest point is the regression line of the
/// values on their numbers; with these fixed the nearest numbers are best. So from ranges that leave out more and more of
/// the outermost values each is improved in turn, and the best of all that came up is taken.
pub fn sixteen_levels(values: &[f32]) -> Range {
    /// Shares of the whole range at the start.
    const SHARES: [f32; 4] = [1.0, 0.92, 0.84, 0.76];
    const TURNS: usize = 2;
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
    let mut best = (f32::MAX, Range { scale: f16::ZERO, min: f16::from_f32(low) });
    for share in SHARES {
        let cut = (high - low) * (1.0 - share) / 2.0;
        let (mut scale, mut min) = ((high - low) * share / 15.0, low + cut);
        for turn in 0..=TURNS {
            let range = Range { scale: f16::from_f32(scale), min: f16::from_f32(min) };
            let fit = Fit::new(range, values);
            if fit.error < best.0 {
                best = (fit.error, range);
            }
            if turn < TURNS {
                (scale, min) = fit.line();
            }
        }
    }
    best.1
}

/// To the nearest integer, ties to even, below 2²² in magnitude. Without the instruction that the lowest level of processors
/// lacks, a function call for each weight would take most of the loading time.
fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// The nearest numbers of some values, and how values depend on numbers.
struct Fit {
    error: f32,
    len: f32,
    q: f32,
    qq: f32,
    x: f32,
    qx: f32,
}

impl Fit {
    fn new(range: Range, values: &[f32]) -> Fit {
        /// Sums side by side, which the compiler makes vectors of.
        const LANES: usize = 8;
        let (scale, min, inverse) = (range.scale.to_f32(), range.min.to_f32(), range.inverse());
        let mut sums = [[0f32; LANES]; 5];
        let mut add = |lane: usize, x: f32| {
            // Against the minimum, so that large means leave their digits to the differences.
            let above = x - min;
            let q = nearest((above * inverse).clamp(0.0, 15.0));
            for (sum, term) in sums.iter_mut().zip([(above - scale * q).powi(2), q, q * q, above, q * above]) {
                sum[lane] += term;
            }
        };
        let (chunks, rest) = values.as_chunks::<LANES>();
        chunks.iter().for_each(|chunk| (0..LANES).for_each(|lane| add(lane, chunk[lane])));
        rest.iter().enumerate().for_each(|(lane, x)| add(lane, *x));
        let [error, q, qq, x, qx] = sums.map(|sum| sum.iter().sum::<f32>());
        let len = values.len() as f32;
        Fit { error, len, q, qq, x: x + min * len, qx: qx + min * q }
    }

    /// Scale and minimum of least error for these numbers.
    fn line(&self) -> (f32, f32) {
        let spread = self.len * self.qq - self.q * self.q;
        let scale = if spread > 0.0 { (self.len * self.qx - self.q * self.x) / spread } else { 0.0 };
        (scale, (self.x - scale * self.q) / self.len)
    }
}

impl Range {
    fn inverse(self) -> f32 {
        let scale = self.scale.to_f32();
        if scale == 0.0 { 0.0 } else { 1.0 / scale }
    }

    /// At most [`GROUP`] values as the nearest numbers; what is missing counts as the number for zero.
    pub fn group(self, kind: Kind, values: &[f32]) -> Group {
        let (min, inverse, zero) = (self.min.to_f32(), self.inverse(), f32::from(kind.zero));
        // Symmetric numbers have no use for the one that only one side has.
        let least = if kind.has_min { 0.0 } else { 1.0 - zero };
        let most = ((1u32 << kind.bits) - 1) as f32 - zero;
        let mut numbers = [kind.zero; GROUP];
        for (number, x) in numbers.iter_mut().zip(values) {
            *number = (nearest(((x - min) * inverse).clamp(least, most)) + zero) as u8;
        }
        Group { numbers, scale: self.scale, min: self.min, factors: [0; 2] }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kind::{Int4Min, Int8, Quantised};
    use super::*;

    fn errors(kind: Kind, range: Range, values: &[f32]) -> Vec<f32> {
        let groups = values.chunks(GROUP).map(|values| (range.group(kind, values), values));
        groups.flat_map(|(group, values)| (0..values.len()).map(move |k| values[k] - group.value(kind, k))).collect()
    }

    fn squares(errors: &[f32]) -> f32 {
        errors.iter().map(|e| e * e).sum()
    }

    proptest! {
        #[test]
        fn a_rounded_weight_is_near(values in prop::collection::vec(-3f32..3.0, 1..=4 * GROUP)) {
            let largest = values.iter().fold(0f32, |max, x| max.max(x.abs()));
            // Half a level, and what float16 takes from the scale.
            for error in errors(Int8::KIND, symmetric(&values), &values) {
                prop_assert!(error.abs() <= largest / 127.0 * 0.5 + largest * 1e-3 + 1e-6);
            }
            // Never worse than the plain range from lowest to highest.
            let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
            let plain = Range { scale: f16::from_f32((high - low) / 15.0), min: f16::from_f32(low) };
            let [best, plain] = [sixteen_levels(&values), plain].map(|r| squares(&errors(Int4Min::KIND, r, &values)));
            prop_assert!(best <= plain * 1.001 + 1e-9, "{} beside {}", best, plain);
        }
    }

    #[test]
    fn weights_that_are_levels_stay() {
        let values: Vec<f32> = (0..2 * GROUP).map(|k| (k % 16) as f32 * 0.5 - 3.0).collect();
        assert_eq!(squares(&errors(Int4Min::KIND, sixteen_levels(&values), &values)), 0.0);
        for value in [0.0, -1.5] {
            assert_eq!(squares(&errors(Int4Min::KIND, sixteen_levels(&[value; 64]), &[value; 64])), 0.0);
        }
        assert_eq!(squares(&errors(Int8::KIND, symmetric(&[0.0; GROUP]), &[0.0; GROUP])), 0.0);
    }

    /// A bell with an outlier: where the search pays.
    #[test]
    fn outliers_do_not_set_the_levels() {
        let mut values: Vec<f32> = (0..64).map(|k| ((k * 37 % 64) as f32 - 31.5) / 32.0).map(|x| x * x * x).collect();
        values[5] = 1.6;
        let plain = Range { scale: f16::from_f32(2.6 / 15.0), min: f16::from_f32(-1.0) };
        let [best, plain] = [sixteen_levels(&values), plain].map(|r| squares(&errors(Int4Min::KIND, r, &values)));
        assert!(best < 0.95 * plain, "{best} beside {plain}");
    }
}
