//! The keys that describe the model, under the name of its architecture.
//!
//! Invariant of [`Keys`]: every such key of the file is read by [`super::config`], is known not to change what is
//! computed, or is turned off. Keys come with every new model; one that is not known here may change anything.

use super::architecture::Architecture;
use super::error::GgufError;
use super::metadata::Metadata;

/// Read for every architecture.
const COMMON: &[&str] = &[
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "vocab_size",
];
/// Of other kinds of norms, of training, of parts that lie in other files.
const HARMLESS: &[&str] = &[
    "attention.layer_norm_epsilon",
    "mm.tokens_per_image",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "use_parallel_residual",
];
const WINDOWS: [&str; 2] = ["attention.sliding_window", "attention.sliding_window_pattern"];

pub(super) struct Keys<'a> {
    metadata: &'a Metadata,
    pub architecture: Architecture,
}

impl<'a> Keys<'a> {
    /// Refuses keys that may change the model and are not known.
    pub fn read(metadata: &'a Metadata) -> Result<Self, GgufError> {
        let architecture = Architecture::read(metadata)?;
        let known = known(architecture);
        let prefix = format!("{}.", architecture.name());
        for key in metadata.keys_under(&prefix) {
            let own = &key[prefix.len()..];
            if !known.iter().any(|list| list.contains(&own)) && !metadata.is_off(key) {
                let message = format!(
                    "is {}, which is not supported in a {}; expected to be absent or 0",
                    metadata.shown(key),
                    architecture.name()
                );
                return Err(GgufError::key(key, message));
            }
        }
        Ok(Self { metadata, architecture })
    }

    /// A key's full name.
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name())
    }

    pub fn error(&self, key: &str, message: impl Into<String>) -> GgufError {
        GgufError::key(self.name(key), message)
    }

    pub fn count(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.metadata.count(&self.name(key))
    }

    pub fn needed_count(&self, key: &str) -> Result<u64, GgufError> {
        self.metadata.need(&self.name(key), self.count(key))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.metadata.float(&self.name(key))
    }

    pub fn needed_float(&self, key: &str) -> Result<f64, GgufError> {
        self.metadata.need(&self.name(key), self.float(key))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.metadata.text(&self.name(key))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.metadata.flag(&self.name(key))
    }

    /// `None` also where the key holds one value.
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, GgufError> {
        let name = self.name(key);
        if self.metadata.is_list(&name) { self.metadata.flags(&name) } else { Ok(None) }
    }
}

fn known(architecture: Architecture) -> [&'static [&'static str]; 3] {
    let own: &[&str] = match architecture {
        Architecture::Llama => &WINDOWS[..1],
        Architecture::Qwen2 | Architecture::Qwen3 => &WINDOWS,
        Architecture::Gemma2 => &[WINDOWS[0], WINDOWS[1], "attn_logit_softcapping", "final_logit_softcapping"],
        Architecture::Gemma3 => &[WINDOWS[0], WINDOWS[1], "final_logit_softcapping", "rope.freq_base_swa"],
    };
    [COMMON, HARMLESS, own]
}
