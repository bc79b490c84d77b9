//! The limits of a lane, checked once.

use super::draft::MAX_NGRAM;
use crate::kv::BLOCK_TOKENS;

/// Limits of one lane. Blocks are [`BLOCK_TOKENS`] tokens each.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneConfig {
    /// KV blocks of the executor behind the lane.
    pub num_blocks: usize,
    /// Rows of one step, decodes and prefill chunks together.
    pub max_batch_tokens: usize,
    /// Rows of one sequence in one step, so that a long prompt leaves room for short ones beside it.
    pub max_chunk_tokens: usize,
    /// How many times as long a step may take because of prompts beside running streams, about; above 1.
    pub max_slowdown: f64,
    /// Sequences that hold KV; every choice of an `n > 1` request counts.
    pub max_running: usize,
    /// Longest sequence, prompt and output.
    pub max_model_len: usize,
    pub prefix_cache: bool,
    /// None: no drafts.
    pub speculation: Option<Speculation>,
}

/// Drafts of tokens by prompt lookup, which are computed ahead beside the token that is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// Drafts of one sequence in one step, at most.
    pub max_drafts: usize,
    /// Tokens that must have stood before in the same order: so many are looked for at least, and at most.
    pub min_ngram: usize,
    pub max_ngram: usize,
    /// Also where they are not expected to pay.
    pub always: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneConfigError {
    #[error("{name} is 0; give it at least 1")]
    Zero { name: &'static str },
    #[error("{num_blocks} KV blocks are more than block numbers can count; use at most {}", u32::MAX / BLOCK_TOKENS as u32)]
    TooManyBlocks { num_blocks: usize },
    #[error(
        "n-grams of {min} to {max} tokens cannot be looked up; use 1 to {MAX_NGRAM}, and no more at least than at most"
    )]
    Ngrams { min: usize, max: usize },
    #[error(
        "max_batch_tokens is {max_batch_tokens} but max_running is {max_running}, and each running sequence needs a \
         row in every step; raise the first or lower the second"
    )]
    TooFewRows { max_batch_tokens: usize, max_running: usize },
}

/// Why a request can never run on a lane, whatever else is going on there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DoesNotFit {
    #[error("the prompt has no tokens; send at least one")]
    EmptyPrompt,
    #[error("{needed} tokens are needed but a sequence can have at most {limit}; shorten the prompt")]
    TooLong { needed: usize, limit: usize },
    #[error("{num_choices} choices are asked for but at most {max_running} sequences run at once; lower n")]
    TooManyChoices { num_choices: usize, max_running: usize },
}

impl LaneConfig {
    pub(super) fn validate(&self) -> Result<(), LaneConfigError> {
        let counts = [
            ("num_blocks", self.num_blocks),
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_chunk_tokens", self.max_chunk_tokens),
            ("max_running", self.max_running),
            ("max_model_len", self.max_model_len),
        ];
        if let Some(&(name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(LaneConfigError::Zero { name });
        }
        // Slots (`block * BLOCK_TOKENS + offset`) are 32 bits in every executor.
        if self.num_blocks > u32::MAX as usize / BLOCK_TOKENS {
            return Err(LaneConfigError::TooManyBlocks { num_blocks: self.num_blocks });
        }
        let &Self { max_batch_tokens, max_running, .. } = self;
        if max_batch_tokens < max_running {
            return Err(LaneConfigError::TooFewRows { max_batch_tokens, max_running });
        }
        if let Some(Speculation { min_ngram: min, max_ngram: max, .. }) = self.speculation
            && (min == 0 || min > max || max > MAX_NGRAM)
        {
            return Err(LaneConfigError::Ngrams { min, max });
        }
        Ok(())
    }

    /// Longest sequence that can exist here: the model's context, or the whole KV memory when that is less.
    pub fn max_sequence_tokens(&self) -> usize {
        self.max_model_len.min(self.num_blocks * BLOCK_TOKENS)
    }

    /// Whether a prompt and the first of `max_tokens` tokens fit, for `num_choices` choices. Callers ask before they
    /// submit, to refuse with both numbers; a longer output is cut at [`LaneConfig::max_sequence_tokens`].
    pub fn fits(&self, prompt_len: usize, max_tokens: usize, num_choices: usize) -> Result<(), DoesNotFit> {
        let (needed, limit) = (prompt_len + max_tokens.min(1), self.max_sequence_tokens());
        if prompt_len == 0 {
            return Err(DoesNotFit::EmptyPrompt);
        }
        if needed > limit {
            return Err(DoesNotFit::TooLong { needed, limit });
        }
        if num_choices > self.max_running {
            return Err(DoesNotFit::TooManyChoices { num_choices, max_running: self.max_running });
        }
        Ok(())
    }

    /// Most tokens that a prompt leaves room for.
    pub fn max_new_tokens(&self, prompt_len: usize) -> usize {
        self.max_sequence_tokens().saturating_sub(prompt_len)
    }
}
