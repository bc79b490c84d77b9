//! config.json, in the styles of transformers 4 and 5, to a [`Spec`].

use serde_json::Value;

use super::family::Family;
use super::fields::Fields;
use super::layers::{self, RopeIndex};
use super::rope::{self, MAX_POSITIONS, RopeContext, RopePair};
use super::{Activation, MAX_HEAD_DIM, Spec, SpecError, nested};

const MAX_LAYERS: usize = 4096;
const MAX_HIDDEN: usize = 1 << 20;
const MAX_HEADS: usize = 1 << 14;
const MAX_VOCAB: usize = 1 << 24;

impl Spec {
    /// Reads a config.json. `max_model_len` is the context length to serve, if one was chosen; it may not exceed what
    /// the model was made for, and it decides between the short and long factors of longrope.
    pub fn from_config(config: &Value, max_model_len: Option<usize>) -> Result<Spec, SpecError> {
        let config = Fields::new(config, "")?;
        let model_type =
            config.text_opt("model_type")?.ok_or_else(|| config.missing("model_type", "an architecture's name"))?;
        if model_type == nested::MODEL_TYPE {
            return Spec::from_config(&nested::text_config(config)?, max_model_len);
        }
        let family = Family::from_model_type(model_type)?;
        refuse_unsupported(config)?;

        let hidden_size = config.count("hidden_size", MAX_HIDDEN)?;
        let heads = Heads::parse(config, family, hidden_size)?;
        let trained_positions = config.count("max_position_embeddings", MAX_POSITIONS)?;
        if max_model_len == Some(0) {
            return Err(SpecError::invalid("max_model_len", 0, "at least 1"));
        }
        let context = RopeContext { family, head_dim: heads.head_dim, trained_positions, max_model_len };
        let pair = rope::parse(config, &context)?;
        let max_positions = positions(&pair, max_model_len)?;
        let (ropes, index) = distinct(pair);
        let num_layers = config.count("num_hidden_layers", MAX_LAYERS)?;
        let layers = layers::parse(config, family, num_layers, &index)?;
        let multipliers = Multipliers::parse(config, family, hidden_size, heads.head_dim)?;
        let attention_bias = family.reads_attention_bias() && config.flag("attention_bias", false)?;

        Ok(Spec {
            model_type: model_type.to_string(),
            vocab_size: config.count("vocab_size", MAX_VOCAB)?,
            hidden_size,
            num_heads: heads.num_heads,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            max_positions,
            layers,
            ropes,
            norm_eps: config.positive("rms_norm_eps")? as f32,
            norm_unit_offset: family.is_gemma(),
            norm_placement: family.norm_placement(),
            qk_norm: family.qk_norm(),
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias,
            mlp_bias: family.reads_mlp_bias() && config.flag("mlp_bias", false)?,
            activation: activation(config, family)?,
            attention_scale: multipliers.attention as f32,
            attention_softcap: softcap(config, family, "attn_logit_softcapping")?,
            final_softcap: softcap(config, family, "final_logit_softcapping")?,
            embedding_scale: multipliers.embedding as f32,
            residual_scale: multipliers.residual as f32,
            logits_scale: multipliers.logits as f32,
            tied_head: config.flag("tie_word_embeddings", family.tied_by_default())?,
        })
    }
}

/// What would silently compute something else if it were ignored.
fn refuse_unsupported(config: Fields) -> Result<(), SpecError> {
    if let Some(value) = config.get("quantization_config") {
        let method = value.get("quant_method").cloned().unwrap_or_else(|| value.clone());
        return Err(SpecError::unsupported("quantization_config", method, "unquantised bf16, f16 or f32 weights"));
    }
    for field in ["dtype", "torch_dtype"] {
        match config.text_opt(field)? {
            None | Some("bfloat16" | "float16" | "float32") => {}
            Some(other) => {
                return Err(SpecError::unsupported(field, Value::from(other), "bfloat16, float16, float32"));
            }
        }
    }
    for field in ["clip_qkv", "qk_layernorm", "use_qk_norm", "use_bidirectional_attention", "is_encoder_decoder"] {
        match config.get(field) {
            None | Some(Value::Bool(false)) => {}
            Some(value) => return Err(SpecError::unsupported(field, value, "null or false")),
        }
    }
    Ok(())
}

struct Heads {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

impl Heads {
    fn parse(config: Fields, family: Family, hidden_size: usize) -> Result<Self, SpecError> {
        let num_heads = config.count("num_attention_heads", MAX_HEADS)?;
        let num_kv_heads = match config.count_opt("num_key_value_heads", MAX_HEADS)? {
            Some(n) => n,
            None if family.derives_kv_heads() => num_heads,
            None => return Err(config.missing("num_key_value_heads", "an integer that divides num_attention_heads")),
        };
        if num_heads % num_kv_heads != 0 {
            let expected = format!("a divisor of num_attention_heads {num_heads}");
            return Err(SpecError::invalid("num_key_value_heads", num_kv_heads, expected));
        }
        let head_dim = match config.count_opt("head_dim", MAX_HEAD_DIM)? {
            Some(n) => n,
            None if !family.derives_head_dim() => return Err(config.missing("head_dim", "an even integer")),
            None if !hidden_size.is_multiple_of(num_heads) => {
                let expected = format!("a divisor of hidden_size {hidden_size}, as head_dim is not given");
                return Err(SpecError::invalid("num_attention_heads", num_heads, expected));
            }
            None => hidden_size / num_heads,
        };
        if head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM {
            return Err(SpecError::invalid("head_dim", head_dim, format!("an even integer up to {MAX_HEAD_DIM}")));
        }
        Ok(Self { num_heads, num_kv_heads, head_dim })
    }
}

/// The context length: as chosen, else as the model says.
fn positions(pair: &RopePair, max_model_len: Option<usize>) -> Result<usize, SpecError> {
    let default = pair.full.default_positions.min(pair.windowed.default_positions);
    let max = pair.full.max_positions.min(pair.windowed.max_positions);
    match max_model_len {
        None => Ok(default),
        Some(len) if len <= max => Ok(len),
        Some(len) => {
            Err(SpecError::invalid("max_model_len", len, format!("at most {max}, what the model was made for")))
        }
    }
}

fn distinct(pair: RopePair) -> (Vec<super::RopeSpec>, RopeIndex) {
    let (full, windowed) = (pair.full.rope, pair.windowed.rope);
    if full == windowed {
        (vec![full], RopeIndex { full: 0, windowed: 0 })
    } else {
        (vec![full, windowed], RopeIndex { full: 0, windowed: 1 })
    }
}

fn activation(config: Fields, family: Family) -> Result<Activation, SpecError> {
    // Gemma's `hidden_act` is a leftover of its first release; `hidden_activation` is what runs.
    let field =
        if family.is_gemma() && config.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    match config.text_opt(field)? {
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(SpecError::unsupported(field, Value::from(other), "silu, gelu_pytorch_tanh")),
        None => Err(config.missing(field, "silu or gelu_pytorch_tanh")),
    }
}

fn softcap(config: Fields, family: Family, field: &str) -> Result<Option<f32>, SpecError> {
    let cap = config.positive_opt(field)?;
    if cap.is_some() && !family.is_gemma() {
        return Err(SpecError::unsupported(field, cap.unwrap_or_default(), "null for this model_type"));
    }
    Ok(cap.map(|cap| cap as f32))
}

struct Multipliers {
    attention: f64,
    embedding: f64,
    residual: f64,
    logits: f64,
}

impl Multipliers {
    fn parse(config: Fields, family: Family, hidden_size: usize, head_dim: usize) -> Result<Self, SpecError> {
        let plain = Self { attention: (head_dim as f64).powf(-0.5), embedding: 1.0, residual: 1.0, logits: 1.0 };
        Ok(match family {
            Family::Granite => Self {
                attention: config.positive("attention_multiplier")?,
                embedding: config.positive("embedding_multiplier")?,
                residual: config.positive("residual_multiplier")?,
                logits: 1.0 / config.positive("logits_scaling")?,
            },
            Family::Gemma2 | Family::Gemma3 => Self {
                attention: config.positive("query_pre_attn_scalar")?.powf(-0.5),
                embedding: (hidden_size as f64).sqrt(),
                ..plain
            },
            _ => plain,
        })
    }
}
