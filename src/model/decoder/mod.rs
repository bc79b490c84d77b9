//! The forward pass: one, for every architecture and every device.
//!
//! Owns the order of operations. Never knows how a device computes one, nor which sequence a row belongs to.
//!
//! Invariant: what is computed for a row depends on the [`Batch`] only through that row's own sequence (see the
//! contract of [`Ops`]).

mod load;

pub use load::Progress;

use std::sync::Arc;

use super::ops::{Batch, Begun, DeviceError, MoeWeights, Ops, QkNormWeights};
use super::shard::Shard;
use super::spec::{LayerSpec, MlpSpec, QkNorm, Spec};

/// A model on a device: shared weights, and activations of its own.
pub struct Decoder<O: Ops> {
    weights: Arc<Weights<O>>,
    scratch: Scratch<O>,
    /// Whether the device had kept the last step's operations.
    was_replayed: bool,
}

/// Immutable after loading; lanes of one device share it.
struct Weights<O: Ops> {
    /// Of this shard.
    spec: Spec,
    shard: Shard,
    /// `[vocab, hidden]`
    embedding: O::Matrix,
    layers: Vec<Layer<O>>,
    /// `[hidden]`
    final_norm: O::Vector,
    /// `None` where the embedding serves.
    head: Option<O::Matrix>,
    /// As [`Spec::ropes`].
    ropes: Vec<O::Rope>,
}

struct Layer<O: Ops> {
    before_attention: Option<O::Vector>,
    after_attention: Option<O::Vector>,
    before_mlp: Option<O::Vector>,
    after_mlp: Option<O::Vector>,
    /// `[qkv_width, hidden]`
    qkv: O::Matrix,
    qkv_bias: Option<O::Vector>,
    qk_norm: Option<(O::Vector, O::Vector)>,
    /// `[hidden, q_width]`
    o: O::Matrix,
    o_bias: Option<O::Vector>,
    mlp: Mlp<O>,
}

enum Mlp<O: Ops> {
    /// `[2 * intermediate, hidden]` and `[hidden, intermediate]`.
    Dense {
        gate_up: O::Matrix,
        gate_up_bias: Option<O::Vector>,
        down: O::Matrix,
        down_bias: Option<O::Vector>,
    },
    Moe(MoeWeights<O::Matrix, O::Experts>),
}

/// Activations, kept between steps so that a step allocates nothing.
struct Scratch<O: Ops> {
    /// The residual stream, `[rows, hidden]`.
    stream: O::Rows,
    normed: O::Rows,
    qkv: O::Rows,
    attended: O::Rows,
    gate_up: O::Rows,
    gated: O::Rows,
    /// What a block adds to the stream.
    delta: O::Rows,
    logits: O::Rows,
    gathered: O::Rows,
    step: O::Step,
    /// What a step keeps for its last layer: the rows whose logits are wanted.
    wanted: Batch,
    last_step: O::Step,
}

impl<O: Ops> Scratch<O> {
    fn new(ops: &mut O) -> Self {
        Self {
            stream: ops.new_rows(),
            normed: ops.new_rows(),
            qkv: ops.new_rows(),
            attended: ops.new_rows(),
            gate_up: ops.new_rows(),
            gated: ops.new_rows(),
            delta: ops.new_rows(),
            logits: ops.new_rows(),
            gathered: ops.new_rows(),
            step: ops.new_step(),
            wanted: Batch::default(),
            last_step: ops.new_step(),
        }
    }
}

impl<O: Ops> Scratch<O> {
    fn prepare(&mut self, ops: &mut O, batch: &Batch) {
        ops.prepare(batch, &mut self.step);
        if keeps_some(batch) {
            batch.wanted(&mut self.wanted);
            ops.prepare(&self.wanted, &mut self.last_step);
        }
    }

    /// Behind the last layer's keys and values only the rows whose logits are wanted count: the step becomes these.
    fn keep_logit_rows(&mut self, ops: &mut O, batch: &Batch) {
        if keeps_some(batch) {
            for rows in [&mut self.stream, &mut self.qkv] {
                ops.gather_logit_rows(&self.step, rows, &mut self.gathered);
                std::mem::swap(rows, &mut self.gathered);
            }
            std::mem::swap(&mut self.step, &mut self.last_step);
        }
    }

    /// Undoes the exchanges of [`Scratch::keep_logit_rows`]: a step finds everything where the one before had it.
    fn put_back(&mut self, batch: &Batch) {
        if keeps_some(batch) {
            std::mem::swap(&mut self.step, &mut self.last_step);
            for rows in [&mut self.qkv, &mut self.stream] {
                std::mem::swap(rows, &mut self.gathered);
            }
        }
    }
}

/// Whether every row is a sequence's own, and all their logits are wanted.
fn is_decode(batch: &Batch) -> bool {
    let num_rows = batch.tokens.len();
    num_rows > 0 && batch.spans.len() == num_rows && batch.logit_rows.len() == num_rows
}

/// Whether the last layer is for some of the rows, neither none nor all.
fn keeps_some(batch: &Batch) -> bool {
    (1..batch.tokens.len()).contains(&batch.logit_rows.len())
}

impl<O: Ops> Decoder<O> {
    pub fn spec(&self) -> &Spec {
        &self.weights.spec
    }

    /// Another decoder over the same weights, for another lane of the same device.
    pub fn share(&self, ops: &mut O) -> Self {
        Self { weights: self.weights.clone(), scratch: Scratch::new(ops), was_replayed: false }
    }

    /// Whether the device started the last step as one that it had kept, see [`Ops::begin_decode`].
    pub fn was_replayed(&self) -> bool {
        self.was_replayed
    }

    /// Runs one step and returns the logits of [`Batch::logit_rows`], `[logit_rows, vocab]`. K and V of every row are
    /// in the cache afterwards.
    pub fn forward<'a>(&'a mut self, ops: &'a mut O, batch: &Batch) -> Result<&'a [f32], DeviceError> {
        match self.start(ops, batch) {
            Some(logits) => ops.read(logits),
            None => ops.finish().map(|()| &[][..]),
        }
    }

    /// The same without waiting: the logits on the device, if any are wanted. Of several shards the first gives them.
    pub fn start<'a>(&'a mut self, ops: &mut O, batch: &Batch) -> Option<&'a O::Rows> {
        let Self { weights, scratch, was_replayed } = self;
        *was_replayed = false;
        if !is_decode(batch) {
            scratch.prepare(ops, batch);
            return weights.run(ops, scratch, batch).then_some(&scratch.logits);
        }
        let vocab_size = weights.spec.vocab_size;
        let begun = ops.begin_decode(batch, &mut scratch.step, &mut scratch.logits, vocab_size);
        *was_replayed = begun == Begun::Done;
        if begun == Begun::Prepared {
            weights.run(ops, scratch, batch);
            if !ops.end_decode(&scratch.step, &mut scratch.logits) {
                weights.run(ops, scratch, batch);
                ops.end_decode(&scratch.step, &mut scratch.logits);
            }
        }
        weights.shard.is_first().then_some(&scratch.logits)
    }
}

impl<O: Ops> Weights<O> {
    /// All operations of a step that is on the device; false where no logits are wanted, or not of this shard.
    fn run(&self, ops: &mut O, scratch: &mut Scratch<O>, batch: &Batch) -> bool {
        let spec = &self.spec;
        ops.embed(&scratch.step, &self.embedding, spec.embedding_scale, &mut scratch.stream);
        if let Some(weight) = self.layers.first().and_then(|layer| layer.before_attention.as_ref()) {
            ops.rms_norm(&scratch.stream, weight, spec.norm_eps, &mut scratch.normed);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            self.keys_and_values(ops, i, scratch);
            if i + 1 == self.layers.len() {
                if batch.logit_rows.is_empty() {
                    return false;
                }
                scratch.keep_logit_rows(ops, batch);
            }
            self.attention(ops, i, scratch);
            let next = match self.layers.get(i + 1) {
                Some(next) => next.before_attention.as_ref(),
                None => Some(&self.final_norm),
            };
            self.mlp(ops, layer, &spec.layers[i], next, scratch);
        }
        scratch.put_back(batch);
        if !self.shard.is_first() {
            return false;
        }
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        ops.matmul(&scratch.normed, head, None, &mut scratch.logits);
        if spec.logits_scale != 1.0 || spec.final_softcap.is_some() {
            ops.finish_logits(&mut scratch.logits, spec.logits_scale, spec.final_softcap);
        }
        true
    }

    /// Adds `delta` to the residual stream and leaves in `normed` what comes next, where that begins with a norm.
    fn add(&self, ops: &mut O, norm: Option<&O::Vector>, scratch: &mut Scratch<O>) {
        let (Spec { residual_scale, norm_eps, .. }, Scratch { stream, normed, delta, .. }) = (&self.spec, scratch);
        match norm {
            Some(weight) => ops.add_scaled_rms_norm(stream, delta, *residual_scale, weight, *norm_eps, normed),
            None => ops.add_scaled(stream, delta, *residual_scale),
        }
    }

    /// The stream is normalised already where the layer wants it to be. Leaves the queries in `qkv`.
    fn keys_and_values(&self, ops: &mut O, index: usize, scratch: &mut Scratch<O>) {
        let (spec, layer, eps) = (&self.spec, &self.layers[index], self.spec.norm_eps);
        let Scratch { stream, normed, qkv, step, .. } = scratch;
        let input = if layer.before_attention.is_some() { &*normed } else { &*stream };
        ops.matmul(input, &layer.qkv, layer.qkv_bias.as_ref(), qkv);
        let norm = match (&layer.qk_norm, spec.qk_norm) {
            (Some((q, k)), QkNorm::PerHead) => QkNormWeights::PerHead { q, k, eps },
            (Some((q, k)), QkNorm::WholeRow) => QkNormWeights::WholeRow { q, k, eps },
            _ => QkNormWeights::None,
        };
        let rope = spec.layers[index].rope.map(|i| &self.ropes[i]);
        ops.rotate_and_store(step, index, &spec.attention(index), norm, rope, qkv);
    }

    fn attention(&self, ops: &mut O, index: usize, scratch: &mut Scratch<O>) {
        let (spec, layer, eps) = (&self.spec, &self.layers[index], self.spec.norm_eps);
        let Scratch { qkv, attended, delta, step, .. } = scratch;
        ops.attend(step, index, &spec.attention(index), qkv, attended);
        ops.matmul(attended, &layer.o, layer.o_bias.as_ref(), delta);
        self.sum(ops, delta);
        if let Some(weight) = &layer.after_attention {
            ops.rms_norm_in_place(delta, weight, eps);
        }
        self.add(ops, layer.before_mlp.as_ref(), scratch);
    }

    /// `next` is the norm before whatever follows.
    fn mlp(
        &self,
        ops: &mut O,
        layer: &Layer<O>,
        layer_spec: &LayerSpec,
        next: Option<&O::Vector>,
        scratch: &mut Scratch<O>,
    ) {
        let spec = &self.spec;
        let Scratch { stream, normed, gate_up, gated, delta, .. } = scratch;
        let input = if layer.before_mlp.is_some() { &*normed } else { &*stream };
        match (&layer.mlp, &layer_spec.mlp) {
            (Mlp::Moe(weights), MlpSpec::Moe(moe)) => ops.moe(input, weights, moe, spec.activation, delta),
            (Mlp::Dense { gate_up: up, gate_up_bias, down, down_bias }, _) => {
                ops.matmul(input, up, gate_up_bias.as_ref(), gate_up);
                ops.gated_activation(gate_up, spec.activation, gated);
                ops.matmul(gated, down, down_bias.as_ref(), delta);
            }
            (Mlp::Moe(_), MlpSpec::Dense { .. }) => unreachable!("layers are loaded as their spec says"),
        }
        self.sum(ops, delta);
        if let Some(weight) = &layer.after_mlp {
            ops.rms_norm_in_place(delta, weight, spec.norm_eps);
        }
        self.add(ops, next, scratch);
    }

    /// What all shards add to the stream, from this one's.
    fn sum(&self, ops: &mut O, delta: &mut O::Rows) {
        if !self.shard.is_whole() {
            ops.all_reduce(delta);
        }
    }
}
