//! Every message that crosses an actor boundary. `actors.md` lists the same names; a test compares the two.
//!
//! Requests are imperative, events past tense. Nothing here knows HTTP.

use std::sync::Arc;
use std::time::Duration;

use actix::Message;

use super::ended::Ended;
use crate::base::error::Error;
use crate::exec::ExecError;
use crate::model::TokenId;
use crate::sample::{SamplingParams, TokenLogprobs};
use crate::sched::plan::{StepOutput, StepPlan, Tokens};

// ── request ────────────────────────────────────────────────────────────────────────────────────────

/// Runs on the preparation pool: chat template and tokenizer, which may take milliseconds.
pub type Prepare = Box<dyn FnOnce() -> Result<Generation, Error> + Send>;

/// To a request actor: prepare, reserve, place, submit. The answer comes when lanes have accepted every prompt.
#[derive(Message)]
#[rtype(result = "Result<Accepted, Error>")]
pub struct Begin {
    pub prepare: Prepare,
    /// A short text is prepared on the spot: a hop to the pool would cost more than it saves.
    pub input_bytes: usize,
    pub timeout: Option<Duration>,
}

/// What there is to generate: one or more prompts with the same parameters.
pub struct Generation {
    pub prompts: Vec<Tokens>,
    pub num_choices: u32,
    pub params: Arc<SamplingParams>,
    pub stop_tokens: Arc<[TokenId]>,
    pub min_tokens: u32,
    /// `None` generates to the end of the context.
    pub max_tokens: Option<u32>,
    pub stop_strings: Arc<[String]>,
    pub include_stop: bool,
    pub prompt_logprobs: Option<u8>,
}

impl Generation {
    pub fn num_prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.len() as u64).sum()
    }
}

/// The prompts as they were tokenised, for `echo` and for usage.
pub struct Accepted {
    pub prompts: Vec<Tokens>,
}

/// To a request actor from its stream: these prompts reached a device, so their tokens no longer wait.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PromptsStarted {
    pub prompts: Vec<usize>,
}

/// To a request actor from its stream: the last word, whatever happened.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StreamEnded(pub Ended);

/// How a request ended; exactly one of these is counted for every accepted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The client left or stalled.
    Cancelled,
    Failed,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
}

// ── stream ─────────────────────────────────────────────────────────────────────────────────────────

/// To a stream actor: its event queue has something. Sent once per batch of events, never per token.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EventsReady;

/// To a stream actor: the server is going down; end with an error event.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// What a stream hands to the response body.
#[derive(Debug)]
pub enum Item {
    /// Log-probabilities of prompt tokens of one prompt, in order.
    Prompt {
        prompt: usize,
        logprobs: Vec<TokenLogprobs>,
    },
    /// Texts alone.
    Texts(Texts),
    Delta(Delta),
    /// Last item of a good stream.
    End(Usage),
    /// Last item of a bad one.
    Error(Error),
}

impl Item {
    /// Rough size on the wire, for the bound on what may wait.
    pub fn approx_bytes(&self) -> usize {
        const ENVELOPE: usize = 200;
        ENVELOPE
            * match self {
                Item::Texts(texts) => texts.num_texts(),
                _ => 1,
            }
            + match self {
                Item::Texts(texts) => texts.all().len(),
                Item::Delta(d) => {
                    d.text.len() + d.tokens.len() * (16 + d.tokens.first().map_or(0, |t| t.top.len() * 40))
                }
                Item::Prompt { logprobs, .. } => logprobs.iter().map(|l| 16 + l.top.len() * 40).sum(),
                Item::End(_) | Item::Error(_) => 0,
            }
    }
}

/// New texts of one choice, token by token: all that a token brings when nothing more was asked for. Together, because
/// a batch may hold many tokens, and what each costs by itself is multiplied by them.
#[derive(Debug, Default)]
pub struct Texts {
    /// As [`Delta::index`].
    pub index: u32,
    all: String,
    /// Where each text ends.
    ends: Vec<u32>,
}

impl Texts {
    /// So that a response writes no larger piece at once than it means to.
    pub const MAX: usize = 32;

    /// One more; an empty one is none.
    pub fn push(&mut self, text: &str) {
        if !text.is_empty() {
            self.all.push_str(text);
            self.ends.push(self.all.len() as u32);
        }
    }

    pub fn num_texts(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All texts in one.
    pub fn all(&self) -> &str {
        &self.all
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.all[start as usize..end as usize])
    }
}

/// New text of one choice, and what came with it. Concatenated over a stream, the texts are the whole answer.
#[derive(Debug, Default)]
pub struct Delta {
    /// `prompt index × n + choice`.
    pub index: u32,
    pub text: String,
    /// The tokens behind the text, when log-probabilities were asked for.
    pub tokens: Vec<TokenLogprobs>,
    pub finish: Option<FinishReason>,
}

/// The field's two ways of ending well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    Length,
}

impl FinishReason {
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

// ── scheduler ──────────────────────────────────────────────────────────────────────────────────────

/// To a scheduler: look again (a job is in the inbox, a cancel flag was set, or there is something to steal). Losing one
/// to a full mailbox is harmless: others are in it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake;

/// A scheduler to itself: the mailbox is drained, plan a step.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Tick;

/// To a scheduler: how you are, and proof that you live.
#[derive(Message)]
#[rtype(result = "LaneReport")]
pub struct Inspect;

#[derive(Debug, Clone)]
pub struct LaneReport {
    /// Age of the step in flight.
    pub step_age: Option<Duration>,
    /// With work and no step in flight: since when. A lane that works has none for longer than a blink.
    pub idle_age: Option<Duration>,
}

// ── executor ───────────────────────────────────────────────────────────────────────────────────────

/// To an executor: run this step to its end. The scheduler keeps the plan, to write the next one into its memory.
#[derive(Message)]
#[rtype(result = "Result<StepOutput, ExecError>")]
pub struct RunStep(pub Arc<StepPlan>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_apart_and_add_up() {
        let mut texts = Texts::default();
        ["a", "", "ß\u{1f600}", "\n"].into_iter().for_each(|text| texts.push(text));
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "ß\u{1f600}", "\n"]);
        assert_eq!((texts.all(), texts.num_texts()), ("aß\u{1f600}\n", 3));
        let bytes = Item::Texts(texts).approx_bytes();
        assert_eq!(bytes, 3 * Item::End(Usage::default()).approx_bytes() + 8, "each is an event");
    }
}
