//! What a lane asks of an executor for one step, and what comes back: plain values.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::model::TokenId;
use crate::sample::{SampleSpec, Sampled, TokenLogprobs};

/// Identifies a sequence within its lane; never reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// One step of one device. Rows of a sequence are consecutive positions.
#[derive(Debug, Clone, Default)]
pub struct StepPlan {
    pub step: u64,
    /// Whole KV blocks to copy `(from, to)` before anything is computed. No block is both a source and a target of
    /// one step, nor twice a target: the copies may be made in any order.
    pub copies: Vec<(u32, u32)>,
    pub rows: Vec<SeqRows>,
}

/// The part of a step that belongs to one sequence.
#[derive(Debug, Clone, Default)]
pub struct SeqRows {
    pub seq: SeqId,
    /// Position of `tokens[0]`.
    pub start: u32,
    pub tokens: Vec<TokenId>,
    /// How many of `tokens`, the last ones, are drafts: guesses at what will be drawn. Only a decode of one choice has any.
    pub num_drafts: u32,
    /// Block table covering positions `0..start + tokens.len()`.
    pub blocks: Vec<u32>,
    /// Drawn from the last row's logits: none while a prompt is unfinished, one for decode, `n` when a prompt of `n` choices ends.
    /// With drafts, one for each of the last `1 + num_drafts` rows in their order, up to the first draw that is not the
    /// token of the next row: from there on the rows stand on a wrong guess and are not drawn from.
    pub samples: Vec<SampleSpec>,
    /// Log-probabilities of the prompt: for each row whose *next* token is known (`tokens[1..]`, and `next` for the
    /// last row), the log-probability of that next token, with this many alternatives.
    pub prompt_logprobs: Option<PromptLogprobs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLogprobs {
    pub top: u8,
    /// The prompt token after this chunk, if the prompt goes on.
    pub next: Option<TokenId>,
}

impl StepPlan {
    pub fn num_tokens(&self) -> usize {
        self.rows.iter().map(|r| r.tokens.len()).sum()
    }
}

impl SeqRows {
    pub fn drafts(&self) -> &[TokenId] {
        &self.tokens[self.tokens.len() - self.num_drafts as usize..]
    }
}

/// What a step produced, in the order of [`StepPlan::rows`].
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    pub step: u64,
    pub rows: Vec<SeqOutput>,
    pub elapsed_us: u64,
    /// Whether the device started it as one that it had kept.
    pub replayed: bool,
}

#[derive(Debug, Clone)]
pub struct SeqOutput {
    pub seq: SeqId,
    /// One for each of [`SeqRows::samples`]; with drafts for those that were reached, one at least.
    pub sampled: SmallVec<[Sampled; 1]>,
    pub prompt_logprobs: Vec<TokenLogprobs>,
}

/// Shared token lists (prompts) are reference-counted: jobs move between lanes.
pub type Tokens = Arc<[TokenId]>;
