//! Where a [`Group`] of quantised weights stands in a panel.
//!
//! In a panel a record is what its groups share, for every lane (scales, then minima, float16), then group by group:
//! words of four neighbouring `k` for every lane (the low four bits of `k` and `k + 16` in one byte, where numbers have
//! fewer than eight), words of the bits above these four, and the lanes' factors.

use std::ops::Range;

use half::f16;

use super::{Factors, GROUP, Group, Kind, Layout, Panel};

/// Where a lane's part of a group is, in bytes of its panel.
struct Places {
    kind: Kind,
    lane: usize,
    lanes: usize,
    shared: usize,
    group: usize,
}

impl Places {
    fn new(layout: &Layout, kind: Kind, panel: Panel, lane: usize, index: usize) -> Places {
        let lanes = panel.vectors * layout.width;
        Places { kind, lane, lanes, shared: kind.record(index) * lanes, group: kind.group(index) * lanes }
    }

    fn word(&self, word: usize) -> Range<usize> {
        let start = self.group + (word * self.lanes + self.lane) * 4;
        start..start + 4
    }

    /// Scale and minimum.
    fn shared(&self, i: usize) -> Range<usize> {
        let start = self.shared + 2 * (i * self.lanes + self.lane);
        start..start + 2
    }

    fn factor(&self, i: usize) -> usize {
        self.group + (self.kind.data_bytes() + i) * self.lanes + self.lane
    }
}

/// Writes a lane's part of a group into the panel's bytes.
pub fn put(layout: &Layout, kind: Kind, panel: Panel, lane: usize, index: usize, group: &Group, to: &mut [u8]) {
    let places = Places::new(layout, kind, panel, lane, index);
    for word in 0..kind.data_bytes() / 4 {
        to[places.word(word)].copy_from_slice(&[0, 1, 2, 3].map(|i| data_byte(kind, &group.numbers, word, i)));
    }
    to[places.shared(0)].copy_from_slice(&group.scale.to_ne_bytes());
    if kind.has_min {
        to[places.shared(1)].copy_from_slice(&group.min.to_ne_bytes());
    }
    if kind.factors != Factors::None {
        (to[places.factor(0)], to[places.factor(1)]) = (group.factors[0], group.factors[1]);
    }
}

/// Byte `i` of a word of a group's data.
fn data_byte(kind: Kind, numbers: &[u8; GROUP], word: usize, i: usize) -> u8 {
    if !kind.has_half_bytes() {
        return numbers[4 * word + i];
    }
    let both = |word: usize, part: fn(u8) -> u8| {
        let k = 4 * word + i;
        (part(numbers[k]), part(numbers[k + GROUP / 2]))
    };
    match word.checked_sub(4) {
        None => {
            let (low, high) = both(word, |number| number & 15);
            low | high << 4
        }
        // Of the words of half bytes that share this one, each takes the next bits of either half.
        Some(word) => (0..4 / kind.high_bits()).fold(0, |byte, place| {
            let (low, high) = both(word * 4 / kind.high_bits() + place, |number| number >> 4);
            byte | (low | high << 4) << (place * kind.high_bits())
        }),
    }
}

/// Reads it back.
pub fn get(layout: &Layout, kind: Kind, panel: Panel, lane: usize, index: usize, from: &[u8]) -> Group {
    let places = Places::new(layout, kind, panel, lane, index);
    let half = |range: Range<usize>| f16::from_ne_bytes([from[range.start], from[range.start + 1]]);
    let min = if kind.has_min { half(places.shared(1)) } else { f16::ZERO };
    let factors = if kind.factors == Factors::None { [0; 2] } else { [0, 1].map(|i| from[places.factor(i)]) };
    let numbers = std::array::from_fn(|k| {
        if !kind.has_half_bytes() {
            return from[places.word(k / 4).start + k % 4];
        }
        let (half, word) = (k / 16 * 4, k % 16 / 4);
        let byte = |word: usize| from[places.word(word).start + k % 4] >> half;
        let low = byte(word) & 15;
        match kind.high_bits() {
            0 => low,
            bits => {
                let place = word * bits;
                low | (byte(4 + place / 4) >> (place % 4) & ((1 << bits) - 1)) << 4
            }
        }
    });
    Group { numbers, scale: half(places.shared(0)), min, factors }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::isa::Isa;
    use super::super::Format;
    use super::*;

    proptest! {
        #[test]
        fn a_group_is_found_where_it_was_put(
            numbers: [u8; GROUP], scale in -9f32..9.0, min in -9f32..9.0, factors: [u8; 2], row in 0usize..40,
            index in 0usize..10,
        ) {
            for (isa, format) in Isa::available().flat_map(|isa| Format::QUANTISED.map(|format| (isa, format))) {
                let kind = format.kind().unwrap();
                let layout = Layout::new(isa, format, 40, 10 * GROUP);
                let group = Group {
                    numbers: numbers.map(|number| number >> (8 - kind.bits)),
                    scale: f16::from_f32(scale),
                    min: if kind.has_min { f16::from_f32(min) } else { f16::ZERO },
                    factors: if kind.factors == Factors::None { [0; 2] } else { factors },
                };
                let (panel, lane) = layout.place(row);
                let mut to = vec![0; layout.panel_bytes(panel).len()];
                put(&layout, kind, panel, lane, index, &group, &mut to);
                prop_assert_eq!(get(&layout, kind, panel, lane, index, &to), group, "{:?}", format);
            }
        }
    }
}
