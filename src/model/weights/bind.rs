//! Gives every tensor of a checkpoint its place in the decoder, or says which one has none.
//!
//! Owns the names that Hugging Face checkpoints use. Invariant: a [`ModelTensors`] that exists has every tensor that
//! its [`Spec`] asks for, in the right shape, and no tensor of the checkpoint was left over in silence.

use std::collections::{BTreeMap, BTreeSet};

use super::{Tensor, WeightsError};
use crate::model::spec::{LayerSpec, MlpSpec, MoeSpec, NormPlacement, QkNorm, Spec};

/// The tensors of a decoder. A matrix or vector may come in parts that are stacked by rows, in the order given.
pub struct ModelTensors {
    /// `[vocab, hidden]`
    pub embedding: Tensor,
    pub layers: Vec<LayerTensors>,
    /// `[hidden]`
    pub final_norm: Tensor,
    /// `[vocab, hidden]`; `None` where the embedding serves.
    pub head: Option<Tensor>,
    /// Names of harmless tensors that are not used, for the log.
    pub ignored: Vec<String>,
}

pub struct LayerTensors {
    pub norms: NormTensors,
    /// q, k and v: `[qkv_width, hidden]`.
    pub qkv: Vec<Tensor>,
    pub qkv_bias: Option<Vec<Tensor>>,
    /// `[q_width]` and `[kv_width]`, or `[head_dim]` both.
    pub qk_norm: Option<(Tensor, Tensor)>,
    /// `[hidden, q_width]`
    pub o: Tensor,
    pub o_bias: Option<Tensor>,
    pub mlp: MlpTensors,
}

/// `[hidden]` each: what is normalised before and after attention and MLP.
pub struct NormTensors {
    pub before_attention: Option<Tensor>,
    pub after_attention: Option<Tensor>,
    pub before_mlp: Option<Tensor>,
    pub after_mlp: Option<Tensor>,
}

pub enum MlpTensors {
    Dense {
        gate_up: Vec<Tensor>,
        gate_up_bias: Option<Vec<Tensor>>,
        down: Tensor,
        down_bias: Option<Tensor>,
    },
    /// Per expert: `[2 * intermediate, hidden]` in parts, and `[hidden, intermediate]`.
    Moe {
        router: Tensor,
        gate_up: Vec<Vec<Tensor>>,
        down: Vec<Tensor>,
    },
}

/// Binds all tensors; every one of them must be used or be known as harmless.
pub fn bind(spec: &Spec, tensors: &BTreeMap<String, Tensor>) -> Result<ModelTensors, WeightsError> {
    let mut binder = Binder { spec, tensors, used: BTreeSet::new() };
    let embedding = binder.take(EMBEDDING, &[spec.vocab_size, spec.hidden_size])?;
    let layers = spec.layers.iter().enumerate().map(|(i, layer)| binder.layer(i, layer)).collect::<Result<_, _>>()?;
    let final_norm = binder.take("model.norm.weight", &[spec.hidden_size])?;
    let head = match spec.tied_head {
        true => None,
        false => Some(binder.take(HEAD, &[spec.vocab_size, spec.hidden_size])?),
    };
    let ignored = binder.leftovers(&embedding)?;
    Ok(ModelTensors { embedding, layers, final_norm, head, ignored })
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const NAMES_IN_ERROR: usize = 3;

struct Binder<'a> {
    spec: &'a Spec,
    tensors: &'a BTreeMap<String, Tensor>,
    used: BTreeSet<&'a str>,
}

impl<'a> Binder<'a> {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        let Some((name, tensor)) = self.tensors.get_key_value(name) else {
            let hint = match name {
                HEAD => " (config.json says that the head is not tied to the embedding)",
                _ => "",
            };
            return Err(WeightsError::Missing { tensor: name.into(), hint: hint.into() });
        };
        if tensor.shape != shape {
            let (found, expected) = (tensor.shape.clone(), shape.to_vec());
            return Err(WeightsError::Shape { tensor: name.clone(), found, expected });
        }
        self.used.insert(name);
        Ok(tensor.clone())
    }

    fn take_if(&mut self, wanted: bool, name: &str, shape: &[usize]) -> Result<Option<Tensor>, WeightsError> {
        if wanted { self.take(name, shape).map(Some) } else { Ok(None) }
    }

    fn layer(&mut self, index: usize, layer: &LayerSpec) -> Result<LayerTensors, WeightsError> {
        let spec = self.spec;
        let (at, hidden) = (format!("model.layers.{index}"), spec.hidden_size);
        let attention = format!("{at}.self_attn");
        let qk_norm = match spec.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some((spec.head_dim, spec.head_dim)),
            QkNorm::WholeRow => Some((spec.q_width(), spec.kv_width())),
        };
        let qk_norm = match qk_norm {
            Some((q, k)) => Some((
                self.take(&format!("{attention}.q_norm.weight"), &[q])?,
                self.take(&format!("{attention}.k_norm.weight"), &[k])?,
            )),
            None => None,
        };
        Ok(LayerTensors {
            norms: self.norms(&at)?,
            qkv: self.qkv(&attention)?,
            qkv_bias: self.qkv_bias(&attention)?,
            qk_norm,
            o: self.take(&format!("{attention}.o_proj.weight"), &[hidden, spec.q_width()])?,
            o_bias: self.take_if(spec.o_bias, &format!("{attention}.o_proj.bias"), &[hidden])?,
            mlp: match &layer.mlp {
                MlpSpec::Dense { intermediate_size } => self.dense(&format!("{at}.mlp"), *intermediate_size)?,
                MlpSpec::Moe(moe) => self.moe(&at, moe)?,
            },
        })
    }

    /// `post_attention_layernorm` means three different places.
    fn norms(&mut self, at: &str) -> Result<NormTensors, WeightsError> {
        let (hidden, placement) = ([self.spec.hidden_size], self.spec.norm_placement);
        let mut norm = |name: &str| self.take(&format!("{at}.{name}.weight"), &hidden).map(Some);
        Ok(match placement {
            NormPlacement::Pre => NormTensors {
                before_attention: norm("input_layernorm")?,
                after_attention: None,
                before_mlp: norm("post_attention_layernorm")?,
                after_mlp: None,
            },
            NormPlacement::Sandwich => NormTensors {
                before_attention: norm("input_layernorm")?,
                after_attention: norm("post_attention_layernorm")?,
                before_mlp: norm("pre_feedforward_layernorm")?,
                after_mlp: norm("post_feedforward_layernorm")?,
            },
            NormPlacement::Post => NormTensors {
                before_attention: None,
                after_attention: norm("post_attention_layernorm")?,
                before_mlp: None,
                after_mlp: norm("post_feedforward_layernorm")?,
            },
        })
    }

    fn qkv(&mut self, at: &str) -> Result<Vec<Tensor>, WeightsError> {
        let spec = self.spec;
        let fused = format!("{at}.qkv_proj.weight");
        if self.has(&fused) {
            return Ok(vec![self.take(&fused, &[spec.qkv_width(), spec.hidden_size])?]);
        }
        let parts = [("q", spec.q_width()), ("k", spec.kv_width()), ("v", spec.kv_width())];
        parts.iter().map(|(part, n)| self.take(&format!("{at}.{part}_proj.weight"), &[*n, spec.hidden_size])).collect()
    }

    fn qkv_bias(&mut self, at: &str) -> Result<Option<Vec<Tensor>>, WeightsError> {
        let spec = self.spec;
        if !spec.qkv_bias {
            return Ok(None);
        }
        let fused = format!("{at}.qkv_proj.bias");
        if self.has(&fused) {
            return Ok(Some(vec![self.take(&fused, &[spec.qkv_width()])?]));
        }
        let parts = [("q", spec.q_width()), ("k", spec.kv_width()), ("v", spec.kv_width())];
        parts
            .iter()
            .map(|(part, n)| self.take(&format!("{at}.{part}_proj.bias"), &[*n]))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn dense(&mut self, at: &str, width: usize) -> Result<MlpTensors, WeightsError> {
        let (hidden, has_bias) = (self.spec.hidden_size, self.spec.mlp_bias);
        let gate_up_bias = match has_bias {
            true => Some(vec![
                self.take(&format!("{at}.gate_proj.bias"), &[width])?,
                self.take(&format!("{at}.up_proj.bias"), &[width])?,
            ]),
            false => None,
        };
        let fused = format!("{at}.gate_up_proj.weight");
        let gate_up = match self.has(&fused) {
            true => vec![self.take(&fused, &[2 * width, hidden])?],
            false => vec![
                self.take(&format!("{at}.gate_proj.weight"), &[width, hidden])?,
                self.take(&format!("{at}.up_proj.weight"), &[width, hidden])?,
            ],
        };
        let down = self.take(&format!("{at}.down_proj.weight"), &[hidden, width])?;
        let down_bias = self.take_if(has_bias, &format!("{at}.down_proj.bias"), &[hidden])?;
        Ok(MlpTensors::Dense { gate_up, gate_up_bias, down, down_bias })
    }

    /// Experts lie one by one, or fused into one tensor of three dimensions.
    fn moe(&mut self, at: &str, moe: &MoeSpec) -> Result<MlpTensors, WeightsError> {
        let (hidden, width, count) = (self.spec.hidden_size, moe.intermediate_size, moe.num_experts);
        let mixtral = format!("{at}.block_sparse_moe");
        let is_mixtral = self.has(&format!("{mixtral}.gate.weight"));
        let at = if is_mixtral { mixtral } else { format!("{at}.mlp") };
        let (gate, up, down) = match is_mixtral {
            true => ("w1", "w3", "w2"),
            false => ("gate_proj", "up_proj", "down_proj"),
        };
        let router = self.take(&format!("{at}.gate.weight"), &[count, hidden])?;
        let fused = format!("{at}.experts.gate_up_proj");
        if self.has(&fused) {
            let gate_up = self.take(&fused, &[count, 2 * width, hidden])?;
            let down = self.take(&format!("{at}.experts.down_proj"), &[count, hidden, width])?;
            let gate_up = (0..count).map(|i| vec![gate_up.index(i)]).collect();
            return Ok(MlpTensors::Moe { router, gate_up, down: (0..count).map(|i| down.index(i)).collect() });
        }
        let (mut gate_up_parts, mut down_parts) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for i in 0..count {
            let expert = format!("{at}.experts.{i}");
            gate_up_parts.push(vec![
                self.take(&format!("{expert}.{gate}.weight"), &[width, hidden])?,
                self.take(&format!("{expert}.{up}.weight"), &[width, hidden])?,
            ]);
            down_parts.push(self.take(&format!("{expert}.{down}.weight"), &[hidden, width])?);
        }
        Ok(MlpTensors::Moe { router, gate_up: gate_up_parts, down: down_parts })
    }

    /// Real checkpoints carry a few tensors that nobody reads; anything else means that this is another model.
    fn leftovers(&self, embedding: &Tensor) -> Result<Vec<String>, WeightsError> {
        let (mut harmless, mut extra) = (Vec::new(), Vec::new());
        for (name, tensor) in self.tensors.iter().filter(|(name, _)| !self.used.contains(name.as_str())) {
            if name == HEAD && self.spec.tied_head {
                if tensor.shape != embedding.shape
                    || tensor.dtype != embedding.dtype
                    || tensor.data() != embedding.data()
                {
                    return Err(WeightsError::Untied { tensor: name.clone(), twin: EMBEDDING.into() });
                }
                harmless.push(name.clone());
            } else if name.ends_with(".rotary_emb.inv_freq") {
                harmless.push(name.clone());
            } else {
                extra.push(name.as_str());
            }
        }
        if extra.is_empty() {
            return Ok(harmless);
        }
        let names: Vec<String> = extra.iter().take(NAMES_IN_ERROR).map(|name| format!("`{name}`")).collect();
        Err(WeightsError::Extra { count: extra.len(), names: names.join(", ") })
    }
}
