//! Why weights cannot be used: always names the file or the tensor.

use crate::model::shard::ShardError;

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{file}: {source}")]
    Io { file: String, source: std::io::Error },
    #[error("{file}: {message}")]
    File { file: String, message: String },
    #[error("{file}: tensor `{tensor}`: {message}")]
    Entry { file: String, tensor: String, message: String },
    #[error("tensor `{tensor}` is missing{hint}")]
    Missing { tensor: String, hint: String },
    #[error("tensor `{tensor}` has shape {found:?}; config.json implies {expected:?}")]
    Shape { tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error(
        "{count} tensor(s) that this architecture does not use, such as {names}; config.json describes another model"
    )]
    Extra { count: usize, names: String },
    #[error("tensor `{tensor}` differs from `{twin}`, though tie_word_embeddings is true")]
    Untied { tensor: String, twin: String },
    #[error(transparent)]
    Shard(#[from] ShardError),
}
