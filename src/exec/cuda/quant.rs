//! Quantised weights as the kernels read them: all rows' groups of numbers, then all rows' records of scales.
//!
//! The bytes are those of kernels/README.md. No number of a file is changed; where a kernel has no such small numbers, they
//! stand in larger ones: five and six bits in eight.

use half::f16;

use crate::exec::format::{Format, GROUP, Group, HALF_ZERO, Kind};

/// Groups of a record.
const RECORD_GROUPS: usize = 8;

/// A format of the kernels; its name is part of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    Fp8,
    Int4,
    Int8,
    Int8Min,
    Int8Half,
}

/// A kernel's name for each format.
macro_rules! kernel_of {
    ($before:literal, $numbers:expr, $after:literal) => {
        match $numbers {
            Numbers::Fp8 => concat!($before, "fp8", $after),
            Numbers::Int4 => concat!($before, "int4", $after),
            Numbers::Int8 => concat!($before, "int8", $after),
            Numbers::Int8Min => concat!($before, "int8_min", $after),
            Numbers::Int8Half => concat!($before, "int8_half", $after),
        }
    };
}
pub(super) use kernel_of;

impl Numbers {
    pub const fn bits(self) -> usize {
        if matches!(self, Numbers::Int4) { 4 } else { 8 }
    }

    pub const fn group_bytes(self) -> usize {
        GROUP * self.bits() / 8
    }

    /// Of the largest record of eight groups that kernels of the format take.
    pub const fn max_record_bytes(self) -> usize {
        match self {
            Numbers::Fp8 => 0,
            Numbers::Int8 => 16,
            Numbers::Int4 | Numbers::Int8Min | Numbers::Int8Half => 32,
        }
    }
}

/// What a record holds, as kernels are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    Scales = 0,
    Shared = 1,
    Super = 2,
    Pairs = 3,
    Halves = 4,
    /// Of a whole row.
    Row = 5,
}

/// How a format stands on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    pub numbers: Numbers,
    pub records: Records,
}

impl Packing {
    /// `None` for floating-point numbers, which become bfloat16.
    pub fn of(format: Format) -> Option<Packing> {
        let (numbers, records) = match format {
            Format::F32 | Format::F16 | Format::Bf16 => return None,
            Format::Fp8 => (Numbers::Fp8, Records::Row),
            Format::Int8 | Format::Int5 => (Numbers::Int8, Records::Scales),
            Format::Int4 => (Numbers::Int4, Records::Scales),
            Format::Int4Min(1) => (Numbers::Int4, Records::Pairs),
            Format::Int4Min(_) => (Numbers::Int4, Records::Shared),
            Format::Int5Min => (Numbers::Int8Min, Records::Pairs),
            Format::Int4Super => (Numbers::Int4, Records::Super),
            Format::Int5Super => (Numbers::Int8Min, Records::Super),
            Format::Int6Super => (Numbers::Int8Half, Records::Halves),
        };
        Some(Packing { numbers, records })
    }

    const fn record_bytes(self) -> usize {
        match self.records {
            Records::Row => size_of::<f32>(),
            Records::Scales | Records::Shared | Records::Super => 16,
            Records::Pairs | Records::Halves => 32,
        }
    }

    /// Bytes of a row's groups, and of its records.
    pub const fn row_bytes(self, cols: usize) -> (usize, usize) {
        let groups = cols.div_ceil(GROUP);
        let records = if matches!(self.records, Records::Row) { 1 } else { groups.div_ceil(RECORD_GROUPS) };
        (groups * self.numbers.group_bytes(), records * self.record_bytes())
    }

    /// Which of a group's bytes is number `k`, where numbers have eight bits: a lane of the tensor cores has a quarter of a
    /// column, which is pairs of neighbours, eight apart.
    pub const fn place_of_byte(k: usize) -> usize {
        let (quarter, pair, odd) = (k % 8 / 2, k / 8, k % 2);
        8 * quarter + pair / 2 * 4 + pair % 2 + 2 * odd
    }

    /// Writes group `index` of a row of integers into the row's groups and records, which were zeros.
    pub fn put(self, kind: Kind, index: usize, group: &Group, groups: &mut [u8], records: &mut [u8]) {
        let group_bytes = self.numbers.group_bytes();
        self.put_numbers(kind, group, &mut groups[index * group_bytes..][..group_bytes]);
        let record_bytes = self.record_bytes();
        let record = &mut records[index / RECORD_GROUPS * record_bytes..][..record_bytes];
        let at = index % RECORD_GROUPS;
        let mut put = |at: usize, half: f16| record[at..at + 2].copy_from_slice(&half.to_le_bytes());
        match self.records {
            Records::Scales => put(2 * at, group.scale),
            Records::Shared => {
                put(at / 2 * 4, group.scale);
                put(at / 2 * 4 + 2, group.min);
            }
            Records::Pairs => {
                put(4 * at, group.scale);
                put(4 * at + 2, group.min);
            }
            Records::Super => {
                put(0, group.scale);
                put(2, group.min);
                let code = u16::from(group.factors[0]) | u16::from(group.factors[1]) << 6;
                record[4 + at] = code as u8;
                record[12 + at / 2] |= ((code >> 8) as u8) << (at % 2 * 4);
            }
            Records::Halves => {
                put(16, group.scale);
                for half in 0..2 {
                    record[2 * at + half] = group.factors[half].wrapping_sub(HALF_ZERO);
                }
            }
            Records::Row => unreachable!("rows of integers have no scale of their own"),
        }
    }

    fn put_numbers(self, kind: Kind, group: &Group, to: &mut [u8]) {
        for (k, number) in group.numbers.into_iter().enumerate() {
            if self.numbers.bits() == 4 {
                let (quarter, place) = (k % 8 / 2, k / 8 + 4 * (k % 2));
                to[4 * quarter + place / 2] |= number << (place % 2 * 4);
            } else {
                to[Packing::place_of_byte(k)] = number.wrapping_sub(kind.zero);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exec::format::Factors;

    /// Weight `k` of a row, as kernels/README.md says that it is read.
    fn value(packing: Packing, groups: &[u8], records: &[u8], k: usize) -> f32 {
        let half = |at: usize| f16::from_le_bytes([records[at], records[at + 1]]).to_f32();
        let (index, i) = (k / GROUP, k % GROUP);
        let word = &groups[index * packing.numbers.group_bytes()..][..packing.numbers.group_bytes()];
        let (quarter, pair, odd) = (i % 8 / 2, i / 8, i % 2);
        let number = match packing.numbers {
            Numbers::Int4 => {
                let word = u32::from_le_bytes(word[4 * quarter..4 * quarter + 4].try_into().unwrap());
                (word >> (4 * (pair + 4 * odd)) & 15) as f32
            }
            _ => f32::from(word[8 * quarter + pair / 2 * 4 + pair % 2 + 2 * odd] as i8),
        };
        let (start, at) = (index / 8 * packing.record_bytes(), index % 8);
        let (scale, min) = match packing.records {
            Records::Scales if packing.numbers == Numbers::Int4 => (half(start + 2 * at), -8.0 * half(start + 2 * at)),
            Records::Scales => (half(start + 2 * at), 0.0),
            Records::Shared => (half(start + at / 2 * 4), half(start + at / 2 * 4 + 2)),
            Records::Pairs => (half(start + at * 4), half(start + at * 4 + 2)),
            Records::Super => {
                let high = u32::from_le_bytes(records[start + 12..start + 16].try_into().unwrap()) >> (4 * at) & 15;
                let code = u32::from(records[start + 4 + at]) | high << 8;
                (half(start) * (code & 63) as f32, half(start + 2) * (code >> 6) as f32)
            }
            Records::Halves => (half(start + 16) * f32::from(records[start + 2 * at + i / 16] as i8), 0.0),
            Records::Row => unreachable!("not of integers"),
        };
        scale * number + min
    }

    proptest! {
        #[test]
        fn every_format_is_read_as_it_was_put(
            numbers in prop::collection::vec(any::<[u8; GROUP]>(), 20), scales in prop::collection::vec(-9f32..9.0, 40),
            factors in prop::collection::vec(any::<[u8; 2]>(), 20),
        ) {
            for format in Format::QUANTISED {
                let (kind, packing) = (format.kind().unwrap(), Packing::of(format).unwrap());
                let (group_bytes, record_bytes) = packing.row_bytes(20 * GROUP);
                let (mut groups, mut records) = (vec![0; group_bytes], vec![0; record_bytes]);
                let of = |index: usize| {
                    let record = index / kind.groups;
                    let factors = factors[index];
                    Group {
                        numbers: numbers[index].map(|number| number >> (8 - kind.bits)),
                        scale: f16::from_f32(scales[record]),
                        min: if kind.has_min { f16::from_f32(scales[20 + record]) } else { f16::ZERO },
                        factors: match kind.factors {
                            Factors::None => [0; 2],
                            Factors::ScaleAndMin => factors.map(|factor| factor & 63),
                            Factors::Halves => factors,
                        },
                    }
                };
                for index in 0..20 {
                    packing.put(kind, index, &of(index), &mut groups, &mut records);
                }
                for k in 0..20 * GROUP {
                    let (found, expected) = (value(packing, &groups, &records, k), of(k / GROUP).value(kind, k % GROUP));
                    prop_assert!(found == expected, "{} at {}: {} is not {}", format, k, found, expected);
                }
            }
        }
    }
}
