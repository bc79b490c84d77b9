//! A tokenizer for a model that has none: any text can be sent, and every drawn token is a short word.
//!
//! Tokens 0 to 255 are single bytes, so that encoding needs no training; the rest are words that encoding never
//! produces, and the last one is the end token. The executor draws words only ([`first_word`]).

use tokenizers::AddedToken;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};

use super::FakeSpec;
use crate::model::source::ChatSource;
use crate::model::text::{TextError, Tokenizer, TokenizerConfig};

/// Bytes come first in the vocabulary.
const NUM_BYTES: u32 = 256;
const END: &str = "<|end|>";

/// The smallest vocabulary that can be served: every byte, some words, the end.
pub const MIN_SERVED_VOCAB: u32 = 512;

/// The first token that may be drawn: a vocabulary too small to be served has no bytes to skip.
pub(super) fn first_word(vocab: u32) -> u32 {
    if vocab >= MIN_SERVED_VOCAB { NUM_BYTES } else { 0 }
}

pub fn tokenizer(spec: &FakeSpec) -> Result<Tokenizer, TextError> {
    if spec.vocab < MIN_SERVED_VOCAB {
        let message =
            format!("a fake model of vocab={} has no room for text; use at least {MIN_SERVED_VOCAB}", spec.vocab);
        return Err(TextError::Unsupported(message));
    }
    // ByteLevel writes byte 0x20 as `Ġ`; words carry their space in front, as trained vocabularies do.
    let alphabet = byte_alphabet();
    let bytes = alphabet.iter().enumerate().map(|(byte, char)| (char.to_string(), byte as u32));
    let words = (NUM_BYTES..spec.end_token()).map(|id| (format!("{}w{id}", alphabet[usize::from(b' ')]), id));
    let vocab: Vocab = bytes.chain(words).chain([(END.to_owned(), spec.end_token())]).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, Vec::new())
        .build()
        .map_err(|e| TextError::Unsupported(e.to_string()))?;
    let mut encoder = tokenizers::Tokenizer::new(model);
    encoder.with_pre_tokenizer(Some(ByteLevel::new(false, false, false)));
    encoder.with_decoder(Some(ByteLevel::new(false, false, false)));
    encoder
        .add_special_tokens([AddedToken::from(END, true)])
        .map_err(|error| TextError::Unsupported(error.to_string()))?;
    let config = TokenizerConfig { eos_token: Some(END.into()), ..TokenizerConfig::default() };
    Tokenizer::from_parts(encoder, config)
}

/// Role and content of every message, line by line: there is nothing to teach a fake model.
pub fn chat_source() -> ChatSource {
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    ChatSource { template: Some(template.into()), ..ChatSource::default() }
}

/// GPT-2's printable stand-ins for the 256 bytes, by byte.
fn byte_alphabet() -> Vec<char> {
    let printable = |b: u32| (0x21..=0x7e).contains(&b) || (0xa1..=0xac).contains(&b) || (0xae..=0xff).contains(&b);
    let mut next = 256;
    (0..NUM_BYTES)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap_or('?')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_goes_in_and_words_come_out() {
        let spec = FakeSpec::default();
        let tokenizer = tokenizer(&spec).unwrap();
        let text = "Grüße \u{1f600}\n\tx";
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&ids, true), text);
        assert_eq!(tokenizer.decode(&[300, 301, spec.end_token()], true), " w300 w301");
    }

    #[test]
    fn a_vocabulary_without_room_is_refused() {
        let error = tokenizer(&"fake:vocab=64".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("512"), "{error}");
    }
}
