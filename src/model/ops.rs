//! The operations a device must offer so that [`super::decoder`] can run on it.
//!
//! One trait for CPU and CUDA. A call names *what* is computed; order, threads, tiles and
//! fusion belong to the implementation. Shapes are row-major; a "row" is one token of the step.
//!
//! Contract for every implementation: **batch invariance**. The values of a row depend on that row's
//! sequence only, never on how many rows, sequences or chunks share the step.

use std::ops::Index;

use super::TokenId;
use super::draws::{Answers, Requests};
use super::spec::{Activation, MoeSpec, RopeSpec, Spec};
use super::weights::Tensor;

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    F32,
    Bf16,
    /// Multiples of a scale for each token and head.
    Int8,
    /// FP8 E4M3 (OCP 8-bit floating point, revision 1.0) of a scale for each token and head. On GPUs only.
    Fp8,
}

/// One step's tokens, sequence by sequence, in plain arrays that can be copied to a device as they are.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// `[rows]`
    pub tokens: Vec<TokenId>,
    /// `[rows]` position of each token in its sequence.
    pub positions: Vec<u32>,
    /// `[rows]` where the row's K and V go: `block * BLOCK_TOKENS + offset`.
    pub slots: Vec<u32>,
    /// Consecutive rows of one sequence.
    pub spans: Vec<Span>,
    /// Block tables of all spans, one after the other.
    pub tables: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

/// The rows of one sequence in a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub row_start: u32,
    pub num_rows: u32,
    /// Position of the first row; `first_position + num_rows` is the KV length after this step.
    pub first_position: u32,
    /// Start of this sequence's block table in [`Batch::tables`].
    pub table_start: u32,
    /// Number of blocks in it; covers every position up to the last row's.
    pub num_blocks: u32,
}

impl Batch {
    /// The rows of [`Batch::logit_rows`] alone, in their context.
    pub fn wanted(&self, out: &mut Batch) {
        let Batch { tokens, positions, slots, spans, tables, logit_rows } = out;
        let pick = |from: &[u32], to: &mut Vec<u32>| {
            to.clear();
            to.extend(self.logit_rows.iter().map(|&row| from[row as usize]));
        };
        pick(&self.tokens, tokens);
        pick(&self.positions, positions);
        pick(&self.slots, slots);
        tables.clone_from(&self.tables);
        logit_rows.clear();
        logit_rows.extend(0..self.logit_rows.len() as u32);
        spans.clear();
        let mut rows = self.logit_rows.iter().copied().enumerate().peekable();
        for span in &self.spans {
            let mut last: Option<u32> = None;
            while let Some((i, row)) = rows.next_if(|(_, row)| *row < span.row_start + span.num_rows) {
                match spans.last_mut() {
                    Some(run) if last.is_some_and(|last| last + 1 == row) => run.num_rows += 1,
                    _ => {
                        let first_position = span.first_position + (row - span.row_start);
                        spans.push(Span { row_start: i as u32, num_rows: 1, first_position, ..*span });
                    }
                }
                last = Some(row);
            }
        }
    }
}

/// How one layer attends.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
}

/// Weights of one mixture-of-experts layer on the device.
pub struct MoeWeights<M, E = Vec<M>> {
    /// `[num_experts, hidden]`
    pub router: M,
    /// Per expert: gate rows then up rows, `[2 * intermediate, hidden]`.
    pub gate_up: E,
    /// Per expert: `[hidden, intermediate]`.
    pub down: E,
}

/// q/k normalisation that precedes the rotary embedding.
pub enum QkNormWeights<'a, V> {
    None,
    /// `[head_dim]` each.
    PerHead {
        q: &'a V,
        k: &'a V,
        eps: f32,
    },
    /// `[q_width]` and `[kv_width]`.
    WholeRow {
        q: &'a V,
        k: &'a V,
        eps: f32,
    },
}

/// What a matrix is for: a device that rounds weights may spare some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Of tokens; also the head where that is tied to it.
    Embedding,
    /// From the last layer to logits.
    Head,
    /// Chooses experts.
    Router,
    /// Everything else: inside of layers.
    Projection,
    /// A projection whose products other devices' are added to ([`Ops::all_reduce`]): not to be rounded before.
    Partial,
}

/// What a device could not do. Whoever meets it ends the step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// It can run another step.
    #[error("{0}")]
    Failed(String),
    /// It can not.
    #[error("{0}")]
    Lost(String),
}

/// What [`Ops::begin_decode`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// The batch is on the device; the step's operations follow.
    Prepared,
    /// The whole step, and its logits are there.
    Done,
}

/// A device as the decoder sees it.
///
/// Most operations return nothing: a device may run them later. The first error is kept, what follows does nothing, and
/// [`Ops::allocate_kv`], [`Ops::finish`] or [`Ops::read`] gives it back.
pub trait Ops {
    /// A weight matrix `[out, in]` in the device's own layout.
    type Matrix;
    /// The same matrix of each expert of a layer.
    type Experts: Index<usize, Output = Self::Matrix>;
    /// A float32 vector.
    type Vector;
    /// Activations `[rows, width]`, float32 in meaning. Resized by the op that writes it.
    type Rows;
    /// Precomputed cos and sin.
    type Rope;
    /// A [`Batch`] as the operations of a step want it.
    type Step;

    // ── loading ────────────────────────────────────────────────────────────────────────────────
    /// Stacks `parts` (all `[out_i, in]`, same `in`) by rows into one matrix. Their dtypes may differ and may be
    /// quantised: a GGUF file may hold q in one and v in another.
    fn load_matrix(&mut self, role: Role, parts: &[Tensor]) -> Self::Matrix;
    fn load_experts(&mut self, matrices: Vec<Self::Matrix>) -> Self::Experts;
    fn load_vector(&mut self, values: &[f32]) -> Self::Vector;
    fn load_rope(&mut self, rope: &RopeSpec, max_positions: usize) -> Self::Rope;
    fn new_rows(&mut self) -> Self::Rows;
    fn new_step(&mut self) -> Self::Step;
    /// Allocates `num_blocks` blocks of KV for every layer; says how many bytes. Called after loading and before the
    /// first step; what went wrong in loading comes out here too. Blocks that were there before are given back.
    fn allocate_kv(&mut self, spec: &Spec, dtype: KvDtype, num_blocks: usize) -> Result<usize, DeviceError>;

    // ── one step ───────────────────────────────────────────────────────────────────────────────
    /// Copies whole KV blocks `(from, to)` in every layer (copy-on-write of forked sequences).
    fn copy_blocks(&mut self, pairs: &[(u32, u32)]);
    /// Brings a batch to the device. Panics where it is not well-formed: spans overlap, are out of order or
    /// longer than their tables, or two rows have one slot.
    fn prepare(&mut self, batch: &Batch, step: &mut Self::Step);
    /// [`Ops::prepare`] for a decode step: every row is a sequence's own, and the logits of all are wanted,
    /// `[rows, vocab_size]`. A device that has kept the operations of such a step may start them all at once.
    fn begin_decode(
        &mut self,
        batch: &Batch,
        step: &mut Self::Step,
        _logits: &mut Self::Rows,
        _vocab_size: usize,
    ) -> Begun {
        self.prepare(batch, step);
        Begun::Prepared
    }
    /// Ends the operations of a decode step that was prepared. False: the device wanted to keep them and could not, and
    /// they are to be asked for once more.
    fn end_decode(&mut self, _step: &Self::Step, _logits: &mut Self::Rows) -> bool {
        true
    }
    /// `out[r] = table[tokens[r]] * scale`.
    fn embed(&mut self, step: &Self::Step, table: &Self::Matrix, scale: f32, out: &mut Self::Rows);
    /// `out = x / sqrt(mean(x²) + eps) * weight`, row by row.
    fn rms_norm(&mut self, x: &Self::Rows, weight: &Self::Vector, eps: f32, out: &mut Self::Rows);
    /// `x = norm(x)` in place.
    fn rms_norm_in_place(&mut self, x: &mut Self::Rows, weight: &Self::Vector, eps: f32);
    /// `x += delta * scale`.
    fn add_scaled(&mut self, x: &mut Self::Rows, delta: &Self::Rows, scale: f32);
    /// [`Ops::add_scaled`], then [`Ops::rms_norm`] of the sum; a device may do both at once, with the same bits.
    fn add_scaled_rms_norm(
        &mut self,
        x: &mut Self::Rows,
        delta: &Self::Rows,
        scale: f32,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Rows,
    ) {
        self.add_scaled(x, delta, scale);
        self.rms_norm(x, weight, eps, out);
    }
    /// `out = x · wᵀ (+ bias)`.
    fn matmul(&mut self, x: &Self::Rows, w: &Self::Matrix, bias: Option<&Self::Vector>, out: &mut Self::Rows);
    /// On a fused qkv row: normalise q and k, rotate them, write k and v to the cache of `layer`.
    /// q is left (normalised and rotated) in `qkv` for [`Ops::attend`].
    fn rotate_and_store(
        &mut self,
        step: &Self::Step,
        layer: usize,
        attention: &Attention,
        norm: QkNormWeights<'_, Self::Vector>,
        rope: Option<&Self::Rope>,
        qkv: &mut Self::Rows,
    );
    /// Causal attention of every row over its sequence's cached K and V (this step's included, *as stored*).
    /// `out` is `[rows, num_heads * head_dim]`.
    fn attend(
        &mut self,
        step: &Self::Step,
        layer: usize,
        attention: &Attention,
        qkv: &Self::Rows,
        out: &mut Self::Rows,
    );
    /// `gate_up` rows are gate then up, `[rows, 2 * intermediate]`; `out = act(gate) * up`.
    fn gated_activation(&mut self, gate_up: &Self::Rows, activation: Activation, out: &mut Self::Rows);
    /// Routed experts: softmax over the router's logits, the best `experts_per_token` of them, weighted sum.
    fn moe(
        &mut self,
        x: &Self::Rows,
        weights: &MoeWeights<Self::Matrix, Self::Experts>,
        moe: &MoeSpec,
        activation: Activation,
        out: &mut Self::Rows,
    );
    /// The rows whose logits are wanted: `out[i] = x[logit_rows[i]]`.
    fn gather_logit_rows(&mut self, step: &Self::Step, x: &Self::Rows, out: &mut Self::Rows);
    /// Logits: `x * scale`, then the soft cap.
    fn finish_logits(&mut self, logits: &mut Self::Rows, scale: f32, softcap: Option<f32>);
    /// Adds up the rows of all devices that compute the model together, on each of them, in float32 and in the order of their
    /// ranks: a value's bits depend neither on the other rows nor on time. A device that is alone has the sum already.
    fn all_reduce(&mut self, _rows: &mut Self::Rows) {}
    /// Waits until all that was asked for is done.
    fn finish(&mut self) -> Result<(), DeviceError>;
    /// Whether it draws tokens of such a vocabulary itself. If not, the caller reads the logits and draws.
    fn draws(&self, _vocab_size: usize) -> bool {
        false
    }
    /// Answers what is asked of logits, which are as they were afterwards.
    fn draw(&mut self, _: &Self::Rows, _: &Requests, _: &mut Answers) -> Result<(), DeviceError> {
        Err(DeviceError::Failed("this device draws no tokens".into()))
    }
    /// Brings rows to the host, `[rows, width]`, when all that they come from is done.
    fn read<'a>(&'a mut self, rows: &'a Self::Rows) -> Result<&'a [f32], DeviceError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_rows_keep_their_positions_and_tables() {
        let span = |row_start, num_rows, first_position, table_start, num_blocks| Span {
            row_start,
            num_rows,
            first_position,
            table_start,
            num_blocks,
        };
        let batch = Batch {
            tokens: (100..110).collect(),
            positions: vec![5, 6, 7, 8, 0, 1, 2, 40, 41, 42],
            slots: (200..210).collect(),
            spans: vec![span(0, 4, 5, 0, 1), span(4, 3, 0, 1, 1), span(7, 3, 40, 2, 3)],
            tables: vec![9, 8, 7, 6, 5],
            // Two apart, none, and all of a span.
            logit_rows: vec![0, 2, 3, 7, 8, 9],
        };
        let mut wanted = Batch { tokens: vec![1; 20], spans: vec![span(1, 1, 1, 1, 1)], ..Batch::default() };
        batch.wanted(&mut wanted);
        assert_eq!(wanted.tokens, [100, 102, 103, 107, 108, 109]);
        assert_eq!(wanted.positions, [5, 7, 8, 40, 41, 42]);
        assert_eq!(wanted.slots, [200, 202, 203, 207, 208, 209]);
        assert_eq!(wanted.spans, [span(0, 1, 5, 0, 1), span(1, 2, 7, 0, 1), span(3, 3, 40, 2, 3)]);
        assert_eq!((wanted.tables, wanted.logit_rows), (batch.tables, (0..6).collect()));
    }
}
