//! The metadata of a file in the words of a Hugging Face config.json, and the [`Spec`] that follows.
//!
//! What a config.json would be refused for is left to [`Spec::from_config`]. What files do not say (Gemma's scale of
//! attention) is what llama.cpp takes for it.

use serde_json::{Map, Value, json};

use super::architecture::{Architecture, EMBEDDING, HEAD};
use super::error::{GgufError, quoted};
use super::keys::Keys;
use super::reader::Container;
use crate::model::spec::Spec;

/// Divisors of the rotary frequencies, where a converter worked out llama3's scaling beforehand.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// What rope is computed with where a file does not say.
const ROPE_BASE: f64 = 10_000.0;

/// The model's shape, biases and rotary factors (`[head_dim / 2]`, see [`ROPE_FACTORS`]) included.
pub(super) fn spec(
    file: &Container,
    factors: Option<Vec<f32>>,
    max_model_len: Option<usize>,
) -> Result<(Architecture, Spec), GgufError> {
    refuse_parts(file)?;
    let keys = Keys::read(&file.metadata)?;
    let mut spec = Spec::from_config(&config(file, &keys)?, max_model_len)?;
    let has = |name: &str| file.tensors.contains_key(name);
    // Only Qwen2 always has biases; elsewhere files show by their tensors what config.json says.
    spec.qkv_bias |= has("blk.0.attn_q.bias");
    spec.o_bias |= has("blk.0.attn_output.bias");
    spec.mlp_bias |= has("blk.0.ffn_gate.bias");
    // Converters add Gemma's 1 to the weights.
    spec.norm_unit_offset = false;
    if let Some(factors) = factors.filter(|_| keys.architecture.has_rope_factors()) {
        for rope in &mut spec.ropes {
            let num_pairs = rope.inv_freq.len();
            if num_pairs != factors.len() || factors.iter().any(|f| !(f.is_finite() && *f > 0.0)) {
                let message = format!("expected {num_pairs} positive numbers, one for each pair of a head");
                return Err(GgufError::tensor(ROPE_FACTORS, message));
            }
            rope.inv_freq.iter_mut().zip(&factors).for_each(|(frequency, factor)| *frequency /= factor);
        }
    }
    Ok((keys.architecture, spec))
}

/// Files that are no whole model, though they name its architecture.
fn refuse_parts(file: &Container) -> Result<(), GgufError> {
    let keys = &file.metadata;
    if let Some(kind) = keys.text("general.type")?.filter(|&kind| kind != "model") {
        let message = format!("is {}; supported: `model`", quoted(kind));
        return Err(GgufError::key("general.type", message));
    }
    if let Some(count) = keys.count("split.count")?.filter(|&count| count > 1) {
        let message = format!("is {count}: the model is split over several files; merge them into one first");
        return Err(GgufError::key("split.count", message));
    }
    Ok(())
}

fn config(file: &Container, keys: &Keys) -> Result<Value, GgufError> {
    if keys.flag("attention.causal")? == Some(false) {
        return Err(keys.error("attention.causal", "is false; supported: models that attend to what came before"));
    }
    let heads = keys.needed_count("attention.head_count")?;
    let hidden = keys.needed_count("embedding_length")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(width) => width,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(width) = keys.count(key)?.filter(|&width| width != head_dim) {
            return Err(keys.error(key, format!("is {width}; supported: the width of a head, {head_dim}")));
        }
    }
    let mut config = json!({
        "vocab_size": vocab_size(file, keys)?,
        "hidden_size": hidden,
        "intermediate_size": keys.needed_count("feed_forward_length")?,
        "num_hidden_layers": keys.needed_count("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.needed_count("context_length")?,
        "hidden_act": if keys.architecture.is_gemma() { "gelu_pytorch_tanh" } else { "silu" },
        "rms_norm_eps": keys.needed_float("attention.layer_norm_rms_epsilon")?,
        "rope_theta": keys.float("rope.freq_base")?.unwrap_or(ROPE_BASE),
        "tie_word_embeddings": !file.tensors.contains_key(HEAD),
    });
    let fields = [rope_scaling(keys)?, windows(keys)?, family(keys, hidden, heads, head_dim)?];
    if let Value::Object(config) = &mut config {
        config.extend(fields.into_iter().flatten());
    }
    Ok(config)
}

/// The embedding decides: a file's `vocab_size` may be missing.
fn vocab_size(file: &Container, keys: &Keys) -> Result<usize, GgufError> {
    let embedding = file.tensors.get(EMBEDDING).ok_or_else(|| GgufError::tensor(EMBEDDING, "is missing"))?;
    let rows = embedding.shape[0];
    match keys.count("vocab_size")? {
        Some(stated) if stated != rows as u64 => {
            Err(keys.error("vocab_size", format!("is {stated}, but `{EMBEDDING}` has {rows} rows")))
        }
        _ => Ok(rows),
    }
}

/// What only one architecture has, and its name.
fn family(keys: &Keys, hidden: u64, heads: u64, head_dim: u64) -> Result<Map<String, Value>, GgufError> {
    let mut fields = Map::new();
    let model_type = match keys.architecture {
        Architecture::Llama if has_windows(keys)? => "mistral",
        Architecture::Llama => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
        Architecture::Gemma2 => "gemma2",
        Architecture::Gemma3 => "gemma3_text",
    };
    fields.insert("model_type".into(), model_type.into());
    let layers_of_27b = match keys.architecture {
        Architecture::Gemma2 => 46,
        Architecture::Gemma3 => 62,
        _ => return Ok(fields),
    };
    // The scale of attention is in no file: the largest Gemmas, known by their layers, have one of their own.
    let is_27b = keys.needed_count("block_count")? == layers_of_27b;
    let scaled_by = if is_27b { hidden.checked_div(heads).unwrap_or(0) } else { head_dim };
    fields.insert("query_pre_attn_scalar".into(), scaled_by.into());
    if keys.architecture == Architecture::Gemma2 {
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            fields.insert(key.into(), keys.needed_float(key)?.into());
        }
    } else {
        let cap = keys.float("final_logit_softcapping")?.filter(|&cap| cap != 0.0);
        fields.insert("final_logit_softcapping".into(), cap.into());
        keys.needed_float("rope.freq_base")?;
        fields.insert("rope_local_base_freq".into(), keys.float("rope.freq_base_swa")?.unwrap_or(ROPE_BASE).into());
    }
    Ok(fields)
}

fn has_windows(keys: &Keys) -> Result<bool, GgufError> {
    Ok(keys.count("attention.sliding_window")?.is_some_and(|window| window > 0))
}

/// Sliding windows. Which layers have them is listed, or every `period`-th has none, or the architecture decides.
fn windows(keys: &Keys) -> Result<Map<String, Value>, GgufError> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    /// No model has more layers; [`Spec`] says so.
    const MAX_LISTED: u64 = 1 << 16;
    let mut fields = Map::new();
    if !has_windows(keys)? {
        return match keys.architecture {
            Architecture::Gemma2 => {
                Err(keys.error("attention.sliding_window", "is missing or 0, but Gemma 2 has windows"))
            }
            Architecture::Gemma3 => Ok(Map::from_iter([("sliding_window_pattern".into(), 1.into())])),
            _ => Ok(fields),
        };
    }
    fields.insert("sliding_window".into(), keys.count("attention.sliding_window")?.into());
    if keys.architecture == Architecture::Llama {
        return Ok(fields);
    }
    let num_layers = keys.needed_count("block_count")?.min(MAX_LISTED);
    let listed = keys.flags(PATTERN)?;
    let period = match (&listed, keys.architecture) {
        (Some(_), _) => 1,
        (None, Architecture::Gemma2) => keys.count(PATTERN)?.unwrap_or(2),
        (None, Architecture::Gemma3) => keys.count(PATTERN)?.unwrap_or(6),
        (None, _) => keys.count(PATTERN)?.ok_or_else(|| keys.error(PATTERN, "is missing, though there are windows"))?,
    };
    if period == 0 {
        return Err(keys.error(PATTERN, "is 0; expected at least 1, or a list of true and false"));
    }
    let windowed = listed.unwrap_or_else(|| (1..=num_layers).map(|layer| layer % period != 0).collect());
    let name = |windowed: bool| if windowed { "sliding_attention" } else { "full_attention" };
    fields.insert("layer_types".into(), windowed.into_iter().map(name).collect());
    fields.insert("use_sliding_window".into(), true.into());
    Ok(fields)
}

fn rope_scaling(keys: &Keys) -> Result<Map<String, Value>, GgufError> {
    const TYPE: &str = "rope.scaling.type";
    // Older files say a linear factor without a type.
    let old_factor = keys.float("rope.scale_linear")?.filter(|&factor| factor != 1.0);
    let kind = keys.text(TYPE)?.unwrap_or(if old_factor.is_some() { "linear" } else { "none" });
    let factor = keys.float("rope.scaling.factor")?.or(old_factor).unwrap_or(1.0);
    let mut scaling = Map::new();
    match kind {
        "none" => return Ok(Map::new()),
        "linear" if factor == 1.0 => return Ok(Map::new()),
        "linear" => {}
        "yarn" => {
            let original = keys.needed_count("rope.scaling.original_context_length")?;
            scaling.insert("original_max_position_embeddings".into(), original.into());
        }
        other => {
            return Err(keys.error(TYPE, format!("is {}; supported: none, linear, yarn", quoted(other))));
        }
    }
    for (key, field) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
        if let Some(value) = keys.float(&format!("rope.scaling.{key}"))? {
            scaling.insert(field.into(), value.into());
        }
    }
    scaling.insert("rope_type".into(), kind.into());
    scaling.insert("factor".into(), factor.into());
    Ok(Map::from_iter([("rope_scaling".into(), Value::Object(scaling))]))
}
