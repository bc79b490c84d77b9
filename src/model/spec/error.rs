//! Why a config.json cannot be turned into a [`super::Spec`].

/// Names the field, what it says and what would be accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    #[error("`{field}` is missing; expected {expected}")]
    Missing { field: String, expected: String },
    #[error("`{field}` is {value}; expected {expected}")]
    Invalid { field: String, value: String, expected: String },
    #[error("`{field}` is {value}, which is not supported; supported: {supported}")]
    Unsupported { field: String, value: String, supported: String },
}

impl SpecError {
    pub(super) fn invalid(field: impl Into<String>, value: impl ToString, expected: impl Into<String>) -> Self {
        SpecError::Invalid { field: field.into(), value: shorten(value.to_string()), expected: expected.into() }
    }

    pub(super) fn unsupported(field: impl Into<String>, value: impl ToString, supported: impl Into<String>) -> Self {
        SpecError::Unsupported { field: field.into(), value: shorten(value.to_string()), supported: supported.into() }
    }
}

/// Values come from an untrusted file and go to a log line.
fn shorten(value: String) -> String {
    const MAX_CHARS: usize = 120;
    match value.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value,
    }
}
