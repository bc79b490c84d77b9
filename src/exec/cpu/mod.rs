//! The CPU as a device: [`Ops`] on slices, in float32, with the best instructions that the machine has.
//!
//! Owns the KV memory, the compute threads and scratch space; weights are shared ([`CpuMatrix`] and the other
//! loaded values are cheap to clone and serve several executors). Never knows about sequences, sampling or plans.
//!
//! Invariant (batch invariance, proved bit for bit by the tests): at one [`Isa`] the values of a row depend on its
//! sequence alone, not on other rows, chunks or threads. Each of `gemm`, `attention`, `rows` and `moe` says how.
//!
//! Weights keep their dtype and are packed on load; activations and sums are float32 (but see [`Compute`]); K and V are
//! rounded to the cache's dtype when stored, and attention reads what is stored.

mod attention;
mod gemm;
mod isa;
mod kv;
mod matrix;
mod memory;
mod moe;
mod pool;
mod probe;
mod rope;
mod rows;
mod step;
mod stored;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::attention::Attend;
pub use self::gemm::Compute;
use self::gemm::{Multiplier, Product};
pub use self::isa::Isa;
use self::kv::KvCache;
pub use self::kv::kv_bytes_per_block;
pub use self::matrix::CpuMatrix;
use self::memory::Scratch;
pub use self::memory::give_back_free;
use self::moe::{Experts, MoeBuffers};
pub use self::pool::MAX_THREADS;
use self::pool::Pool;
pub use self::probe::{Peaks, probe};
pub use self::rope::CpuRope;
use self::rope::RotateAndStore;
pub use self::rows::CpuRows;
use self::rows::{Gated, RmsNorm, SoftCap, for_each_row};
pub use self::step::CpuStep;
pub use self::stored::Stored;
pub use crate::exec::format::Format;
use crate::model::ops::{Attention, Batch, DeviceError, KvDtype, MoeWeights, Ops, QkNormWeights, Role};
use crate::model::spec::{Activation, MoeSpec, RopeSpec, Spec};
use crate::model::weights::Tensor;

/// How a [`CpuOps`] is to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Compute threads, the caller's counted; 0: one for each core that this process may use.
    pub threads: usize,
    /// `None`: the best that the machine has.
    pub isa: Option<Isa>,
    pub compute: Compute,
    /// `None`: as the checkpoint has them.
    pub weights: Option<Format>,
}

#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error(
        "{0} instructions were asked for, which this machine does not have (it has up to {1}): leave the choice out"
    )]
    IsaUnavailable(Isa, Isa),
    #[error("{0} compute threads were asked for: at most {MAX_THREADS} are possible")]
    TooManyThreads(usize),
    #[error("cannot start {0} compute threads: {1}; ask for fewer")]
    NoThreads(usize, std::io::Error),
    #[error("engine.weights is fp8, which only GPUs keep, and the model runs on the CPU; use auto, int8 or int4")]
    Fp8Weights,
}

/// The CPU device of one lane.
pub struct CpuOps {
    isa: Isa,
    pool: Pool,
    kv: Option<KvCache>,
    multiplier: Multiplier,
    weights: Option<Format>,
    stored: Vec<Stored>,
    moe: MoeBuffers,
    /// What attention has of each split.
    splits: Scratch,
}

impl CpuOps {
    pub fn new(options: CpuOptions) -> Result<CpuOps, CpuError> {
        if options.weights == Some(Format::Fp8) {
            return Err(CpuError::Fp8Weights);
        }
        let best = Isa::detect();
        let isa = options.isa.unwrap_or(best);
        if !isa.is_available() {
            return Err(CpuError::IsaUnavailable(isa, best));
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS),
            n if n > MAX_THREADS => return Err(CpuError::TooManyThreads(n)),
            n => n,
        };
        let pool = Pool::new(threads).map_err(|e| CpuError::NoThreads(threads, e))?;
        let multiplier = Multiplier::new(isa, options.compute);
        Ok(CpuOps {
            isa,
            pool,
            kv: None,
            multiplier,
            weights: options.weights,
            stored: Vec::new(),
            moe: MoeBuffers::default(),
            splits: Scratch::default(),
        })
    }

    /// Another executor of the same level with threads and KV memory of its own. Matrices, vectors and rope tables
    /// that either has loaded serve both: clone them.
    pub fn fork(&self, threads: usize) -> Result<CpuOps, CpuError> {
        let compute = self.multiplier.compute;
        CpuOps::new(CpuOptions { threads, isa: Some(self.isa), compute, weights: self.weights })
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn compute(&self) -> Compute {
        self.multiplier.compute
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The matrices that this executor loaded, by format. Those of a [`CpuOps::fork`] were loaded by another.
    pub fn stored(&self) -> &[Stored] {
        &self.stored
    }
}

const NO_KV: &str = "allocate_kv comes before the first step";

impl Ops for CpuOps {
    type Matrix = CpuMatrix;
    type Experts = Vec<CpuMatrix>;
    type Vector = Arc<[f32]>;
    type Rows = CpuRows;
    type Rope = CpuRope;
    type Step = CpuStep;

    fn load_matrix(&mut self, role: Role, parts: &[Tensor]) -> CpuMatrix {
        let matrix = CpuMatrix::new(self.isa, parts, self.weights.and_then(|format| format.spared(role, parts)));
        Stored::add(&mut self.stored, &matrix, self.multiplier.compute, self.isa);
        matrix
    }

    fn load_experts(&mut self, matrices: Vec<CpuMatrix>) -> Vec<CpuMatrix> {
        matrices
    }

    fn load_vector(&mut self, values: &[f32]) -> Arc<[f32]> {
        values.into()
    }

    fn load_rope(&mut self, rope: &RopeSpec, max_positions: usize) -> CpuRope {
        CpuRope::new(rope, max_positions)
    }

    fn new_rows(&mut self) -> CpuRows {
        CpuRows::default()
    }

    fn new_step(&mut self) -> CpuStep {
        CpuStep::default()
    }

    fn allocate_kv(&mut self, spec: &Spec, dtype: KvDtype, num_blocks: usize) -> Result<usize, DeviceError> {
        if dtype == KvDtype::Fp8 {
            return Err(DeviceError::Failed(kv::NO_FP8.into()));
        }
        Ok(self.kv.insert(KvCache::new(spec, dtype, num_blocks)).bytes())
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        self.kv.as_mut().expect(NO_KV).copy_blocks(pairs);
    }

    fn prepare(&mut self, batch: &Batch, step: &mut CpuStep) {
        step.set(batch);
    }

    fn embed(&mut self, step: &CpuStep, table: &CpuMatrix, scale: f32, out: &mut CpuRows) {
        let tokens = &step.batch.tokens;
        out.reshape(tokens.len(), table.cols());
        for_each_row(&mut self.pool, out, 8, &|row, to| table.read_row(tokens[row] as usize, scale, to));
    }

    fn rms_norm(&mut self, x: &CpuRows, weight: &Arc<[f32]>, eps: f32, out: &mut CpuRows) {
        let isa = self.isa;
        out.reshape(x.rows(), x.width());
        for_each_row(&mut self.pool, out, 2, &|row, out| RmsNorm::apply(isa, x.row(row), weight, eps, out));
    }

    fn rms_norm_in_place(&mut self, x: &mut CpuRows, weight: &Arc<[f32]>, eps: f32) {
        let isa = self.isa;
        for_each_row(&mut self.pool, x, 2, &|_, x| RmsNorm::apply_in_place(isa, x, weight, eps));
    }

    fn add_scaled(&mut self, x: &mut CpuRows, delta: &CpuRows, scale: f32) {
        assert!(x.rows() == delta.rows() && x.width() == delta.width(), "sum of rows of different shapes");
        for_each_row(&mut self.pool, x, 1, &|row, x| {
            x.iter_mut().zip(delta.row(row)).for_each(|(x, d)| *x += d * scale);
        });
    }

    fn matmul(&mut self, x: &CpuRows, w: &CpuMatrix, bias: Option<&Arc<[f32]>>, out: &mut CpuRows) {
        assert_eq!(x.width(), w.cols(), "width of activations and weights");
        out.reshape(x.rows(), w.rows());
        let product = Product { x: x.values(), weights: w, bias: bias.map(|b| &b[..]), out: out.values_mut() };
        self.multiplier.multiply(&mut self.pool, product);
    }

    fn rotate_and_store(
        &mut self,
        step: &CpuStep,
        layer: usize,
        attention: &Attention,
        norm: QkNormWeights<'_, Arc<[f32]>>,
        rope: Option<&CpuRope>,
        qkv: &mut CpuRows,
    ) {
        let kv = self.kv.as_mut().expect(NO_KV);
        RotateAndStore { isa: self.isa, step, layer, attention, norm, rope }.apply(&mut self.pool, qkv, kv);
    }

    fn attend(&mut self, step: &CpuStep, layer: usize, attention: &Attention, qkv: &CpuRows, out: &mut CpuRows) {
        let kv = self.kv.as_ref().expect(NO_KV);
        let dots = self.isa.has_dot() && self.multiplier.compute != Compute::F32;
        let attend = Attend { isa: self.isa, dots, batch: &step.batch, kv, layer, attention, qkv };
        attend.run(&mut self.pool, &mut self.splits, out);
    }

    fn gated_activation(&mut self, gate_up: &CpuRows, activation: Activation, out: &mut CpuRows) {
        let isa = self.isa;
        out.reshape(gate_up.rows(), gate_up.width() / 2);
        for_each_row(&mut self.pool, out, 8, &|row, out| Gated::apply(isa, gate_up.row(row), activation, out));
    }

    fn moe(
        &mut self,
        x: &CpuRows,
        weights: &MoeWeights<CpuMatrix>,
        moe: &MoeSpec,
        activation: Activation,
        out: &mut CpuRows,
    ) {
        let experts = Experts { weights, moe, activation };
        experts.apply(&mut self.pool, &mut self.multiplier, &mut self.moe, x, out);
    }

    fn gather_logit_rows(&mut self, step: &CpuStep, x: &CpuRows, out: &mut CpuRows) {
        let rows = &step.batch.logit_rows;
        out.reshape(rows.len(), x.width());
        for_each_row(&mut self.pool, out, 1, &|i, out| out.copy_from_slice(x.row(rows[i] as usize)));
    }

    fn finish_logits(&mut self, logits: &mut CpuRows, scale: f32, softcap: Option<f32>) {
        let isa = self.isa;
        if scale == 1.0 && softcap.is_none() {
            return;
        }
        for_each_row(&mut self.pool, logits, 4, &|_, x| {
            x.iter_mut().for_each(|x| *x *= scale);
            if let Some(cap) = softcap {
                // SAFETY: the level is available.
                unsafe { isa.run(SoftCap { x, cap }) };
            }
        });
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read<'a>(&'a mut self, rows: &'a CpuRows) -> Result<&'a [f32], DeviceError> {
        Ok(rows.values())
    }
}
