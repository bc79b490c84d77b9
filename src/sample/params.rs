//! What a request may ask of the sampler.

use std::sync::Arc;

use super::{WHOLE, uniform};
use crate::model::TokenId;
use crate::model::draws::Draw;

/// Sampling parameters, validated (see the API layer for the limits that requests meet).
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// 1 is off. Applies to prompt and output, as in CTRL (arXiv 1909.05858).
    pub repetition_penalty: f32,
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Log-probabilities wanted: `Some(n)` reports the token's own and the `n` best.
    pub logprobs: Option<u8>,
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            logprobs: None,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Whether the sampler must see the tokens so far.
    pub fn needs_history(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// Tokens that penalties look at.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    pub prompt: Arc<[TokenId]>,
    pub output: Vec<TokenId>,
}

/// One draw: everything it depends on but the logits.
#[derive(Debug, Clone)]
pub struct SampleSpec {
    pub params: Arc<SamplingParams>,
    /// Which of `n` choices; separates their random streams.
    pub choice: u32,
    /// Index of the output token being drawn; the random stream's counter.
    pub index: u32,
    /// Present exactly when [`SamplingParams::needs_history`].
    pub history: Option<History>,
    /// Tokens that may not be drawn now (end tokens before `min_tokens`).
    pub banned: Arc<[TokenId]>,
}

impl SampleSpec {
    /// All but the changes and the row.
    pub(super) fn draw(&self) -> Draw {
        let params = &*self.params;
        // Exact: a float32 has fewer bits than a share.
        let top_p = if params.top_p < 1.0 { (f64::from(params.top_p) * WHOLE as f64) as u64 } else { WHOLE };
        Draw {
            row: 0,
            first_change: 0,
            num_changes: 0,
            top_k: params.top_k,
            temperature: params.temperature,
            min_p: if params.min_p > 0.0 { params.min_p.min(1.0) } else { 0.0 },
            repetition_penalty: params.repetition_penalty,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            reserved: 0,
            top_p,
            at: uniform(params.seed, self.choice, self.index),
        }
    }
}

/// A drawn token. Log-probabilities are of the model's own distribution, before penalties and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    pub token: TokenId,
    /// Boxed, because few ask for them and every token carries the place.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// Log-probability of a token, and the best alternatives, highest first.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    pub token: TokenId,
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
    pub top: Vec<(TokenId, f32)>,
}
