//! The fields that chat and text completions share.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::fields::{self, Fields};
use crate::base::error::Error;
use crate::model::TokenId;
use crate::sample::SamplingParams;

/// Choices for one prompt. OpenAI allows 128; each holds a place in a batch, so that few requests would fill a server.
pub const MAX_CHOICES: i64 = 16;
pub const MAX_LOGIT_BIAS: usize = 1024;
pub const MAX_STOP_STRINGS: usize = 16;
pub const MAX_STOP_BYTES: usize = 256;
pub const MAX_STOP_TOKENS: usize = 64;
/// Alternatives to a token. OpenAI allows 20 in chats and 5 in text completions.
pub const MAX_LOGPROBS: i64 = 20;
pub(super) const OUTPUT_TOKENS: RangeInclusive<i64> = 1..=u32::MAX as i64;
pub(super) const MIN_TOKENS: RangeInclusive<i64> = 0..=u32::MAX as i64;
pub(super) const TEMPERATURE: RangeInclusive<f32> = 0.0..=2.0;
pub(super) const MAX_TOP_P: f32 = 1.0;
pub(super) const TOP_K: RangeInclusive<i64> = -1..=u32::MAX as i64;
pub(super) const MIN_P: RangeInclusive<f32> = 0.0..=1.0;
/// Of frequency and of presence.
pub(super) const PENALTY: RangeInclusive<f32> = -2.0..=2.0;
pub(super) const MAX_REPETITION_PENALTY: f32 = 10.0;
pub(super) const SEED: RangeInclusive<i64> = i64::MIN..=i64::MAX;
pub(super) const LOGIT_BIAS: RangeInclusive<f32> = -100.0..=100.0;
/// Texts that OpenAI takes for its own use.
pub(super) const IGNORED_TEXTS: [&str; 3] = ["user", "safety_identifier", "prompt_cache_key"];
pub(super) const MAX_IGNORED_BYTES: usize = 1024;
pub(super) const MAX_METADATA: usize = 16;
pub(super) const MAX_METADATA_NAME_BYTES: usize = 64;
pub(super) const MAX_METADATA_VALUE_BYTES: usize = 2048;
pub(super) const SERVICE_TIERS: [&str; 2] = ["auto", "default"];

/// How to sample and when to stop, validated. None is not given: the model's default, then OpenAI's, takes its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// Above 0, to 1.
    pub top_p: Option<f32>,
    /// 0 is off (so is -1 on the wire).
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// -2 to 2; so is the next.
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    /// Above 0, to 10.
    pub repetition_penalty: Option<f32>,
    pub seed: Option<i64>,
    pub logit_bias: Vec<(TokenId, f32)>,
    /// `Some(n)`: each token's log-probability, and the `n` best.
    pub logprobs: Option<u8>,
    /// The same for the prompt's tokens.
    pub prompt_logprobs: Option<u8>,
    /// None is empty.
    pub stop: Vec<String>,
    pub include_stop: bool,
    pub stop_token_ids: Vec<TokenId>,
    pub min_tokens: u32,
    /// None: to the end of the context.
    pub max_tokens: Option<u32>,
    pub ignore_eos: bool,
    /// Choices for each prompt, 1 to [`MAX_CHOICES`].
    pub n: u32,
}

/// Whether and how the answer is streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streaming {
    pub stream: bool,
    pub include_usage: bool,
}

impl Sampling {
    /// Takes every shared field but `logprobs`, which means different things in the two requests.
    pub(super) fn take(fields: &mut Fields, vocab_size: u32) -> Result<Self, Error> {
        let max_tokens = take_max_tokens(fields)?;
        let min_tokens = fields.integer("min_tokens", MIN_TOKENS)?.unwrap_or(0) as u32;
        if let Some(max) = max_tokens.filter(|max| *max < min_tokens) {
            let message = format!("min_tokens = {min_tokens} is more than max_tokens = {max}");
            return Err(Error::invalid("min_tokens", message));
        }
        Ok(Self {
            temperature: fields.number("temperature", TEMPERATURE)?,
            top_p: fields.positive("top_p", MAX_TOP_P)?,
            top_k: fields.integer("top_k", TOP_K)?.map(|k| k.max(0) as u32),
            min_p: fields.number("min_p", MIN_P)?,
            frequency_penalty: fields.number("frequency_penalty", PENALTY)?,
            presence_penalty: fields.number("presence_penalty", PENALTY)?,
            repetition_penalty: fields.positive("repetition_penalty", MAX_REPETITION_PENALTY)?,
            seed: fields.integer("seed", SEED)?,
            logit_bias: take_logit_bias(fields, vocab_size)?,
            logprobs: None,
            prompt_logprobs: fields.integer("prompt_logprobs", 0..=MAX_LOGPROBS)?.map(|n| n as u8),
            stop: take_stop(fields)?,
            include_stop: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
            stop_token_ids: match fields.list("stop_token_ids", MAX_STOP_TOKENS)? {
                Some(values) => fields::tokens("stop_token_ids", values, vocab_size)?,
                None => Vec::new(),
            },
            min_tokens,
            max_tokens,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            n: fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1) as u32,
        })
    }

    /// What the sampler gets: the request's own values over `defaults`. `fresh_seed` is used when the request has none.
    pub fn params(&self, defaults: &SamplingParams, fresh_seed: u64) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            logit_bias: self.logit_bias.clone(),
            logprobs: self.logprobs,
            seed: self.seed.map_or(fresh_seed, i64::cast_unsigned),
        }
    }
}

impl Streaming {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, Error> {
        let stream = fields.bool("stream")?.unwrap_or(false);
        let Some(mut options) = fields.object("stream_options")? else {
            return Ok(Self { stream, include_usage: false });
        };
        if !stream {
            return Err(Error::invalid("stream_options", "stream_options is allowed only with stream = true"));
        }
        let include_usage = options.bool("include_usage")?.unwrap_or(false);
        // Padding against observers of lengths; OpenAI sends it as a field that clients ignore. We send none.
        options.bool("include_obfuscation")?;
        options.finish()?;
        Ok(Self { stream, include_usage })
    }
}

/// Fields that OpenAI takes and that change nothing in an answer: validated, then ignored.
pub(super) fn take_ignored(fields: &mut Fields) -> Result<(), Error> {
    for name in IGNORED_TEXTS {
        fields.string(name, MAX_IGNORED_BYTES)?;
    }
    if let Some(metadata) = fields.object("metadata")? {
        let pairs = metadata.into_rest();
        if pairs.len() > MAX_METADATA {
            let message = format!("metadata has {} entries, more than the limit of {MAX_METADATA}", pairs.len());
            return Err(Error::invalid("metadata", message));
        }
        for (name, value) in pairs {
            let path = format!("metadata.{}", fields::shown(&name));
            if name.len() > MAX_METADATA_NAME_BYTES {
                let message = format!("{path} has a name of more than {MAX_METADATA_NAME_BYTES} bytes");
                return Err(Error::invalid(&path, message));
            }
            fields::string(&path, value, MAX_METADATA_VALUE_BYTES)?;
        }
    }
    if fields.bool("store")? == Some(true) {
        return Err(fields::unsupported("store = true", "nothing is stored; leave it out or set it to false")
            .with_param("store"));
    }
    match fields.string("service_tier", 64)?.as_deref() {
        None => Ok(()),
        Some(tier) if SERVICE_TIERS.contains(&tier) => Ok(()),
        Some(tier) => {
            let path = format!("service_tier = '{}'", fields::shown(tier));
            Err(fields::unsupported(&path, "the tiers are 'auto' and 'default'").with_param("service_tier"))
        }
    }
}

/// `max_tokens` and its newer name, of which either works.
fn take_max_tokens(fields: &mut Fields) -> Result<Option<u32>, Error> {
    let old = fields.integer("max_tokens", OUTPUT_TOKENS)?;
    let new = fields.integer("max_completion_tokens", OUTPUT_TOKENS)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message = format!("max_completion_tokens = {new} contradicts max_tokens = {old}; give one of them");
            Err(Error::invalid("max_completion_tokens", message))
        }
        _ => Ok(new.or(old).map(|n| n as u32)),
    }
}

fn take_logit_bias(fields: &mut Fields, vocab_size: u32) -> Result<Vec<(TokenId, f32)>, Error> {
    let Some(bias) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let pairs = bias.into_rest();
    if pairs.len() > MAX_LOGIT_BIAS {
        let message = format!("logit_bias has {} entries, more than the limit of {MAX_LOGIT_BIAS}", pairs.len());
        return Err(Error::invalid("logit_bias", message));
    }
    let mut out: Vec<(TokenId, f32)> = Vec::with_capacity(pairs.len());
    for (name, value) in pairs {
        let path = format!("logit_bias.{}", fields::shown(&name));
        // "+1" and "01" are numbers to `parse` and would name a token twice.
        let is_plain = name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
        let token = name.parse::<TokenId>().ok().filter(|token| is_plain && *token < vocab_size).ok_or_else(|| {
            let last = vocab_size.saturating_sub(1);
            Error::invalid(&path, format!("{path} must be named by a token id of this model, 0 to {last}"))
        })?;
        out.push((token, fields::number(&path, &value, LOGIT_BIAS)?));
    }
    Ok(out)
}

fn take_stop(fields: &mut Fields) -> Result<Vec<String>, Error> {
    let (values, is_list) = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => (fields::list("stop", Value::Array(values), MAX_STOP_STRINGS)?, true),
        Some(value @ Value::String(_)) => (vec![value], false),
        Some(other) => return Err(fields::mistyped("stop", &other, "a string or a list of strings")),
    };
    let check = |(i, value)| {
        let path = if is_list { format!("stop[{i}]") } else { "stop".to_owned() };
        let text = fields::string(&path, value, MAX_STOP_BYTES)?;
        if text.is_empty() {
            return Err(Error::invalid(&path, format!("{path} is empty; it must have 1 to {MAX_STOP_BYTES} bytes")));
        }
        Ok(text)
    };
    values.into_iter().enumerate().map(check).collect()
}
