//! Gemma 3 checkpoints that also see images keep their text model in `text_config`, with every field left out that
//! has the default of transformers' `Gemma3TextConfig`.

use serde_json::{Map, Value, json};

use super::SpecError;
use super::fields::Fields;

pub(super) const MODEL_TYPE: &str = "gemma3";

/// The config of the text model alone, as a text-only checkpoint would have it.
pub(super) fn text_config(config: Fields) -> Result<Value, SpecError> {
    let Some(Value::Object(own)) = config.object_opt("text_config")? else {
        return Err(config.missing("text_config", "an object, as the model_type is gemma3"));
    };
    let mut text = defaults();
    // What the whole checkpoint says of its weights; the text model's own word goes first.
    for field in ["tie_word_embeddings", "dtype", "torch_dtype", "quantization_config"] {
        if let Some(value) = config.get(field) {
            text.insert(field.into(), value.clone());
        }
    }
    text.extend(own.iter().filter(|(_, value)| !value.is_null()).map(|(field, value)| (field.clone(), value.clone())));
    text.insert("model_type".into(), "gemma3_text".into());
    Ok(Value::Object(text))
}

fn defaults() -> Map<String, Value> {
    let defaults = json!({
        "vocab_size": 262_208,
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "_sliding_window_pattern": 6,
    });
    match defaults {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
