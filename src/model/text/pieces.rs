//! What each token adds to a text, as bytes, worked out once when a tokenizer is loaded.
//!
//! A `tokenizers` decoder maps a whole list of tokens to a string. Every decoder that a generating model ships does so
//! token by token, except that the first token may lose its leading space and that bytes of one character may come from
//! several tokens. So a table of bytes (one form for the first token, one for the rest) decodes exactly, incrementally,
//! and without touching the tokenizer again. Decoders which do not work that way are refused by name.

use std::ops::Range;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, Tokenizer};

use super::TextError;
use crate::model::TokenId;

/// Far above any vocabulary in use (the largest hold some 260 thousand): bounds the table against a broken file.
const MAX_TOKEN_ID: TokenId = 4 << 20;

const PRESENT: u8 = 1;
const SPECIAL: u8 = 2;
const FALLBACK_BYTE: u8 = 4;

#[derive(Clone, Copy, Default)]
struct Entry {
    start: u32,
    len: u32,
    first_start: u32,
    first_len: u32,
    flags: u8,
}

/// One token, as it appears in a text.
#[derive(Clone, Copy)]
pub struct Piece<'a> {
    pub rest: &'a [u8],
    pub first: &'a [u8],
    pub is_special: bool,
    /// A single raw byte (`<0xE4>`) of a vocabulary with byte fallback.
    pub is_byte: bool,
}

pub struct Pieces {
    entries: Vec<Entry>,
    bytes: Vec<u8>,
    /// Byte tokens that form no character become one U+FFFD each, where a byte-level vocabulary makes one of several.
    pub replaces_each_byte: bool,
    /// Character dropped from the very start of a text, and how many of it at most.
    pub strip_start: Option<(char, usize)>,
    /// Bytes of the longest token.
    pub max_len: usize,
}

impl Pieces {
    pub fn new(tokenizer: &Tokenizer) -> Result<Pieces, TextError> {
        let rules = Rules::of(tokenizer.get_decoder())?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut names: Vec<(TokenId, String)> =
            tokenizer.get_vocab(false).into_iter().map(|(name, id)| (id, name)).collect();
        // An added token shadows the model's own of the same id, so it has to come later.
        names.sort_unstable();
        let mut shadowing: Vec<_> = added.iter().map(|(id, token)| (*id, token.content.clone())).collect();
        shadowing.sort_unstable();
        names.extend(shadowing);

        let max_id = names.iter().map(|(id, _)| *id).max().unwrap_or(0);
        if max_id > MAX_TOKEN_ID {
            return Err(TextError::Unsupported(format!(
                "token id {max_id} is above the limit of {MAX_TOKEN_ID}; the vocabulary is damaged"
            )));
        }
        let mut pieces = Pieces {
            entries: vec![Entry::default(); if names.is_empty() { 0 } else { max_id as usize + 1 }],
            bytes: Vec::with_capacity(names.len() * 8),
            replaces_each_byte: rules.bytes == Bytes::Fallback,
            strip_start: rules.strip_start,
            max_len: 1,
        };
        let vocabulary = tokenizer.get_added_vocabulary();
        for (id, name) in names {
            let mut entry = rules.entry(&name, &mut pieces.bytes)?;
            if vocabulary.is_special_token(&name) {
                entry.flags |= SPECIAL;
            }
            pieces.max_len = pieces.max_len.max(entry.len as usize);
            pieces.entries[id as usize] = entry;
        }
        Ok(pieces)
    }

    /// One more than the highest id. Models may have more rows than this; their extra ids mean no text.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn get(&self, id: TokenId) -> Option<Piece<'_>> {
        let entry = self.entries.get(id as usize).filter(|entry| entry.flags & PRESENT != 0)?;
        Some(Piece {
            rest: &self.bytes[span(entry.start, entry.len)],
            first: &self.bytes[span(entry.first_start, entry.first_len)],
            is_special: entry.flags & SPECIAL != 0,
            is_byte: entry.flags & FALLBACK_BYTE != 0,
        })
    }
}

fn span(start: u32, len: u32) -> Range<usize> {
    start as usize..start as usize + len as usize
}

#[derive(Clone, Copy, PartialEq)]
enum Bytes {
    /// Tokens are text.
    Plain,
    /// Every character of a token stands for one byte (GPT-2's alphabet).
    Level,
    /// Tokens are text, save those spelled `<0xNN>`.
    Fallback,
}

/// A decoder taken apart: steps on a token's text, how that text becomes bytes, what the whole text loses.
struct Rules<'a> {
    steps: Vec<&'a DecoderWrapper>,
    bytes: Bytes,
    strip_start: Option<(char, usize)>,
    /// No decoder at all: tokens are words, joined by spaces.
    joins_words: bool,
}

impl<'a> Rules<'a> {
    fn of(decoder: Option<&'a DecoderWrapper>) -> Result<Self, TextError> {
        let mut rules = Rules { steps: vec![], bytes: Bytes::Plain, strip_start: None, joins_words: false };
        let steps = match decoder {
            None => {
                rules.joins_words = true;
                &[]
            }
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(single) => std::slice::from_ref(single),
        };
        let mut fused = false;
        for step in steps {
            match step {
                DecoderWrapper::Fuse(_) => fused = true,
                DecoderWrapper::Strip(strip) if fused && strip.stop == 0 && rules.strip_start.is_none() => {
                    rules.strip_start = Some((strip.content, strip.start));
                }
                DecoderWrapper::ByteLevel(_) if !fused && rules.bytes == Bytes::Plain => {
                    rules.bytes = Bytes::Level;
                    fused = true;
                }
                DecoderWrapper::ByteFallback(_) if !fused && rules.bytes == Bytes::Plain => {
                    rules.bytes = Bytes::Fallback;
                }
                DecoderWrapper::Replace(_) | DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_)
                    if !fused && rules.bytes == Bytes::Plain =>
                {
                    rules.steps.push(step);
                }
                other => return Err(unsupported(other, fused)),
            }
        }
        Ok(rules)
    }

    /// Appends the token's bytes and says where they are.
    fn entry(&self, name: &str, bytes: &mut Vec<u8>) -> Result<Entry, TextError> {
        let (rest, is_byte) = self.form(name, false)?;
        let depends_on_place = self.joins_words || !self.steps.is_empty();
        let first = if depends_on_place { self.form(name, true)?.0 } else { rest.clone() };
        let flags = if is_byte { PRESENT | FALLBACK_BYTE } else { PRESENT };
        let start = bytes.len() as u32;
        bytes.extend_from_slice(&rest);
        let (len, mut first_start) = (rest.len() as u32, start);
        if first != rest {
            first_start = bytes.len() as u32;
            bytes.extend_from_slice(&first);
        }
        if bytes.len() > u32::MAX as usize / 2 {
            return Err(TextError::Unsupported("the vocabulary holds more than 2 GiB of text; it is damaged".into()));
        }
        Ok(Entry { start, len, first_start, first_len: first.len() as u32, flags })
    }

    fn form(&self, name: &str, is_first: bool) -> Result<(Vec<u8>, bool), TextError> {
        let text = apply(&self.steps, name.to_owned(), is_first)?;
        match self.bytes {
            Bytes::Level => {
                let raw: Option<Vec<u8>> = text.chars().map(byte_of_char).collect();
                return Ok((raw.unwrap_or_else(|| text.into_bytes()), false));
            }
            Bytes::Fallback => {
                if let Some(byte) = fallback_byte(&text) {
                    return Ok((vec![byte], true));
                }
            }
            Bytes::Plain if self.joins_words && !is_first => return Ok((format!(" {text}").into_bytes(), false)),
            Bytes::Plain => {}
        }
        Ok((text.into_bytes(), false))
    }
}

/// Runs per-token decoders on one token, in first or later position.
fn apply(steps: &[&DecoderWrapper], mut text: String, is_first: bool) -> Result<String, TextError> {
    for step in steps {
        let mut tokens = if is_first { vec![] } else { vec!["a".to_owned()] };
        tokens.push(text);
        text = step
            .decode_chain(tokens)
            .map_err(|error| TextError::Unsupported(format!("decoder: {error}")))?
            .pop()
            .unwrap_or_default();
    }
    Ok(text)
}

fn unsupported(step: &DecoderWrapper, fused: bool) -> TextError {
    let name = match step {
        DecoderWrapper::BPE(_) => "BPEDecoder",
        DecoderWrapper::ByteLevel(_) => "ByteLevel",
        DecoderWrapper::WordPiece(_) => "WordPiece",
        DecoderWrapper::Metaspace(_) => "Metaspace",
        DecoderWrapper::CTC(_) => "CTC",
        DecoderWrapper::Sequence(_) => "a nested Sequence",
        DecoderWrapper::Replace(_) => "Replace",
        DecoderWrapper::Fuse(_) => "Fuse",
        DecoderWrapper::Strip(_) => "Strip",
        DecoderWrapper::ByteFallback(_) => "ByteFallback",
    };
    let place = if fused { "after the tokens were fused" } else { "in this place" };
    TextError::Unsupported(format!(
        "decoder {name} {place} is not supported; ByteLevel, Metaspace, WordPiece, and sequences of Replace, \
         ByteFallback, Fuse and a leading Strip are"
    ))
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's alphabet: bytes that print stand for themselves, the other 68 are counted up from U+0100 in byte order.
fn byte_of_char(letter: char) -> Option<u8> {
    match letter as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}
