//! What makes one quantised format differ from another.
//!
//! The numbers and roundings are those of ggml's blocks, so that a file's are computed as they are.

/// Weights of a group.
pub const GROUP: usize = 32;

/// A format of groups. Some groups make a record and share a scale (float16), and perhaps a minimum: a weight is
/// `scale * (q - zero)`, or `scale * q + min`. Where groups have factors of their own, small integers, these multiply the
/// record's scale and minimum first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Of a number: 4, 5, 6 or 8.
    pub bits: usize,
    /// The number that stands for zero where there is no minimum, else 0.
    pub zero: u8,
    pub has_min: bool,
    /// Groups of a record: a power of two.
    pub groups: usize,
    pub factors: Factors,
}

/// What the groups of a record have of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factors {
    None,
    /// One of the scale, one of the minimum.
    ScaleAndMin,
    /// One of the scale for either half of a group, stored with [`HALF_ZERO`] added.
    Halves,
}

/// What stands for zero in the factors of halves.
pub const HALF_ZERO: u8 = 128;

impl Kind {
    /// Numbers whose low four bits share bytes, `k` with `k + 16`. Their other bits stand in words behind.
    pub const fn has_half_bytes(self) -> bool {
        self.bits < 8
    }

    /// Whether records of other numbers of groups are made of this kind: where weights are rounded here, not by a file.
    pub const fn is_fitted(self) -> bool {
        self.bits == 4 && self.has_min && matches!(self.factors, Factors::None)
    }

    /// Bits of a number that do not fit half a byte.
    pub const fn high_bits(self) -> usize {
        self.bits - 4
    }

    /// Bytes of one lane's numbers of a group.
    pub const fn data_bytes(self) -> usize {
        GROUP * self.bits / 8
    }

    /// Bytes of one lane's part of what a record shares.
    pub const fn shared_bytes(self) -> usize {
        if self.has_min { 4 } else { 2 }
    }

    const fn factor_bytes(self) -> usize {
        match self.factors {
            Factors::None => 0,
            Factors::ScaleAndMin | Factors::Halves => 2,
        }
    }

    /// Bytes of one lane's part of a group.
    pub const fn group_bytes(self) -> usize {
        self.data_bytes() + self.factor_bytes()
    }

    const fn record_bytes(self) -> usize {
        self.shared_bytes() + self.groups * self.group_bytes()
    }

    /// Bytes of a lane from its first record to that of this group.
    pub const fn record(self, group: usize) -> usize {
        // A shift: kernels find a group often, and the number may be known only at run time.
        (group >> self.groups.trailing_zeros()) * self.record_bytes()
    }

    /// Bytes of a lane from its first record to this group's numbers.
    pub const fn group(self, group: usize) -> usize {
        self.record(group) + self.shared_bytes() + (group & (self.groups - 1)) * self.group_bytes()
    }

    /// Weights of a record.
    pub const fn record_weights(self) -> usize {
        self.groups * GROUP
    }

    /// Bytes of a lane up to this `k`, a multiple of [`GROUP`]; with what its record shares if the record begins before.
    pub const fn lane_bytes(self, k: usize) -> usize {
        let group = k / GROUP;
        if group.is_multiple_of(self.groups) { self.record(group) } else { self.group(group) }
    }
}

/// A [`Kind`] that kernels are compiled for.
pub trait Quantised {
    const KIND: Kind;
}

/// Names kinds, each a type.
macro_rules! kinds {
    ($($(#[$what:meta])* $name:ident = $bits:literal bits, zero $zero:literal, min $min:literal, $groups:literal $factors:ident;)*) => {
        $(
            $(#[$what])*
            pub struct $name;

            impl Quantised for $name {
                const KIND: Kind =
                    Kind { bits: $bits, zero: $zero, has_min: $min, groups: $groups, factors: Factors::$factors };
            }
        )*
    };
}

kinds! {
    /// Eight bits, symmetric: Q8_0.
    Int8 = 8 bits, zero 128, min false, 1 None;
    /// Four bits, symmetric: Q4_0.
    Int4 = 4 bits, zero 8, min false, 1 None;
    /// Four bits above a minimum: Q4_1.
    Int4Min = 4 bits, zero 0, min true, 1 None;
    /// Five bits, symmetric: Q5_0.
    Int5 = 5 bits, zero 16, min false, 1 None;
    /// Five bits above a minimum: Q5_1.
    Int5Min = 5 bits, zero 0, min true, 1 None;
    /// Four bits, two levels of scales and minima: Q4_K.
    Int4Super = 4 bits, zero 0, min true, 8 ScaleAndMin;
    /// Five bits, the same: Q5_K.
    Int5Super = 5 bits, zero 0, min true, 8 ScaleAndMin;
    /// Six bits, two levels of scales: Q6_K.
    Int6Super = 6 bits, zero 32, min false, 8 Halves;
}
