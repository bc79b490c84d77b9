//! Metrics: named once in a table, recorded through handles, printed for Prometheus.
//!
//! Owns names, labels and buckets. Never knows who records. Hot paths (tokens, steps) hold handles and look no name up;
//! [`Metrics::request_done`] and its like look labels up once a request.
//!
//! Invariant: memory follows the number of series, never the number of samples; labels come from short lists, and
//! tenants are bounded by [`Metrics::set_max_tenants`].

mod process;
mod registry;
mod series;
mod table;
mod tenants;
mod vllm;

use std::sync::{LazyLock, OnceLock};

pub use process::NAMES as PROCESS_NAMES;
use registry::Registry;
pub use series::{Counter, Gauge, Histogram};
pub use table::{Kind, Metric, TABLE};
pub use tenants::TenantMetrics;
use tenants::Tenants;
pub use vllm::{ALIASES, Alias, Served};

use super::error::Code;

/// All series, and the handles that need no labels.
pub struct Metrics {
    registry: Registry,
    tenants: Tenants,
    served: OnceLock<Served>,
    pub ready: Gauge,
    pub ttft_s: Histogram,
    pub itl_s: Histogram,
    pub queue_wait_s: Histogram,
    pub ended: EndedMetrics,
    pub prompt_tokens: Counter,
    pub cached_prompt_tokens: Counter,
    pub generated_tokens: Counter,
    pub hops: HopTokens,
    pub streams_open: Gauge,
    pub stream_stalls: Counter,
    pub permits_in_use: Gauge,
    pub panics: Counter,
    pub book_errors: Counter,
    pub permits: Gauge,
    pub waiting_tokens: Gauge,
    pub max_waiting_tokens: Gauge,
}

/// What is recorded of a request when it ends.
pub struct EndedMetrics {
    pub prefill_s: Histogram,
    pub decode_s: Histogram,
    pub inference_s: Histogram,
    pub time_per_output_token_s: Histogram,
    pub e2e_s: Histogram,
    pub prompt_tokens: Histogram,
    pub generated_tokens: Histogram,
    pub longest_choice_tokens: Histogram,
    pub max_tokens: Histogram,
    pub choices: Histogram,
}

/// Tokens that passed each hop of a request's way.
#[derive(Clone)]
pub struct HopTokens {
    pub prepare: Counter,
    pub quota: Counter,
    pub queue: Counter,
    pub prefill: Counter,
    pub decode: Counter,
    pub stream: Counter,
}

/// Handles of one lane.
#[derive(Clone)]
pub struct LaneMetrics {
    pub waiting: Gauge,
    pub running: Gauge,
    pub blocks_free: Gauge,
    pub blocks_cached: Gauge,
    pub blocks_held: Gauge,
    pub prefix_queries: Counter,
    pub prefix_hits: Counter,
    pub steps: Counter,
    pub failed_steps: Counter,
    pub replayed_steps: Counter,
    pub step_s: Histogram,
    pub step_tokens: Histogram,
    pub step_sequences: Histogram,
    pub preemptions: Counter,
    pub drafts: Counter,
    pub draft_tokens: Counter,
    pub accepted_draft_tokens: Counter,
    pub steals: Counter,
    pub moved_jobs: Counter,
    pub rests: Counter,
}

/// What the supervisor and the readiness check say of a lane.
#[derive(Clone)]
pub struct LaneHealth {
    pub step_age_s: Gauge,
    pub ready: Gauge,
    pub restarts: Counter,
    pub given_up: Gauge,
    pub lost: Gauge,
}

/// The process's metrics; the first call makes them.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

impl Metrics {
    /// A registry of its own; programs use [`metrics()`].
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |metric| registry.counter(metric, &[]);
        let gauge = |metric| registry.gauge(metric, &[]);
        let histogram = |metric| registry.histogram(metric, &[]);
        registry.gauge(&table::BUILD_INFO, &[env!("CARGO_PKG_VERSION")]).set(1.0);
        open_series(&registry);
        let hop = |hop| registry.counter(&table::HOP_TOKENS, &[hop]);
        Self {
            ready: gauge(&table::READY),
            ttft_s: histogram(&table::TTFT),
            itl_s: histogram(&table::ITL),
            queue_wait_s: histogram(&table::QUEUE_WAIT),
            ended: EndedMetrics::new(&registry),
            prompt_tokens: counter(&table::PROMPT_TOKENS),
            cached_prompt_tokens: counter(&table::CACHED_PROMPT_TOKENS),
            generated_tokens: counter(&table::GENERATED_TOKENS),
            hops: HopTokens {
                prepare: hop("prepare"),
                quota: hop("quota"),
                queue: hop("queue"),
                prefill: hop("prefill"),
                decode: hop("decode"),
                stream: hop("stream"),
            },
            streams_open: gauge(&table::STREAMS_OPEN),
            stream_stalls: counter(&table::STREAM_STALLS),
            permits_in_use: gauge(&table::PERMITS_IN_USE),
            panics: counter(&table::PANICS),
            book_errors: counter(&table::BOOK_ERRORS),
            permits: gauge(&table::PERMITS),
            waiting_tokens: gauge(&table::WAITING_TOKENS),
            max_waiting_tokens: gauge(&table::MAX_WAITING_TOKENS),
            tenants: Tenants::default(),
            served: OnceLock::new(),
            registry,
        }
    }

    /// What is served, for the labels of vLLM's names. The first call counts.
    pub fn set_served(&self, served: Served) {
        let _ = self.served.set(served);
    }

    /// How many tenants get series of their own; the others share those of `other`.
    pub fn set_max_tenants(&self, max: usize) {
        self.tenants.set_max(max);
    }

    /// A request was answered. `route` is the pattern, not the path that the client sent.
    pub fn request_done(&self, route: &'static str, code: u16, duration_s: f64) {
        self.registry.counter(&table::REQUESTS, &[route, &code.to_string()]).increment(1);
        self.registry.histogram(&table::REQUEST_DURATION, &[route]).record(duration_s);
    }

    /// A client was told of an error, by an answer or by the last event of a stream.
    pub fn error(&self, code: &'static str) {
        self.registry.counter(&table::ERRORS, &[code]).increment(1);
    }

    /// An accepted request ended: the outcome in our word and in vLLM's.
    pub fn finished(&self, outcome: &'static str, reason: &'static str) {
        self.registry.counter(&table::FINISHED, &[outcome]).increment(1);
        self.registry.counter(&table::FINISH_REASONS, &[reason]).increment(1);
    }

    /// A request was refused by a limit of its key: `rpm`, `tpm` or `concurrency`.
    pub fn quota_refused(&self, limit: &'static str) {
        self.registry.counter(&table::QUOTA_REFUSALS, &[limit]).increment(1);
    }

    /// The handles of a tenant, or those of `other` when too many have their own.
    pub fn tenant(&self, tenant: &str) -> TenantMetrics {
        self.tenants.of(&self.registry, tenant)
    }

    /// How often actors of that name had died and were started again; at 0 from the first call on.
    pub fn restarts(&self, actor: &'static str) -> Counter {
        self.registry.counter(&table::RESTARTS, &[actor])
    }

    pub fn lane(&self, lane: usize) -> LaneMetrics {
        let lane = &*lane.to_string();
        let gauge = |metric, labels: &[&str]| self.registry.gauge(metric, labels);
        let counter = |metric| self.registry.counter(metric, &[lane]);
        let histogram = |metric| self.registry.histogram(metric, &[lane]);
        LaneMetrics {
            waiting: gauge(&table::REQUESTS_WAITING, &[lane]),
            running: gauge(&table::REQUESTS_RUNNING, &[lane]),
            blocks_free: gauge(&table::KV_BLOCKS, &[lane, "free"]),
            blocks_cached: gauge(&table::KV_BLOCKS, &[lane, "cached"]),
            blocks_held: gauge(&table::KV_BLOCKS, &[lane, "held"]),
            prefix_queries: counter(&table::PREFIX_QUERIES),
            prefix_hits: counter(&table::PREFIX_HITS),
            steps: counter(&table::STEPS),
            failed_steps: counter(&table::FAILED_STEPS),
            replayed_steps: counter(&table::REPLAYED_STEPS),
            step_s: histogram(&table::STEP_SECONDS),
            step_tokens: histogram(&table::STEP_ROWS),
            step_sequences: histogram(&table::STEP_SEQUENCES),
            preemptions: counter(&table::PREEMPTIONS),
            drafts: counter(&table::DRAFTS),
            draft_tokens: counter(&table::DRAFT_TOKENS),
            accepted_draft_tokens: counter(&table::ACCEPTED_DRAFT_TOKENS),
            steals: counter(&table::STEALS),
            moved_jobs: counter(&table::MOVED_JOBS),
            rests: counter(&table::LANE_RESTS),
        }
    }

    /// What a lane runs on, as people are told.
    pub fn set_lane_device(&self, lane: usize, device: &str) {
        self.registry.gauge(&table::LANE_DEVICE, &[&lane.to_string(), device]).set(1.0);
    }

    pub fn lane_health(&self, lane: usize) -> LaneHealth {
        let lane = &*lane.to_string();
        LaneHealth {
            step_age_s: self.registry.gauge(&table::STEP_AGE, &[lane]),
            ready: self.registry.gauge(&table::LANE_READY, &[lane]),
            restarts: self.registry.counter(&table::LANE_RESTARTS, &[lane]),
            given_up: self.registry.gauge(&table::LANE_GIVEN_UP, &[lane]),
            lost: self.registry.gauge(&table::LANE_LOST, &[lane]),
        }
    }

    /// The text of `/metrics` (Prometheus text format 0.0.4).
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(32 << 10);
        self.registry.render(&mut out);
        match self.served.get() {
            Some(served) => vllm::render(&mut out, &self.registry, served),
            None => vllm::render(&mut out, &self.registry, &Served::default()),
        }
        process::render(&mut out);
        out
    }
}

/// Series whose first event would be lost if they began with it: a rate needs the value before.
fn open_series(registry: &Registry) {
    for code in Code::ALL {
        registry.counter(&table::ERRORS, &[code.as_str()]);
    }
    for (metric, labels) in [
        (&table::QUOTA_REFUSALS, &["rpm", "tpm", "concurrency"][..]),
        (&table::FINISHED, &["done", "cancelled", "failed"]),
        (&table::FINISH_REASONS, &["stop", "length", "abort", "error"]),
    ] {
        for label in labels {
            registry.counter(metric, &[label]);
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl EndedMetrics {
    fn new(registry: &Registry) -> Self {
        let histogram = |metric| registry.histogram(metric, &[]);
        Self {
            prefill_s: histogram(&table::PREFILL),
            decode_s: histogram(&table::DECODE),
            inference_s: histogram(&table::INFERENCE),
            time_per_output_token_s: histogram(&table::TPOT),
            e2e_s: histogram(&table::E2E),
            prompt_tokens: histogram(&table::REQUEST_PROMPT_TOKENS),
            generated_tokens: histogram(&table::REQUEST_GENERATED_TOKENS),
            longest_choice_tokens: histogram(&table::LONGEST_CHOICE_TOKENS),
            max_tokens: histogram(&table::REQUEST_MAX_TOKENS),
            choices: histogram(&table::REQUEST_CHOICES),
        }
    }
}

#[cfg(test)]
mod tests;
