//! One of several equal parts of a model, for devices that compute it together (tensor parallelism: Shoeybi et al. 2019,
//! "Megatron-LM").
//!
//! Owns which rows and columns of each tensor a rank has: whole query and key/value heads with their rows of q, k and v and
//! their columns of o; rows of gate and up and columns of down, of each expert too. Everything else every rank has, but for
//! biases behind sums and the head, which the first rank has alone. Never knows a device.
//!
//! Invariant: what the ranks' attention and MLP give adds up to what the model's give. A rank's tensors share the model's
//! bytes, or copy them when they are first read.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::spec::{MlpSpec, QkNorm, Spec};
use super::weights::{Dtype, LayerTensors, MlpTensors, ModelTensors, NormTensors, Tensor};

/// Which part of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    num_ranks: usize,
}

/// Why a model has no such parts. Whoever asked for them says where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    #[error("{field} is {value}, which {num_ranks} ranks cannot share evenly")]
    Uneven { field: &'static str, value: usize, num_ranks: usize },
    #[error(
        "this model normalises whole rows of q and k over all heads, which ranks with some of the heads cannot; only 1 rank \
         is possible"
    )]
    WholeRowNorm,
    #[error(
        "tensor `{tensor}` holds {dtype} blocks of {} elements, which the borders between {num_ranks} ranks cut at multiples \
         of {width}; use fewer ranks, or a file in F16 or BF16",
        dtype.block_len()
    )]
    CutBlocks { tensor: String, dtype: Dtype, width: usize, num_ranks: usize },
}

impl Shard {
    /// All of it.
    pub const WHOLE: Shard = Shard { rank: 0, num_ranks: 1 };

    /// Panics where there is no such rank.
    pub fn new(rank: usize, num_ranks: usize) -> Shard {
        assert!(rank < num_ranks, "rank {rank} of {num_ranks}");
        Shard { rank, num_ranks }
    }

    pub fn is_whole(self) -> bool {
        self.num_ranks == 1
    }

    /// The rank that has what only one may add, and that gives logits.
    pub fn is_first(self) -> bool {
        self.rank == 0
    }

    /// The model as this rank computes it: with its heads and its columns. Without a head on ranks that give no logits.
    pub fn spec(self, whole: &Spec) -> Result<Spec, ShardError> {
        if self.is_whole() {
            return Ok(whole.clone());
        }
        if whole.qk_norm == QkNorm::WholeRow {
            return Err(ShardError::WholeRowNorm);
        }
        let mut spec = whole.clone();
        spec.num_heads = self.share("num_attention_heads", whole.num_heads)?;
        spec.num_kv_heads = self.kv_heads(whole)?.len();
        for layer in &mut spec.layers {
            match &mut layer.mlp {
                MlpSpec::Dense { intermediate_size } => {
                    *intermediate_size = self.share("intermediate_size", *intermediate_size)?;
                }
                MlpSpec::Moe(moe) => {
                    let whole = moe.intermediate_size;
                    moe.intermediate_size = self.share("the experts' intermediate_size", whole)?;
                }
            }
        }
        Ok(spec)
    }

    /// What each rank gets of so many.
    fn share(self, field: &'static str, value: usize) -> Result<usize, ShardError> {
        let num_ranks = self.num_ranks;
        if value.is_multiple_of(num_ranks) {
            return Ok(value / num_ranks);
        }
        Err(ShardError::Uneven { field, value, num_ranks })
    }

    /// Those that this rank's query heads look at. Where there are fewer than ranks, several ranks have the same.
    fn kv_heads(self, whole: &Spec) -> Result<Range<usize>, ShardError> {
        let (kv_heads, num_ranks) = (whole.num_kv_heads, self.num_ranks);
        if kv_heads < num_ranks && num_ranks.is_multiple_of(kv_heads) {
            let head = self.rank * kv_heads / num_ranks;
            return Ok(head..head + 1);
        }
        Ok(self.range(self.share("num_key_value_heads", kv_heads)?))
    }

    /// This rank's of consecutive shares.
    fn range(self, share: usize) -> Range<usize> {
        self.rank * share..(self.rank + 1) * share
    }

    /// This rank's tensors. `whole` is the model's spec, not the rank's.
    pub fn tensors(self, whole: &Spec, model: ModelTensors) -> Result<ModelTensors, ShardError> {
        if self.is_whole() {
            return Ok(model);
        }
        self.spec(whole)?;
        let ModelTensors { embedding, layers, final_norm, head, ignored } = model;
        let layers = layers.into_iter().map(|layer| self.layer(whole, layer)).collect::<Result<_, _>>()?;
        Ok(ModelTensors { embedding, layers, final_norm, head: head.filter(|_| self.is_first()), ignored })
    }

    fn layer(self, whole: &Spec, tensors: LayerTensors) -> Result<LayerTensors, ShardError> {
        let LayerTensors { norms, qkv, qkv_bias, qk_norm, o, o_bias, mlp } = tensors;
        let NormTensors { before_attention, after_attention, before_mlp, after_mlp } = norms;
        let rows = self.qkv_rows(whole)?;
        Ok(LayerTensors {
            norms: NormTensors { before_attention, after_attention, before_mlp, after_mlp },
            qkv: self.rows(&qkv, &rows)?,
            qkv_bias: qkv_bias.map(|parts| self.rows(&parts, &rows)).transpose()?,
            qk_norm,
            o: self.columns(&o)?,
            o_bias: o_bias.filter(|_| self.is_first()),
            mlp: self.mlp(mlp)?,
        })
    }

    /// Of the fused projection: q, then k, then v.
    fn qkv_rows(self, whole: &Spec) -> Result<[Range<usize>; 3], ShardError> {
        let (dim, q_width, kv_width) = (whole.head_dim, whole.q_width(), whole.kv_width());
        let q = self.range(whole.num_heads / self.num_ranks);
        let kv = self.kv_heads(whole)?;
        let rows = |heads: &Range<usize>, first: usize| first + heads.start * dim..first + heads.end * dim;
        Ok([rows(&q, 0), rows(&kv, q_width), rows(&kv, q_width + kv_width)])
    }

    fn mlp(self, tensors: MlpTensors) -> Result<MlpTensors, ShardError> {
        match tensors {
            MlpTensors::Dense { gate_up, gate_up_bias, down, down_bias } => Ok(MlpTensors::Dense {
                gate_up: self.halves(&gate_up)?,
                gate_up_bias: gate_up_bias.map(|parts| self.halves(&parts)).transpose()?,
                down: self.columns(&down)?,
                down_bias: down_bias.filter(|_| self.is_first()),
            }),
            MlpTensors::Moe { router, gate_up, down } => Ok(MlpTensors::Moe {
                router,
                gate_up: gate_up.iter().map(|parts| self.halves(parts)).collect::<Result<_, _>>()?,
                down: down.iter().map(|down| self.columns(down)).collect::<Result<_, _>>()?,
            }),
        }
    }

    /// This rank's rows of gate, then of up.
    fn halves(self, parts: &[Tensor]) -> Result<Vec<Tensor>, ShardError> {
        let half = parts.iter().map(|part| part.shape[0]).sum::<usize>() / 2;
        let Range { start, end } = self.range(half / self.num_ranks);
        self.rows(parts, &[start..end, half + start..half + end])
    }

    /// Rows of stacked tensors.
    fn rows(self, parts: &[Tensor], ranges: &[Range<usize>]) -> Result<Vec<Tensor>, ShardError> {
        let mut cut = Vec::new();
        for range in ranges {
            let mut first = 0;
            for part in parts {
                let (start, end) = (range.start.max(first), range.end.min(first + part.shape[0]));
                if start < end {
                    if part.shape.len() == 1 && part.dtype.is_quantised() {
                        return Err(self.cut_blocks(part, range.len()));
                    }
                    cut.push(part.rows(start - first..end - first));
                }
                first += part.shape[0];
            }
        }
        Ok(cut)
    }

    /// This rank's columns of a matrix.
    fn columns(self, tensor: &Tensor) -> Result<Tensor, ShardError> {
        let width = tensor.shape[1] / self.num_ranks;
        if !width.is_multiple_of(tensor.dtype.block_len()) {
            return Err(self.cut_blocks(tensor, width));
        }
        Ok(tensor.columns(self.range(width)))
    }

    fn cut_blocks(self, tensor: &Tensor, width: usize) -> ShardError {
        let (tensor, dtype) = (tensor.name.to_string(), tensor.dtype);
        ShardError::CutBlocks { tensor, dtype, width, num_ranks: self.num_ranks }
    }
}
