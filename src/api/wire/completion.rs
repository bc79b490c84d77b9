//! `POST /v1/completions`.

use serde_json::Value;

use super::chat::{refuse_prompt_logprobs_of_streams, take_model};
use super::fields::{self, Fields};
use super::sampling::{MAX_LOGPROBS, Sampling, Streaming, take_ignored};
use crate::base::error::Error;
use crate::model::TokenId;

/// Prompts in one request, and choices over all of them: one request holds one permit.
pub const MAX_PROMPTS: usize = 128;
pub const MAX_TOTAL_CHOICES: usize = 128;
/// No context is longer; the body's own limit is met first.
pub(super) const MAX_PROMPT_TOKENS: usize = 1 << 24;

/// A validated text completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub model: String,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// The answer begins with the prompt.
    pub echo: bool,
    pub sampling: Sampling,
    pub streaming: Streaming,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    /// At least one.
    Tokens(Vec<TokenId>),
}

impl CompletionRequest {
    pub fn parse(body: &[u8], vocab_size: u32) -> Result<Self, Error> {
        let mut fields = Fields::of_body(body)?;
        let model = take_model(&mut fields)?;
        let prompts = take_prompts(&mut fields, vocab_size)?;
        let mut sampling = Sampling::take(&mut fields, vocab_size)?;
        sampling.logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?.map(|n| n as u8);
        let streaming = Streaming::take(&mut fields)?;
        refuse_prompt_logprobs_of_streams(&sampling, streaming)?;
        let num_choices = prompts.len() * sampling.n as usize;
        if num_choices > MAX_TOTAL_CHOICES {
            let (num, n) = (prompts.len(), sampling.n);
            let message = format!(
                "{num} prompts with n = {n} make {num_choices} choices, more than the limit of {MAX_TOTAL_CHOICES}"
            );
            return Err(Error::invalid("n", message));
        }
        let echo = fields.bool("echo")?.unwrap_or(false);
        if let Some(best_of) = fields.integer("best_of", 1..=i64::from(u32::MAX))?
            && best_of != i64::from(sampling.n)
        {
            let message =
                format!("best_of = {best_of} is not supported: every choice is returned; leave it out or set it to n");
            return Err(Error::invalid("best_of", message));
        }
        // Without text after the gap it asks for nothing.
        if fields.string("suffix", usize::MAX)?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(fields::unsupported("suffix", "remove it"));
        }
        take_ignored(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, prompts, echo, sampling, streaming })
    }
}

/// A text, a list of texts, a list of tokens, or a list of lists of tokens.
fn take_prompts(fields: &mut Fields, vocab_size: u32) -> Result<Vec<Prompt>, Error> {
    const KINDS: &str = "a string, a list of strings, a list of token ids or a list of those";
    let values = match fields.take("prompt") {
        None => return Err(fields.missing("prompt", &format!("give {KINDS}"))),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(fields::mistyped("prompt", &other, KINDS)),
    };
    match values.first() {
        None => Err(Error::invalid("prompt", format!("prompt is an empty list; give {KINDS}"))),
        Some(Value::Number(_)) => Ok(vec![tokens("prompt", values, vocab_size)?]),
        Some(first @ (Value::String(_) | Value::Array(_))) => {
            let is_text = first.is_string();
            let values = fields::list("prompt", Value::Array(values), MAX_PROMPTS)?;
            let check = |(i, value)| one_of_many(&format!("prompt[{i}]"), value, is_text, vocab_size);
            values.into_iter().enumerate().map(check).collect()
        }
        Some(other) => Err(fields::mistyped("prompt[0]", other, "a string, a token id or a list of token ids")),
    }
}

fn one_of_many(path: &str, value: Value, is_text: bool, vocab_size: u32) -> Result<Prompt, Error> {
    match value {
        Value::String(text) if is_text => Ok(Prompt::Text(text)),
        Value::Array(values) if !is_text => tokens(path, values, vocab_size),
        other => {
            let expected = if is_text { "a string, as the first prompt is" } else { "a list, as the first prompt is" };
            Err(fields::mistyped(path, &other, expected))
        }
    }
}

fn tokens(path: &str, values: Vec<Value>, vocab_size: u32) -> Result<Prompt, Error> {
    if values.is_empty() {
        return Err(Error::invalid(path, format!("{path} is an empty list; give at least one token id")));
    }
    let values = fields::list(path, Value::Array(values), MAX_PROMPT_TOKENS)?;
    fields::tokens(path, values, vocab_size).map(Prompt::Tokens)
}
