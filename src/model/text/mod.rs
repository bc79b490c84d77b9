//! Text in and out: tokenizer, incremental detokeniser, stop strings, chat templates.
//!
//! Owns everything between the characters a client sends or reads and the token ids a model sees. Knows nothing of
//! requests, sequences or devices, and reads no clock: templates that ask for the date get the caller's.
//!
//! Invariants: what a [`Detokenizer`] streams, concatenated, is what [`Tokenizer::decode`] returns for the same ids; a
//! [`StopMatcher`] gives the same text and the same hit however its input was cut; a template can reach nothing
//! outside its input, and costs at most a fixed number of steps and bytes.

pub mod chat;
mod detokenizer;
mod files;
mod pieces;
mod stop;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use chat::{ChatError, ChatInput, ChatTemplate, flatten_text_parts, parse_tool_arguments};
pub use detokenizer::Detokenizer;
pub use files::read_chat_source;
pub use stop::{StopMatcher, Stopped};
pub use tokenizer::{Tokenizer, TokenizerConfig};

/// Why a tokenizer cannot be built or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file is absent, too large, or not what it should be.
    #[error("{path}: {message}")]
    File { path: String, message: String },
    /// The tokenizer needs something that is not built; naming it beats decoding wrongly.
    #[error("tokenizer: {0}")]
    Unsupported(String),
    /// The tokenizer itself failed on this text.
    #[error("cannot tokenise the text: {0}")]
    Encode(String),
}
