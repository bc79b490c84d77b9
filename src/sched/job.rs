//! What enters a lane and what leaves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::plan::Tokens;
use crate::model::TokenId;
use crate::sample::{Sampled, SamplingParams, TokenLogprobs};

/// Process-wide request number (not the public id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Microseconds since the process (or the simulation) started.
pub type Micros = u64;

/// Set by whoever loses interest in a request; every lane looks at it before work. A flag rather than a message:
/// it cannot be refused by a full mailbox, and it follows a job that is being stolen.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// When a choice ends, apart from stop strings, which only the text side can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopRules {
    /// End-of-sequence tokens of the model (empty under `ignore_eos`) and the request's `stop_token_ids`.
    pub stop_tokens: Arc<[TokenId]>,
    pub min_tokens: u32,
    /// Already bounded by the model's context.
    pub max_tokens: u32,
}

/// A request (or a preempted part of one) that waits. Holds no KV on any device, so any lane may run it.
/// `S` is where its events go; the core only carries it.
#[derive(Debug, Clone)]
pub struct Job<S> {
    pub request: RequestId,
    pub sink: S,
    pub prompt: Tokens,
    pub params: Arc<SamplingParams>,
    pub stop: StopRules,
    /// Log-probabilities of the prompt, with this many alternatives. Such jobs do not read the prefix cache.
    pub prompt_logprobs: Option<u8>,
    /// Separates tenants in the prefix cache.
    pub salt: u64,
    pub arrived_at: Micros,
    /// After this the job, waiting or running, ends as [`Finish::DeadlineExceeded`].
    pub deadline: Option<Micros>,
    pub cancel: CancelFlag,
    /// The choices to produce: `n` empty ones when new, one with its tokens so far when preempted.
    pub branches: Vec<Branch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    pub choice: u32,
    pub output: Vec<TokenId>,
}

/// Everything that one step (or one refusal) tells one request.
#[derive(Debug, Clone)]
pub struct Delivery<S> {
    pub request: RequestId,
    pub sink: S,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// First sight of the device, once per request: how long it waited and how much of the prompt was cached.
    Started {
        queued_us: u64,
        cached_tokens: u32,
    },
    /// Log-probabilities of prompt tokens, in order; the first prompt token has none.
    Prompt(Vec<TokenLogprobs>),
    Token {
        choice: u32,
        sampled: Sampled,
    },
    /// Exactly once for each choice.
    Finished {
        choice: u32,
        finish: Finish,
    },
}

/// How a choice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// A stop token, which is the last [`Event::Token`] delivered.
    Stop,
    Length,
    Cancelled,
    DeadlineExceeded,
    /// The executor failed on it; the text is for the log, not for the client.
    Failed(String),
}
