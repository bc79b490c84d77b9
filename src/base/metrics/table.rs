//! The table of metrics: every name with its kind, unit, labels and meaning. Labels take values from short fixed lists
//! (routes, codes, reasons, lane numbers), never from clients.

use metrics::Unit;

/// One metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

const fn row(
    name: &'static str,
    kind: Kind,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

/// Between two tokens, and one step: half a millisecond (a tiny model) to seconds (a huge prefill).
const STEP_S: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5];
/// To the first token, and waiting for it: milliseconds to the patience of a person.
const WAIT_S: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0];
/// Whole requests: a health check to a long answer.
const REQUEST_S: &[f64] =
    &[0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0];
/// Tokens of one step: a lone decode to the largest budget.
const TOKENS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

use Kind::{Counter, Gauge, Histogram};

#[rustfmt::skip]
mod rows {
    use super::*;
    pub const BUILD_INFO: Metric = row("garrick_build_info", Gauge, Unit::Count, &["version"], "Always 1; the label is the running version.");
    pub const REQUESTS: Metric = row("garrick_requests_total", Counter, Unit::Count, &["route", "code"], "Requests answered, by route and status code.");
    pub const REQUEST_DURATION: Metric = row("garrick_request_duration_seconds", Histogram(REQUEST_S), Unit::Seconds, &["route"], "From the request's arrival to the end of its answer.");
    pub const TTFT: Metric = row("garrick_ttft_seconds", Histogram(WAIT_S), Unit::Seconds, &[], "From the request's arrival to its first token.");
    pub const ITL: Metric = row("garrick_itl_seconds", Histogram(STEP_S), Unit::Seconds, &[], "Between two tokens of one choice.");
    pub const QUEUE_WAIT: Metric = row("garrick_queue_wait_seconds", Histogram(WAIT_S), Unit::Seconds, &[], "From submission to the first step that works on the request.");
    pub const PROMPT_TOKENS: Metric = row("garrick_prompt_tokens_total", Counter, Unit::Count, &[], "Prompt tokens of accepted requests.");
    pub const CACHED_PROMPT_TOKENS: Metric = row("garrick_cached_prompt_tokens_total", Counter, Unit::Count, &[], "Of those, tokens that the prefix cache already held.");
    pub const GENERATED_TOKENS: Metric = row("garrick_generated_tokens_total", Counter, Unit::Count, &[], "Tokens generated.");
    pub const FINISHED: Metric = row("garrick_finished_total", Counter, Unit::Count, &["reason"], "Accepted requests that ended, by outcome: done, cancelled or failed.");
    pub const REQUESTS_WAITING: Metric = row("garrick_requests_waiting", Gauge, Unit::Count, &["lane"], "Jobs that wait in a lane.");
    pub const REQUESTS_RUNNING: Metric = row("garrick_requests_running", Gauge, Unit::Count, &["lane"], "Sequences that run in a lane.");
    pub const KV_BLOCKS: Metric = row("garrick_kv_blocks", Gauge, Unit::Count, &["lane", "state"], "KV blocks of a lane: free, cached (findable, not in use) or held.");
    pub const STEPS: Metric = row("garrick_steps_total", Counter, Unit::Count, &["lane"], "Steps run.");
    pub const STEP_SECONDS: Metric = row("garrick_step_seconds", Histogram(STEP_S), Unit::Seconds, &["lane"], "Duration of one step on the device.");
    pub const STEP_TOKENS: Metric = row("garrick_step_tokens", Histogram(TOKENS), Unit::Count, &["lane"], "Tokens computed in one step.");
    pub const PREEMPTIONS: Metric = row("garrick_preemptions_total", Counter, Unit::Count, &["lane"], "Sequences put back to wait because KV blocks ran out.");
    pub const STEALS: Metric = row("garrick_steals_total", Counter, Unit::Count, &["lane"], "Waiting jobs that a lane took from another.");
    pub const STREAMS_OPEN: Metric = row("garrick_streams_open", Gauge, Unit::Count, &[], "Streams being sent.");
    pub const STREAM_STALLS: Metric = row("garrick_stream_stalls_total", Counter, Unit::Count, &[], "Streams cut because their reader took nothing.");
    pub const PERMITS_IN_USE: Metric = row("garrick_permits_in_use", Gauge, Unit::Count, &[], "Requests inside, waiting or running.");
    pub const QUOTA_REFUSALS: Metric = row("garrick_quota_refusals_total", Counter, Unit::Count, &["limit"], "Requests refused by a limit of their key.");
    pub const PANICS: Metric = row("garrick_panics_total", Counter, Unit::Count, &[], "Panics, wherever they were caught: each is a defect, and in the log.");
    pub const BOOK_ERRORS: Metric = row("garrick_book_errors_total", Counter, Unit::Count, &[], "Lanes that fell idle with KV block counts that do not add up: each is a defect, and in the log.");
    pub const RESTARTS: Metric = row("garrick_actor_restarts_total", Counter, Unit::Count, &["actor"], "Long-lived actors that died and were started again.");
}
pub use rows::*;

/// Every metric.
pub const TABLE: &[&Metric] = &[
    &BUILD_INFO,
    &REQUESTS,
    &REQUEST_DURATION,
    &TTFT,
    &ITL,
    &QUEUE_WAIT,
    &PROMPT_TOKENS,
    &CACHED_PROMPT_TOKENS,
    &GENERATED_TOKENS,
    &FINISHED,
    &REQUESTS_WAITING,
    &REQUESTS_RUNNING,
    &KV_BLOCKS,
    &STEPS,
    &STEP_SECONDS,
    &STEP_TOKENS,
    &PREEMPTIONS,
    &STEALS,
    &STREAMS_OPEN,
    &STREAM_STALLS,
    &PERMITS_IN_USE,
    &QUOTA_REFUSALS,
    &PANICS,
    &BOOK_ERRORS,
    &RESTARTS,
];
