//! How fast the device is, learnt from its steps, so that prompts slow running streams down by no more than was asked.
//!
//! Knows how long a step takes that only decodes, for so many sequences, and what a row costs in a step of many rows, where
//! the device computes all the time. So a step of few rows, which waits for memory, has room for more at no cost. How much
//! room is left for drafts beside so many decodes is measured on its own.

use super::draft::Stake;
use super::job::Micros;

/// Rows of a prompt that every step may have, so that no prompt waits for ever.
pub(super) const MIN_PREFILL_ROWS: usize = 16;
/// In steps of so many rows the device is taken to compute all the time.
const MANY_ROWS: usize = 64;
/// Weight of the newest step.
const NEWEST: f64 = 0.25;
/// What one more decode adds to a step, in rows of a prompt, where nothing was measured: it shares the reading of the
/// weights.
const DECODE_ROWS: f64 = 0.5;

/// A draft costs at least this share of a step: what it takes to plan it and to draw from it is not nothing.
const MIN_DRAFT_SHARE: f64 = 1.0 / 64.0;
/// Most that one is taken to cost, in steps that only decode.
const MAX_DRAFT_STEPS: f64 = 4.0;
/// How fast a draft's measured cost is forgotten, by each step that has none: one that was measured too high would
/// otherwise never be measured again.
const FORGET: f64 = 1.0 / 256.0;

/// Steps that only decode, by the number of bits of their number of sequences.
const NUM_SIZES: usize = 24;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    decodes: [Option<Decodes>; NUM_SIZES],
    /// What a draft adds to a step that only decodes, by the same sizes.
    draft_us: [Option<f64>; NUM_SIZES],
    row_us: Option<f64>,
}

/// A step that decoded so many sequences, as measured last, and on average.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decodes {
    count: usize,
    us: f64,
}

impl Pace {
    /// A step of `decodes` sequences that decoded, `drafts` rows more for them and `prefills` rows of prompts took this
    /// long.
    pub fn learn(&mut self, decodes: usize, drafts: usize, prefills: usize, elapsed: Micros) {
        let elapsed = elapsed as f64;
        let rows = decodes + drafts + prefills;
        if prefills == 0 && drafts > 0 {
            self.learn_drafts(decodes, drafts, elapsed);
        } else if prefills == 0 {
            let forgotten = self.row_us.unwrap_or(0.0);
            if let Some(draft_us) = &mut self.draft_us[size(decodes)] {
                *draft_us += FORGET * (forgotten - *draft_us);
            }
            let known = &mut self.decodes[size(decodes)];
            let us = known.map_or(elapsed, |known| towards(known.us, elapsed));
            *known = Some(Decodes { count: decodes, us });
        } else if prefills >= decodes + drafts && rows >= MANY_ROWS {
            let row_us = elapsed / rows as f64;
            self.row_us = Some(self.row_us.map_or(row_us, |known| towards(known, row_us)));
        }
    }

    /// What is more than the decodes take alone is the drafts'; one step that something else held up counts for so much
    /// only.
    fn learn_drafts(&mut self, decodes: usize, drafts: usize, elapsed: f64) {
        let Some(alone_us) = self.decode_us(decodes) else { return };
        let us = ((elapsed - alone_us) / drafts as f64).clamp(0.0, MAX_DRAFT_STEPS * alone_us);
        let known = &mut self.draft_us[size(decodes)];
        *known = Some(known.map_or(us, |known| towards(known, us)));
    }

    /// What drafts beside `decodes` streams may cost: `rows` at most, in a step that takes at most about `max_slowdown`
    /// times as long, half of which is the prompts' where there are any. None while no step was measured that only decodes.
    pub fn stake(&self, decodes: usize, rows: usize, has_prompts: bool, max_slowdown: f64) -> Stake {
        let Some(us) = self.decode_us(decodes) else { return Stake::NONE };
        let many_us = self.row_us.unwrap_or(0.0);
        let measured = self.draft_us[..=size(decodes)].iter().rev().find_map(|known| *known).unwrap_or(many_us);
        let row_us = if has_prompts { measured.max(many_us) } else { measured };
        let max_us = match (has_prompts, decodes) {
            (true, _) => us * (1.0 + max_slowdown) / 2.0,
            // Nobody else waits for it.
            (false, 0..=1) => f64::INFINITY,
            (false, _) => us * max_slowdown,
        };
        Stake { rows, us, tokens: decodes as f64, row_us: row_us.max(us * MIN_DRAFT_SHARE), max_us }
    }

    /// Rows of prompts beside `decodes` running streams and `drafts` rows for them, in a step that then takes at most about
    /// `max_slowdown` times as long.
    pub fn prefill_rows(&self, decodes: usize, drafts: usize, max_slowdown: f64) -> usize {
        let (Some(row_us), Some(alone_us)) = (self.row_us, self.decode_us(decodes)) else { return usize::MAX };
        // A quotient beyond any count, or by zero, becomes the largest number.
        let rows = (max_slowdown * alone_us / row_us) as usize;
        rows.saturating_sub(decodes + drafts).max(MIN_PREFILL_ROWS)
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
            assert_eq!(pace.prefill_rows(decodes, 0, 2.0), usize::MAX, "nothing is known yet");
            pace.learn(0, 0, 512, step_us(read, row, 512));
            let alone = step_us(read, row, decodes);
            (0..20).for_each(|_| pace.learn(decodes, 0, 0, alone));
            for _ in 0..50 {
                let rows = pace.prefill_rows(decodes, 0, 2.0);
                let elapsed = step_us(read, row, decodes + rows);
                let slowdown = elapsed as f64 / alone as f64;
                assert!((1.8..2.1).contains(&slowdown), "{read} {row} {decodes}: {slowdown}, {rows} rows");
                pace.learn(decodes, 0, rows, elapsed);
            }
        }
    }

    /// Newcomers all the time: no step decodes only any more once there are many.
    #[test]
    fn a_lane_that_filled_up_beside_prompts_is_not_taken_for_an_empty_one() {
        let (read, row) = (24_000.0, 950.0);
        let mut pace = Pace::default();
        pace.learn(0, 0, 512, step_us(read, row, 512));
        pace.learn(1, 0, 0, step_us(read, row, 1));
        let rows = pace.prefill_rows(32, 0, 2.0);
        let slowdown = step_us(read, row, 32 + rows) as f64 / step_us(read, row, 32) as f64;
        assert!((1.5..3.0).contains(&slowdown), "{slowdown}");
    }

    #[test]
    fn every_step_has_some_rows_for_prompts_and_a_free_device_all() {
        let mut pace = Pace::default();
        pace.learn(1, 0, 0, 10);
        pace.learn(0, 0, 100, 1_000_000);
        assert_eq!(pace.prefill_rows(1, 0, 2.0), MIN_PREFILL_ROWS);
        let mut free = Pace::default();
        free.learn(1, 0, 0, 1);
        free.learn(1, 0, 100, 0);
        assert_eq!(free.prefill_rows(1, 0, 2.0), usize::MAX - 1);
    }

    /// Drafts that a stake takes for a stream whose guesses are right so often.
    fn drafts(pace: &Pace, decodes: usize, rate: f64) -> usize {
        let mut stake = pace.stake(decodes, 64, false, 1e6);
        (1..=8).take_while(|&i| stake.take(rate.powi(i))).count()
    }

    #[test]
    fn drafts_are_long_where_the_device_waits_for_memory_and_none_where_it_computes() {
        let (read, row) = (24_000.0, 950.0);
        let mut pace = Pace::default();
        assert_eq!(drafts(&pace, 1, 1.0), 0, "nothing is known yet");
        for decodes in [1, 64] {
            (0..20).for_each(|_| pace.learn(decodes, 0, 0, step_us(read, row, decodes)));
            (0..20).for_each(|_| pace.learn(decodes, 8, 0, step_us(read, row, decodes + 8)));
        }
        assert_eq!(drafts(&pace, 1, 0.8), 8, "beside one stream they are nearly free");
        assert_eq!(drafts(&pace, 64, 0.8), 0, "beside 64 a draft costs what a token is worth");
        assert_eq!(pace.prefill_rows(1, 8, 2.0), usize::MAX, "rows of prompts were never measured");
        pace.learn(0, 0, 512, step_us(read, row, 512));
        assert_eq!(pace.prefill_rows(1, 0, 2.0) - pace.prefill_rows(1, 8, 2.0), 8);
    }

    #[test]
    fn a_cost_measured_too_high_is_forgotten() {
        let mut pace = Pace::default();
        (0..4).for_each(|_| pace.learn(1, 0, 0, 1000));
        pace.learn(1, 4, 0, 1_000_000);
        assert_eq!(drafts(&pace, 1, 0.9), 0);
        (0..2000).for_each(|_| pace.learn(1, 0, 0, 1000));
        assert!(drafts(&pace, 1, 0.9) > 2);
    }

    #[test]
    fn drafts_leave_time_to_prompts_and_slow_others_no_more_than_prompts_do() {
        let mut pace = Pace::default();
        pace.learn(4, 0, 0, 1000);
        pace.learn(4, 10, 0, 1100);
        let rows = |decodes, has_prompts| {
            let mut stake = pace.stake(decodes, 1000, has_prompts, 2.0);
            // Every guess is sure, and worth any time.
            stake.tokens = 0.001;
            (0..)
                .take_while(|_| {
                    stake.tokens = 0.001;
                    stake.take(1.0)
                })
                .count()
        };
        let alone = (1000.0 * MIN_DRAFT_SHARE).max(10.0);
        assert_eq!(rows(4, false), (1000.0 / alone) as usize);
        assert_eq!(rows(4, true), (500.0 / alone) as usize);
    }
}
