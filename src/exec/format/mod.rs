//! What weights are in memory: floating-point numbers, or groups of small integers that share a scale and perhaps a minimum.
//!
//! Owns which formats there are, which one a matrix gets, and how a checkpoint's row becomes one's groups. Where groups stand
//! is each device's.

mod group;
mod kind;
mod round;

use std::fmt;

pub use self::group::Group;
pub use self::kind::{
    Factors, GROUP, HALF_ZERO, Int4, Int4Min, Int4Super, Int5, Int5Min, Int5Super, Int6Super, Int8, Kind, Quantised,
};
use crate::model::ops::Role;
use crate::model::weights::{Dtype, Tensor};

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// E4M3 with a float32 scale for each row: on GPUs only.
    Fp8,
    /// 8.5 bits a weight.
    Int8,
    /// 4.5 bits.
    Int4,
    /// 5 bits where a group has a scale and a minimum of its own; 4.5 and 4.25 where 2 or 4 of them share these.
    Int4Min(usize),
    /// 5.5 bits.
    Int5,
    /// 6 bits.
    Int5Min,
    /// 4.625 bits.
    Int4Super,
    /// 5.625 bits.
    Int5Super,
    /// 6.5625 bits.
    Int6Super,
}

impl Format {
    /// Those with a [`Kind`].
    #[cfg(test)]
    pub const QUANTISED: [Format; 10] = [
        Format::Int8,
        Format::Int4,
        Format::Int4Min(1),
        Format::Int4Min(2),
        Format::Int4Min(4),
        Format::Int5,
        Format::Int5Min,
        Format::Int4Super,
        Format::Int5Super,
        Format::Int6Super,
    ];

    /// What a quantised format is made of.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8 => None,
            Format::Int8 => Some(Int8::KIND),
            Format::Int4 => Some(Int4::KIND),
            Format::Int4Min(groups) => Some(Kind { groups, ..Int4Min::KIND }),
            Format::Int5 => Some(Int5::KIND),
            Format::Int5Min => Some(Int5Min::KIND),
            Format::Int4Super => Some(Int4Super::KIND),
            Format::Int5Super => Some(Int5Super::KIND),
            Format::Int6Super => Some(Int6Super::KIND),
        }
    }

    /// The format in which weights stand in memory so that no number changes: the file's own.
    pub fn of(dtype: Dtype) -> Format {
        match dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::Bf16 => Format::Bf16,
            Dtype::Q8_0 => Format::Int8,
            Dtype::Q4_0 => Format::Int4,
            Dtype::Q4_1 => Format::Int4Min(1),
            Dtype::Q5_0 => Format::Int5,
            Dtype::Q5_1 => Format::Int5Min,
            Dtype::Q4K => Format::Int4Super,
            Dtype::Q5K => Format::Int5Super,
            Dtype::Q6K => Format::Int6Super,
        }
    }

    /// The format of a matrix where this one was asked for; `None`: as the file has it. A router is never rounded to so few
    /// bits, since a small error sends a token elsewhere. An embedding or head has eight bits of an integer at least: every
    /// token passes it, and in a large model it is little of the whole.
    pub fn spared(self, role: Role, parts: &[Tensor]) -> Option<Format> {
        let kind = self.kind();
        match role {
            Role::Router | Role::Embedding | Role::Head if self == Format::Fp8 => None,
            Role::Router if kind.is_some() => None,
            Role::Embedding | Role::Head if kind.is_some_and(|kind| kind.bits < 8) => {
                // What the file has rounded already is as small.
                if parts.iter().all(|part| part.dtype.is_quantised()) { None } else { Some(Format::Int8) }
            }
            _ => Some(self),
        }
    }

    /// Whether a file's numbers are some of the format's, with the same scales.
    fn holds(self, dtype: Dtype) -> bool {
        dtype.is_quantised() && Format::of(dtype) == self
            || self == Format::Int8 && matches!(dtype, Dtype::Q5_0 | Dtype::Q4_0)
    }

    /// Gives a row's groups one after the other: the file's own where the format holds them, otherwise rounded here. Nothing
    /// where the format is not quantised. `values` has room for the row.
    ///
    /// Panics for another format than a file's own, [`Format::Int8`] or [`Format::Int4Min`]: to those nothing is rounded.
    pub fn each_group(self, from: &Tensor, row: usize, values: &mut [f32], mut to: impl FnMut(Kind, usize, &Group)) {
        let Some(kind) = self.kind() else { return };
        if self.holds(from.dtype) {
            // The same numbers, scales and minima.
            let row_bytes = from.dtype.row_bytes(values.len());
            let blocks = from.data()[row * row_bytes..][..row_bytes].chunks_exact(from.dtype.block_bytes());
            let per_block = from.dtype.block_len() / GROUP;
            for (first, block) in (0..).step_by(per_block).zip(blocks) {
                (0..per_block).for_each(|i| to(kind, first + i, &Group::of_block(kind, from.dtype, block, i)));
            }
            return;
        }
        let range_of: fn(&[f32]) -> round::Range = match self {
            Format::Int8 => round::symmetric,
            Format::Int4Min(_) => round::sixteen_levels,
            other => unreachable!("{other:?} is what files have, not what is rounded to"),
        };
        from.read_row(row, values);
        for (record, values) in values.chunks(kind.record_weights()).enumerate() {
            let range = range_of(values);
            for (index, values) in (record * kind.groups..).zip(values.chunks(GROUP)) {
                to(kind, index, &range.group(kind, values));
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::F32 => f.write_str("f32"),
            Format::F16 => f.write_str("f16"),
            Format::Bf16 => f.write_str("bf16"),
            Format::Fp8 => f.write_str("fp8"),
            Format::Int8 => f.write_str("int8"),
            Format::Int4 => f.write_str("q4_0"),
            Format::Int4Min(1) => f.write_str("int4"),
            Format::Int4Min(groups) => write!(f, "int4 in groups of {}", groups * GROUP),
            Format::Int5 => f.write_str("q5_0"),
            Format::Int5Min => f.write_str("q5_1"),
            Format::Int4Super => f.write_str("q4_k"),
            Format::Int5Super => f.write_str("q5_k"),
            Format::Int6Super => f.write_str("q6_k"),
        }
    }
}
