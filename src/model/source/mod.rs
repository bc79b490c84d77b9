//! Opens a model from disk, whatever its packaging (Hugging Face folder or GGUF file), and validates all of it
//! before any device is touched.

mod folder;
mod generation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use super::decoder::Progress;
use super::spec::Spec;
use super::text::Tokenizer;
use super::weights::{Tensor, WeightsError};
use super::{TokenId, gguf};

/// Opens a Hugging Face checkpoint folder or a `.gguf` file and checks all of it: configuration, tokenizer, and that
/// every tensor has its place and shape. `max_model_len` is the context length to serve, if one was chosen; `progress`
/// is told about what takes time (a folder is only mapped, rows of a GGUF file may have to be put in order).
pub fn open(path: &Path, max_model_len: Option<usize>, progress: Progress) -> Result<ModelSource, ModelError> {
    let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    match std::fs::metadata(path) {
        Err(error) => Err(ModelError::file(path, error.to_string())),
        Ok(metadata) if metadata.is_dir() => folder::open(path, max_model_len),
        Ok(_) if is_gguf => gguf::open(path, max_model_len, progress),
        Ok(_) => Err(ModelError::file(path, "neither a folder with config.json and safetensors, nor a .gguf file")),
    }
}

/// A model that has been opened and validated; nothing is on a device yet.
pub struct ModelSource {
    /// Folder or file name without extension; the default served name.
    pub name: String,
    pub spec: Spec,
    /// By Hugging Face name (`model.layers.0.self_attn.q_proj.weight`), whatever the packaging.
    pub tensors: BTreeMap<String, Tensor>,
    pub tokenizer: Tokenizer,
    pub chat: ChatSource,
    /// Tokens that end a generation: generation_config.json's, else config.json's, plus the tokenizer's eos.
    pub eos_tokens: Vec<TokenId>,
    /// Sampling defaults of the checkpoint (`generation_config.json`), where it has any.
    pub generation: GenerationDefaults,
}

/// What chat rendering needs from the checkpoint.
#[derive(Debug, Clone, Default)]
pub struct ChatSource {
    pub template: Option<String>,
    /// A second template which the checkpoint wants used when tools are given.
    pub tool_template: Option<String>,
    pub bos_token: String,
    pub eos_token: String,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

/// Why a model cannot be served. Every variant names the file and the thing in it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{path}: {message}")]
    File { path: String, message: String },
    #[error("{path}: {error}")]
    Weights { path: String, error: WeightsError },
}

impl ModelError {
    pub fn file(path: &Path, message: impl Into<String>) -> Self {
        ModelError::File { path: path.display().to_string(), message: message.into() }
    }
}
