//! A model as the API sees it: its name, its text side and its limits. Nothing of devices.

use crate::base::error::Error;
use crate::model::TokenId;
use crate::model::text::{ChatTemplate, Tokenizer};
use crate::sample::SamplingParams;

/// What requests are checked against and prepared with.
pub struct ServedModel {
    pub name: String,
    pub tokenizer: Tokenizer,
    pub chat_template: Option<ChatTemplate>,
    pub bos_token: String,
    pub eos_token: String,
    pub vocab_size: usize,
    /// Longest sequence, prompt and output: the model's or the configuration's.
    pub max_model_len: usize,
    /// Longest sequence that the KV memory of a lane holds; never more than `max_model_len`.
    pub max_sequence_tokens: usize,
    /// Sequences that run at once in a lane.
    pub max_running: usize,
    pub eos_tokens: std::sync::Arc<[TokenId]>,
    /// What a request that leaves a sampling parameter out gets.
    pub defaults: SamplingParams,
    /// Changes when the same seed may give another text.
    pub fingerprint: String,
    /// Seconds since 1970, for `GET /v1/models`.
    pub created: u64,
}

impl ServedModel {
    /// Tokens that a prompt leaves room for.
    pub fn max_new_tokens(&self, prompt_tokens: usize) -> u32 {
        u32::try_from(self.max_sequence_tokens.saturating_sub(prompt_tokens)).unwrap_or(u32::MAX)
    }

    /// Refuses a text that is too long whatever its tokens are.
    pub fn fits_text(&self, num_bytes: usize) -> Result<(), Error> {
        let (least, limit) = (self.tokenizer.min_tokens(num_bytes), self.max_sequence_tokens);
        if least > limit {
            let message = format!(
                "the prompt has {num_bytes} bytes of text, which are more than {least} tokens; the limit is {limit}; \
                 shorten it"
            );
            return Err(Error::context_length("prompt", message));
        }
        Ok(())
    }

    /// Refuses a prompt that could never run, naming both numbers.
    pub fn fits(&self, prompt_tokens: usize, max_tokens: Option<u32>, num_choices: u32) -> Result<(), Error> {
        if prompt_tokens == 0 {
            return Err(Error::invalid("prompt", "the prompt has no tokens; send at least one"));
        }
        let (output, limit) = (max_tokens.unwrap_or(1).max(1) as usize, self.max_sequence_tokens);
        if prompt_tokens + output > limit {
            let of = if limit < self.max_model_len { "the KV cache holds" } else { "the model's context is" };
            let message = format!(
                "{of} {limit} tokens, but the prompt has {prompt_tokens} and {output} are wanted at least; shorten \
                 the prompt or lower max_tokens"
            );
            return Err(Error::context_length("prompt", message));
        }
        if num_choices as usize > self.max_running {
            let message = format!("{num_choices} choices are more than run at once here ({})", self.max_running);
            return Err(Error::invalid("n", message));
        }
        Ok(())
    }

    /// `default` always works.
    pub fn answers_to(&self, name: &str) -> bool {
        name == self.name || name == "default"
    }
}
