//! Where a sorted distribution would be cut, without sorting it: radix selection over the bits of the values.
//!
//! Linear in the number of candidates whatever their values, which keeps top-k and top-p over a large vocabulary
//! well under the time of a sort, and is how a GPU does it too.

const DIGIT_BITS: u32 = 11;
const NUM_DIGITS: usize = 1 << DIGIT_BITS;
/// 11 + 11 + 10 bits, most significant first.
const SHIFTS: [u32; 3] = [21, 10, 0];

/// Candidates ranked by ascending `key`, equal keys by position: the last one that is still in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    key: u32,
    position: u32,
}

impl Cut {
    pub(super) fn keeps(self, key: u32, position: usize) -> bool {
        key < self.key || (key == self.key && position <= self.position as usize)
    }
}

/// Buffers of [`cut`].
#[derive(Debug, Default)]
pub(super) struct SelectScratch {
    sums: Vec<u64>,
    members: Vec<u32>,
}

/// Key of a value that is not above zero: larger values have smaller keys.
pub(super) fn key(value: f32) -> u32 {
    // `+ 0.0` folds the two zeros into one; bits of non-negative floats are ordered as the floats are.
    (-value + 0.0).to_bits()
}

/// Cuts `values` (none above zero, no not-a-number) after the first, from the largest on, at which the sum of their weights
/// exceeds `target`. Weights are positive. Where the sum stays at `target` or below, all stay.
pub(super) fn cut(
    values: &[f32],
    weight: impl Fn(usize) -> u64,
    target: u64,
    scratch: &mut SelectScratch,
) -> Option<Cut> {
    let SelectScratch { sums, members } = scratch;
    let mut reached = 0;
    let mut prefix = 0;
    for (level, shift) in SHIFTS.into_iter().enumerate() {
        let digit = |position: usize| (key(values[position]) >> shift) as usize & (NUM_DIGITS - 1);
        sums.clear();
        sums.resize(NUM_DIGITS, 0);
        if level == 0 {
            (0..values.len()).for_each(|p| sums[digit(p)] += weight(p));
        } else {
            members.iter().for_each(|&p| sums[digit(p as usize)] += weight(p as usize));
        }
        let chosen = crossing(sums, &mut reached, target)?;
        prefix |= (chosen as u32) << shift;
        if level == 0 {
            members.clear();
            members.extend((0..values.len()).filter(|&p| digit(p) == chosen).map(|p| p as u32));
        } else {
            members.retain(|&p| digit(p as usize) == chosen);
        }
    }
    let mut last = *members.last()?;
    for &position in members.iter() {
        reached += weight(position as usize);
        if reached > target {
            last = position;
            break;
        }
    }
    Some(Cut { key: prefix, position: last })
}

/// The digit at which the running sum exceeds `target`, else the last one that has members.
fn crossing(sums: &[u64], reached: &mut u64, target: u64) -> Option<usize> {
    let last = sums.iter().rposition(|&s| s > 0)?;
    for (digit, &sum) in sums.iter().enumerate().take(last) {
        if *reached + sum > target {
            return Some(digit);
        }
        *reached += sum;
    }
    Some(last)
}
