//! Rows of weights in FP8 E4M3 (OCP 8-bit floating point, revision 1.0), each with a scale of its own.

use super::quant::Packing;
use crate::exec::format::GROUP;

/// The largest number there is.
const LARGEST: f32 = 448.0;
/// Numbers below are multiples of 2^-9.
const SMALLEST_NORMAL: f32 = 0.015_625;
/// A row of no larger values is kept as zeros: its scale would have no inverse. As in `to_fp8`.
const NOTHING: f32 = 1e-30;

/// To the nearest, ties to even; of magnitude [`LARGEST`] at most.
fn encode(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let magnitude = x.abs().min(LARGEST);
    if magnitude < SMALLEST_NORMAL {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    // Three bits of the fraction stay, and exponents begin at 2^-7 instead of 2^-127.
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// Writes a row as the kernels read it: its groups, and the scale (float32) as its record. What is not finite makes the scale
/// NaN, and so every product with the row.
pub fn put_row(values: &[f32], groups: &mut [u8], record: &mut [u8]) {
    let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let is_finite = values.iter().all(|x| x.is_finite());
    let inverse = if largest > NOTHING && is_finite { LARGEST / largest } else { 0.0 };
    let scale = if is_finite { largest / LARGEST } else { f32::NAN };
    record.copy_from_slice(&scale.to_le_bytes());
    for (group, values) in groups.chunks_exact_mut(GROUP).zip(values.chunks(GROUP)) {
        for (k, x) in values.iter().enumerate() {
            group[Packing::place_of_byte(k)] = if is_finite { encode(x * inverse) } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the definition: sign, four bits of an exponent with a bias of 7, three of a fraction.
    fn value(byte: u8) -> f32 {
        let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let magnitude = match exponent {
            0 => fraction / 8.0 * 2f32.powi(-6),
            _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
        };
        if byte < 128 { magnitude } else { -magnitude }
    }

    /// 127 and 255 are no numbers.
    fn numbers() -> impl Iterator<Item = u8> {
        (0..=255).filter(|byte| byte & 127 != 127)
    }

    #[test]
    fn every_number_is_itself() {
        for byte in numbers() {
            assert_eq!(encode(value(byte)), byte, "{}", value(byte));
        }
    }

    #[test]
    fn what_lies_between_two_numbers_goes_to_the_nearer_and_ties_to_the_even() {
        for byte in 0..126u8 {
            let (low, high) = (value(byte), value(byte + 1));
            let middle = (low + high) / 2.0;
            let tie = byte + (byte & 1);
            for (x, expected) in [(middle, tie), (middle.next_down(), byte), (middle.next_up(), byte + 1)] {
                assert_eq!(encode(x), expected, "{x} between {low} and {high}");
                assert_eq!(encode(-x), expected | 128);
            }
        }
        assert_eq!((encode(449.0), encode(f32::MAX)), (126, 126));
    }

    #[test]
    fn a_row_is_within_a_sixteenth_of_each_number_or_a_step_of_the_smallest() {
        for seed in 0..200u32 {
            let size = 2f32.powi(seed as i32 % 40 - 20);
            let random = |i: u32| (seed * 7919 + i).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32 - 0.5;
            let values: Vec<f32> = (0..40).map(|i| size * random(i).powi(3)).collect();
            let (mut groups, mut record) = ([0; 2 * GROUP], [0; 4]);
            put_row(&values, &mut groups, &mut record);
            let scale = f32::from_le_bytes(record);
            for (k, x) in values.iter().enumerate() {
                let found = scale * value(groups[k / GROUP * GROUP + Packing::place_of_byte(k % GROUP)]);
                assert!((found - x).abs() <= x.abs() / 15.9 + scale * 2f32.powi(-10), "{x} became {found}");
            }
            assert!(groups[GROUP + Packing::place_of_byte(8)..][..1] == [0], "zeros behind the end");
        }
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_spoils_its_row() {
        let row = |values: &[f32]| {
            let (mut groups, mut record) = ([7; GROUP], [7; 4]);
            put_row(values, &mut groups, &mut record);
            (f32::from_le_bytes(record), groups)
        };
        let (scale, groups) = row(&[0.0; GROUP]);
        assert_eq!((scale, groups), (0.0, [0; GROUP]));
        let mut values = [0.0; GROUP];
        values[1] = 1e-38;
        assert_eq!(row(&values).1, [0; GROUP]);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = [1.0; GROUP];
            values[3] = bad;
            let (scale, groups) = row(&values);
            assert!(scale.is_nan());
            assert_eq!(groups, [0; GROUP]);
        }
    }
}
