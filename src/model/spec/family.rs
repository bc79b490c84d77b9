//! The supported architectures and what config.json does not say about them: where biases and norms sit, and what a
//! field means when it is left out.

use serde_json::Value;

use super::{NormPlacement, QkNorm, SpecError, nested};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
    Olmo2,
    SmolLm3,
    Granite,
    Mixtral,
}

const NAMES: &[(&str, Family)] = &[
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("mixtral", Family::Mixtral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("qwen3_moe", Family::Qwen3Moe),
    ("gemma2", Family::Gemma2),
    ("gemma3_text", Family::Gemma3),
    ("phi3", Family::Phi3),
    ("olmo2", Family::Olmo2),
    ("smollm3", Family::SmolLm3),
    ("granite", Family::Granite),
];

impl Family {
    pub fn from_model_type(model_type: &str) -> Result<Self, SpecError> {
        NAMES.iter().find(|(name, _)| *name == model_type).map(|(_, family)| *family).ok_or_else(|| {
            let mut names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            names.push(nested::MODEL_TYPE);
            SpecError::unsupported("model_type", Value::from(model_type), names.join(", "))
        })
    }

    pub fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }

    pub fn norm_placement(self) -> NormPlacement {
        match self {
            Family::Gemma2 | Family::Gemma3 => NormPlacement::Sandwich,
            Family::Olmo2 => NormPlacement::Post,
            _ => NormPlacement::Pre,
        }
    }

    pub fn qk_norm(self) -> QkNorm {
        match self {
            Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3 => QkNorm::PerHead,
            Family::Olmo2 => QkNorm::WholeRow,
            _ => QkNorm::None,
        }
    }

    /// Whether `attention_bias` puts biases on q, k, v and o. The others never have any, but for Qwen2, which always
    /// has them on q, k and v.
    pub fn reads_attention_bias(self) -> bool {
        !matches!(self, Family::Mistral | Family::Mixtral | Family::Qwen2 | Family::Phi3)
    }

    pub fn reads_mlp_bias(self) -> bool {
        matches!(self, Family::Llama | Family::SmolLm3 | Family::Granite)
    }

    /// `tie_word_embeddings` when left out: transformers writes it only where it differs from the class's default.
    pub fn tied_by_default(self) -> bool {
        self.is_gemma() || self == Family::SmolLm3
    }

    /// Whether a missing `head_dim` means `hidden_size / num_attention_heads`; elsewhere the class has a default of
    /// its own that has nothing to do with the other fields.
    pub fn derives_head_dim(self) -> bool {
        !matches!(self, Family::Gemma2 | Family::Gemma3 | Family::Qwen3)
    }

    /// Whether a missing `num_key_value_heads` means `num_attention_heads`.
    pub fn derives_kv_heads(self) -> bool {
        matches!(self, Family::Llama | Family::Phi3 | Family::Olmo2 | Family::Granite)
    }

    /// Whether config.json's `layer_types` decides which layers are windowed.
    pub fn reads_layer_types(self) -> bool {
        matches!(self, Family::Qwen2 | Family::Qwen3 | Family::Gemma2 | Family::Gemma3 | Family::SmolLm3)
    }
}
