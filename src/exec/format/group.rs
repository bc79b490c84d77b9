//! A group of quantised weights, as a file's blocks have it.

use half::f16;

use super::kind::{Factors, GROUP, HALF_ZERO, Kind};
use crate::model::weights::{Dtype, blocks};

/// A group of an output's weights, with what its record shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    pub numbers: [u8; GROUP],
    pub scale: f16,
    /// Zero where the format has none.
    pub min: f16,
    /// As [`Factors`] says; zero where there are none.
    pub factors: [u8; 2],
}

impl Group {
    /// Group `index` of a file's block. Its numbers are those of `kind`, or have another zero.
    pub fn of_block(kind: Kind, dtype: Dtype, block: &[u8], index: usize) -> Group {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        let (scale, min) = match dtype {
            Dtype::Q6K => (half(208), f16::ZERO),
            Dtype::Q4_1 | Dtype::Q5_1 => (half(0), half(2)),
            Dtype::Q4K | Dtype::Q5K => (half(0), -half(2)),
            _ => (half(0), f16::ZERO),
        };
        let factors = match dtype {
            Dtype::Q4K | Dtype::Q5K => blocks::scale_and_min(block, index).into(),
            Dtype::Q6K => [0, 1].map(|half| block[192 + 2 * index + half].wrapping_add(HALF_ZERO)),
            _ => [0; 2],
        };
        let zero = match dtype {
            Dtype::Q4_0 => 8,
            Dtype::Q5_0 => 16,
            Dtype::Q6K => 32,
            _ => 0,
        };
        let number = number_of_block(dtype, block, index);
        let numbers = std::array::from_fn(|k| number(k).wrapping_sub(zero).wrapping_add(kind.zero));
        Group { numbers, scale, min, factors }
    }

    /// Weight `k` of the group.
    pub fn value(&self, kind: Kind, k: usize) -> f32 {
        let (mut scale, mut min) = (self.scale.to_f32(), self.min.to_f32());
        match kind.factors {
            Factors::None => {}
            Factors::ScaleAndMin => {
                scale *= f32::from(self.factors[0]);
                min *= f32::from(self.factors[1]);
            }
            Factors::Halves => {
                scale *= f32::from(self.factors[2 * k / GROUP]) - f32::from(HALF_ZERO);
            }
        }
        let number = f32::from(self.numbers[k]);
        if kind.has_min { scale * number + min } else { scale * (number - f32::from(kind.zero)) }
    }
}

/// The numbers of group `index` of a file's block, where they lie as [`blocks`] says.
fn number_of_block(dtype: Dtype, block: &[u8], index: usize) -> impl Fn(usize) -> u8 {
    let of_pairs = move |data: usize, k: usize| (block[data + k % 16] >> (k / 16 * 4)) & 15;
    let of_super = move |data: usize, k: usize| (block[data + index / 2 * 32 + k] >> (index % 2 * 4)) & 15;
    let fifth = move |at: usize, k: usize| (block[at + k / 8] >> (k % 8) & 1) << 4;
    move |k| match dtype {
        Dtype::Q8_0 => block[2 + k],
        Dtype::Q4_0 => of_pairs(2, k),
        Dtype::Q4_1 => of_pairs(4, k),
        Dtype::Q5_0 => of_pairs(6, k) | fifth(2, k),
        Dtype::Q5_1 => of_pairs(8, k) | fifth(4, k),
        Dtype::Q4K => of_super(16, k),
        Dtype::Q5K => of_super(48, k) | (block[16 + k] >> index & 1) << 4,
        Dtype::Q6K => {
            let (half, quarter) = (index / 4, index % 4);
            let low = block[64 * half + 32 * (quarter % 2) + k] >> (4 * (quarter / 2)) & 15;
            low | (block[128 + 32 * half + k] >> (2 * quarter) & 3) << 4
        }
        other => unreachable!("{other} has no blocks"),
    }
}
