//! The key-value part of a GGUF file, read on demand.
//!
//! Values stay where they are in the file: a list of a million numbers costs nothing until someone asks for it,
//! and then no more than the file itself. Lists were walked through once by the reader, so their extent is sound;
//! that a text is UTF-8 is checked when it is asked for.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;

use super::error::{GgufError, quoted};
use crate::model::weights::Bytes;

/// Value types, by the numbers that files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    pub fn from_number(number: u32) -> Option<Kind> {
        use Kind::*;
        const KINDS: [Kind; 13] = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, List, U64, I64, F64];
        KINDS.get(number as usize).copied()
    }

    /// Size of one value in bytes; `None` where it varies.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text | Kind::List => None,
        }
    }
}

/// Where a value lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A text without its length, or one number.
    One { kind: Kind, range: Range<usize> },
    /// `len` values of `kind` (not lists), one after the other.
    List { kind: Kind, len: usize, range: Range<usize> },
}

pub struct Metadata {
    bytes: Arc<dyn Bytes>,
    values: BTreeMap<String, Value>,
}

type Found<T> = Result<Option<T>, GgufError>;

impl Metadata {
    pub(super) fn new(bytes: Arc<dyn Bytes>, values: BTreeMap<String, Value>) -> Self {
        Self { bytes, values }
    }

    pub fn text(&self, key: &str) -> Found<&str> {
        self.one(key, "a text", |kind, bytes| match kind {
            Kind::Text => std::str::from_utf8(bytes).ok(),
            _ => None,
        })
    }

    /// A non-negative integer of any width.
    pub fn count(&self, key: &str) -> Found<u64> {
        self.one(key, "a non-negative integer", |kind, bytes| u64::try_from(integer(kind, bytes)?).ok())
    }

    pub fn float(&self, key: &str) -> Found<f64> {
        self.one(key, "a finite number", |kind, bytes| float(kind, bytes).filter(|x| x.is_finite()))
    }

    pub fn flag(&self, key: &str) -> Found<bool> {
        self.one(key, "true or false", |kind, bytes| match kind {
            Kind::Bool => bytes.first().map(|&b| b != 0),
            _ => None,
        })
    }

    pub fn texts(&self, key: &str) -> Found<Vec<&str>> {
        let Some((kind, len, mut bytes)) = self.list(key)? else { return Ok(None) };
        let wrong = |message: String| GgufError::key(key, message);
        if kind != Kind::Text {
            return Err(wrong(format!("is a list of {kind:?}; expected texts")));
        }
        let mut texts = Vec::with_capacity(len);
        while let Some((length, rest)) = bytes.split_first_chunk() {
            let (text, rest) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).unwrap_or((rest, &[]));
            let text = std::str::from_utf8(text).map_err(|_| {
                wrong(format!("item {} is not UTF-8: {}", texts.len(), quoted(&String::from_utf8_lossy(text))))
            })?;
            texts.push(text);
            bytes = rest;
        }
        Ok(Some(texts))
    }

    pub fn integers(&self, key: &str) -> Found<Vec<i64>> {
        self.numbers(key, "integers", |kind, bytes| i64::try_from(integer(kind, bytes)?).ok())
    }

    pub fn floats(&self, key: &str) -> Found<Vec<f64>> {
        self.numbers(key, "finite numbers", |kind, bytes| float(kind, bytes).filter(|x| x.is_finite()))
    }

    pub fn flags(&self, key: &str) -> Found<Vec<bool>> {
        self.numbers(key, "true or false", |kind, bytes| match kind {
            Kind::Bool => bytes.first().map(|&b| b != 0),
            _ => None,
        })
    }

    pub fn is_list(&self, key: &str) -> bool {
        matches!(self.values.get(key), Some(Value::List { .. }))
    }

    /// The keys that begin with `prefix`.
    pub fn keys_under(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.values.range::<str, _>(from).map(|(key, _)| key.as_str()).take_while(move |key| key.starts_with(prefix))
    }

    /// Whether the key holds a zero or a false, as what is not used may.
    pub fn is_off(&self, key: &str) -> bool {
        match self.values.get(key) {
            Some(Value::One { kind, range }) => {
                let bytes = &self.bytes.as_bytes()[range.clone()];
                *kind != Kind::Text && (bytes.iter().all(|&b| b == 0) || float(*kind, bytes) == Some(0.0))
            }
            _ => false,
        }
    }

    /// A value as an error message shows it.
    pub fn shown(&self, key: &str) -> String {
        let Some(Value::One { kind, range }) = self.values.get(key) else { return "a list".into() };
        let bytes = &self.bytes.as_bytes()[range.clone()];
        match (kind, integer(*kind, bytes), float(*kind, bytes)) {
            (Kind::Text, _, _) => quoted(&String::from_utf8_lossy(bytes)),
            (Kind::Bool, _, _) => (bytes != [0]).to_string(),
            (_, Some(number), _) => number.to_string(),
            (_, _, number) => number.unwrap_or_default().to_string(),
        }
    }

    /// `value` or an error that says that `key` is missing.
    pub fn need<T>(&self, key: &str, value: Found<T>) -> Result<T, GgufError> {
        value?.ok_or_else(|| GgufError::key(key, "is missing"))
    }

    fn one<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(Kind, &'a [u8]) -> Option<T>) -> Found<T> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::One { kind, range }) => read(*kind, &self.bytes.as_bytes()[range.clone()])
                .map(Some)
                .ok_or_else(|| GgufError::key(key, format!("is not {expected} ({kind:?})"))),
            Some(Value::List { .. }) => Err(GgufError::key(key, format!("is a list; expected {expected}"))),
        }
    }

    fn list(&self, key: &str) -> Found<(Kind, usize, &[u8])> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::List { kind, len, range }) => Ok(Some((*kind, *len, &self.bytes.as_bytes()[range.clone()]))),
            Some(Value::One { .. }) => Err(GgufError::key(key, "is one value; expected a list")),
        }
    }

    fn numbers<T>(&self, key: &str, expected: &str, read: impl Fn(Kind, &[u8]) -> Option<T>) -> Found<Vec<T>> {
        let Some((kind, len, bytes)) = self.list(key)? else { return Ok(None) };
        let wrong = |what: String| GgufError::key(key, format!("{what} ({kind:?}); expected {expected}"));
        let size = kind.bytes().ok_or_else(|| wrong("is a list of something else".into()))?;
        let mut values = Vec::with_capacity(len);
        for (i, value) in bytes.chunks_exact(size).enumerate() {
            values.push(read(kind, value).ok_or_else(|| wrong(format!("item {i} does not fit")))?);
        }
        Ok(Some(values))
    }
}

fn integer(kind: Kind, bytes: &[u8]) -> Option<i128> {
    let mut padded = [0u8; 8];
    padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(padded);
    Some(match kind {
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => unsigned.into(),
        Kind::I8 => (unsigned as i8).into(),
        Kind::I16 => (unsigned as i16).into(),
        Kind::I32 => (unsigned as i32).into(),
        Kind::I64 => (unsigned as i64).into(),
        _ => return None,
    })
}

fn float(kind: Kind, bytes: &[u8]) -> Option<f64> {
    match kind {
        Kind::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}
