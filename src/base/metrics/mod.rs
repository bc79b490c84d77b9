//! Metrics: named once in a table, registered once, recorded through handles, rendered for Prometheus.
//!
//! Owns names, labels and buckets. Never knows who records. Hot paths (tokens, steps) hold handles and look no name up;
//! [`Metrics::requests`] and its like look labels up once a request.
//!
//! Invariant: samples are folded into buckets every few seconds, whether or not anyone scrapes, so memory is bounded.

mod table;

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub use table::{Kind, Metric, TABLE};

/// Between two foldings of samples into buckets.
const UPKEEP: Duration = Duration::from_secs(5);

const METADATA: Metadata<'static> = Metadata::new("garrick", Level::INFO, None);

/// The recorder and the handles that need no labels.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    pub ttft_s: Histogram,
    pub itl_s: Histogram,
    pub queue_wait_s: Histogram,
    pub prompt_tokens: Counter,
    pub cached_prompt_tokens: Counter,
    pub generated_tokens: Counter,
    pub streams_open: Gauge,
    pub stream_stalls: Counter,
    pub permits_in_use: Gauge,
    pub panics: Counter,
    pub book_errors: Counter,
}

/// Handles of one lane.
#[derive(Clone)]
pub struct LaneMetrics {
    pub waiting: Gauge,
    pub running: Gauge,
    pub blocks_free: Gauge,
    pub blocks_cached: Gauge,
    pub blocks_held: Gauge,
    pub steps: Counter,
    pub step_s: Histogram,
    pub step_tokens: Histogram,
    pub preemptions: Counter,
    pub steals: Counter,
}

/// The process's metrics; the first call registers them.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
        let metrics = Metrics::new();
        let handle = metrics.handle.clone();
        let upkeep = move || {
            loop {
                std::thread::sleep(UPKEEP);
                handle.run_upkeep();
            }
        };
        if let Err(e) = std::thread::Builder::new().name("metrics-upkeep".into()).spawn(upkeep) {
            tracing::warn!("metrics are folded only when /metrics is read: no thread for it ({e})");
        }
        metrics
    });
    &METRICS
}

impl Metrics {
    /// A registry of its own; programs use [`metrics()`].
    pub fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for metric in TABLE {
            if let Kind::Histogram(buckets) = metric.kind {
                let name = Matcher::Full(metric.name.to_owned());
                builder = builder.set_buckets_for_metric(name, buckets).expect("no histogram is without buckets");
            }
        }
        let recorder = builder.build_recorder();
        for metric in TABLE {
            let (name, unit, help) = (metric.name.into(), Some(metric.unit), metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, unit, help),
                Kind::Gauge => recorder.describe_gauge(name, unit, help),
                Kind::Histogram(_) => recorder.describe_histogram(name, unit, help),
            }
        }
        let counter = |metric: &Metric| recorder.register_counter(&key(metric, &[]), &METADATA);
        let gauge = |metric: &Metric| recorder.register_gauge(&key(metric, &[]), &METADATA);
        let histogram = |metric: &Metric| recorder.register_histogram(&key(metric, &[]), &METADATA);
        let build = key(&table::BUILD_INFO, &[env!("CARGO_PKG_VERSION")]);
        recorder.register_gauge(&build, &METADATA).set(1.0);
        Self {
            handle: recorder.handle(),
            ttft_s: histogram(&table::TTFT),
            itl_s: histogram(&table::ITL),
            queue_wait_s: histogram(&table::QUEUE_WAIT),
            prompt_tokens: counter(&table::PROMPT_TOKENS),
            cached_prompt_tokens: counter(&table::CACHED_PROMPT_TOKENS),
            generated_tokens: counter(&table::GENERATED_TOKENS),
            streams_open: gauge(&table::STREAMS_OPEN),
            stream_stalls: counter(&table::STREAM_STALLS),
            permits_in_use: gauge(&table::PERMITS_IN_USE),
            panics: counter(&table::PANICS),
            book_errors: counter(&table::BOOK_ERRORS),
            recorder,
        }
    }

    /// A request was answered. `route` is the pattern, not the path that the client sent.
    pub fn request_done(&self, route: &'static str, code: u16, duration_s: f64) {
        let code = code.to_string();
        self.recorder.register_counter(&key(&table::REQUESTS, &[route, &code]), &METADATA).increment(1);
        self.recorder.register_histogram(&key(&table::REQUEST_DURATION, &[route]), &METADATA).record(duration_s);
    }

    /// An accepted request ended.
    pub fn finished(&self, reason: &'static str) {
        self.recorder.register_counter(&key(&table::FINISHED, &[reason]), &METADATA).increment(1);
    }

    /// A request was refused by a limit of its key: `rpm`, `tpm` or `concurrency`.
    pub fn quota_refused(&self, limit: &'static str) {
        self.recorder.register_counter(&key(&table::QUOTA_REFUSALS, &[limit]), &METADATA).increment(1);
    }

    /// How often actors of that name had died and were started again; at 0 from the first call on.
    pub fn restarts(&self, actor: &'static str) -> Counter {
        self.recorder.register_counter(&key(&table::RESTARTS, &[actor]), &METADATA)
    }

    pub fn lane(&self, lane: usize) -> LaneMetrics {
        let lane = lane.to_string();
        let gauge = |m: &Metric, labels: &[&str]| self.recorder.register_gauge(&key(m, labels), &METADATA);
        let counter = |m: &Metric| self.recorder.register_counter(&key(m, &[&lane]), &METADATA);
        let histogram = |m: &Metric| self.recorder.register_histogram(&key(m, &[&lane]), &METADATA);
        LaneMetrics {
            waiting: gauge(&table::REQUESTS_WAITING, &[&lane]),
            running: gauge(&table::REQUESTS_RUNNING, &[&lane]),
            blocks_free: gauge(&table::KV_BLOCKS, &[&lane, "free"]),
            blocks_cached: gauge(&table::KV_BLOCKS, &[&lane, "cached"]),
            blocks_held: gauge(&table::KV_BLOCKS, &[&lane, "held"]),
            steps: counter(&table::STEPS),
            step_s: histogram(&table::STEP_SECONDS),
            step_tokens: histogram(&table::STEP_TOKENS),
            preemptions: counter(&table::PREEMPTIONS),
            steals: counter(&table::STEALS),
        }
    }

    /// The text of `/metrics` (Prometheus exposition format 0.0.4).
    pub fn render(&self) -> String {
        self.handle.render()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn key(metric: &Metric, values: &[&str]) -> Key {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let labels: Vec<Label> =
        metric.labels.iter().zip(values).map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(metric.name, labels)
}

/// Counts one in `gauge` for as long as it lives.
pub struct Held(Gauge);

impl Held {
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests;
