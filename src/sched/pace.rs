//! How fast the device is, learnt from its steps, so that prompts slow running streams down by no more than was asked.
//!
//! Knows two times: of a step that only decodes, and what a row of a prompt adds to one. Where the memory is the bottleneck
//! a few rows add next to nothing; a rate learnt from such steps lets more of them in, until it no longer holds.

use super::job::Micros;

/// Rows of a prompt that every step may have, so that no prompt waits for ever.
const MIN_PREFILL_ROWS: usize = 16;
/// Weight of the newest step.
const NEWEST: f64 = 0.25;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    decode_us: Option<f64>,
    row_us: Option<f64>,
}

impl Pace {
    /// A step of `decodes` rows that decoded and `prefills` rows of prompts took this long.
    pub fn learn(&mut self, decodes: usize, prefills: usize, elapsed: Micros) {
        let elapsed = elapsed as f64;
        if prefills == 0 {
            update(&mut self.decode_us, elapsed);
        } else if prefills >= MIN_PREFILL_ROWS {
            let without = if decodes == 0 { 0.0 } else { self.decode_us.unwrap_or(0.0) };
            update(&mut self.row_us, (elapsed - without).max(0.0) / prefills as f64);
        }
    }

    /// Rows of prompts beside running streams, whose step then takes at most about `max_slowdown` times as long.
    pub fn prefill_rows(&self, max_slowdown: f64) -> usize {
        match (self.decode_us, self.row_us) {
            // A quotient beyond any count, or by zero, becomes the largest number.
            (Some(decode), Some(row)) => ((decode * (max_slowdown - 1.0) / row) as usize).max(MIN_PREFILL_ROWS),
            _ => usize::MAX,
        }
    }
}

fn update(mean: &mut Option<f64>, newest: f64) {
    *mean = Some(mean.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
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
        for (read, row, decodes) in
            [(24_000.0, 950.0, 4), (24_000.0, 950.0, 32), (5_000.0, 20.0, 64), (100.0, 100.0, 1)]
        {
            let mut pace = Pace::default();
            assert_eq!(pace.prefill_rows(2.0), usize::MAX, "nothing is known yet");
            pace.learn(0, 512, step_us(read, row, 512));
            let decode_us = step_us(read, row, decodes);
            (0..20).for_each(|_| pace.learn(decodes, 0, decode_us));
            let mut prefills = Vec::new();
            for _ in 0..200 {
                let rows = pace.prefill_rows(2.0).min(512);
                pace.learn(decodes, rows, step_us(read, row, decodes + rows));
                prefills.push(rows);
            }
            let settled = &prefills[100..];
            let mean = settled.iter().sum::<usize>() / settled.len();
            let slowdown = step_us(read, row, decodes + mean) as f64 / decode_us as f64;
            let least = prefills.iter().all(|&rows| rows == MIN_PREFILL_ROWS || rows == 512);
            assert!(least || (1.5..2.3).contains(&slowdown), "{read} {row} {decodes}: {slowdown}, {mean} rows");
        }
    }

    #[test]
    fn every_step_has_some_rows_for_prompts_and_a_free_device_all() {
        let mut pace = Pace::default();
        pace.learn(1, 0, 10);
        pace.learn(0, 100, 1_000_000);
        assert_eq!(pace.prefill_rows(2.0), MIN_PREFILL_ROWS);
        let mut free = Pace::default();
        free.learn(1, 0, 1);
        free.learn(1, 100, 1);
        assert_eq!(free.prefill_rows(2.0), usize::MAX);
    }
}
