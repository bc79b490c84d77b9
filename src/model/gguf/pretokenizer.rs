//! How text is split before byte-level pairs are merged: the kinds that `tokenizer.ggml.pre` names.
//!
//! A kind stands for the pre-tokeniser of one published tokenizer.json; the patterns here are those originals, as
//! sequences of splits that isolate each match, applied one after the other. Kinds are llama.cpp's names
//! (`llama-vocab.cpp`). One that is not listed is refused: text split by guess gives other tokens, silently.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::error::{GgufError, quoted};

/// GPT-2's own.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's, from Nemo on.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp does with files that predate the key.
const DEFAULT: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"];

#[derive(Debug, PartialEq)]
pub(super) struct Kind {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A word that is a token stays one, whatever the merges would make of it.
    pub whole_words: bool,
    /// Whether texts begin with the bos token where the file does not say.
    pub add_bos: bool,
}

const KINDS: &[Kind] = &[
    Kind { names: &["default"], patterns: DEFAULT, whole_words: false, add_bos: false },
    Kind {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[DIGIT, WORDS],
        whole_words: false,
        add_bos: false,
    },
    Kind {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "exaone4"],
        patterns: &[WORDS],
        whole_words: false,
        add_bos: false,
    },
    Kind {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"],
        patterns: &[QWEN2],
        whole_words: false,
        add_bos: false,
    },
    Kind {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        patterns: &[LLAMA3],
        whole_words: true,
        add_bos: true,
    },
    Kind { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], whole_words: false, add_bos: false },
    Kind { names: &["tekken"], patterns: &[TEKKEN], whole_words: true, add_bos: true },
];

impl Kind {
    pub fn named(name: &str, key: &str) -> Result<&'static Kind, GgufError> {
        KINDS.iter().find(|kind| kind.names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().flat_map(|kind| kind.names).copied().collect();
            GgufError::key(key, format!("is {}, which is not supported; supported: {}", quoted(name), names.join(", ")))
        })
    }

    pub fn pre_tokenizer(&self) -> tokenizers::Result<Sequence> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::with_capacity(self.patterns.len() + 1);
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_string());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps))
    }
}
