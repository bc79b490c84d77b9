//! How fast the device is, learnt from its steps, so that prompts slow running streams down by no more than was asked.
//!
//! Knows how long a step takes that only decodes, for so many sequences, and what a row costs in a step of many rows, where
//! the device computes all the time. So a step of few rows, which waits for memory, has room for more at no cost.

use super::job::Micros;

/// Rows of a prompt that every step may have, so that no prompt waits for ever.
const MIN_PREFILL_ROWS: usize = 16;
/// In steps of so many rows the device is taken to compute all the time.
const MANY_ROWS: usize = 64;
/// Weight of the newest step.
const NEWEST: f64 = 0.25;
/// What one more decode adds to a step, in rows of a prompt, where nothing was measured: it shares the reading of the
/// weights.
const DECODE_ROWS: f64 = 0.5;

/// Steps that only decode, by the number of bits of their number of sequences.
const NUM_SIZES: usize = 24;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    decodes: [Option<Decodes>; NUM_SIZES],
    row_us: Option<f64>,
}

/// A step that decoded so many sequences, as measured last, and on average.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decodes {
    count: usize,
    us: f64,
}

impl Pace {
    /// A step of `decodes` rows that decoded and `prefills` rows of prompts took this long.
    pub fn learn(&mut self, decodes: usize, prefills: usize, elapsed: Micros) {
        let elapsed = elapsed as f64;
        if prefills == 0 {
            let known = &mut self.decodes[size(decodes)];
            let us = known.map_or(elapsed, |known| towards(known.us, elapsed));
            *known = Some(Decodes { count: decodes, us });
        } else if prefills >= decodes && decodes + prefills >= MANY_ROWS {
            let row_us = elapsed / (decodes + prefills) as f64;
            self.row_us = Some(self.row_us.map_or(row_us, |known| towards(known, row_us)));
        }
    }

    /// Rows of prompts beside `decodes` running streams, whose step then takes at most about `max_slowdown` times as long.
    pub fn prefill_rows(&self, decodes: usize, max_slowdown: f64) -> usize {
        let (Some(row_us), Some(alone_us)) = (self.row_us, self.decode_us(decodes)) else { return usize::MAX };
        // A quotient beyond any count, or by zero, becomes the largest number.
        let rows = (max_slowdown * alone_us / row_us) as usize;
        rows.saturating_sub(decodes).max(MIN_PREFILL_ROWS)
    }

    /// A step that only decodes, as measured, or after the nearest smaller one that was.
    fn decode_us(&self, decodes: usize) -> Option<f64> {
        let known = self.decodes[..=size(decodes)].iter().rev().find_map(|known| *known)?;
        let more = decodes.saturating_sub(known.count) as f64;
        Some(known.us + more * DECODE_ROWS * self.row_us.unwrap_or(0.0))
    }
}

fn size(decodes: usize) -> usize {
    ((usize::BITS - decodes.leading_zeros()) as usize).min(NUM_SIZES - 1)
}

fn towards(mean: f64, newest: f64) -> f64 {
    mean + NEWEST * (newest - mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that reads its weights in `read` µs while it computes rows in `row` µs each.
    fn step_us(read: f64, row: f64, rows: usize) -> Micros {
        read.max(row * rows as f64) as Micros
    }

    #[test]
    fn steps_with_prompts_take_as_long_as_was_asked() {
        for (read, row, decodes) in [(24_000.0, 950.0, 4), (24_000.0, 950.0, 32), (5_000.0, 20.0, 64), (900.0, 10.0, 1)]
        {
            let mut pace = Pace::default();
            assert_eq!(pace.prefill_rows(decodes, 2.0), usize::MAX, "nothing is known yet");
            pace.learn(0, 512, step_us(read, row, 512));
            let alone = step_us(read, row, decodes);
            (0..20).for_each(|_| pace.learn(decodes, 0, alone));
            for _ in 0..50 {
                let rows = pace.prefill_rows(decodes, 2.0);
                let elapsed = step_us(read, row, decodes + rows);
                let slowdown = elapsed as f64 / alone as f64;
                assert!((1.8..2.1).contains(&slowdown), "{read} {row} {decodes}: {slowdown}, {rows} rows");
                pace.learn(decodes, rows, elapsed);
            }
        }
    }

    /// Newcomers all the time: no step decodes only any more once there are many.
    #[test]
    fn a_lane_that_filled_up_beside_prompts_is_not_taken_for_an_empty_one() {
        let (read, row) = (24_000.0, 950.0);
        let mut pace = Pace::default();
        pace.learn(0, 512, step_us(read, row, 512));
        pace.learn(1, 0, step_us(read, row, 1));
        let rows = pace.prefill_rows(32, 2.0);
        let slowdown = step_us(read, row, 32 + rows) as f64 / step_us(read, row, 32) as f64;
        assert!((1.5..3.0).contains(&slowdown), "{slowdown}");
    }

    #[test]
    fn every_step_has_some_rows_for_prompts_and_a_free_device_all() {
        let mut pace = Pace::default();
        pace.learn(1, 0, 10);
        pace.learn(0, 100, 1_000_000);
        assert_eq!(pace.prefill_rows(1, 2.0), MIN_PREFILL_ROWS);
        let mut free = Pace::default();
        free.learn(1, 0, 1);
        free.learn(1, 100, 0);
        assert_eq!(free.prefill_rows(1, 2.0), usize::MAX - 1);
    }
}
