//! Rotary embeddings: from the ways config.json has of saying it to plain frequencies.
//!
//! Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753), and for the
//! Llama 3 scaling Meta's release; parameter names and defaults as transformers documents them.

use std::f64::consts::PI;

use serde_json::Value;

use super::family::Family;
use super::fields::Fields;
use super::{RopeSpec, SpecError};

const SUPPORTED: &str = "default, linear, llama3, yarn, longrope";

/// What every rope of a model depends on besides its own parameters.
pub(super) struct RopeContext {
    pub family: Family,
    pub head_dim: usize,
    /// `max_position_embeddings`.
    pub trained_positions: usize,
    /// The context length that will be served, if it was chosen.
    pub max_model_len: Option<usize>,
}

/// One rope and what it says about the context length.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ResolvedRope {
    pub rope: RopeSpec,
    /// Longest sequence by default, and at most.
    pub default_positions: usize,
    pub max_positions: usize,
}

/// The ropes of a model: of its full-attention layers, and of its windowed ones.
pub(super) struct RopePair {
    pub full: ResolvedRope,
    pub windowed: ResolvedRope,
}

pub(super) fn parse(config: Fields, context: &RopeContext) -> Result<RopePair, SpecError> {
    let shared = Shared { config, context };
    if let Some(parameters) = config.object_opt("rope_parameters")? {
        let fields = Fields::new(parameters, "rope_parameters")?;
        let is_per_type = fields.get("full_attention").is_some() || fields.get("sliding_attention").is_some();
        if !is_per_type && context.family != Family::Gemma3 {
            let rope = shared.resolve(Some(fields), None)?;
            return Ok(RopePair { full: rope.clone(), windowed: rope });
        }
        let of = |name: &'static str, path: &'static str| {
            let value = fields.object_opt(name)?.ok_or_else(|| fields.missing(name, "an object of rope parameters"))?;
            let own = Fields::new(value, path)?;
            shared.resolve(Some(own), Some(own.positive("rope_theta")?))
        };
        let full = of("full_attention", "rope_parameters.full_attention")?;
        let windowed = of("sliding_attention", "rope_parameters.sliding_attention")?;
        return Ok(RopePair { full, windowed });
    }
    let scaling = match config.object_opt("rope_scaling")? {
        Some(value) => Some(Fields::new(value, "rope_scaling")?),
        None => None,
    };
    let full = shared.resolve(scaling, None)?;
    let windowed = match context.family {
        Family::Gemma3 => shared.resolve(None, Some(config.positive("rope_local_base_freq")?))?,
        _ => full.clone(),
    };
    Ok(RopePair { full, windowed })
}

struct Shared<'a> {
    config: Fields<'a>,
    context: &'a RopeContext,
}

impl Shared<'_> {
    fn resolve(&self, own: Option<Fields>, theta: Option<f64>) -> Result<ResolvedRope, SpecError> {
        let theta = match theta {
            Some(theta) => theta,
            None => self.theta(own)?,
        };
        if theta <= 1.0 {
            return Err(SpecError::invalid("rope_theta", theta, "a number above 1"));
        }
        let dim = self.rotary_dim(own)?;
        let plain: Vec<f64> = (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect();
        let trained = self.context.trained_positions;
        let kind = match own {
            Some(fields) => self.kind(fields)?,
            None => "default",
        };
        let mut resolved = ResolvedRope {
            rope: RopeSpec { rotary_dim: dim, inv_freq: Vec::new(), attention_factor: 1.0 },
            default_positions: trained,
            max_positions: trained,
        };
        let inv_freq = match (kind, own) {
            ("default", _) => plain,
            ("linear", Some(fields)) => {
                let factor = fields.positive("factor")?;
                // Checkpoints disagree on whether `max_position_embeddings` already holds the factor: serve the
                // smaller by default, allow the larger.
                if self.context.family != Family::Gemma3 {
                    resolved.max_positions = scale_positions(trained, factor);
                }
                plain.iter().map(|f| f / factor).collect()
            }
            ("llama3", Some(fields)) => llama3(fields, &plain)?,
            ("yarn", Some(fields)) => {
                let yarn = Yarn::parse(self, fields, theta)?;
                resolved.rope.attention_factor = yarn.attention_factor as f32;
                resolved.max_positions = trained.max(scale_positions(yarn.original_positions, yarn.factor));
                resolved.default_positions = resolved.max_positions;
                yarn.frequencies(&plain)
            }
            ("longrope", Some(fields)) => self.longrope(fields, &plain, &mut resolved)?,
            _ => unreachable!("Shared::kind returns only the names above"),
        };
        resolved.rope.inv_freq = inv_freq.iter().map(|f| *f as f32).collect();
        if !resolved.rope.inv_freq.iter().all(|f| f.is_finite() && *f > 0.0) {
            return Err(SpecError::invalid(
                "rope_theta",
                theta,
                "rope parameters that give finite frequencies above 0",
            ));
        }
        Ok(resolved)
    }

    fn theta(&self, own: Option<Fields>) -> Result<f64, SpecError> {
        if let Some(fields) = own
            && let Some(theta) = fields.positive_opt("rope_theta")?
        {
            return Ok(theta);
        }
        match (self.config.positive_opt("rope_theta")?, self.context.family) {
            (Some(theta), _) => Ok(theta),
            // The first Llama checkpoints were written before the field existed.
            (None, Family::Llama) => Ok(10_000.0),
            (None, _) => Err(self.config.missing("rope_theta", "a number above 1 (or rope_parameters.rope_theta)")),
        }
    }

    fn rotary_dim(&self, own: Option<Fields>) -> Result<usize, SpecError> {
        let own_factor = match own {
            Some(fields) => fields.positive_opt("partial_rotary_factor")?,
            None => None,
        };
        let factor = own_factor.or(self.config.positive_opt("partial_rotary_factor")?).unwrap_or(1.0);
        let dim = (self.context.head_dim as f64 * factor) as usize;
        if factor > 1.0 || dim < 2 || !dim.is_multiple_of(2) {
            let expected = format!("a factor that gives an even part of head_dim {}", self.context.head_dim);
            return Err(SpecError::invalid("partial_rotary_factor", factor, expected));
        }
        Ok(dim)
    }

    fn kind(&self, fields: Fields) -> Result<&'static str, SpecError> {
        let (name, kind) = match (fields.text_opt("rope_type")?, fields.text_opt("type")?) {
            (Some(kind), _) => ("rope_type", kind),
            (None, Some(kind)) => ("type", kind),
            (None, None) => return Err(fields.missing("rope_type", &format!("one of {SUPPORTED}"))),
        };
        match kind {
            "default" => Ok("default"),
            "linear" => Ok("linear"),
            "llama3" => Ok("llama3"),
            // Phi-3's first releases called their long-context scaling "yarn" too.
            "yarn" if self.context.family != Family::Phi3 => Ok("yarn"),
            "longrope" => Ok("longrope"),
            "su" if self.context.family == Family::Phi3 => Ok("longrope"),
            other => Err(SpecError::unsupported(fields.name(name), Value::from(other), SUPPORTED)),
        }
    }

    fn original_positions(&self, fields: Fields) -> Result<Option<usize>, SpecError> {
        let field = "original_max_position_embeddings";
        match fields.count_opt(field, MAX_POSITIONS)? {
            Some(n) => Ok(Some(n)),
            None => self.config.count_opt(field, MAX_POSITIONS),
        }
    }

    /// Short or long factors are chosen once, by the context length served: cached keys must not change their meaning
    /// when a sequence crosses the border.
    fn longrope(&self, fields: Fields, plain: &[f64], out: &mut ResolvedRope) -> Result<Vec<f64>, SpecError> {
        let trained = self.context.trained_positions;
        let original = self
            .original_positions(fields)?
            .ok_or_else(|| fields.missing("original_max_position_embeddings", "an integer of at least 1"))?;
        for field in ["short_mscale", "long_mscale"] {
            if let Some(value) = fields.get(field) {
                return Err(SpecError::unsupported(fields.name(field), value, "attention_factor"));
            }
        }
        let is_long = self.context.max_model_len.unwrap_or(trained) > original;
        let read = |field: &str| {
            let expected = "a finite number above 0";
            fields
                .list_of(field, plain.len(), expected, |v| v.as_f64().filter(|x| x.is_finite() && *x > 0.0))?
                .ok_or_else(|| fields.missing(field, &format!("{} numbers", plain.len())))
        };
        let (short, long) = (read("short_factor")?, read("long_factor")?);
        let factor = fields.positive_opt("factor")?.unwrap_or(trained as f64 / original as f64);
        let attention_factor = match fields.positive_opt("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 || original < 2 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        out.rope.attention_factor = attention_factor as f32;
        if !is_long {
            out.default_positions = trained.min(original);
        }
        let chosen = if is_long { long } else { short };
        Ok(plain.iter().zip(&chosen).map(|(f, by)| f / by).collect())
    }
}

/// Rope tables are that long: a bound for numbers from a file.
pub(super) const MAX_POSITIONS: usize = 1 << 24;

fn scale_positions(positions: usize, factor: f64) -> usize {
    ((positions as f64 * factor) as usize).clamp(1, MAX_POSITIONS)
}

/// Low frequencies are divided by `factor`, high ones kept, those between blended.
fn llama3(fields: Fields, plain: &[f64]) -> Result<Vec<f64>, SpecError> {
    let factor = fields.positive("factor")?;
    let low = fields.positive("low_freq_factor")?;
    let high = fields.positive("high_freq_factor")?;
    let original = fields.count("original_max_position_embeddings", MAX_POSITIONS)? as f64;
    if high <= low {
        return Err(SpecError::invalid(fields.name("high_freq_factor"), high, format!("above low_freq_factor {low}")));
    }
    let scale = |f: &f64| {
        let turns = original * f / (2.0 * PI);
        if turns < low {
            f / factor
        } else if turns > high {
            *f
        } else {
            let keep = (turns - low) / (high - low);
            (1.0 - keep) * f / factor + keep * f
        }
    };
    Ok(plain.iter().map(scale).collect())
}

struct Yarn {
    factor: f64,
    original_positions: usize,
    attention_factor: f64,
    /// Frequencies below `low` are kept, above `high` divided, blended between.
    low: f64,
    high: f64,
}

impl Yarn {
    fn parse(shared: &Shared, fields: Fields, theta: f64) -> Result<Self, SpecError> {
        let factor = fields.positive("factor")?;
        let original_positions = shared.original_positions(fields)?.unwrap_or(shared.context.trained_positions);
        let mscale = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let given = fields.positive_opt("attention_factor")?;
        let attention_factor = match (given, fields.positive_opt("mscale")?, fields.positive_opt("mscale_all_dim")?) {
            (Some(given), _, _) => given,
            (None, Some(one), Some(all)) => mscale(one) / mscale(all),
            _ => mscale(1.0),
        };
        let dim = shared.rotary_dim(Some(fields))? as f64;
        // The (fractional) index of the frequency that turns `turns` times within the original context.
        let index = |turns: f64| dim * (original_positions as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let mut low = index(fields.positive_opt("beta_fast")?.unwrap_or(32.0));
        let mut high = index(fields.positive_opt("beta_slow")?.unwrap_or(1.0));
        if fields.flag("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        Ok(Self { factor, original_positions, attention_factor, low, high })
    }

    fn frequencies(&self, plain: &[f64]) -> Vec<f64> {
        let blend = |(i, f): (usize, &f64)| {
            let interpolate = ((i as f64 - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
            f / self.factor * interpolate + f * (1.0 - interpolate)
        };
        plain.iter().enumerate().map(blend).collect()
    }
}
