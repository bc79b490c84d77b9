//! One [`Spec`] for every supported decoder architecture.
//!
//! Owns the shape of a model: what the forward pass in [`super::decoder`] must do, resolved to plain
//! numbers. Never knows where the weights are or which device runs them.
//!
//! Invariant: a `Spec` that exists is consistent (heads divide, rope tables cover the head, every
//! layer's rope index is valid); the parsers refuse everything else, naming the field.

mod config;
mod error;
mod family;
mod fields;
mod layers;
mod nested;
mod rope;
#[cfg(test)]
mod tests;

pub use error::SpecError;

use super::ops::Attention;

/// Dimensions of a head at most: twice those of any model of these families.
pub const MAX_HEAD_DIM: usize = 512;

/// Everything the decoder needs to know about a model, in plain numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// `model_type` of the checkpoint, e.g. `llama`, `qwen3_moe`.
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Longest sequence: the context length asked for, else what the model was made for (`max_position_embeddings`,
    /// and what yarn or longrope make of it).
    pub max_positions: usize,
    pub layers: Vec<LayerSpec>,
    /// Rotary tables, referred to by [`LayerSpec::rope`].
    pub ropes: Vec<RopeSpec>,
    pub norm_eps: f32,
    /// Gemma stores `w` and multiplies by `1 + w`; resolved when the vector is loaded.
    pub norm_unit_offset: bool,
    pub norm_placement: NormPlacement,
    pub qk_norm: QkNorm,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    pub activation: Activation,
    /// Multiplies q·k before soft cap and softmax.
    pub attention_scale: f32,
    /// `cap * tanh(score / cap)` on attention scores.
    pub attention_softcap: Option<f32>,
    /// `cap * tanh(logit / cap)` on the logits.
    pub final_softcap: Option<f32>,
    pub embedding_scale: f32,
    /// Multiplies what each block adds to the residual stream.
    pub residual_scale: f32,
    /// Multiplies the logits (already inverted where the checkpoint divides).
    pub logits_scale: f32,
    /// The head is the embedding table.
    pub tied_head: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Attend to the last `window` positions only, own position included.
    pub window: Option<usize>,
    /// Index into [`Spec::ropes`]; `None` leaves q and k as they are (NoPE).
    pub rope: Option<usize>,
    pub mlp: MlpSpec,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    Dense { intermediate_size: usize },
    Moe(MoeSpec),
}

#[derive(Debug, Clone, PartialEq)]
pub struct MoeSpec {
    pub num_experts: usize,
    pub experts_per_token: usize,
    pub intermediate_size: usize,
    /// Whether the chosen experts' softmax weights are scaled to sum to one.
    pub renormalise: bool,
}

/// One rotary embedding, resolved to frequencies: `angle(pos, i) = pos * inv_freq[i]`, applied to the
/// pair `(x[i], x[i + rotary_dim / 2])` of each head; cos and sin are multiplied by `attention_factor`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    pub rotary_dim: usize,
    /// `rotary_dim / 2` frequencies.
    pub inv_freq: Vec<f32>,
    pub attention_factor: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x += f(norm(x))`: Llama and most others.
    Pre,
    /// `x += norm(f(norm(x)))`: Gemma 2 and 3.
    Sandwich,
    /// `x += norm(f(x))`: OLMo 2.
    Post,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// One weight of `head_dim`, each head normalised on its own (Qwen3, Gemma 3).
    PerHead,
    /// One weight over the whole q (and k) row before heads are split (OLMo 2).
    WholeRow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluTanh,
}

impl Spec {
    /// How layer `index` attends.
    pub fn attention(&self, index: usize) -> Attention {
        Attention {
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            softcap: self.attention_softcap,
            window: self.layers[index].window,
        }
    }

    /// Width of a query row, `num_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of a key (or value) row, `num_kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Width of the fused projection: q, then k, then v.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }
}
