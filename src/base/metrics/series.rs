//! One series each: a counter, a gauge, a histogram. Handles are cheap to clone and record without a lock, a look-up or
//! an allocation; memory is fixed when the series is made.
//!
//! Never knows names or labels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

// Relaxed everywhere: a series orders nothing, and a scrape that misses the newest sample finds it next time.

/// Counts up.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    pub fn increment(&self, by: u64) {
        self.0.fetch_add(by, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down. Holds the bits of an `f64`.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    pub fn increment(&self, by: f64) {
        let add = |bits| Some((f64::from_bits(bits) + by).to_bits());
        // The closure never declines, so this cannot fail.
        let _ = self.0.fetch_update(Relaxed, Relaxed, add);
    }

    pub fn decrement(&self, by: f64) {
        self.increment(-by);
    }

    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

/// Counts samples by size. A sample costs a search among at most two dozen bounds and two additions.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    /// Samples in each bucket alone; one more for what is above the last bound.
    counts: Box<[AtomicU64]>,
    /// In millionths: whole numbers add up without loss, and in one instruction.
    sum_millionths: AtomicU64,
}

/// What a histogram holds at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    pub bounds: &'static [f64],
    /// One more than there are bounds.
    pub counts: Vec<u64>,
    pub sum: f64,
}

impl Histogram {
    /// `bounds` are upper bounds, inclusive, in rising order.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Buckets { bounds, counts, sum_millionths: AtomicU64::new(0) }))
    }

    /// A negative sample, or one that is no number, counts as 0.
    pub fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    /// As many samples of one size.
    pub fn record_many(&self, value: f64, num_samples: u64) {
        let Buckets { bounds, counts, sum_millionths } = &*self.0;
        let bucket = bounds.partition_point(|bound| *bound < value);
        counts[bucket].fetch_add(num_samples, Relaxed);
        sum_millionths.fetch_add((value * 1e6).round() as u64 * num_samples, Relaxed);
    }

    pub fn distribution(&self) -> Distribution {
        Distribution {
            bounds: self.0.bounds,
            counts: self.0.counts.iter().map(|count| count.load(Relaxed)).collect(),
            sum: self.0.sum_millionths.load(Relaxed) as f64 / 1e6,
        }
    }
}

impl Distribution {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds another one's samples; both have the same bounds.
    pub fn add(&mut self, other: &Distribution) {
        debug_assert_eq!(self.bounds, other.bounds);
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }
}
