//! The architectures that are read: what their tensors are called here and in Hugging Face checkpoints, and in which
//! order their rows lie. Names are those of llama.cpp (gguf-py's `constants.py`).

use super::error::{GgufError, quoted};
use super::metadata::Metadata;
use crate::model::spec::Spec;

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const HEAD: &str = "output.weight";

/// `general.architecture`; Mistral's files say `llama`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
}

use Architecture::{Gemma2, Gemma3, Llama, Qwen2, Qwen3};

const ALL: [Architecture; 5] = [Llama, Qwen2, Qwen3, Gemma2, Gemma3];

/// Parts of a layer that every architecture has.
const COMMON: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// Hugging Face's `post_attention_layernorm` means two different places.
const PRE_NORMS: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];
const SANDWICH_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const QK_NORMS: &[(&str, &str)] = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

impl Architecture {
    pub fn read(metadata: &Metadata) -> Result<Self, GgufError> {
        const KEY: &str = "general.architecture";
        let name = metadata.need(KEY, metadata.text(KEY))?;
        ALL.into_iter().find(|architecture| architecture.name() == name).ok_or_else(|| {
            let names: Vec<String> = ALL.iter().map(|architecture| format!("`{}`", architecture.name())).collect();
            GgufError::key(KEY, format!("is {}; supported: {}", quoted(name), names.join(", ")))
        })
    }

    /// What the file calls it, and the prefix of its keys.
    pub fn name(self) -> &'static str {
        match self {
            Llama => "llama",
            Qwen2 => "qwen2",
            Qwen3 => "qwen3",
            Gemma2 => "gemma2",
            Gemma3 => "gemma3",
        }
    }

    pub fn is_gemma(self) -> bool {
        matches!(self, Gemma2 | Gemma3)
    }

    /// Whether `rope_freqs.weight` is read; elsewhere it has no place.
    pub fn has_rope_factors(self) -> bool {
        self == Llama
    }

    fn modules(self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        let norms = if self.is_gemma() { SANDWICH_NORMS } else { PRE_NORMS };
        let qk_norms = if matches!(self, Qwen3 | Gemma3) { QK_NORMS } else { &[] };
        COMMON.iter().chain(norms).chain(qk_norms)
    }

    /// Only llama's rotary embedding is computed on neighbouring elements.
    fn rows(self, stem: &str, spec: &Spec) -> RowOrder {
        match (self, stem) {
            (Llama, "attn_q") => RowOrder::Interleaved { num_heads: spec.num_heads },
            (Llama, "attn_k") => RowOrder::Interleaved { num_heads: spec.num_kv_heads },
            _ => RowOrder::AsStored,
        }
    }

    /// Refuses names that the architecture does not have.
    pub fn place(self, name: &str, spec: &Spec) -> Result<Place, GgufError> {
        let plain = |name: &str| Ok(Place { name: name.to_string(), rows: RowOrder::AsStored });
        match name {
            EMBEDDING => return plain("model.embed_tokens.weight"),
            "output_norm.weight" => return plain("model.norm.weight"),
            HEAD => return plain("lm_head.weight"),
            _ => {}
        }
        let unknown = || {
            let message = format!("is not a tensor of the {} architecture as it is supported here", self.name());
            GgufError::tensor(name, message)
        };
        let (layer, part) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
        let layer: usize = layer.parse().map_err(|_| unknown())?;
        if layer >= spec.layers.len() {
            return Err(GgufError::tensor(
                name,
                format!("belongs to none of the model's {} layers", spec.layers.len()),
            ));
        }
        let (stem, suffix) =
            part.rsplit_once('.').filter(|(_, s)| ["weight", "bias"].contains(s)).ok_or_else(unknown)?;
        let (_, module) = self.modules().find(|(own, _)| *own == stem).ok_or_else(unknown)?;
        Ok(Place { name: format!("model.layers.{layer}.{module}.{suffix}"), rows: self.rows(stem, spec) })
    }
}

/// A tensor's place in the Hugging Face world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub name: String,
    pub rows: RowOrder,
}

/// llama.cpp rotates neighbouring elements `(2i, 2i + 1)` of a head, Hugging Face `(i, i + width / 2)`; the
/// converter reorders the rows of q and k so that both compute the same. That is undone here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOrder {
    AsStored,
    Interleaved { num_heads: usize },
}

impl RowOrder {
    /// Where row `row` (of `num_rows`) lies in the file.
    pub fn source(self, row: usize, num_rows: usize) -> usize {
        match self {
            RowOrder::AsStored => row,
            RowOrder::Interleaved { num_heads } => {
                let width = num_rows / num_heads;
                let (head, within) = (row / width, row % width);
                let (half, pair) = (within / (width / 2), within % (width / 2));
                head * width + 2 * pair + half
            }
        }
    }
}
