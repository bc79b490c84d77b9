//! The tokenizer that a GGUF file describes in its metadata, built in memory.
//!
//! Two kinds are read: `gpt2`, byte-level pairs in the order of a merge list, and `llama`,
//! SentencePiece pieces merged by score with single bytes as the last resort. Everything else is refused by name.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::error::{GgufError, quoted};
use super::metadata::Metadata;
use super::pretokenizer::Kind;
use crate::base::panics;
use crate::model::TokenId;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const MAX_TOKEN_BYTES: usize = 1024;
/// SentencePiece's visible space.
const SPACE: &str = "\u{2581}";
/// Special tokens that end a turn or a document. A file names one or two of what generation_config.json lists.
const ENDS: &[&str] =
    &["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"];

/// Token types, by the numbers that files use (those of SentencePiece).
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const NORMAL: i64 = 1;

/// A tokenizer and what belongs to it.
pub struct TokenizerParts {
    pub encoder: Tokenizer,
    pub bos: Option<TokenId>,
    pub eos: Option<TokenId>,
    /// Tokens that end a generation.
    pub end_tokens: Vec<TokenId>,
    pub chat_template: Option<String>,
    /// The template for requests with tools, where the file has two.
    pub tool_template: Option<String>,
    /// Number of tokens; ids beyond it have no text.
    pub num_tokens: usize,
}

impl TokenizerParts {
    /// The tokenizers library panics on some of what a damaged file may say: that is an error of the file.
    pub fn read(metadata: &Metadata) -> Result<Self, GgufError> {
        let wrong =
            |panic| GgufError::key(MODEL, format!("describes what the tokenizers library cannot take: {panic}"));
        panics::caught(|| Self::build(metadata)).map_err(wrong).flatten()
    }

    fn build(metadata: &Metadata) -> Result<Self, GgufError> {
        let vocabulary = Vocabulary::read(metadata)?;
        let model = metadata.need(MODEL, metadata.text(MODEL))?;
        let (mut encoder, defaults) = match model {
            "gpt2" => byte_level(metadata, &vocabulary)?,
            "llama" => sentence_pieces(metadata, &vocabulary)?,
            other => {
                return Err(GgufError::key(MODEL, format!("is {}; supported: gpt2, llama", quoted(other))));
            }
        };
        let id = |name: &str| vocabulary.id(metadata, &format!("tokenizer.ggml.{name}_token_id"));
        let bos = id("bos")?.or(defaults.bos);
        let eos = id("eos")?.or(defaults.eos);
        let add_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(defaults.add_bos);
        let add_eos = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        vocabulary.add_specials(&mut encoder)?;
        let prefix = vocabulary.added(add_bos, bos, "tokenizer.ggml.bos_token_id")?;
        let suffix = vocabulary.added(add_eos, eos, "tokenizer.ggml.eos_token_id")?;
        if prefix.is_some() || suffix.is_some() {
            encoder.with_post_processor(Some(vocabulary.template(prefix, suffix)?));
        }
        let named_ends = vocabulary.specials().filter(|(_, text, _)| ENDS.contains(text)).map(|(id, _, _)| id);
        let mut end_tokens: Vec<TokenId> =
            [eos, id("eot")?, id("eom")?].into_iter().flatten().chain(named_ends).collect();
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Ok(Self {
            encoder,
            bos,
            eos,
            end_tokens,
            chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_string),
            tool_template: metadata.text("tokenizer.chat_template.tool_use")?.map(str::to_string),
            num_tokens: vocabulary.tokens.len(),
        })
    }
}

/// What holds where the file does not say.
struct Defaults {
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
}

struct Vocabulary {
    tokens: Vec<String>,
    /// One for each token.
    types: Vec<i64>,
    ids: HashMap<String, TokenId>,
}

impl Vocabulary {
    fn read(metadata: &Metadata) -> Result<Self, GgufError> {
        let texts = metadata.need(TOKENS, metadata.texts(TOKENS))?;
        let types = metadata.integers(TYPES)?.unwrap_or_else(|| vec![NORMAL; texts.len()]);
        if types.len() != texts.len() {
            return Err(GgufError::key(TYPES, format!("has {} items for {} tokens", types.len(), texts.len())));
        }
        let mut tokens = Vec::with_capacity(texts.len());
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in texts.into_iter().enumerate() {
            if text.len() > MAX_TOKEN_BYTES {
                let message = format!("token {id} has {} bytes; the limit is {MAX_TOKEN_BYTES}", text.len());
                return Err(GgufError::key(TOKENS, message));
            }
            // As llama.cpp names them; nothing encodes to them.
            let text = if text.is_empty() { format!("[EMPTY_{id}]") } else { text.to_string() };
            if let Some(other) = ids.insert(text.clone(), id as TokenId) {
                return Err(GgufError::key(TOKENS, format!("{} is token {other} and token {id}", quoted(&text))));
            }
            tokens.push(text);
        }
        Ok(Self { tokens, types, ids })
    }

    /// The token that a key names.
    fn id(&self, metadata: &Metadata, key: &str) -> Result<Option<TokenId>, GgufError> {
        match metadata.count(key)? {
            Some(id) if id >= self.tokens.len() as u64 => {
                Err(GgufError::key(key, format!("is {id}, but there are {} tokens", self.tokens.len())))
            }
            id => Ok(id.map(|id| id as TokenId)),
        }
    }

    /// Tokens that text is searched for before anything else, with their types.
    fn specials(&self) -> impl Iterator<Item = (TokenId, &str, i64)> {
        let all = self.tokens.iter().zip(&self.types).enumerate();
        all.filter(|(_, (_, kind))| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED))
            .map(|(id, (text, kind))| (id as TokenId, text.as_str(), *kind))
    }

    fn add_specials(&self, tokenizer: &mut Tokenizer) -> Result<(), GgufError> {
        // Control tokens can be hidden in what is decoded, the user's own are text.
        let tokens = self
            .specials()
            .map(|(_, text, kind)| AddedToken::from(text, kind != USER_DEFINED).normalized(false).single_word(false));
        tokenizer.add_tokens(tokens).map_err(|e| GgufError::key(TOKENS, e.to_string()))?;
        Ok(())
    }

    fn added(&self, wanted: bool, id: Option<TokenId>, key: &str) -> Result<Option<TokenId>, GgufError> {
        match (wanted, id) {
            (true, None) => Err(GgufError::key(key, "is missing, though the file wants it added to every text")),
            (true, id) => Ok(id),
            (false, _) => Ok(None),
        }
    }

    fn template(&self, prefix: Option<TokenId>, suffix: Option<TokenId>) -> Result<TemplateProcessing, GgufError> {
        // Names of our own, as a token's text may be anything.
        let (bos, eos) = ("bos", "eos");
        let parts = [prefix.map(|_| bos), Some("$A"), suffix.map(|_| eos)];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        let specials: Vec<(String, u32)> =
            [(bos, prefix), (eos, suffix)].into_iter().filter_map(|(name, id)| Some((name.to_string(), id?))).collect();
        let error = |e: String| GgufError::key("tokenizer.ggml.add_bos_token", e);
        TemplateProcessing::builder()
            .try_single(parts)
            .map_err(error)?
            .special_tokens(specials)
            .build()
            .map_err(|e| GgufError::key("tokenizer.ggml.add_bos_token", e.to_string()))
    }

    fn vocab(&self) -> Vocab {
        self.ids.iter().map(|(text, id)| (text.clone(), *id)).collect()
    }
}

fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<(Tokenizer, Defaults), GgufError> {
    let kind = Kind::named(metadata.text(PRE)?.unwrap_or("default"), PRE)?;
    let lines = metadata.need(MERGES, metadata.texts(MERGES))?;
    let mut merges: Merges = Vec::with_capacity(lines.len());
    for (rank, line) in lines.into_iter().enumerate() {
        let wrong = |why: &str| GgufError::key(MERGES, format!("merge {rank}, {}, {why}", quoted(line)));
        // The first half is not empty, so that a merge of a space is possible.
        let at = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let (left, right) = at.map(|at| (&line[..at], &line[at + 1..])).ok_or_else(|| wrong("has no two halves"))?;
        for part in [left, right, &format!("{left}{right}")] {
            if !vocabulary.ids.contains_key(part) {
                return Err(wrong(&format!("needs the token {}, which does not exist", quoted(part))));
            }
        }
        merges.push((left.to_string(), right.to_string()));
    }
    let error = |e: tokenizers::Error| GgufError::key(MERGES, e.to_string());
    let model = BPE::builder().vocab_and_merges(vocabulary.vocab(), merges).ignore_merges(kind.whole_words);
    let mut tokenizer = Tokenizer::new(model.build().map_err(error)?);
    tokenizer.with_pre_tokenizer(Some(kind.pre_tokenizer().map_err(error)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok((tokenizer, Defaults { bos: None, eos: None, add_bos: kind.add_bos }))
}

fn sentence_pieces(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<(Tokenizer, Defaults), GgufError> {
    let scores = metadata.need(SCORES, metadata.floats(SCORES))?;
    let count = vocabulary.tokens.len();
    if scores.len() != count {
        return Err(GgufError::key(SCORES, format!("has {} items for {count} tokens", scores.len())));
    }
    let unknown = vocabulary.id(metadata, "tokenizer.ggml.unknown_token_id")?.unwrap_or(0) as usize;
    let unknown = vocabulary.tokens.get(unknown).ok_or_else(|| GgufError::key(TOKENS, "is empty"))?;
    let error = |e: tokenizers::Error| GgufError::key(TOKENS, e.to_string());
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.vocab(), merges_by_score(vocabulary, &scores))
        .unk_token(unknown.clone())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .map_err(error)?;
    let mut tokenizer = Tokenizer::new(model);
    let add_space = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if add_space {
        normalizers.push(Prepend::new(SPACE.to_string()).into());
    }
    normalizers.push(Replace::new(" ", SPACE).map_err(error)?.into());
    tokenizer.with_normalizer(Some(NormalizerSequence::new(normalizers))).map_err(error)?;
    let mut decoders: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE, " ").map_err(error)?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_space {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    // SentencePiece's own numbers for bos and eos.
    let default = |id: TokenId| (count > id as usize).then_some(id);
    Ok((tokenizer, Defaults { bos: default(1), eos: default(2), add_bos: true }))
}

/// SentencePiece merges the neighbours whose union has the best score. As a merge list: for every piece all its
/// splits into two pieces, by falling score of the piece; among equals by the halves' ids, as transformers does.
fn merges_by_score(vocabulary: &Vocabulary, scores: &[f64]) -> Merges {
    let mut ranked = Vec::new();
    for (id, piece) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| vocabulary.types[*id] == NORMAL) {
        for (at, _) in piece.char_indices().skip(1) {
            let halves = (vocabulary.ids.get(&piece[..at]), vocabulary.ids.get(&piece[at..]));
            if let (Some(&left), Some(&right)) = halves {
                ranked.push((scores[id], left, right));
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let text = |id: TokenId| vocabulary.tokens[id as usize].clone();
    ranked.into_iter().map(|(_, left, right)| (text(left), text(right))).collect()
}
