//! CUDA as a device: [`Ops`] as launches of the kernels in `kernels/`, whose README is their specification.
//!
//! Owns the KV memory, activations and the order of launches; weights are shared between lanes of one device. Never knows
//! about sequences, sampling or plans, nor whether a driver or the emulator runs the kernels ([`device::Device`]).
//!
//! Invariants: nothing waits for the device but [`Ops::read`] and [`Ops::finish`]; the first error is kept until one of them
//! or [`Ops::allocate_kv`] gives it back, and nothing is launched in between. Batch invariance is that of the kernels: each
//! states it, and the choice between them never changes a row's bits.
//!
//! The residual stream, logits and sums are float32; what matrix products take and give, K and V, and weights are bfloat16
//! (but see [`KvDtype`]).

mod attention;
pub mod device;
mod kv;
mod launch;
mod memory;
mod module;
mod moe;
mod rows;
mod step;
#[cfg(test)]
mod tests;
mod weights;

use std::sync::Arc;

use self::attention::{Attend, Records};
use self::device::{Address, Device};
use self::kv::CudaKv;
pub use self::kv::kv_bytes_per_block;
use self::launch::Launch;
use self::memory::{Buffer, Scratch};
pub use self::moe::CudaExperts;
use self::moe::{Experts, MoeBuffers};
pub use self::rows::CudaRows;
use self::rows::Element;
pub use self::step::CudaStep;
pub use self::weights::{CudaMatrix, CudaRope, CudaVector};
use crate::model::ops::{Attention, Batch, DeviceError, KvDtype, MoeWeights, Ops, QkNormWeights, Role};
use crate::model::spec::{Activation, MoeSpec, RopeSpec, Spec};
use crate::model::weights::Tensor;

/// Values that one block of a grid goes through in an operation on single values.
const VALUES_PER_BLOCK: usize = 2048;
/// Blocks that share such an operation at most.
const MAX_CHUNKS: usize = 1024;
/// Heads that one block of `rotate_and_store` goes through.
const HEADS_PER_BLOCK: usize = 8;

/// One lane of a device.
pub struct CudaOps {
    device: Arc<dyn Device>,
    kv: Option<CudaKv>,
    error: Option<DeviceError>,
    /// Float32 rows that a product wants in bfloat16.
    rounded: Scratch,
    records: Records,
    moe: MoeBuffers,
    host: Vec<f32>,
}

const NO_KV: &str = "allocate_kv comes before the first step";

impl CudaOps {
    pub fn new(device: Arc<dyn Device>) -> CudaOps {
        CudaOps {
            device,
            kv: None,
            error: None,
            rounded: Scratch::default(),
            records: Records::default(),
            moe: MoeBuffers::default(),
            host: Vec::new(),
        }
    }

    /// Another lane on the same device, with KV memory and activations of its own.
    pub fn fork(&self) -> CudaOps {
        CudaOps::new(self.device.clone())
    }

    /// Bytes that the device has left; or what went wrong in loading.
    pub fn free_bytes(&mut self) -> Result<usize, DeviceError> {
        self.outcome()?;
        self.device.free_bytes()
    }

    /// Runs this unless something has failed before.
    fn run(&mut self, operation: impl FnOnce(&mut Self) -> Result<(), DeviceError>) {
        if self.error.is_none()
            && let Err(error) = operation(self)
        {
            self.error = Some(error);
        }
    }

    /// Loads this, or what stands for it where loading fails, now or before.
    fn load<T>(&mut self, load: impl FnOnce(&Arc<dyn Device>) -> Result<T, DeviceError>, missing: T) -> T {
        if self.error.is_none() {
            match load(&self.device) {
                Ok(loaded) => return loaded,
                Err(error) => self.error = Some(error),
            }
        }
        missing
    }

    /// What has failed. A device that is not lost starts anew after it.
    fn outcome(&mut self) -> Result<(), DeviceError> {
        match self.error.take() {
            None => Ok(()),
            Some(error) => {
                if matches!(error, DeviceError::Lost(_)) {
                    self.error = Some(error.clone());
                }
                Err(error)
            }
        }
    }

    /// Starts a launch.
    ///
    /// # Safety
    /// As [`Launch::start`].
    unsafe fn start(&self, launch: Launch) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { launch.start(&*self.device) }
    }

    /// Rows as bfloat16, which they are already or become elsewhere.
    fn as_bf16(&mut self, x: &CudaRows) -> Result<Address, DeviceError> {
        if x.element() == Element::Bf16 {
            return Ok(x.address());
        }
        let to = self.rounded.reserve(&self.device, x.count() * Element::Bf16.bytes())?.address();
        let launch = Launch::new("to_bf16", [chunks(x.count()), 1, 1]).address(to).address(x.address()).int(x.count());
        // SAFETY: both have as many values.
        unsafe { self.start(launch)? };
        Ok(to)
    }
}

/// Blocks that share so many values; none where there are none.
fn chunks(values: usize) -> usize {
    values.div_ceil(VALUES_PER_BLOCK).min(MAX_CHUNKS)
}

/// The smallest tile that holds the rows, up to the largest: its name, rows, columns, threads and bytes of shared memory.
fn product_tile(rows: usize, out: Element) -> (&'static str, usize, usize, u32, usize) {
    match (rows, out) {
        (..=16, Element::Bf16) => ("gemm_m16_bf16", 16, 32, 64, 41_472),
        (..=16, Element::F32) => ("gemm_m16_f32", 16, 32, 64, 41_472),
        (..=64, Element::Bf16) => ("gemm_m64_bf16", 64, 64, 128, 55_296),
        (..=64, Element::F32) => ("gemm_m64_f32", 64, 64, 128, 55_296),
        (_, Element::Bf16) => ("gemm_m128_bf16", 128, 128, 256, 81_920),
        (_, Element::F32) => ("gemm_m128_f32", 128, 128, 256, 81_920),
    }
}

impl Ops for CudaOps {
    type Matrix = CudaMatrix;
    type Experts = CudaExperts;
    type Vector = CudaVector;
    type Rows = CudaRows;
    type Rope = CudaRope;
    type Step = CudaStep;

    fn load_matrix(&mut self, role: Role, parts: &[Tensor]) -> CudaMatrix {
        self.load(|device| CudaMatrix::load(device, role, parts), CudaMatrix::missing(role, parts))
    }

    fn load_vector(&mut self, values: &[f32]) -> CudaVector {
        self.load(|device| Ok(CudaVector(Some(Buffer::of(device, values)?))), CudaVector(None))
    }

    fn load_rope(&mut self, rope: &RopeSpec, max_positions: usize) -> CudaRope {
        self.load(|device| CudaRope::load(device, rope, max_positions), CudaRope::missing(rope))
    }

    fn load_experts(&mut self, matrices: Vec<CudaMatrix>) -> CudaExperts {
        let table = self.load(|device| CudaExperts::table(device, &matrices).map(Some), None);
        CudaExperts::new(matrices, table)
    }

    fn new_rows(&mut self) -> CudaRows {
        CudaRows::default()
    }

    fn new_step(&mut self) -> CudaStep {
        CudaStep::default()
    }

    fn allocate_kv(&mut self, spec: &Spec, dtype: KvDtype, num_blocks: usize) -> Result<usize, DeviceError> {
        self.outcome()?;
        let kv = self.kv.insert(CudaKv::new(&self.device, spec, dtype, num_blocks)?);
        Ok(kv.bytes())
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        self.run(|ops| ops.kv.as_mut().expect(NO_KV).copy_blocks(&ops.device, pairs));
    }

    fn prepare(&mut self, batch: &Batch, step: &mut CudaStep) {
        self.run(|ops| step.set(&ops.device, batch));
    }

    fn embed(&mut self, step: &CudaStep, table: &CudaMatrix, scale: f32, out: &mut CudaRows) {
        self.run(|ops| {
            out.reshape(&ops.device, step.num_rows, table.cols, Element::F32)?;
            let launch = Launch::new("embed", [out.rows(), chunks(out.width()), 1])
                .address(out.address())
                .address(table.address())
                .address(step.tokens())
                .float(scale)
                .int(out.width());
            // SAFETY: tokens are below the table's rows, as the executor checks.
            unsafe { ops.start(launch) }
        });
    }

    fn rms_norm(&mut self, x: &CudaRows, weight: &CudaVector, eps: f32, out: &mut CudaRows) {
        self.run(|ops| {
            out.reshape(&ops.device, x.rows(), x.width(), Element::Bf16)?;
            let kernel = match x.element() {
                Element::F32 => "rms_norm_f32_bf16",
                Element::Bf16 => "rms_norm_bf16_bf16",
            };
            // SAFETY: rows of one shape, and a weight for each column.
            unsafe { ops.start(norm(kernel, out.address(), x, weight, eps)) }
        });
    }

    fn rms_norm_in_place(&mut self, x: &mut CudaRows, weight: &CudaVector, eps: f32) {
        self.run(|ops| {
            let kernel = match x.element() {
                Element::F32 => "rms_norm_f32_f32",
                Element::Bf16 => "rms_norm_bf16_bf16",
            };
            // SAFETY: as in `rms_norm`.
            unsafe { ops.start(norm(kernel, x.address(), x, weight, eps)) }
        });
    }

    fn add_scaled(&mut self, x: &mut CudaRows, delta: &CudaRows, scale: f32) {
        self.run(|ops| {
            assert!(x.rows() == delta.rows() && x.width() == delta.width(), "sum of rows of different shapes");
            assert_eq!(x.element(), Element::F32, "sums are float32");
            let kernel = match delta.element() {
                Element::F32 => "add_scaled_f32",
                Element::Bf16 => "add_scaled_bf16",
            };
            let launch = Launch::new(kernel, [chunks(x.count()), 1, 1])
                .address(x.address())
                .address(delta.address())
                .float(scale)
                .int(x.count());
            // SAFETY: as many values.
            unsafe { ops.start(launch) }
        });
    }

    fn matmul(&mut self, x: &CudaRows, w: &CudaMatrix, bias: Option<&CudaVector>, out: &mut CudaRows) {
        self.run(|ops| {
            assert_eq!(x.width(), w.cols, "width of activations and weights");
            out.reshape(&ops.device, x.rows(), w.rows, w.product())?;
            let (kernel, tile_rows, tile_cols, threads, shared) = product_tile(x.rows(), out.element());
            let from = ops.as_bf16(x)?;
            let grid = [x.rows().div_ceil(tile_rows), w.rows.div_ceil(tile_cols), 1];
            let launch = Launch::new(kernel, grid)
                .threads(threads)
                .shared(shared)
                .address(out.address())
                .address(from)
                .address(w.address())
                .address(bias.map_or(0, CudaVector::address))
                .int(x.rows())
                .int(w.rows)
                .int(w.cols);
            // SAFETY: `[m, k]`, `[n, k]` and `[m, n]`, as asserted and reserved.
            unsafe { ops.start(launch) }
        });
    }

    fn rotate_and_store(
        &mut self,
        step: &CudaStep,
        layer: usize,
        attention: &Attention,
        norm: QkNormWeights<'_, CudaVector>,
        rope: Option<&CudaRope>,
        qkv: &mut CudaRows,
    ) {
        self.run(|ops| {
            let Attention { num_heads, num_kv_heads, head_dim, .. } = *attention;
            let heads = num_heads + 2 * num_kv_heads;
            assert_eq!(qkv.width(), heads * head_dim, "width of a fused q, k, v row");
            assert_eq!(qkv.rows(), step.num_rows, "rows of the batch");
            let (q_norm, k_norm, eps, norm) = match norm {
                QkNormWeights::None => (0, 0, 0.0, 0),
                QkNormWeights::PerHead { q, k, eps } => (q.address(), k.address(), eps, 1),
                QkNormWeights::WholeRow { q, k, eps } => (q.address(), k.address(), eps, 2),
            };
            let chunks = if norm == 2 { 1 } else { heads.div_ceil(HEADS_PER_BLOCK) };
            let kv = ops.kv.as_ref().expect(NO_KV);
            let kernel = match kv.dtype {
                KvDtype::F32 => "rotate_and_store_f32",
                KvDtype::Bf16 => "rotate_and_store_bf16",
                KvDtype::Int8 => "rotate_and_store_int8",
            };
            let mut launch = Launch::new(kernel, [qkv.rows(), chunks, 1]).address(qkv.address());
            for address in kv.addresses(layer) {
                launch = launch.address(address);
            }
            let [cos, sin] = rope.map_or([0; 2], CudaRope::addresses);
            let launch = launch
                .address(step.positions())
                .address(step.slots())
                .address(cos)
                .address(sin)
                .address(q_norm)
                .address(k_norm)
                .float(eps)
                .int(norm)
                .int(num_heads)
                .int(num_kv_heads)
                .int(head_dim)
                .int(rope.map_or(0, |rope| rope.rotary_dim));
            // SAFETY: slots are distinct and the cache's, positions below the table's, as the executor checks.
            unsafe { ops.start(launch) }
        });
    }

    fn attend(&mut self, step: &CudaStep, layer: usize, attention: &Attention, qkv: &CudaRows, out: &mut CudaRows) {
        self.run(|ops| {
            let kv = ops.kv.as_ref().expect(NO_KV);
            let attend = Attend { device: &ops.device, step, kv, layer, attention, qkv };
            attend.run(&mut ops.records, out)
        });
    }

    fn gated_activation(&mut self, gate_up: &CudaRows, activation: Activation, out: &mut CudaRows) {
        self.run(|ops| {
            assert_eq!(gate_up.element(), Element::Bf16, "products of projections are bfloat16");
            out.reshape(&ops.device, gate_up.rows(), gate_up.width() / 2, Element::Bf16)?;
            let kernel = match activation {
                Activation::Silu => "gated_activation_silu",
                Activation::GeluTanh => "gated_activation_gelu_tanh",
            };
            let launch = Launch::new(kernel, [out.rows(), chunks(out.width()), 1])
                .address(out.address())
                .address(gate_up.address())
                .int(out.width());
            // SAFETY: twice as many columns in as out.
            unsafe { ops.start(launch) }
        });
    }

    fn moe(
        &mut self,
        x: &CudaRows,
        weights: &MoeWeights<CudaMatrix, CudaExperts>,
        moe: &MoeSpec,
        activation: Activation,
        out: &mut CudaRows,
    ) {
        self.run(|ops| {
            let mut room = std::mem::take(&mut ops.moe);
            let outcome = Experts { weights, moe, activation }.apply(ops, &mut room, x, out);
            ops.moe = room;
            outcome
        });
    }

    fn gather_logit_rows(&mut self, step: &CudaStep, x: &CudaRows, out: &mut CudaRows) {
        self.run(|ops| {
            out.reshape(&ops.device, step.num_logit_rows, x.width(), x.element())?;
            let kernel = match x.element() {
                Element::F32 => "gather_rows_f32",
                Element::Bf16 => "gather_rows_bf16",
            };
            let launch = Launch::new(kernel, [out.rows(), chunks(out.width()), 1])
                .address(out.address())
                .address(x.address())
                .address(step.logit_rows())
                .int(out.width());
            // SAFETY: the rows are those of the step that `x` has.
            unsafe { ops.start(launch) }
        });
    }

    fn finish_logits(&mut self, logits: &mut CudaRows, scale: f32, softcap: Option<f32>) {
        self.run(|ops| {
            assert_eq!(logits.element(), Element::F32, "logits are float32");
            let launch = Launch::new("finish_logits", [chunks(logits.count()), 1, 1])
                .address(logits.address())
                .float(scale)
                .float(softcap.unwrap_or(0.0))
                .int(logits.count());
            // SAFETY: as many values.
            unsafe { ops.start(launch) }
        });
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        self.run(|ops| ops.device.finish());
        self.outcome()
    }

    fn read<'a>(&'a mut self, rows: &'a CudaRows) -> Result<&'a [f32], DeviceError> {
        self.run(|ops| rows.read(&ops.device, &mut ops.host));
        self.outcome()?;
        Ok(&self.host)
    }
}

fn norm(kernel: &'static str, out: Address, x: &CudaRows, weight: &CudaVector, eps: f32) -> Launch {
    Launch::new(kernel, [x.rows(), 1, 1])
        .address(out)
        .address(x.address())
        .address(weight.address())
        .float(eps)
        .int(x.width())
}
