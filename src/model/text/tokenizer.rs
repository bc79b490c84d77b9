//! The tokenizer: text to ids through the `tokenizers` crate, ids to text through our own table of pieces.

use std::path::Path;
use std::sync::Arc;

use tokenizers::AddedToken;

use super::pieces::Pieces;
use super::{Detokenizer, TextError, files};
use crate::base::panics;
use crate::model::TokenId;

/// What a checkpoint says about its tokenizer beside `tokenizer.json` itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerConfig {
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    /// `add_bos_token`, where the file has it: decides against the tokenizer's own post-processor.
    pub add_bos: Option<bool>,
    /// Tokens of the vocabulary that are special though `tokenizer.json` may not say so.
    pub special_tokens: Vec<String>,
}

/// Cheap to clone; shared by every thread.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    encoder: tokenizers::Tokenizer,
    pieces: Pieces,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: Option<bool>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).field("bos", &self.0.bos).finish()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where present, `tokenizer_config.json` from a checkpoint folder.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer, TextError> {
        Self::from_file(&dir.join("tokenizer.json"), files::read_tokenizer_config(dir)?)
    }

    pub fn from_file(tokenizer_json: &Path, config: TokenizerConfig) -> Result<Tokenizer, TextError> {
        let Some(json) = files::read_bounded(tokenizer_json, files::MAX_TOKENIZER_BYTES)? else {
            return Err(files::file_error(
                tokenizer_json,
                "is missing; a checkpoint with only tokenizer.model has to be converted first \
                 (load it once with transformers and save it)",
            ));
        };
        let wrong = |error: String| files::file_error(tokenizer_json, error);
        serde_json::from_slice::<serde::de::IgnoredAny>(&json).map_err(|error| wrong(error.to_string()))?;
        // tokenizers 0.23.2 unwraps what it finds in some places of a damaged file.
        let encoder = panics::caught(|| tokenizers::Tokenizer::from_bytes(&json))
            .map_err(|_| wrong("is damaged: the tokenizers library cannot read it".into()))?
            .map_err(|error| wrong(error.to_string()))?;
        Self::from_parts(encoder, config)
    }

    /// Takes a tokenizer that was built in memory (a GGUF file carries the parts, not a `tokenizer.json`).
    pub fn from_parts(encoder: tokenizers::Tokenizer, config: TokenizerConfig) -> Result<Tokenizer, TextError> {
        let built = panics::caught(|| Self::build(encoder, config));
        built
            .map_err(|panic| TextError::Unsupported(format!("the tokenizers library cannot take it: {panic}")))
            .flatten()
    }

    fn build(mut encoder: tokenizers::Tokenizer, config: TokenizerConfig) -> Result<Tokenizer, TextError> {
        // Training-time settings which some files still carry: they would cut or pad prompts silently.
        encoder.with_padding(None);
        encoder.with_truncation(None).map_err(|error| TextError::Unsupported(error.to_string()))?;
        let named = config.special_tokens.iter().chain(&config.bos_token).chain(&config.eos_token);
        let special: Vec<AddedToken> = named
            .filter(|name| !name.is_empty() && encoder.token_to_id(name).is_some())
            .filter(|name| !encoder.get_added_vocabulary().is_special_token(name))
            .map(|name| AddedToken::from(name.as_str(), true))
            .collect();
        encoder.add_special_tokens(special).map_err(|error| TextError::Unsupported(error.to_string()))?;

        let pieces = Pieces::new(&encoder)?;
        let id = |name: &Option<String>| name.as_deref().and_then(|name| encoder.token_to_id(name));
        let (bos, eos) = (id(&config.bos_token), id(&config.eos_token));
        Ok(Tokenizer(Arc::new(Inner { encoder, pieces, bos, eos, add_bos: config.add_bos })))
    }

    /// Special tokens spelled out in `text` become their ids, as in Hugging Face. `add_special` adds what the tokenizer
    /// puts around a plain prompt (usually a leading BOS): true for completions, false for a rendered chat prompt,
    /// whose template has written them already. The caller bounds the length of `text`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let mut ids = self.encode_plain(text, add_special)?;
        if add_special && let (Some(bos), Some(wanted)) = (self.0.bos, self.0.add_bos) {
            match (ids.first() == Some(&bos), wanted) {
                (false, true) => ids.insert(0, bos),
                // The post-processor's BOS goes; one that the text itself spells out stays.
                (true, false) if self.post_processor_adds_bos(bos) => drop(ids.remove(0)),
                _ => {}
            }
        }
        Ok(ids)
    }

    /// Tokens that a text of `num_bytes` has at least, without looking at it: for refusing what is far too long before
    /// it is tokenised, which takes a hundred times its memory. Normalisation may shorten a text before it is cut up;
    /// composing its characters (NFC) does so three times at most.
    pub fn min_tokens(&self, num_bytes: usize) -> usize {
        num_bytes / (4 * self.0.pieces.max_len)
    }

    fn encode_plain(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let encoded = panics::caught(|| self.0.encoder.encode_fast(text, add_special));
        let encoding = encoded.map_err(|panic| TextError::Encode(panic.to_string()))?;
        Ok(encoding.map_err(|error| TextError::Encode(error.to_string()))?.get_ids().to_vec())
    }

    fn post_processor_adds_bos(&self, bos: TokenId) -> bool {
        self.encode_plain("", true).is_ok_and(|ids| ids.first() == Some(&bos))
    }

    /// The text of generated ids, by the rules of [`Detokenizer`].
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(self, skip_special);
        let mut text = String::with_capacity(ids.len() * 4);
        for id in ids {
            text.push_str(detokenizer.push(*id));
        }
        text.push_str(detokenizer.finish());
        text
    }

    /// The bytes a token adds inside a text; empty for an id that means nothing. May be part of a character.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.0.pieces.get(id).map_or(&[], |piece| piece.rest)
    }

    /// [`Self::token_bytes`] as text, U+FFFD where the token holds only part of a character.
    pub fn token_text(&self, id: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// One more than the highest id; a model may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.0.pieces.len()
    }

    pub fn is_special(&self, id: TokenId) -> bool {
        self.0.pieces.get(id).is_some_and(|piece| piece.is_special)
    }

    pub fn id_of(&self, token: &str) -> Option<TokenId> {
        self.0.encoder.token_to_id(token)
    }

    pub fn bos(&self) -> Option<TokenId> {
        self.0.bos
    }

    pub fn eos(&self) -> Option<TokenId> {
        self.0.eos
    }

    pub(super) fn pieces(&self) -> &Pieces {
        &self.0.pieces
    }
}
