//! The text side of a checkpoint folder: `tokenizer_config.json`, chat templates in their old and new places.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{TextError, TokenizerConfig};
use crate::model::source::ChatSource;

/// Gemma 3's `tokenizer.json`, the largest in use, has 33 MB.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
const MAX_CONFIG_BYTES: u64 = 32 << 20;
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

pub(super) fn file_error(path: &Path, message: impl Into<String>) -> TextError {
    TextError::File { path: path.display().to_string(), message: message.into() }
}

/// None where the file does not exist.
pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, TextError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error(path, error.to_string())),
    };
    // Room for all of it at once, instead of twice by growing; a file that lies gets no more than its limit.
    let size = file.metadata().map_or(0, |metadata| metadata.len().min(max_bytes));
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| file_error(path, error.to_string()))?;
    if bytes.len() as u64 > max_bytes {
        return Err(file_error(path, format!("is larger than {max_bytes} bytes, the limit for such a file")));
    }
    Ok(Some(bytes))
}

fn read_text(path: &Path) -> Result<Option<String>, TextError> {
    let Some(bytes) = read_bounded(path, MAX_TEMPLATE_BYTES)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|error| file_error(path, error.to_string()))
}

fn read_json(path: &Path) -> Result<Value, TextError> {
    let Some(bytes) = read_bounded(path, MAX_CONFIG_BYTES)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes).map_err(|error| file_error(path, error.to_string()))
}

/// A token written as a string or as an object with `content`.
fn token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// The two files that may name a special token; the first one wins.
fn read_configs(dir: &Path) -> Result<[Value; 2], TextError> {
    Ok([read_json(&dir.join("tokenizer_config.json"))?, read_json(&dir.join("special_tokens_map.json"))?])
}

fn named_token(configs: &[Value; 2], key: &str) -> Option<String> {
    configs.iter().find_map(|config| config.get(key).and_then(token))
}

pub(super) fn read_tokenizer_config(dir: &Path) -> Result<TokenizerConfig, TextError> {
    let configs = read_configs(dir)?;
    let added = configs[0].get("added_tokens_decoder").and_then(Value::as_object);
    let special_tokens = added
        .into_iter()
        .flat_map(|tokens| tokens.values())
        .filter(|entry| entry.get("special").and_then(Value::as_bool) == Some(true))
        .filter_map(token)
        .collect();
    Ok(TokenizerConfig {
        bos_token: named_token(&configs, "bos_token"),
        eos_token: named_token(&configs, "eos_token"),
        add_bos: configs[0].get("add_bos_token").and_then(Value::as_bool),
        special_tokens,
    })
}

/// What chat rendering needs from a checkpoint folder. `chat_template.jinja` (the newer layout) wins over
/// `chat_template` in `tokenizer_config.json` (a string, or a list of named ones of which `default` and `tool_use` are
/// taken), which wins over `chat_template.json`.
pub fn read_chat_source(dir: &Path) -> Result<ChatSource, TextError> {
    let configs = read_configs(dir)?;
    let mut source = ChatSource {
        bos_token: named_token(&configs, "bos_token").unwrap_or_default(),
        eos_token: named_token(&configs, "eos_token").unwrap_or_default(),
        ..ChatSource::default()
    };
    source.template = read_text(&dir.join("chat_template.jinja"))?;
    if source.template.is_some() {
        source.tool_template = read_text(&dir.join("additional_chat_templates").join("tool_use.jinja"))?;
        return Ok(source);
    }
    let beside = read_json(&dir.join("chat_template.json"))?;
    let entry = [&configs[0], &beside].into_iter().find_map(|config| config.get("chat_template"));
    match entry {
        None | Some(Value::Null) => {}
        Some(Value::String(template)) => source.template = Some(template.clone()),
        Some(Value::Array(list)) => {
            let named = |wanted: &str| {
                let entry = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(wanted))?;
                entry.get("template")?.as_str().map(str::to_owned)
            };
            source.template = named("default");
            source.tool_template = named("tool_use");
        }
        Some(_) => {
            let message = "chat_template is neither a string nor a list of {name, template}";
            return Err(file_error(&dir.join("tokenizer_config.json"), message));
        }
    }
    Ok(source)
}
