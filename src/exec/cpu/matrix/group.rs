//! Groups of quantised weights: small integers that share a scale, and perhaps a minimum.
//!
//! A weight is `scale * (q - zero)`, or `scale * q + min`. The numbers and roundings are those of ggml's Q8_0, Q4_0 and
//! Q4_1 blocks, so that a file's blocks are computed as they are.
//!
//! In a panel a group is a record: words of four neighbouring `k` for every lane, then the lanes' scales (float16), then
//! their minima. Numbers below 16 stand in half bytes: `k` and `k + 16` share one.

use std::ops::Range;

use half::f16;

use super::{Layout, Panel};
use crate::model::weights::Dtype;

/// Weights of a group.
pub const GROUP: usize = 32;

/// What makes one quantised format differ from another.
pub trait Quantised {
    /// Numbers are below 16 and stand in half bytes.
    const HALF_BYTES: bool;
    const HAS_MIN: bool;
    /// The number that stands for zero, where there is no minimum.
    const ZERO: u8;
    /// Bytes of the numbers of one lane.
    const DATA_BYTES: usize = if Self::HALF_BYTES { GROUP / 2 } else { GROUP };
    /// Bytes of one lane's part of a record.
    const LANE_BYTES: usize = Self::DATA_BYTES + if Self::HAS_MIN { 4 } else { 2 };
}

/// Eight bits, symmetric.
pub struct Int8;
/// Four bits, symmetric.
pub struct Int4;
/// Four bits above a minimum.
pub struct Int4Min;

impl Quantised for Int8 {
    const HALF_BYTES: bool = false;
    const HAS_MIN: bool = false;
    const ZERO: u8 = 128;
}

impl Quantised for Int4 {
    const HALF_BYTES: bool = true;
    const HAS_MIN: bool = false;
    const ZERO: u8 = 8;
}

impl Quantised for Int4Min {
    const HALF_BYTES: bool = true;
    const HAS_MIN: bool = true;
    const ZERO: u8 = 0;
}

/// One lane's part of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    pub numbers: [u8; GROUP],
    pub scale: f16,
    /// Zero where the format has none.
    pub min: f16,
}

impl Group {
    /// The nearest multiples of a 127th of the largest; `values` are at most [`GROUP`], the others count as zero.
    pub fn int8(values: &[f32]) -> Group {
        let largest = values.iter().fold(0f32, |max, x| max.max(x.abs()));
        let scale = f16::from_f32(largest / 127.0);
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        let mut numbers = [Int8::ZERO; GROUP];
        for (number, x) in numbers.iter_mut().zip(values) {
            *number = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i32 as u8 ^ 0x80;
        }
        Group { numbers, scale, min: f16::ZERO }
    }

    /// Sixteen levels, of which the lowest or the highest is near the value of largest magnitude: that of some scales
    /// that leaves the smallest sum of squared errors.
    pub fn int4(values: &[f32]) -> Group {
        let largest = values.iter().copied().fold(0f32, |max, x| if x.abs() > max.abs() { x } else { max });
        let try_scale = |scale: f32| {
            let scale = f16::from_f32(scale);
            let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
            let mut group = Group { numbers: [Int4::ZERO; GROUP], scale, min: f16::ZERO };
            let mut error = 0.0;
            for (number, x) in group.numbers.iter_mut().zip(values) {
                let q = (x * inverse).round_ties_even().clamp(-8.0, 7.0);
                *number = (q + 8.0) as u8;
                error += (x - q * scale.to_f32()).powi(2);
            }
            (error, group)
        };
        /// Levels at which the largest value may lie.
        const PLACES: [f32; 5] = [-8.0, -7.5, -7.0, -8.5, -9.0];
        let tries = PLACES.map(|place| try_scale(largest / place));
        let best = tries.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, group)| group).expect("some scales are tried")
    }

    /// A block of a file. Its numbers are those of `Q`, or have another zero.
    pub fn of_block<Q: Quantised>(dtype: Dtype, block: &[u8]) -> Group {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        let mut group = Group { numbers: [0; GROUP], scale: half(0), min: f16::ZERO };
        let (data, zero) = match dtype {
            Dtype::Q8_0 => (&block[2..], 0),
            Dtype::Q5_0 => (&block[6..], 16),
            Dtype::Q4_0 => (&block[2..], 8),
            Dtype::Q4_1 => {
                group.min = half(2);
                (&block[4..], 0)
            }
            other => unreachable!("{other} blocks are no groups"),
        };
        for (k, number) in group.numbers.iter_mut().enumerate() {
            let number_of_file = match dtype {
                Dtype::Q8_0 => data[k],
                Dtype::Q5_0 => (data[k % 16] >> (k / 16 * 4)) & 15 | (block[2 + k / 8] >> (k % 8) & 1) << 4,
                _ => (data[k % 16] >> (k / 16 * 4)) & 15,
            };
            *number = number_of_file.wrapping_sub(zero).wrapping_add(Q::ZERO);
        }
        group
    }

    /// Weight `k` of the group.
    pub fn value<Q: Quantised>(&self, k: usize) -> f32 {
        let (scale, number) = (self.scale.to_f32(), self.numbers[k]);
        if Q::HAS_MIN {
            scale * f32::from(number) + self.min.to_f32()
        } else {
            scale * (f32::from(number) - f32::from(Q::ZERO))
        }
    }
}

/// Where a lane's part of record `index` is, in bytes of its panel.
struct Places {
    record: usize,
    lane: usize,
    lanes: usize,
}

impl Places {
    fn new<Q: Quantised>(layout: &Layout, panel: Panel, lane: usize, index: usize) -> Places {
        let lanes = panel.vectors * layout.width;
        Places { record: index * lanes * Q::LANE_BYTES, lane, lanes }
    }

    fn word(&self, word: usize) -> Range<usize> {
        let start = self.record + (word * self.lanes + self.lane) * 4;
        start..start + 4
    }

    fn scale<Q: Quantised>(&self) -> Range<usize> {
        let start = self.record + Q::DATA_BYTES * self.lanes + 2 * self.lane;
        start..start + 2
    }

    fn min<Q: Quantised>(&self) -> Range<usize> {
        let scale = self.scale::<Q>();
        scale.start + 2 * self.lanes..scale.end + 2 * self.lanes
    }
}

/// Writes a lane's part of a record into the panel's bytes.
pub fn put<Q: Quantised>(layout: &Layout, panel: Panel, lane: usize, index: usize, group: &Group, to: &mut [u8]) {
    let places = Places::new::<Q>(layout, panel, lane, index);
    for word in 0..Q::DATA_BYTES / 4 {
        let byte = |i: usize| {
            let k = 4 * word + i;
            group.numbers[k] | if Q::HALF_BYTES { group.numbers[k + GROUP / 2] << 4 } else { 0 }
        };
        to[places.word(word)].copy_from_slice(&[byte(0), byte(1), byte(2), byte(3)]);
    }
    to[places.scale::<Q>()].copy_from_slice(&group.scale.to_ne_bytes());
    if Q::HAS_MIN {
        to[places.min::<Q>()].copy_from_slice(&group.min.to_ne_bytes());
    }
}

/// Reads it back.
pub fn get<Q: Quantised>(layout: &Layout, panel: Panel, lane: usize, index: usize, from: &[u8]) -> Group {
    let places = Places::new::<Q>(layout, panel, lane, index);
    let half = |range: Range<usize>| f16::from_ne_bytes([from[range.start], from[range.start + 1]]);
    let min = if Q::HAS_MIN { half(places.min::<Q>()) } else { f16::ZERO };
    let mut group = Group { numbers: [0; GROUP], scale: half(places.scale::<Q>()), min };
    for word in 0..Q::DATA_BYTES / 4 {
        for (i, &byte) in from[places.word(word)].iter().enumerate() {
            let k = 4 * word + i;
            if Q::HALF_BYTES {
                (group.numbers[k], group.numbers[k + GROUP / 2]) = (byte & 15, byte >> 4);
            } else {
                group.numbers[k] = byte;
            }
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::isa::Isa;
    use super::super::Format;
    use super::*;

    fn error<Q: Quantised>(group: &Group, values: &[f32]) -> f32 {
        values.iter().enumerate().map(|(k, x)| (x - group.value::<Q>(k)).abs()).fold(0.0, f32::max)
    }

    proptest! {
        #[test]
        fn a_rounded_weight_is_near(values in prop::collection::vec(-3f32..3.0, 1..=GROUP)) {
            let largest = values.iter().fold(0f32, |max, x| max.max(x.abs()));
            // Half a level, and what float16 takes from the scale.
            let bound = |levels: f32| largest / levels * 0.5 + largest * 1e-3 + 1e-6;
            prop_assert!(error::<Int8>(&Group::int8(&values), &values) <= bound(127.0));
            // Values at the far end are cut to the last level.
            prop_assert!(error::<Int4>(&Group::int4(&values), &values) <= 3.0 * bound(7.0));
        }

        #[test]
        fn a_group_is_found_where_it_was_put(
            numbers: [u8; GROUP], scale in -9f32..9.0, min in -9f32..9.0, row in 0usize..40,
        ) {
            let (scale, min) = (f16::from_f32(scale), f16::from_f32(min));
            for isa in Isa::available() {
                let layout = |format| Layout::new(isa, format, 40, 3 * GROUP);
                let (eight, four) = (layout(Format::Int8), layout(Format::Int4Min));
                let (panel, lane) = eight.place(row);
                let mut to = vec![0; eight.panel_bytes(panel).len()];
                let group = Group { numbers, scale, min: f16::ZERO };
                put::<Int8>(&eight, panel, lane, 2, &group, &mut to);
                prop_assert_eq!(get::<Int8>(&eight, panel, lane, 2, &to), group);
                let (panel, lane) = four.place(row);
                let mut to = vec![0; four.panel_bytes(panel).len()];
                let group = Group { numbers: numbers.map(|n| n & 15), scale, min };
                put::<Int4Min>(&four, panel, lane, 1, &group, &mut to);
                prop_assert_eq!(get::<Int4Min>(&four, panel, lane, 1, &to), group);
            }
        }
    }

    #[test]
    fn int4_weights_that_are_levels_stay() {
        let values: Vec<f32> = (0..GROUP).map(|k| (k % 16) as f32 - 8.0).collect();
        assert_eq!(error::<Int4>(&Group::int4(&values), &values), 0.0);
        assert_eq!(Group::int4(&[0.0; GROUP]).value::<Int4>(3), 0.0);
        assert_eq!(Group::int8(&[0.0; GROUP]).value::<Int8>(3), 0.0);
    }
}
