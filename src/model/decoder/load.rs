//! From tensors to a device's own matrices and vectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Decoder, Layer, Mlp, Scratch, Weights};
use crate::model::ops::{MoeWeights, Ops, Role};
use crate::model::spec::Spec;
use crate::model::weights::{LayerTensors, MlpTensors, Tensor, WeightsError, bind};

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
        let bound = bind(spec, tensors)?;
        let bytes = |tensor: &Tensor| tensor.data().len() as u64;
        let ignored: u64 = bound.ignored.iter().filter_map(|name| tensors.get(name)).map(bytes).sum();
        let total = tensors.values().map(bytes).sum::<u64>() - ignored;
        let mut loader = Loader { ops, spec, progress, done: 0, total };
        let weights = Weights {
            embedding: loader.matrix(Role::Embedding, std::slice::from_ref(&bound.embedding)),
            layers: bound.layers.iter().map(|layer| loader.layer(layer)).collect(),
            final_norm: loader.norm(&bound.final_norm),
            head: bound.head.as_ref().map(|head| loader.matrix(Role::Head, std::slice::from_ref(head))),
            ropes: spec.ropes.iter().map(|rope| loader.ops.load_rope(rope, spec.max_positions)).collect(),
            spec: spec.clone(),
        };
        Ok(Self { weights: Arc::new(weights), scratch: Scratch::new(ops), was_replayed: false })
    }
}

struct Loader<'a, O: Ops> {
    ops: &'a mut O,
    spec: &'a Spec,
    progress: Progress<'a>,
    done: u64,
    total: u64,
}

impl<O: Ops> Loader<'_, O> {
    fn count(&mut self, tensor: &Tensor) {
        self.done += tensor.data().len() as u64;
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
            o: self.matrix(Role::Projection, std::slice::from_ref(&tensors.o)),
            o_bias: tensors.o_bias.as_ref().map(|bias| self.vector(std::slice::from_ref(bias))),
            mlp: self.mlp(&tensors.mlp),
        }
    }

    fn mlp(&mut self, tensors: &MlpTensors) -> Mlp<O> {
        match tensors {
            MlpTensors::Dense { gate_up, gate_up_bias, down, down_bias } => Mlp::Dense {
                gate_up: self.matrix(Role::Projection, gate_up),
                gate_up_bias: gate_up_bias.as_ref().map(|parts| self.vector(parts)),
                down: self.matrix(Role::Projection, std::slice::from_ref(down)),
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
