//! What enters a lane and what leaves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smallvec::SmallVec;

use super::plan::Tokens;
use crate::model::TokenId;
use crate::sample::{Sampled, SamplingParams, TokenLogprobs};

/// Process-wide request number (not the public id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Microseconds since the process (or the simulation) started.
pub type Micros = u64;

/// Set by whoever loses interest in a request, or in one choice of it; every lane looks at it before work. A flag
/// rather than a message: it cannot be refused by a full mailbox, and it follows a job that is being stolen.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    all: AtomicBool,
    /// One bit for each choice that the text side has ended.
    choices: [AtomicU64; MAX_CHOICES / 64],
}

/// Most choices (`n`) of a request.
pub const MAX_CHOICES: usize = 128;

impl CancelFlag {
    /// Nobody wants anything of the request any more: every choice still going ends as [`Finish::Cancelled`].
    pub fn set(&self) {
        self.0.all.store(true, Ordering::Release);
    }

    pub fn is_set(&self) -> bool {
        self.0.all.load(Ordering::Acquire)
    }

    /// The text side has ended this choice (a stop string): whichever lane has it drops it without an event. Choices
    /// from [`MAX_CHOICES`] on cannot be marked, and run to their own end.
    pub fn finish_choice(&self, choice: u32) {
        if let Some(bits) = self.0.choices.get(choice as usize / 64) {
            bits.fetch_or(1 << (choice % 64), Ordering::Release);
        }
    }

    pub fn is_finished(&self, choice: u32) -> bool {
        let bits = self.0.choices.get(choice as usize / 64);
        bits.is_some_and(|bits| bits.load(Ordering::Acquire) & (1 << (choice % 64)) != 0)
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
    /// [`Progress::default`] when new; kept by lanes.
    pub progress: Progress,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    pub choice: u32,
    pub output: Vec<TokenId>,
}

/// What a job has been through on lanes, so that nothing is told twice when it is computed again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// [`Event::Started`] has been delivered.
    pub started: bool,
    /// Prompt log-probabilities delivered.
    pub num_prompt_logprobs: u32,
    /// A step failed that would have brought it to this many tokens: until it has got there in a step of its own it
    /// is suspected of being the cause.
    pub suspect_until: Option<u32>,
    /// A step failed in which it had drafts: they may be the cause, so it has none from now on.
    pub drafts_failed: bool,
    /// Thefts since it came or last left a device.
    pub num_moves: u8,
    /// Devices that failed in a step of its own, and that it left for others.
    pub num_rescues: u8,
}

impl<S> Job<S> {
    /// `num_choices` empty choices of a new request.
    pub fn new_branches(num_choices: u32) -> Vec<Branch> {
        (0..num_choices).map(|choice| Branch { choice, output: Vec::new() }).collect()
    }

    /// Tokens whose KV must exist before the next token can be drawn, for one branch.
    pub fn num_tokens(&self) -> usize {
        self.prompt.len() + self.branches.first().map_or(0, |branch| branch.output.len())
    }

    /// Position in the one order that everything in a lane follows: admission, prefill, and (backwards) preemption.
    pub(super) fn age(&self) -> Age {
        Age(self.arrived_at, self.request, self.branches.first().map_or(0, |branch| branch.choice))
    }
}

/// Order of arrival; smaller is older. Survives preemption and theft, so that what is oldest stays oldest: that is
/// why nothing starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age(Micros, RequestId, u32);

/// What one step (or one refusal) tells one request; mostly one token.
#[derive(Debug, Clone)]
pub struct Delivery<S> {
    pub request: RequestId,
    pub sink: S,
    pub events: SmallVec<[Event; 1]>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// First sight of the device, once per request, with the first step's other events: how long it waited and how
    /// much of the prompt was cached.
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
    /// Exactly once for each choice, except for choices that the text side has ended itself.
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
    /// `max_tokens`, or the longest sequence that the lane can hold.
    Length,
    Cancelled,
    DeadlineExceeded,
    /// The executor failed on it; the text is for the log, not for the client.
    Failed(String),
}
