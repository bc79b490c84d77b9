//! What there is to tell of a request once it has ended: to the metrics, the log and the trace.
//!
//! Owns the times of a request's hops. Never knows text, and never what is in a prompt.

use super::messages::{Outcome, Usage};
use crate::base::clock;
use crate::base::metrics::metrics;
use crate::base::telemetry::{self, Hop};

/// When a request came past each hop, in microseconds of the process's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub began_us: u64,
    submitted_us: u64,
    /// The first step that worked on one of its prompts began.
    first_step_us: Option<u64>,
    first_token_us: Option<u64>,
    last_token_us: Option<u64>,
}

impl Times {
    pub fn new(began_us: u64, submitted_us: u64) -> Self {
        Self { began_us, submitted_us, first_step_us: None, first_token_us: None, last_token_us: None }
    }

    /// A prompt reached a device after it had waited so long.
    pub fn started(&mut self, queued_us: u64) {
        let at = self.submitted_us + queued_us;
        self.first_step_us = Some(self.first_step_us.map_or(at, |first| first.min(at)));
    }

    pub fn token(&mut self, now_us: u64) {
        self.first_token_us.get_or_insert(now_us);
        self.last_token_us = Some(now_us);
    }
}

/// The last word of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub usage: Usage,
    pub outcome: Outcome,
    /// A choice ended because it was long enough.
    pub is_cut_by_length: bool,
    pub num_choices: u64,
    /// Tokens of the longest choice.
    pub longest_choice: u64,
    pub times: Times,
}

impl Ended {
    /// The end of a request whose stream died and took its counts with it.
    pub fn unheard(prompt_tokens: u64, times: Times) -> Self {
        Self {
            usage: Usage { prompt_tokens, ..Usage::default() },
            outcome: Outcome::Failed,
            is_cut_by_length: false,
            num_choices: 1,
            longest_choice: 0,
            times,
        }
    }

    /// The end in vLLM's words.
    fn reason(&self) -> &'static str {
        match self.outcome {
            Outcome::Done if self.is_cut_by_length => "length",
            Outcome::Done => "stop",
            Outcome::Cancelled => "abort",
            Outcome::Failed => "error",
        }
    }

    /// `max_tokens`: the bound on each choice's output.
    pub fn record(&self, tenant: &str, max_tokens: u32) {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.usage;
        let m = metrics();
        m.cached_prompt_tokens.increment(cached_tokens);
        m.finished(self.outcome.as_str(), self.reason());
        let of_tenant = m.tenant(tenant);
        of_tenant.prompt_tokens.increment(prompt_tokens);
        of_tenant.generated_tokens.increment(completion_tokens);
        let ended = &m.ended;
        ended.prompt_tokens.record(prompt_tokens as f64);
        ended.generated_tokens.record(completion_tokens as f64);
        ended.longest_choice_tokens.record(self.longest_choice as f64);
        ended.max_tokens.record(f64::from(max_tokens));
        ended.choices.record(self.num_choices as f64);
        let Times { began_us, first_step_us, first_token_us, last_token_us, .. } = self.times;
        let (Some(first_step), Some(first), Some(last)) = (first_step_us, first_token_us, last_token_us) else {
            return;
        };
        ended.prefill_s.record(seconds(first_step, first));
        ended.decode_s.record(seconds(first, last));
        ended.inference_s.record(seconds(first_step, last));
        if let Some(gaps @ 1..) = completion_tokens.checked_sub(self.num_choices) {
            ended.time_per_output_token_s.record(seconds(first, last) * self.num_choices as f64 / gaps as f64);
        }
        if self.outcome == Outcome::Done {
            ended.e2e_s.record(seconds(began_us, last));
        }
    }

    /// One line in the log, and a span for each hop behind the queue's door.
    pub fn trace(&self, request: &tracing::Span, tenant: &str) {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.usage;
        let Times { began_us, submitted_us, first_step_us, first_token_us, last_token_us } = self.times;
        let now = clock::now_us();
        let ms = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?) / 1000);
        request.in_scope(|| {
            tracing::info!(
                tenant,
                outcome = self.outcome.as_str(),
                reason = self.reason(),
                prompt_tokens,
                cached_tokens,
                completion_tokens,
                queue_ms = ms(Some(submitted_us), first_step_us),
                prefill_ms = ms(first_step_us, first_token_us),
                decode_ms = ms(first_token_us, last_token_us),
                elapsed_ms = (now - began_us) / 1000,
                "request ended"
            );
        });
        // Who waited to the end and never saw a device, was in the queue only.
        let queue_end = first_step_us.unwrap_or(now);
        let mut hops = vec![Hop::new("queue", submitted_us, queue_end).with("prompt_tokens", prompt_tokens)];
        if let Some(first_step) = first_step_us {
            let computed = prompt_tokens.saturating_sub(cached_tokens);
            let prefill = Hop::new("prefill", first_step, first_token_us.unwrap_or(now));
            hops.push(prefill.with("prompt_tokens", computed).with("cached_tokens", cached_tokens));
        }
        if let (Some(first), Some(last)) = (first_token_us, last_token_us) {
            hops.push(Hop::new("decode", first, last).with("completion_tokens", completion_tokens));
            hops.push(Hop::new("stream", first, now).with("completion_tokens", completion_tokens));
        }
        telemetry::record_hops(request, &hops);
    }
}

fn seconds(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e6
}
