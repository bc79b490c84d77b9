//! What `generation_config.json` says: how the authors of a checkpoint want it sampled, and which tokens end a text.

use serde_json::Value;

use super::GenerationDefaults;
use crate::model::TokenId;

const MAX_EOS_TOKENS: usize = 256;

/// Reads the sampling defaults; absent and null fields stay `None`. The error names field, value and what is allowed.
pub(super) fn defaults(config: &Value) -> Result<GenerationDefaults, String> {
    let number = |field: &str, expected: &str, is_valid: fn(f32) -> bool| match get(config, field) {
        None => Ok(None),
        Some(value) => match value.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && is_valid(*x)) {
            Some(x) => Ok(Some(x)),
            None => Err(format!("`{field}` is {value}; expected {expected}")),
        },
    };
    Ok(GenerationDefaults {
        do_sample: match get(config, "do_sample") {
            None => None,
            Some(Value::Bool(flag)) => Some(*flag),
            Some(other) => return Err(format!("`do_sample` is {other}; expected true or false")),
        },
        temperature: number("temperature", "a number of at least 0", |x| x >= 0.0)?,
        top_k: match get(config, "top_k") {
            None => None,
            Some(value) => match value.as_u64().and_then(|k| u32::try_from(k).ok()) {
                Some(k) => Some(k),
                None => return Err(format!("`top_k` is {value}; expected an integer of at least 0")),
            },
        },
        top_p: number("top_p", "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0)?,
        min_p: number("min_p", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?,
        repetition_penalty: number("repetition_penalty", "a number above 0", |x| x > 0.0)?,
    })
}

/// `eos_token_id`: absent, one id or a list.
pub(super) fn eos_tokens(config: &Value, vocab_size: usize) -> Result<Vec<TokenId>, String> {
    let list = match get(config, "eos_token_id") {
        None => &[],
        Some(Value::Array(list)) if list.len() <= MAX_EOS_TOKENS => list.as_slice(),
        Some(Value::Array(list)) => {
            return Err(format!("`eos_token_id` has {} tokens; at most {MAX_EOS_TOKENS} are allowed", list.len()));
        }
        Some(one) => std::slice::from_ref(one),
    };
    let read = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < vocab_size as u64);
        id.map(|id| id as TokenId)
            .ok_or_else(|| format!("`eos_token_id` has {value}; expected token ids below vocab_size {vocab_size}"))
    };
    list.iter().map(read).collect()
}

fn get<'a>(config: &'a Value, field: &str) -> Option<&'a Value> {
    config.get(field).filter(|value| !value.is_null())
}
