//! Takes a JSON object apart by name: what has been asked for is removed, so that what is left is unknown.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::base::error::Error;
use crate::model::TokenId;

/// Longest piece of a client's own text in a message.
const MAX_SHOWN: usize = 64;

/// An object of the request and where it stands in it.
#[derive(Debug)]
pub struct Fields {
    /// Empty at the top.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The body of a request. serde_json bounds its depth (128).
    pub fn of_body(body: &[u8]) -> Result<Self, Error> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { path: String::new(), map }),
            Ok(other) => Err(Error::invalid_request(format!("the body must be a JSON object, not {}", kind(&other)))),
            Err(e) => Err(Error::invalid_request(format!("the body is not JSON: {e}"))),
        }
    }

    /// `value`, which stands at `path`, must be an object.
    pub fn of(path: String, value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(mistyped(&path, &other, "an object")),
        }
    }

    /// Where field `name` stands in the request.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { shown(name) } else { format!("{}.{}", self.path, shown(name)) }
    }

    /// Takes a field; `null` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        asked::note(&self.path, name);
        // Moves the last entry into the gap: constant time, however many fields a client invents.
        self.map.swap_remove(name).filter(|value| !value.is_null())
    }

    pub fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    pub fn missing(&self, name: &str, hint: &str) -> Error {
        let path = self.path(name);
        Error::invalid(&path, format!("{path} is missing: {hint}"))
    }

    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(mistyped(&self.path(name), &other, "true or false")),
        }
    }

    /// At most `max` bytes.
    pub fn string(&mut self, name: &str, max: usize) -> Result<Option<String>, Error> {
        self.take(name).map(|value| string(&self.path(name), value, max)).transpose()
    }

    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Error> {
        self.take(name).map(|value| integer(&self.path(name), &value, range)).transpose()
    }

    pub fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, Error> {
        self.take(name).map(|value| number(&self.path(name), &value, range)).transpose()
    }

    /// Above 0, up to `max`.
    pub fn positive(&mut self, name: &str, max: f32) -> Result<Option<f32>, Error> {
        let Some(value) = self.take(name) else { return Ok(None) };
        // Compared as f32: what is positive as f64 only would become zero.
        let fits = value.as_f64().map(|n| n as f32).filter(|n| *n > 0.0 && *n <= max);
        let wrong = || out_of_range(&self.path(name), &value, format_args!("a number above 0, up to {max}"));
        fits.ok_or_else(wrong).map(Some)
    }

    /// A list of at most `max` values.
    pub fn list(&mut self, name: &str, max: usize) -> Result<Option<Vec<Value>>, Error> {
        self.take(name).map(|value| list(&self.path(name), value, max)).transpose()
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, Error> {
        self.take(name).map(|value| Fields::of(self.path(name), value)).transpose()
    }

    /// Refuses each of `names` that is there: fields that mean something elsewhere and are not built here.
    pub fn refuse(&mut self, names: &[&str]) -> Result<(), Error> {
        match names.iter().find(|name| self.take(name).is_some()) {
            Some(name) => Err(unsupported(&self.path(name), "remove it")),
            None => Ok(()),
        }
    }

    /// Everything known has been taken: the first of what is left is refused.
    pub fn finish(self) -> Result<(), Error> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => {
                let path = self.path(name);
                Err(Error::invalid(&path, format!("{path} is not a known field; remove it")))
            }
            None => Ok(()),
        }
    }

    /// What has not been taken, without nulls.
    pub fn into_rest(self) -> Map<String, Value> {
        self.map.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }
}

pub fn string(path: &str, value: Value, max: usize) -> Result<String, Error> {
    match value {
        Value::String(text) if text.len() <= max => Ok(text),
        Value::String(text) => {
            let message = format!("{path} has {} bytes, more than the limit of {max}", text.len());
            Err(Error::invalid(path, message))
        }
        other => Err(mistyped(path, &other, "a string")),
    }
}

pub fn integer(path: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64, Error> {
    let fits = value.as_i64().filter(|n| range.contains(n));
    fits.ok_or_else(|| out_of_range(path, value, format_args!("an integer from {} to {}", range.start(), range.end())))
}

pub fn number(path: &str, value: &Value, range: RangeInclusive<f32>) -> Result<f32, Error> {
    let fits = value.as_f64().map(|n| n as f32).filter(|n| range.contains(n));
    fits.ok_or_else(|| out_of_range(path, value, format_args!("a number from {} to {}", range.start(), range.end())))
}

pub fn list(path: &str, value: Value, max: usize) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(values) if values.len() <= max => Ok(values),
        Value::Array(values) => {
            Err(Error::invalid(path, format!("{path} has {} entries, more than the limit of {max}", values.len())))
        }
        other => Err(mistyped(path, &other, "a list")),
    }
}

/// A token of a vocabulary of `vocab_size`.
pub fn token(path: &str, value: &Value, vocab_size: u32) -> Result<TokenId, Error> {
    let fits = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n < vocab_size);
    fits.ok_or_else(|| {
        let last = vocab_size.saturating_sub(1);
        out_of_range(path, value, format_args!("a token id of this model, an integer from 0 to {last}"))
    })
}

/// A list of tokens of a vocabulary of `vocab_size`.
pub fn tokens(path: &str, values: Vec<Value>, vocab_size: u32) -> Result<Vec<TokenId>, Error> {
    let ids = values.iter().enumerate();
    ids.map(|(i, value)| match value.as_u64() {
        // The path is made only for the one that is wrong: lists are long.
        Some(id) if id < u64::from(vocab_size) => Ok(id as TokenId),
        _ => token(&format!("{path}[{i}]"), value, vocab_size),
    })
    .collect()
}

/// The value is of a wrong kind.
pub fn mistyped(path: &str, value: &Value, expected: &str) -> Error {
    Error::invalid(path, format!("{path} must be {expected}, not {}", kind(value)))
}

/// A value that OpenAI knows and this server does not.
pub fn unsupported(path: &str, instead: &str) -> Error {
    Error::invalid(path, format!("{path} is not supported by this server; {instead}"))
}

fn out_of_range(path: &str, value: &Value, expected: std::fmt::Arguments<'_>) -> Error {
    let value = match value {
        Value::Number(n) => n.to_string(),
        other => kind(other).to_owned(),
    };
    Error::invalid(path, format!("{path} must be {expected}, not {}", shown(&value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Text of the client's, short enough and without line ends.
pub fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Which fields parsers ask for, so that a test can compare them with the schemas.
#[cfg(test)]
pub mod asked {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static ASKED: RefCell<BTreeSet<(String, String)>> = RefCell::default();
    }

    pub(super) fn note(path: &str, name: &str) {
        ASKED.with_borrow_mut(|asked| asked.insert((path.to_owned(), name.to_owned())));
    }

    /// Where and what this thread has asked for since the last call.
    pub fn take() -> BTreeSet<(String, String)> {
        ASKED.take()
    }
}
