//! The llama architecture: its metadata as a Hugging Face config.json, its tensors by their Hugging Face names.
//!
//! Owns the names of both worlds and the order of q and k rows. Everything that the keys can say and we cannot
//! compute is refused by name; what a config.json would be refused for is left to [`Spec::from_config`].

use serde_json::{Map, Value, json};

use super::error::{GgufError, quoted};
use super::reader::Container;
use crate::model::spec::Spec;

const ARCHITECTURE: &str = "llama";
const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
/// Divisors of the rotary frequencies, where a converter worked out llama3's scaling beforehand.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The model's shape, biases and rotary factors (`[head_dim / 2]`, see [`ROPE_FACTORS`]) included.
pub(super) fn spec(
    file: &Container,
    factors: Option<Vec<f32>>,
    max_model_len: Option<usize>,
) -> Result<Spec, GgufError> {
    let mut spec = Spec::from_config(&config(file)?, max_model_len)?;
    let has = |name: &str| file.tensors.contains_key(name);
    spec.qkv_bias = has("blk.0.attn_q.bias");
    spec.o_bias = has("blk.0.attn_output.bias");
    spec.mlp_bias = has("blk.0.ffn_gate.bias");
    if let Some(factors) = factors {
        for rope in &mut spec.ropes {
            let num_pairs = rope.inv_freq.len();
            if num_pairs != factors.len() || factors.iter().any(|f| !(f.is_finite() && *f > 0.0)) {
                let message = format!("expected {num_pairs} positive numbers, one for each pair of a head");
                return Err(GgufError::tensor(ROPE_FACTORS, message));
            }
            rope.inv_freq.iter_mut().zip(&factors).for_each(|(frequency, factor)| *frequency /= factor);
        }
    }
    Ok(spec)
}

/// The metadata in the words of config.json.
fn config(file: &Container) -> Result<Value, GgufError> {
    let keys = &file.metadata;
    let architecture = keys.need("general.architecture", keys.text("general.architecture"))?;
    if architecture != ARCHITECTURE {
        let message = format!("is {}; supported: `{ARCHITECTURE}`", quoted(architecture));
        return Err(GgufError::key("general.architecture", message));
    }
    let count = |key: &str| keys.count(&format!("{ARCHITECTURE}.{key}"));
    let needed = |key: &str| keys.need(&format!("{ARCHITECTURE}.{key}"), count(key));
    refuse_unsupported(file)?;
    let heads = needed("attention.head_count")?;
    let hidden = needed("embedding_length")?;
    let head_dim = match count("attention.key_length")? {
        Some(width) => width,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(width) = count(key)?.filter(|&width| width != head_dim) {
            let message = format!("is {width}; supported: the width of a head, {head_dim}");
            return Err(GgufError::key(format!("{ARCHITECTURE}.{key}"), message));
        }
    }
    let mut config = json!({
        "model_type": "llama",
        "vocab_size": vocab_size(file)?,
        "hidden_size": hidden,
        "intermediate_size": needed("feed_forward_length")?,
        "num_hidden_layers": needed("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": count("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": needed("context_length")?,
        "hidden_act": "silu",
        "rms_norm_eps": keys.need(
            "llama.attention.layer_norm_rms_epsilon",
            keys.float("llama.attention.layer_norm_rms_epsilon"),
        )?,
        "rope_theta": keys.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
        "tie_word_embeddings": !file.tensors.contains_key(HEAD),
    });
    if let Some(scaling) = rope_scaling(file)? {
        config["rope_scaling"] = Value::Object(scaling);
    }
    Ok(config)
}

/// What would silently compute something else if it were ignored. Zero and false turn these off.
fn refuse_unsupported(file: &Container) -> Result<(), GgufError> {
    const COUNTS: &[&str] = &["expert_count", "attention.sliding_window"];
    const FACTORS: &[&str] = &[
        "attention.scale",
        "attention.clamp_kqv",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "logit_scale",
        "embedding_scale",
        "residual_scale",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_log_multiplier",
    ];
    let refuse = |key: &str, value: f64| {
        let message = format!("is {value}, which is not supported in a llama; expected to be absent or 0");
        Err(GgufError::key(format!("{ARCHITECTURE}.{key}"), message))
    };
    for key in COUNTS {
        if let Some(value) = file.metadata.count(&format!("{ARCHITECTURE}.{key}"))?.filter(|&n| n > 0) {
            return refuse(key, value as f64);
        }
    }
    for key in FACTORS {
        if let Some(value) = file.metadata.float(&format!("{ARCHITECTURE}.{key}"))?.filter(|&x| x != 0.0) {
            return refuse(key, value);
        }
    }
    Ok(())
}

/// The embedding decides: a file's `vocab_size` may be missing.
fn vocab_size(file: &Container) -> Result<usize, GgufError> {
    let embedding =
        file.tensors.get(EMBEDDING).ok_or_else(|| GgufError::tensor(EMBEDDING, "is missing"))?.shape.clone();
    let rows = embedding[0];
    match file.metadata.count("llama.vocab_size")? {
        Some(stated) if stated != rows as u64 => {
            Err(GgufError::key("llama.vocab_size", format!("is {stated}, but `{EMBEDDING}` has {rows} rows")))
        }
        _ => Ok(rows),
    }
}

fn rope_scaling(file: &Container) -> Result<Option<Map<String, Value>>, GgufError> {
    const TYPE: &str = "llama.rope.scaling.type";
    let keys = &file.metadata;
    // Older files say a linear factor without a type.
    let old_factor = keys.float("llama.rope.scale_linear")?.filter(|&factor| factor != 1.0);
    let kind = keys.text(TYPE)?.unwrap_or(if old_factor.is_some() { "linear" } else { "none" });
    let factor = keys.float("llama.rope.scaling.factor")?.or(old_factor).unwrap_or(1.0);
    let mut scaling = Map::new();
    match kind {
        "none" => return Ok(None),
        "linear" if factor == 1.0 => return Ok(None),
        "linear" => {}
        "yarn" => {
            const ORIGINAL: &str = "llama.rope.scaling.original_context_length";
            let original = keys.need(ORIGINAL, keys.count(ORIGINAL))?;
            scaling.insert("original_max_position_embeddings".into(), original.into());
        }
        other => {
            return Err(GgufError::key(TYPE, format!("is {}; supported: none, linear, yarn", quoted(other))));
        }
    }
    for (key, field) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
        if let Some(value) = keys.float(&format!("llama.rope.scaling.{key}"))? {
            scaling.insert(field.into(), value.into());
        }
    }
    scaling.insert("rope_type".into(), kind.into());
    scaling.insert("factor".into(), factor.into());
    Ok(Some(scaling))
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

/// Refuses names that the architecture does not have.
pub(super) fn place(name: &str, spec: &Spec) -> Result<Place, GgufError> {
    let plain = |name: &str| Ok(Place { name: name.to_string(), rows: RowOrder::AsStored });
    match name {
        EMBEDDING => return plain("model.embed_tokens.weight"),
        "output_norm.weight" => return plain("model.norm.weight"),
        HEAD => return plain("lm_head.weight"),
        _ => {}
    }
    let unknown = || GgufError::tensor(name, "is not a tensor of the llama architecture as it is supported here");
    let (layer, part) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
    let layer: usize = layer.parse().map_err(|_| unknown())?;
    if layer >= spec.layers.len() {
        return Err(GgufError::tensor(name, format!("belongs to none of the model's {} layers", spec.layers.len())));
    }
    let (stem, suffix) = part.rsplit_once('.').filter(|(_, s)| ["weight", "bias"].contains(s)).ok_or_else(unknown)?;
    let interleaved = |num_heads| RowOrder::Interleaved { num_heads };
    let (module, rows) = match stem {
        "attn_norm" => ("input_layernorm", RowOrder::AsStored),
        "attn_q" => ("self_attn.q_proj", interleaved(spec.num_heads)),
        "attn_k" => ("self_attn.k_proj", interleaved(spec.num_kv_heads)),
        "attn_v" => ("self_attn.v_proj", RowOrder::AsStored),
        "attn_output" => ("self_attn.o_proj", RowOrder::AsStored),
        "ffn_norm" => ("post_attention_layernorm", RowOrder::AsStored),
        "ffn_gate" => ("mlp.gate_proj", RowOrder::AsStored),
        "ffn_up" => ("mlp.up_proj", RowOrder::AsStored),
        "ffn_down" => ("mlp.down_proj", RowOrder::AsStored),
        _ => return Err(unknown()),
    };
    Ok(Place { name: format!("model.layers.{layer}.{module}.{suffix}"), rows })
}
