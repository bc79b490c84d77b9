//! One value as a layer gave it, and its reading as the type that a key wants.

use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A scalar from the file keeps the type that YAML gave it; text comes from the file, the environment and arguments.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    /// Quoted or plain text of the file.
    Text(String),
    /// Text that has no type of its own: from a variable or an argument.
    Untyped(String),
    List,
    /// A section, in the order of the file.
    Map(Vec<(Spanned<String>, Spanned<Value>)>),
}

/// What a key allows, said in a message after "must be".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed(pub String);

impl Value {
    /// For messages: the value as written, shortened.
    pub fn shown(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Bool(b) => b.to_string(),
            Value::Int(i) => i.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Text(t) | Value::Untyped(t) => shortened(t),
            Value::List => "a list".into(),
            Value::Map(_) => "a section".into(),
        }
    }

    /// Null in the file; nothing or `null` in a variable or an argument.
    pub fn is_null(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Untyped(t) => matches!(t.trim(), "" | "null" | "~"),
            _ => false,
        }
    }

    pub fn int<T: TryFrom<i128>>(&self, range: RangeInclusive<i128>) -> Result<T, Allowed> {
        let allowed = || Allowed(format!("an integer from {} to {}", range.start(), range.end()));
        let n = match self {
            Value::Int(n) => *n,
            Value::Untyped(t) => t.trim().parse().map_err(|_| allowed())?,
            _ => return Err(allowed()),
        };
        if !range.contains(&n) {
            return Err(allowed());
        }
        T::try_from(n).map_err(|_| allowed())
    }

    /// A number above `above` and up to `max`.
    pub fn number(&self, above: f64, max: f64) -> Result<f64, Allowed> {
        let allowed = || Allowed(format!("a number above {above}, up to {max}"));
        let x = match self {
            Value::Int(n) => *n as f64,
            Value::Float(x) => *x,
            Value::Untyped(t) => t.trim().parse().map_err(|_| allowed())?,
            _ => return Err(allowed()),
        };
        if x > above && x <= max { Ok(x) } else { Err(allowed()) }
    }

    pub fn boolean(&self) -> Result<bool, Allowed> {
        match self {
            Value::Bool(b) => Ok(*b),
            Value::Untyped(t) if t.trim() == "true" => Ok(true),
            Value::Untyped(t) if t.trim() == "false" => Ok(false),
            _ => Err(Allowed("true or false".into())),
        }
    }

    /// Text of 1 to `max_len` bytes without control characters.
    pub fn text(&self, max_len: usize) -> Result<String, Allowed> {
        match self {
            Value::Text(t) | Value::Untyped(t)
                if (1..=max_len).contains(&t.len()) && !t.chars().any(char::is_control) =>
            {
                Ok(t.clone())
            }
            Value::Int(_) | Value::Float(_) | Value::Bool(_) => {
                Err(Allowed("text: put it in quotes, so that it is not read as a number or a truth value".into()))
            }
            _ => Err(Allowed(format!("text of 1 to {max_len} bytes on one line"))),
        }
    }

    /// One word of a fixed list.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Allowed> {
        let found = match self {
            Value::Text(t) | Value::Untyped(t) => words.iter().find(|(w, _)| *w == t.trim()),
            _ => None,
        };
        let list = || words.iter().map(|(w, _)| *w).collect::<Vec<_>>().join(", ");
        found.map(|(_, v)| *v).ok_or_else(|| Allowed(format!("one of {}", list())))
    }

    /// Bytes: an integer, or one with a unit as `512MiB` or `2GiB`.
    pub fn bytes(&self, min: u64) -> Result<u64, Allowed> {
        let n = match self {
            Value::Int(n) => u64::try_from(*n).ok(),
            Value::Text(t) | Value::Untyped(t) => parse_bytes(t.trim()),
            _ => None,
        };
        n.filter(|n| (min..=MAX_BYTES).contains(n)).ok_or_else(|| {
            Allowed(format!("bytes, as 512MiB or 2GiB or an integer, from {}MiB to {}TiB", min >> 20, MAX_BYTES >> 40))
        })
    }
}

/// No machine that runs this has more memory; keeps sums of byte counts far from overflow.
const MAX_BYTES: u64 = 64 << 40;

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// At most 60 characters, without line ends, for a message.
pub fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    format!("'{short}'")
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Int(n.into()))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(Value::Int(n.into()))
    }

    fn visit_f64<E>(self, x: f64) -> Result<Value, E> {
        Ok(Value::Float(x))
    }

    fn visit_str<E>(self, t: &str) -> Result<Value, E> {
        Ok(Value::Text(t.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}
