//! The names under which vLLM (0.33) tells the same things, read by its dashboards and by the Kubernetes inference
//! gateway. Nothing is recorded under them: they are printed from the [table](super::TABLE) when somebody asks.
//!
//! To the outside a process is one engine, whatever its lanes: series are sums over lanes, and `engine` is always `0`.
//! A gateway that reads one series of a family so reads the whole process.

use super::registry::{Registry, Value, head, sample};
use super::table::{self as t, Kind, Metric};

/// One name of vLLM's.
#[derive(Debug)]
pub struct Alias {
    pub name: &'static str,
    pub kind: Kind,
    /// Beside `model_name` and `engine`.
    pub labels: &'static [&'static str],
    pub help: &'static str,
    from: Origin,
}

#[derive(Debug)]
enum Origin {
    /// All series of a metric, added up.
    Sum(&'static Metric),
    /// Each series of a metric with one label, under the alias's own.
    Each(&'static Metric),
    /// Share of KV blocks that sequences hold.
    KvUsage,
    /// Always 1: the labels say how the cache is made.
    CacheConfig,
}

/// What the labels say of the process; set once the model is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    pub model_name: String,
    pub block_tokens: usize,
    /// Over all lanes.
    pub num_blocks: usize,
    pub cache_dtype: String,
    pub prefix_cache: bool,
}

const CACHE_LABELS: &[&str] = &["block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"];

macro_rules! aliases {
    ($($name:literal = $from:expr, $kind:expr, [$($label:literal)*], $help:literal;)*) => {
        /// Every alias.
        pub static ALIASES: &[Alias] = &[
            $(Alias { name: $name, kind: $kind, labels: &[$($label),*], help: $help, from: $from }),*,
            Alias {
                name: "vllm:cache_config_info",
                kind: Kind::Gauge,
                labels: CACHE_LABELS,
                help: "Always 1; the labels describe the KV cache. Blocks are of all lanes, on whatever device.",
                from: Origin::CacheConfig,
            },
        ];
    };
}

use Kind::{Counter, Gauge};
use Origin::{Each, KvUsage, Sum};

#[rustfmt::skip]
aliases! {
    "vllm:num_requests_running" = Sum(&t::REQUESTS_RUNNING), Gauge, [], "Sequences that run.";
    "vllm:num_requests_waiting" = Sum(&t::REQUESTS_WAITING), Gauge, [], "Jobs that wait.";
    "vllm:kv_cache_usage_perc" = KvUsage, Gauge, [], "Share of KV blocks in use; 1 is all of them.";
    "vllm:prefix_cache_queries_total" = Sum(&t::PREFIX_QUERIES), Counter, [], "Tokens looked up in the prefix cache.";
    "vllm:prefix_cache_hits_total" = Sum(&t::PREFIX_HITS), Counter, [], "Tokens found there.";
    "vllm:num_preemptions_total" = Sum(&t::PREEMPTIONS), Counter, [], "Sequences put back to wait.";
    "vllm:spec_decode_num_drafts_total" = Sum(&t::DRAFTS), Counter, [], "Times that tokens were guessed.";
    "vllm:spec_decode_num_draft_tokens_total" = Sum(&t::DRAFT_TOKENS), Counter, [], "Tokens guessed.";
    "vllm:spec_decode_num_accepted_tokens_total" = Sum(&t::ACCEPTED_DRAFT_TOKENS), Counter, [], "Of those, tokens that were right.";
    "vllm:prompt_tokens_total" = Sum(&t::PROMPT_TOKENS), Counter, [], "Prompt tokens of accepted requests.";
    "vllm:prompt_tokens_cached_total" = Sum(&t::CACHED_PROMPT_TOKENS), Counter, [], "Of those, tokens that were cached.";
    "vllm:generation_tokens_total" = Sum(&t::GENERATED_TOKENS), Counter, [], "Tokens generated.";
    "vllm:request_success_total" = Each(&t::FINISH_REASONS), Counter, ["finished_reason"], "Accepted requests that ended.";
    "vllm:time_to_first_token_seconds" = Sum(&t::TTFT), t::TTFT.kind, [], "To the first token of a choice.";
    "vllm:inter_token_latency_seconds" = Sum(&t::ITL), t::ITL.kind, [], "Between two tokens of one choice.";
    "vllm:request_time_per_output_token_seconds" = Sum(&t::TPOT), t::TPOT.kind, [], "Mean of a request's times between tokens.";
    "vllm:e2e_request_latency_seconds" = Sum(&t::E2E), t::E2E.kind, [], "Origin arrival to the last token.";
    "vllm:request_queue_time_seconds" = Sum(&t::QUEUE_WAIT), t::QUEUE_WAIT.kind, [], "In the queue.";
    "vllm:request_inference_time_seconds" = Sum(&t::INFERENCE), t::INFERENCE.kind, [], "On the device.";
    "vllm:request_prefill_time_seconds" = Sum(&t::PREFILL), t::PREFILL.kind, [], "Until the first token, on the device.";
    "vllm:request_decode_time_seconds" = Sum(&t::DECODE), t::DECODE.kind, [], "Origin the first token to the last.";
    "vllm:request_prompt_tokens" = Sum(&t::REQUEST_PROMPT_TOKENS), t::REQUEST_PROMPT_TOKENS.kind, [], "Prompt tokens of a request.";
    "vllm:request_generation_tokens" = Sum(&t::REQUEST_GENERATED_TOKENS), t::REQUEST_GENERATED_TOKENS.kind, [], "Tokens generated for a request.";
    "vllm:request_max_num_generation_tokens" = Sum(&t::LONGEST_CHOICE_TOKENS), t::LONGEST_CHOICE_TOKENS.kind, [], "Tokens of a request's longest choice.";
    "vllm:request_params_max_tokens" = Sum(&t::REQUEST_MAX_TOKENS), t::REQUEST_MAX_TOKENS.kind, [], "Bound on the output of a choice.";
    "vllm:request_params_n" = Sum(&t::REQUEST_CHOICES), t::REQUEST_CHOICES.kind, [], "Choices of a request.";
    "vllm:iteration_tokens_total" = Sum(&t::STEP_ROWS), t::STEP_ROWS.kind, [], "Tokens computed in one step.";
}

impl Alias {
    fn render(&self, out: &mut String, registry: &Registry, served: &Served) {
        let Alias { name, kind, labels, help, from } = self;
        head(out, name, *kind, help);
        let base = [("model_name", &*served.model_name), ("engine", "0")];
        match from {
            Sum(metric) => sample(out, name, &base, &registry.sum(metric)),
            Each(metric) => {
                for (values, value) in registry.read(metric) {
                    let own = labels.iter().copied().zip(values.iter().map(String::as_str));
                    let all: Vec<_> = base.into_iter().chain(own).collect();
                    sample(out, name, &all, &value);
                }
            }
            KvUsage => sample(out, name, &base, &Value::Number(kv_usage(registry))),
            Origin::CacheConfig => {
                let Served { block_tokens, num_blocks, cache_dtype, prefix_cache, .. } = served;
                let (size, blocks) = (block_tokens.to_string(), num_blocks.to_string());
                let prefix_cache = if *prefix_cache { "True" } else { "False" };
                let values = [&*size, &*blocks, &**cache_dtype, prefix_cache];
                let own = labels.iter().copied().zip(values);
                let all: Vec<_> = base.into_iter().chain(own).collect();
                sample(out, name, &all, &Value::Number(1.0));
            }
        }
    }
}

fn kv_usage(registry: &Registry) -> f64 {
    let (mut held, mut total) = (0.0, 0.0);
    for (labels, value) in registry.read(&t::KV_BLOCKS) {
        let Value::Number(blocks) = value else { continue };
        total += blocks;
        held += if labels[1] == "held" { blocks } else { 0.0 };
    }
    if total > 0.0 { held / total } else { 0.0 }
}

pub fn render(out: &mut String, registry: &Registry, served: &Served) {
    ALIASES.iter().for_each(|alias| alias.render(out, registry, served));
}
