//! Ids to text, one at a time. Owns at most three bytes of an unfinished character; the cost of a token is its bytes.
//!
//! Follows the `tokenizers` decoders with one deliberate difference: in a vocabulary with byte fallback, a run of byte
//! tokens that holds one bad byte keeps its good characters (there the whole run turns into U+FFFD, which could only be
//! streamed by holding a run of unknown length back).

use super::Tokenizer;
use crate::model::TokenId;

/// The state of one stream of generated tokens.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Whether a token that counts has been seen: the first one may lose its leading space.
    started: bool,
    strip_left: usize,
    pending: Vec<u8>,
    out: String,
}

impl Detokenizer {
    /// For text that stands alone: the concatenation of everything returned is `decode(all ids)`.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let strip_left = tokenizer.pieces().strip_start.map_or(0, |(_, count)| count);
        let tokenizer = tokenizer.clone();
        Detokenizer { tokenizer, skip_special, started: false, strip_left, pending: vec![], out: String::new() }
    }

    /// For text that continues a prompt, as in the completions API: a first token keeps its leading space, unless the
    /// prompt is empty.
    pub fn after(tokenizer: &Tokenizer, prompt: &[TokenId], skip_special: bool) -> Self {
        let mut detokenizer = Self::new(tokenizer, skip_special);
        let counts =
            |id: &TokenId| tokenizer.pieces().get(*id).is_some_and(|piece| !(skip_special && piece.is_special));
        if prompt.iter().any(counts) {
            detokenizer.started = true;
            detokenizer.strip_left = 0;
        }
        detokenizer
    }

    /// The text that became certain with this token; often empty, never half a character.
    pub fn push(&mut self, token: TokenId) -> &str {
        self.out.clear();
        let Some(piece) = self.tokenizer.pieces().get(token) else { return "" };
        if self.skip_special && piece.is_special {
            return "";
        }
        let bytes = if self.started { piece.rest } else { piece.first };
        match std::str::from_utf8(bytes) {
            // Nearly every token: whole characters, and nothing that waits for them.
            Ok(text) if self.pending.is_empty() && self.strip_left == 0 => self.out.push_str(text),
            _ => self.push_unusual(token),
        }
        self.started = true;
        &self.out
    }

    fn push_unusual(&mut self, token: TokenId) {
        let tokenizer = self.tokenizer.clone();
        let Some(piece) = tokenizer.pieces().get(token) else { return };
        if !piece.is_byte && tokenizer.pieces().replaces_each_byte {
            self.give_up_pending();
        }
        let bytes = if self.started { piece.rest } else { piece.first };
        match std::str::from_utf8(bytes) {
            Ok(text) if self.pending.is_empty() => self.emit(text),
            _ => self.append(bytes),
        }
    }

    /// What is left once no token follows: U+FFFD for a character that was never completed.
    pub fn finish(&mut self) -> &str {
        self.out.clear();
        self.give_up_pending();
        &self.out
    }

    fn append(&mut self, bytes: &[u8]) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(bytes);
        let mut rest = pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.emit(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, tail) = rest.split_at(error.valid_up_to());
                    self.emit(std::str::from_utf8(valid).unwrap_or_default());
                    rest = tail;
                    let Some(len) = error.error_len() else { break };
                    self.emit_replacement(len);
                    rest = &rest[len..];
                }
            }
        }
        let done = pending.len() - rest.len();
        pending.drain(..done);
        self.pending = pending;
    }

    fn give_up_pending(&mut self) {
        if !self.pending.is_empty() {
            self.emit_replacement(self.pending.len());
            self.pending.clear();
        }
    }

    /// `num_bytes` bytes that form no character.
    fn emit_replacement(&mut self, num_bytes: usize) {
        let count = if self.tokenizer.pieces().replaces_each_byte { num_bytes } else { 1 };
        for _ in 0..count {
            self.emit("\u{fffd}");
        }
    }

    fn emit(&mut self, mut text: &str) {
        while self.strip_left > 0 && !text.is_empty() {
            let letter = self.tokenizer.pieces().strip_start.map_or(' ', |(letter, _)| letter);
            match text.strip_prefix(letter) {
                Some(rest) => {
                    text = rest;
                    self.strip_left -= 1;
                }
                None => self.strip_left = 0,
            }
        }
        self.out.push_str(text);
    }
}
