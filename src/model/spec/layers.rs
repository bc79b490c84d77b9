//! What differs from layer to layer: windows, rope or none, dense or routed MLP.

use serde_json::Value;

use super::family::Family;
use super::fields::Fields;
use super::{LayerSpec, MlpSpec, MoeSpec, SpecError};

const MAX_WIDTH: usize = 1 << 24;
const MAX_EXPERTS: usize = 4096;

/// Index of the rope of full-attention layers and of windowed layers in [`super::Spec::ropes`].
pub(super) struct RopeIndex {
    pub full: usize,
    pub windowed: usize,
}

pub(super) fn parse(
    config: Fields,
    family: Family,
    num_layers: usize,
    ropes: &RopeIndex,
) -> Result<Vec<LayerSpec>, SpecError> {
    let has_rope = rope_layers(config, family, num_layers)?;
    let windows = windows(config, family, &has_rope)?;
    (0..num_layers)
        .map(|i| {
            let rope = if windows[i].is_some() { ropes.windowed } else { ropes.full };
            Ok(LayerSpec { window: windows[i], rope: has_rope[i].then_some(rope), mlp: mlp(config, family, i)? })
        })
        .collect()
}

/// SmolLM3 leaves every n-th layer without rope (`no_rope_layers` is 1 where there *is* rope).
fn rope_layers(config: Fields, family: Family, num_layers: usize) -> Result<Vec<bool>, SpecError> {
    if family != Family::SmolLm3 {
        return Ok(vec![true; num_layers]);
    }
    let read = |value: &Value| value.as_u64().filter(|n| *n <= 1).map(|n| n == 1);
    if let Some(list) = config.list_of("no_rope_layers", num_layers, "0 or 1", read)? {
        return Ok(list);
    }
    let interval = config.count("no_rope_layer_interval", 1 << 16)?;
    Ok((0..num_layers).map(|i| (i + 1) % interval != 0).collect())
}

fn windows(config: Fields, family: Family, has_rope: &[bool]) -> Result<Vec<Option<usize>>, SpecError> {
    let num_layers = has_rope.len();
    let computed = if family.reads_layer_types() && config.get("layer_types").is_some() {
        None
    } else {
        Some(windowed_by_rule(config, family, has_rope)?)
    };
    let listed =
        config.list_of(
            "layer_types",
            num_layers,
            "\"full_attention\" or \"sliding_attention\"",
            |value| match value.as_str() {
                Some("full_attention") => Some(false),
                Some("sliding_attention") => Some(true),
                _ => None,
            },
        )?;
    let windowed = match (computed, listed) {
        (Some(rule), Some(list)) if rule != list => {
            let value = Value::from(list.iter().map(|w| u64::from(*w)).collect::<Vec<_>>());
            return Err(SpecError::unsupported(
                "layer_types",
                format!("{value} (1: sliding)"),
                "the pattern that this model_type implies",
            ));
        }
        (Some(rule), _) => rule,
        (None, Some(list)) => list,
        (None, None) => unreachable!("the rule is computed when there is no list"),
    };
    if !windowed.contains(&true) {
        return Ok(vec![None; num_layers]);
    }
    if matches!(family, Family::Qwen2 | Family::Qwen3) && !config.flag("use_sliding_window", false)? {
        return Err(SpecError::invalid("use_sliding_window", "false", "true, as layer_types has sliding layers"));
    }
    let window = config.count("sliding_window", MAX_WIDTH)?;
    Ok(windowed.iter().map(|w| w.then_some(window)).collect())
}

/// Which layers are windowed when config.json does not list them.
fn windowed_by_rule(config: Fields, family: Family, has_rope: &[bool]) -> Result<Vec<bool>, SpecError> {
    let num_layers = has_rope.len();
    let all = |windowed: bool| vec![windowed; num_layers];
    let has_window = config.get("sliding_window").is_some();
    Ok(match family {
        Family::Llama | Family::Olmo2 | Family::Granite => all(false),
        Family::Mistral | Family::Mixtral | Family::Phi3 => all(has_window),
        Family::Qwen2 | Family::Qwen3 => {
            if !config.flag("use_sliding_window", false)? || !has_window {
                return Ok(all(false));
            }
            let field = "max_window_layers";
            let first = match config.get(field) {
                Some(value) => {
                    value.as_u64().ok_or_else(|| SpecError::invalid(field, value, "an integer of at least 0"))?
                }
                None => return Err(config.missing(field, "an integer of at least 0")),
            };
            (0..num_layers).map(|i| i as u64 >= first).collect()
        }
        Family::Qwen3Moe => {
            if config.flag("use_sliding_window", false)? {
                return Err(SpecError::unsupported("use_sliding_window", "true", "false for qwen3_moe"));
            }
            all(false)
        }
        Family::Gemma2 => (0..num_layers).map(|i| i % 2 == 0).collect(),
        Family::Gemma3 => {
            let max = 1 << 16;
            let pattern = match config.count_opt("sliding_window_pattern", max)? {
                Some(pattern) => pattern,
                None => config.count_opt("_sliding_window_pattern", max)?.ok_or_else(|| {
                    config.missing("sliding_window_pattern", "an integer of at least 1 (or layer_types)")
                })?,
            };
            (0..num_layers).map(|i| (i + 1) % pattern != 0).collect()
        }
        Family::SmolLm3 => {
            let is_used = config.flag("use_sliding_window", false)? && has_window;
            has_rope.iter().map(|rope| is_used && !rope).collect()
        }
    })
}

fn mlp(config: Fields, family: Family, layer: usize) -> Result<MlpSpec, SpecError> {
    match family {
        Family::Mixtral => {
            let width = config.count("intermediate_size", MAX_WIDTH)?;
            moe(config, "num_local_experts", width, true).map(MlpSpec::Moe)
        }
        Family::Qwen3Moe if is_routed(config, layer)? => {
            let count = if config.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
            let width = config.count("moe_intermediate_size", MAX_WIDTH)?;
            if config.get("norm_topk_prob").is_none() {
                return Err(config.missing("norm_topk_prob", "true or false"));
            }
            moe(config, count, width, config.flag("norm_topk_prob", false)?).map(MlpSpec::Moe)
        }
        _ => Ok(MlpSpec::Dense { intermediate_size: config.count("intermediate_size", MAX_WIDTH)? }),
    }
}

fn is_routed(config: Fields, layer: usize) -> Result<bool, SpecError> {
    let every = config.count_opt("decoder_sparse_step", 1 << 16)?.unwrap_or(1);
    let mut is_listed = false;
    for value in config.list_opt("mlp_only_layers")?.unwrap_or_default() {
        let index = value.as_u64().ok_or_else(|| SpecError::invalid("mlp_only_layers", value, "layer numbers"))?;
        is_listed |= index == layer as u64;
    }
    Ok(!is_listed && (layer + 1).is_multiple_of(every))
}

fn moe(config: Fields, count: &str, intermediate_size: usize, renormalise: bool) -> Result<MoeSpec, SpecError> {
    let num_experts = config.count(count, MAX_EXPERTS)?;
    let experts_per_token = config.count("num_experts_per_tok", MAX_EXPERTS)?;
    if experts_per_token > num_experts {
        let expected = format!("at most {count} {num_experts}");
        return Err(SpecError::invalid("num_experts_per_tok", experts_per_token, expected));
    }
    Ok(MoeSpec { num_experts, experts_per_token, intermediate_size, renormalise })
}
