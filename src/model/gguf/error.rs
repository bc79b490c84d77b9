//! Why a GGUF file cannot be served. The file's own name is added by [`super::open`].

use crate::model::spec::SpecError;
use crate::model::text::TextError;

#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Header(String),
    #[error("ends after {len} bytes, within {what}, which needs bytes {start} to {end}; fetch the file again")]
    Truncated { what: String, start: usize, end: u64, len: usize },
    #[error("key {key}: {message}")]
    Key { key: String, message: String },
    #[error("tensor {tensor}: {message}")]
    Tensor { tensor: String, message: String },
    #[error("what its keys say as config.json: {0}")]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Text(#[from] TextError),
}

impl GgufError {
    pub(super) fn key(key: impl AsRef<str>, message: impl Into<String>) -> Self {
        GgufError::Key { key: quoted(key.as_ref()), message: message.into() }
    }

    pub(super) fn tensor(tensor: impl AsRef<str>, message: impl Into<String>) -> Self {
        GgufError::Tensor { tensor: quoted(tensor.as_ref()), message: message.into() }
    }
}

/// Text of an untrusted file, short enough for a log line and without control characters.
pub(super) fn quoted(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let short: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_CHARS).is_some() { format!("`{short}…`") } else { format!("`{short}`") }
}
