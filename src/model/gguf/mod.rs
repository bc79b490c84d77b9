//! GGUF files: one file that holds weights, shape, tokenizer and chat template.
//!
//! Owns the format (llama.cpp's, ggml docs/gguf.md) and its translation into what a Hugging Face folder would have
//! said, so that nothing else knows it exists. Never knows devices. The file is untrusted bytes.
//!
//! Invariant: what [`open`] returns computes what the file says; whatever could not is refused, naming the key or
//! the tensor.

mod architecture;
mod config;
mod error;
mod keys;
mod metadata;
mod pretokenizer;
mod reader;
mod tensors;
#[cfg(test)]
mod tests;
mod types;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

pub use error::GgufError;

use super::TokenId;
use super::decoder::Progress;
use super::source::{ChatSource, GenerationDefaults, ModelError, ModelSource};
use super::text::{Tokenizer, TokenizerConfig};
use super::weights::{Bytes, map};
use reader::Container;
use vocabulary::TokenizerParts;

/// Opens and checks a whole file. Tensors stay mapped as they are; those whose rows are stored in another order are
/// copied.
pub fn open(path: &Path, max_model_len: Option<usize>, progress: Progress) -> Result<ModelSource, ModelError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    map(path)
        .map_err(GgufError::from)
        .and_then(|bytes| read(bytes, name, max_model_len, progress))
        .map_err(|e| ModelError::file(path, e.to_string()))
}

/// As [`open`], from the bytes of a file.
fn read(
    bytes: Arc<dyn Bytes>,
    name: String,
    max_model_len: Option<usize>,
    progress: Progress,
) -> Result<ModelSource, GgufError> {
    let file = Container::read(bytes)?;
    let (architecture, spec) = config::spec(&file, tensors::rope_factors(&file), max_model_len)?;
    let parts = TokenizerParts::read(&file.metadata)?;
    if parts.num_tokens > spec.vocab_size {
        let message = format!("has {} tokens, but the embedding has {} rows", parts.num_tokens, spec.vocab_size);
        return Err(GgufError::key("tokenizer.ggml.tokens", message));
    }
    let text = |id: Option<TokenId>| id.and_then(|id| parts.encoder.id_to_token(id));
    let (bos_token, eos_token) = (text(parts.bos), text(parts.eos));
    let chat = ChatSource {
        template: parts.chat_template,
        tool_template: parts.tool_template,
        bos_token: bos_token.clone().unwrap_or_default(),
        eos_token: eos_token.clone().unwrap_or_default(),
    };
    let config = TokenizerConfig { bos_token, eos_token, ..Default::default() };
    let tokenizer = Tokenizer::from_parts(parts.encoder, config)?;
    // Last, as it is what takes time and memory.
    let tensors = tensors::load(&file, architecture, &spec, progress)?;
    let generation = GenerationDefaults::default();
    Ok(ModelSource { name, spec, tensors, tokenizer, chat, eos_tokens: parts.end_tokens, generation })
}
