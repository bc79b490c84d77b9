//! A Hugging Face checkpoint folder.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{ModelError, ModelSource, generation};
use crate::model::spec::Spec;
use crate::model::text::{self, Tokenizer};
use crate::model::weights::{self, safetensors};

const MAX_CONFIG_BYTES: u64 = 32 << 20;

pub(super) fn open(folder: &Path, max_model_len: Option<usize>) -> Result<ModelSource, ModelError> {
    let config_path = folder.join("config.json");
    let config = read_json(&config_path)?
        .ok_or_else(|| ModelError::file(folder, "config.json is missing; is this a checkpoint folder?"))?;
    let spec =
        Spec::from_config(&config, max_model_len).map_err(|error| ModelError::file(&config_path, error.to_string()))?;

    let text_error = |error: text::TextError| match error {
        text::TextError::File { path, message } => ModelError::File { path, message },
        other => ModelError::file(&folder.join("tokenizer.json"), other.to_string()),
    };
    let tokenizer = Tokenizer::from_dir(folder).map_err(text_error)?;
    let chat = text::read_chat_source(folder).map_err(text_error)?;

    let generation_path = folder.join("generation_config.json");
    let generation_config = read_json(&generation_path)?.unwrap_or(Value::Null);
    let generation =
        generation::defaults(&generation_config).map_err(|message| ModelError::file(&generation_path, message))?;
    let mut eos_tokens = generation::eos_tokens(&generation_config, spec.vocab_size)
        .map_err(|message| ModelError::file(&generation_path, message))?;
    if eos_tokens.is_empty() {
        eos_tokens = generation::eos_tokens(&config, spec.vocab_size)
            .map_err(|message| ModelError::file(&config_path, message))?;
    }
    eos_tokens.extend(tokenizer.eos().filter(|eos| (*eos as usize) < spec.vocab_size));
    eos_tokens.sort_unstable();
    eos_tokens.dedup();

    let weights_error = |error: weights::WeightsError| ModelError::Weights { path: display(folder), error };
    let mut tensors = safetensors::open_folder(folder).map_err(weights_error)?;
    if config.get("text_config").is_some() {
        let num_left_out;
        (tensors, num_left_out) = weights::text_part(tensors);
        tracing::info!(num_left_out, "tensors of the image part are not used; only text is served");
    }
    let ignored = weights::bind(&spec, &tensors).map_err(weights_error)?.ignored;
    if !ignored.is_empty() {
        tracing::info!(tensors = ?ignored, "harmless tensors of the checkpoint are not used");
    }
    Ok(ModelSource { name: name(folder), spec, tensors, tokenizer, chat, eos_tokens, generation })
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// The folder's own name, also when it was given as `.` or through a link's trailing dots.
fn name(folder: &Path) -> String {
    let full = folder.canonicalize();
    let own = folder.file_name().or(full.as_deref().ok().and_then(Path::file_name));
    own.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// None where the file does not exist.
fn read_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let fail = |message: String| ModelError::file(path, message);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error.to_string())),
    };
    let mut text = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(|error| fail(error.to_string()))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(fail(format!("is larger than {MAX_CONFIG_BYTES} bytes, the limit for such a file")));
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| fail(format!("is not JSON: {error}")))
}
