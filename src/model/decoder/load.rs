//! From tensors to a device's own matrices and vectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Decoder, Layer, Mlp, Scratch, Weights};
use crate::model::ops::{MoeWeights, Ops, Role};
use crate::model::shard::Shard;
use crate::model::spec::Spec;
use crate::model::weights::{LayerTensors, MlpTensors, ModelTensors, Tensor, WeightsError, bind};

/// Called with bytes done and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

impl<O: Ops> Decoder<O> {
    /// Puts all weights on the device. Fails before touching it when a tensor is missing, left over or mis-shaped.
    pub fn load(
        ops: &mut O,
        spec: &Spec,
        tensors: &BTreeMap<String, Tensor>,
        progress: Progress,
    ) -> Result<Self, WeightsError> {
        Self::load_shard(ops, spec, tensors, Shard::WHOLE, progress)
    }

    /// The same for one rank's part of the model that `spec` and `tensors` are.
    pub fn load_shard(
        ops: &mut O,
        spec: &Spec,
        tensors: &BTreeMap<String, Tensor>,
        shard: Shard,
        progress: Progress,
    ) -> Result<Self, WeightsError> {
        let bound = shard.tensors(spec, bind(spec, tensors)?)?;
        let spec = &shard.spec(spec)?;
        let total = num_bytes(&bound);
        let mut loader = Loader { ops, spec, shard, progress, done: 0, total };
        let weights = Weights {
            embedding: loader.matrix(Role::Embedding, std::slice::from_ref(&bound.embedding)),
            layers: bound.layers.into_iter().map(|layer| loader.layer(&layer)).collect(),
            final_norm: loader.norm(&bound.final_norm),
            head: bound.head.as_ref().map(|head| loader.matrix(Role::Head, std::slice::from_ref(head))),
            ropes: spec.ropes.iter().map(|rope| loader.ops.load_rope(rope, spec.max_positions)).collect(),
            spec: spec.clone(),
            shard,
        };
        Ok(Self { weights: Arc::new(weights), scratch: Scratch::new(ops), was_replayed: false })
    }
}

fn num_bytes(model: &ModelTensors) -> u64 {
    let of = |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.num_bytes() as u64).sum::<u64>();
    let some = |tensor: &Option<Tensor>| of(tensor.as_slice());
    let list = |tensors: &Option<Vec<Tensor>>| of(tensors.as_deref().unwrap_or_default());
    let layer = |layer: &LayerTensors| {
        let LayerTensors { norms, qkv, qkv_bias, qk_norm, o, o_bias, mlp } = layer;
        let before = some(&norms.before_attention) + some(&norms.before_mlp);
        let norms = before + some(&norms.after_attention) + some(&norms.after_mlp);
        let qk_norm = qk_norm.as_ref().map_or(0, |(q, k)| (q.num_bytes() + k.num_bytes()) as u64);
        let mlp = match mlp {
            MlpTensors::Dense { gate_up, gate_up_bias, down, down_bias } => {
                of(gate_up) + list(gate_up_bias) + down.num_bytes() as u64 + some(down_bias)
            }
            MlpTensors::Moe { router, gate_up, down } => {
                router.num_bytes() as u64 + gate_up.iter().map(|parts| of(parts)).sum::<u64>() + of(down)
            }
        };
        norms + of(qkv) + list(qkv_bias) + qk_norm + o.num_bytes() as u64 + some(o_bias) + mlp
    };
    let ModelTensors { embedding, layers, final_norm, head, .. } = model;
    let ends = (embedding.num_bytes() + final_norm.num_bytes()) as u64 + some(head);
    ends + layers.iter().map(layer).sum::<u64>()
}

struct Loader<'a, O: Ops> {
    ops: &'a mut O,
    spec: &'a Spec,
    shard: Shard,
    progress: Progress<'a>,
    done: u64,
    total: u64,
}

impl<O: Ops> Loader<'_, O> {
    fn count(&mut self, tensor: &Tensor) {
        self.done += tensor.num_bytes() as u64;
        (self.progress)(self.done, self.total);
    }

    fn matrix(&mut self, role: Role, parts: &[Tensor]) -> O::Matrix {
        let matrix = self.ops.load_matrix(role, parts);
        parts.iter().for_each(|part| self.count(part));
        matrix
    }

    fn experts<'t>(&mut self, experts: impl Iterator<Item = &'t [Tensor]>) -> O::Experts {
        let matrices = experts.map(|parts| self.matrix(Role::Projection, parts)).collect();
        self.ops.load_experts(matrices)
    }

    fn vector(&mut self, parts: &[Tensor]) -> O::Vector {
        let values: Vec<f32> = parts.iter().flat_map(Tensor::to_f32).collect();
        parts.iter().for_each(|part| self.count(part));
        self.ops.load_vector(&values)
    }

    fn norm(&mut self, tensor: &Tensor) -> O::Vector {
        let offset = if self.spec.norm_unit_offset { 1.0 } else { 0.0 };
        let values: Vec<f32> = tensor.to_f32().iter().map(|w| w + offset).collect();
        self.count(tensor);
        self.ops.load_vector(&values)
    }

    /// The role of what adds to the residual stream.
    fn summed(&self) -> Role {
        if self.shard.is_whole() { Role::Projection } else { Role::Partial }
    }

    fn layer(&mut self, tensors: &LayerTensors) -> Layer<O> {
        let norms = &tensors.norms;
        Layer {
            before_attention: norms.before_attention.as_ref().map(|norm| self.norm(norm)),
            after_attention: norms.after_attention.as_ref().map(|norm| self.norm(norm)),
            before_mlp: norms.before_mlp.as_ref().map(|norm| self.norm(norm)),
            after_mlp: norms.after_mlp.as_ref().map(|norm| self.norm(norm)),
            qkv: self.matrix(Role::Projection, &tensors.qkv),
            qkv_bias: tensors.qkv_bias.as_ref().map(|parts| self.vector(parts)),
            qk_norm: tensors.qk_norm.as_ref().map(|(q, k)| (self.norm(q), self.norm(k))),
            o: self.matrix(self.summed(), std::slice::from_ref(&tensors.o)),
            o_bias: tensors.o_bias.as_ref().map(|bias| self.vector(std::slice::from_ref(bias))),
            mlp: self.mlp(&tensors.mlp),
        }
    }

    fn mlp(&mut self, tensors: &MlpTensors) -> Mlp<O> {
        match tensors {
            MlpTensors::Dense { gate_up, gate_up_bias, down, down_bias } => Mlp::Dense {
                gate_up: self.matrix(Role::Projection, gate_up),
                gate_up_bias: gate_up_bias.as_ref().map(|parts| self.vector(parts)),
                down: self.matrix(self.summed(), std::slice::from_ref(down)),
                down_bias: down_bias.as_ref().map(|bias| self.vector(std::slice::from_ref(bias))),
            },
            MlpTensors::Moe { router, gate_up, down } => Mlp::Moe(MoeWeights {
                router: self.matrix(Role::Router, std::slice::from_ref(router)),
                gate_up: self.experts(gate_up.iter().map(Vec::as_slice)),
                down: self.experts(down.iter().map(std::slice::from_ref)),
            }),
        }
    }
}
