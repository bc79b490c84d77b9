//! The table of metrics: every name with its kind, labels and meaning. Labels take values from short fixed lists (routes,
//! codes, reasons, lane numbers), never from clients; tenants, which operators name, are bounded in number.

/// One metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
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

/// Between two tokens, and one step: half a millisecond (a tiny model) to seconds (a huge prefill).
const STEP_S: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5,
    10.0,
];
/// To the first token, and waiting for it: milliseconds to the patience of a person.
const WAIT_S: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
];
/// Whole requests: a health check to a long answer.
const REQUEST_S: &[f64] =
    &[0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// Tokens of one step: a lone decode to the largest budget.
const ROWS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0];
/// Tokens of one request: a word to the longest contexts.
const REQUEST_TOKENS: &[f64] = &[
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1000.0,
    2000.0,
    5000.0,
    10_000.0,
    20_000.0,
    50_000.0,
    100_000.0,
    1_000_000.0,
];
/// Sequences of one step: one to the most that can run in a lane.
const SEQUENCES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];
/// Choices of one request.
const CHOICES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Makes a static of each row and [`TABLE`] of all of them: rows are found by their address.
macro_rules! table {
    ($($id:ident $kind:expr, $name:literal, [$($label:literal)*], $help:literal;)*) => {
        $(pub static $id: Metric = Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)*
        /// Every metric.
        pub static TABLE: &[&Metric] = &[$(&$id),*];
    };
}

use Kind::{Counter, Gauge, Histogram};

#[rustfmt::skip]
table! {
    BUILD_INFO Gauge, "garrick_build_info", ["version"], "Always 1; the label is the running version.";
    READY Gauge, "garrick_ready", [], "Whether a request sent now would make progress: 1 or 0, as /health/ready says.";

    REQUESTS Counter, "garrick_requests_total", ["route" "code"], "Requests answered, by route and status code.";
    REQUEST_DURATION Histogram(REQUEST_S), "garrick_request_duration_seconds", ["route"], "From the request's arrival to the head of its answer (for a whole answer its end).";
    ERRORS Counter, "garrick_errors_total", ["code"], "Errors told to clients, as an answer or as the last event of a stream.";
    PERMITS_IN_USE Gauge, "garrick_permits_in_use", [], "Requests inside, waiting or running.";
    PERMITS Gauge, "garrick_permits", [], "The most that may be inside (admission.max_requests).";
    WAITING_TOKENS Gauge, "garrick_waiting_tokens", [], "Prompt tokens that wait for a device.";
    MAX_WAITING_TOKENS Gauge, "garrick_max_waiting_tokens", [], "The most that may wait (admission.max_waiting_tokens).";
    FINISHED Counter, "garrick_finished_total", ["reason"], "Accepted requests that ended, by outcome: done, cancelled or failed.";
    FINISH_REASONS Counter, "garrick_finish_reasons_total", ["reason"], "The same by vLLM's words: stop, length (any choice), abort or error.";

    TTFT Histogram(WAIT_S), "garrick_ttft_seconds", [], "From the request's arrival to the first token of a choice.";
    ITL Histogram(STEP_S), "garrick_itl_seconds", [], "Between two tokens of one choice, as the stream receives them.";
    QUEUE_WAIT Histogram(WAIT_S), "garrick_queue_wait_seconds", [], "From submission to the first step that works on a prompt.";
    PREFILL Histogram(WAIT_S), "garrick_prefill_seconds", [], "From the first step on a request to its first token.";
    DECODE Histogram(REQUEST_S), "garrick_decode_seconds", [], "From a request's first token to its last.";
    INFERENCE Histogram(REQUEST_S), "garrick_inference_seconds", [], "From the first step on a request to its last token.";
    TPOT Histogram(STEP_S), "garrick_time_per_output_token_seconds", [], "A request's decode time over its tokens after the first of each choice.";
    E2E Histogram(REQUEST_S), "garrick_e2e_seconds", [], "From an accepted request's arrival to its last token; of those that were done.";

    PROMPT_TOKENS Counter, "garrick_prompt_tokens_total", [], "Prompt tokens of accepted requests.";
    CACHED_PROMPT_TOKENS Counter, "garrick_cached_prompt_tokens_total", [], "Of those, tokens that the prefix cache already held.";
    GENERATED_TOKENS Counter, "garrick_generated_tokens_total", [], "Tokens generated.";
    HOP_TOKENS Counter, "garrick_hop_tokens_total", ["hop"], "Tokens that passed a hop: prepare (tokenised), quota (reserved), queue (submitted), prefill (computed for prompts, again after preemption), decode (drawn), stream (given to a reader).";
    REQUEST_PROMPT_TOKENS Histogram(REQUEST_TOKENS), "garrick_request_prompt_tokens", [], "Prompt tokens of a request that ended.";
    REQUEST_GENERATED_TOKENS Histogram(REQUEST_TOKENS), "garrick_request_generated_tokens", [], "Tokens generated for a request that ended, over its choices.";
    LONGEST_CHOICE_TOKENS Histogram(REQUEST_TOKENS), "garrick_longest_choice_tokens", [], "Tokens of the longest choice of a request that ended.";
    REQUEST_MAX_TOKENS Histogram(REQUEST_TOKENS), "garrick_request_max_tokens", [], "Bound on the output of one choice, asked for or left by the context.";
    REQUEST_CHOICES Histogram(CHOICES), "garrick_request_choices", [], "Choices of a request, over its prompts.";

    REQUESTS_WAITING Gauge, "garrick_requests_waiting", ["lane"], "Jobs that wait in a lane.";
    REQUESTS_RUNNING Gauge, "garrick_requests_running", ["lane"], "Sequences that run in a lane.";
    KV_BLOCKS Gauge, "garrick_kv_blocks", ["lane" "state"], "KV blocks of a lane: free, cached (findable, not in use) or held.";
    PREFIX_QUERIES Counter, "garrick_prefix_queries_total", ["lane"], "Tokens looked up in the prefix cache.";
    PREFIX_HITS Counter, "garrick_prefix_hits_total", ["lane"], "Tokens found there.";
    STEPS Counter, "garrick_steps_total", ["lane"], "Steps run.";
    FAILED_STEPS Counter, "garrick_failed_steps_total", ["lane"], "Of those, steps that failed or panicked.";
    REPLAYED_STEPS Counter, "garrick_replayed_steps_total", ["lane"], "Steps that a GPU was given as one CUDA graph (engine.cuda_graphs); the others are launched kernel by kernel.";
    STEP_SECONDS Histogram(STEP_S), "garrick_step_seconds", ["lane"], "Duration of one step on the device.";
    STEP_ROWS Histogram(ROWS), "garrick_step_tokens", ["lane"], "Tokens computed in one step: its rows.";
    STEP_SEQUENCES Histogram(SEQUENCES), "garrick_step_sequences", ["lane"], "Sequences in one step: the batch.";
    STEP_AGE Gauge, "garrick_step_age_seconds", ["lane"], "How long the step in flight has been running; 0 between steps.";
    PREEMPTIONS Counter, "garrick_preemptions_total", ["lane"], "Sequences put back to wait because KV blocks ran out.";
    DRAFTS Counter, "garrick_drafts_total", ["lane"], "Times that a sequence's next tokens were guessed and computed ahead (scheduler.speculative).";
    DRAFT_TOKENS Counter, "garrick_draft_tokens_total", ["lane"], "Tokens guessed.";
    ACCEPTED_DRAFT_TOKENS Counter, "garrick_accepted_draft_tokens_total", ["lane"], "Of those, tokens that were then drawn: each saved a sequence a step.";
    STEALS Counter, "garrick_steals_total", ["lane"], "Waiting jobs that a lane took from another.";
    MOVED_JOBS Counter, "garrick_moved_jobs_total", ["lane"], "Jobs that left a lane because its device failed, and went on in another.";
    LANE_DEVICE Gauge, "garrick_lane_device_info", ["lane" "device"], "1, with what a lane runs on.";
    LANE_READY Gauge, "garrick_lane_ready", ["lane"], "Whether a lane answers, has its executor and makes progress: 1 or 0.";
    PANICS Counter, "garrick_panics_total", [], "Panics, wherever they were caught: each is a defect, and in the log.";
    BOOK_ERRORS Counter, "garrick_book_errors_total", [], "Lanes that fell idle with KV block counts that do not add up: each is a defect, and in the log.";
    RESTARTS Counter, "garrick_actor_restarts_total", ["actor"], "Long-lived actors that died and were started again.";
    LANE_RESTARTS Counter, "garrick_lane_restarts_total", ["lane"], "Times a lane's scheduler died and was built again.";
    LANE_GIVEN_UP Gauge, "garrick_lane_given_up", ["lane"], "1 when a lane died too often and is not built again.";
    LANE_RESTS Counter, "garrick_lane_rests_total", ["lane"], "Times a device failed a step and its lane began again after a rest.";
    LANE_LOST Gauge, "garrick_lane_lost", ["lane"], "1 when a lane's device is lost: it runs no more steps.";

    STREAMS_OPEN Gauge, "garrick_streams_open", [], "Streams being sent.";
    STREAM_STALLS Counter, "garrick_stream_stalls_total", [], "Streams cut because their reader took nothing.";
    QUOTA_REFUSALS Counter, "garrick_quota_refusals_total", ["limit"], "Requests refused by a limit of their key: rpm, tpm or concurrency.";
    TENANT_REQUESTS Counter, "garrick_tenant_requests_total", ["tenant"], "Accepted requests of a tenant; of tenants beyond telemetry.max_tenant_labels as 'other'.";
    TENANT_TOKENS Counter, "garrick_tenant_tokens_total", ["tenant" "kind"], "Tokens of a tenant's requests that ended: prompt or generated.";
    TENANT_REFUSALS Counter, "garrick_tenant_refusals_total", ["tenant"], "Requests of a tenant refused by a limit of their key.";
}
