//! Durations in a fixed space: buckets that grow by a sixteenth, from a microsecond to hours.

use std::time::Duration;

/// Buckets to each power of two.
const STEPS: u64 = 16;
const NUM_BUCKETS: usize = 34 * STEPS as usize;

#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; NUM_BUCKETS], count: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, time: Duration) {
        self.buckets[bucket(time.as_micros() as u64)] += 1;
        self.count += 1;
    }

    /// The duration that a share of `quantile` does not exceed, in milliseconds, up to 6 % too high; none of nothing.
    pub fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let rank = ((self.count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let index = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(upper_us(index) as f64 / 1e3)
    }
}

fn bucket(us: u64) -> usize {
    if us < STEPS {
        return us as usize;
    }
    let power = us.ilog2() - STEPS.ilog2();
    let index = u64::from(power) * STEPS + (us >> power);
    (index as usize).min(NUM_BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper_us(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * STEPS {
        return index;
    }
    let power = index / STEPS - 1;
    ((index % STEPS + STEPS + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_a_bucket_that_is_hardly_larger() {
        for us in (0..200_000).chain([u64::from(u32::MAX), 1 << 33]) {
            let upper = upper_us(bucket(us));
            assert!(upper >= us && upper <= us + us / 16, "{us}: {upper}");
        }
        assert_eq!(bucket(u64::MAX), NUM_BUCKETS - 1);
    }

    #[test]
    fn quantiles_count() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        (1..=10).for_each(|us| histogram.record(Duration::from_micros(us)));
        assert_eq!(histogram.quantile_ms(0.5), Some(0.005));
        assert_eq!(histogram.quantile_ms(0.99), Some(0.010));
    }
}
