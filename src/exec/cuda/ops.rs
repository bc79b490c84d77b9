//! Each operation of [`Ops`] as launches of kernels.

use super::attention::Attend;
use super::device::Address;
use super::graphs::Way;
use super::kv::CudaKv;
use super::launch::Launch;
use super::memory::Buffer;
use super::moe::{CudaExperts, Experts};
use super::quant::{Numbers, kernel_of};
use super::rows::{CudaRows, Element};
use super::step::CudaStep;
use super::weights::{CudaMatrix, CudaRope, CudaVector};
use super::{CudaOps, chunks, sampling, slices};
use crate::model::draws::{Answers, Requests};
use crate::model::ops::{Attention, Batch, Begun, DeviceError, KvDtype, MoeWeights, Ops, QkNormWeights, Role};
use crate::model::spec::{Activation, MoeSpec, RopeSpec, Spec};
use crate::model::weights::Tensor;

/// Heads that one block of `rotate_and_store` goes through.
const HEADS_PER_BLOCK: usize = 8;
const NO_KV: &str = "allocate_kv comes before the first step";

impl Ops for CudaOps {
    type Matrix = CudaMatrix;
    type Experts = CudaExperts;
    type Vector = CudaVector;
    type Rows = CudaRows;
    type Rope = CudaRope;
    type Step = CudaStep;

    fn load_matrix(&mut self, role: Role, parts: &[Tensor]) -> CudaMatrix {
        let (weights, mut stored) = (self.weights, std::mem::take(&mut self.stored));
        let load = |device: &_| CudaMatrix::load(device, weights, role, parts, &mut stored);
        let matrix = self.load(load, CudaMatrix::missing(role, parts));
        self.stored = stored;
        matrix
    }

    fn load_vector(&mut self, values: &[f32]) -> CudaVector {
        self.load(|device| Ok(CudaVector(Some(Buffer::of(device, values)?))), CudaVector(None))
    }

    fn load_rope(&mut self, rope: &RopeSpec, max_positions: usize) -> CudaRope {
        self.load(|device| CudaRope::load(device, rope, max_positions), CudaRope::missing(rope))
    }

    fn load_experts(&mut self, matrices: Vec<CudaMatrix>) -> CudaExperts {
        let tables = self.load(|device| CudaExperts::tables(device, &matrices), Vec::new());
        CudaExperts::new(matrices, tables)
    }

    fn new_rows(&mut self) -> CudaRows {
        CudaRows::default()
    }

    fn new_step(&mut self) -> CudaStep {
        CudaStep::default()
    }

    fn allocate_kv(&mut self, spec: &Spec, dtype: KvDtype, num_blocks: usize) -> Result<usize, DeviceError> {
        self.outcome()?;
        // Never two at once.
        self.kv = None;
        let kv = self.kv.insert(CudaKv::new(&self.device, spec, dtype, num_blocks)?);
        Ok(kv.bytes())
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        self.run(|ops| ops.kv.as_mut().expect(NO_KV).copy_blocks(&ops.device, pairs));
    }

    fn prepare(&mut self, batch: &Batch, step: &mut CudaStep) {
        self.run(|ops| step.set(&ops.device, batch));
    }

    fn begin_decode(&mut self, batch: &Batch, step: &mut CudaStep, logits: &mut CudaRows, vocab_size: usize) -> Begun {
        let mut way = Way::Direct;
        match self.graphs.bucket(batch) {
            None => self.run(|ops| step.set(&ops.device, batch)),
            Some(bucket) => self.run(|ops| {
                step.set_filled(&ops.device, batch, bucket)?;
                way = ops.graphs.begin(&ops.device, bucket)?;
                Ok(())
            }),
        }
        if way != Way::Replayed {
            return Begun::Prepared;
        }
        logits.show(step.num_batch_rows, vocab_size, Element::F32);
        Begun::Done
    }

    fn end_decode(&mut self, step: &CudaStep, logits: &mut CudaRows) -> bool {
        if !step.is_filled() {
            return true;
        }
        if self.graphs.is_capturing() {
            let failure = self.error.take();
            match self.graphs.end(&self.device, failure) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => self.error = Some(error),
            }
        }
        logits.show(step.num_batch_rows, logits.width(), logits.element());
        true
    }

    fn embed(&mut self, step: &CudaStep, table: &CudaMatrix, scale: f32, out: &mut CudaRows) {
        self.run(|ops| {
            out.reshape(&ops.device, step.num_rows, table.cols, Element::F32)?;
            let [section] = table.sections() else { unreachable!("an embedding has one part") };
            let kernel = match section.packing {
                None => "embed",
                Some(packing) => kernel_of!("embed_", packing.numbers, ""),
            };
            let launch = Launch::new(kernel, [out.rows(), chunks(out.width()), 1])
                .address(out.address())
                .address(section.address())
                .address(step.tokens())
                .float(scale);
            let launch = match section.packing {
                None => launch.int(out.width()),
                Some(packing) => launch.int(table.rows).int(out.width()).int(packing.records as usize),
            };
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

    fn add_scaled_rms_norm(
        &mut self,
        x: &mut CudaRows,
        delta: &CudaRows,
        scale: f32,
        weight: &CudaVector,
        eps: f32,
        out: &mut CudaRows,
    ) {
        self.run(|ops| {
            assert!(x.rows() == delta.rows() && x.width() == delta.width(), "sum of rows of different shapes");
            assert_eq!(x.element(), Element::F32, "sums are float32");
            out.reshape(&ops.device, x.rows(), x.width(), Element::Bf16)?;
            let kernel = match delta.element() {
                Element::F32 => "add_scaled_rms_norm_f32",
                Element::Bf16 => "add_scaled_rms_norm_bf16",
            };
            let launch = Launch::new(kernel, [x.rows(), 1, 1])
                .address(x.address())
                .address(out.address())
                .address(delta.address())
                .float(scale)
                .address(weight.address())
                .float(eps)
                .int(x.width());
            // SAFETY: rows of one shape, and a weight for each column.
            unsafe { ops.start(launch) }
        });
    }

    fn matmul(&mut self, x: &CudaRows, w: &CudaMatrix, bias: Option<&CudaVector>, out: &mut CudaRows) {
        self.run(|ops| ops.multiply(x, w, bias, out));
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
                KvDtype::Fp8 => "rotate_and_store_fp8",
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
            for (first, count) in slices(logits.count()) {
                let launch = Launch::new("finish_logits", [chunks(count), 1, 1])
                    .address(logits.address() + (first * size_of::<f32>()) as u64)
                    .float(scale)
                    .float(softcap.unwrap_or(0.0))
                    .int(count);
                // SAFETY: values of these rows.
                unsafe { ops.start(launch)? };
            }
            Ok(())
        });
    }

    fn all_reduce(&mut self, rows: &mut CudaRows) {
        self.run(|ops| ops.add_parts(rows));
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        self.run(|ops| ops.device.finish());
        self.outcome()
    }

    fn draws(&self, vocab_size: usize) -> bool {
        vocab_size <= sampling::MAX_VOCAB
    }

    fn draw(&mut self, logits: &CudaRows, requests: &Requests, answers: &mut Answers) -> Result<(), DeviceError> {
        self.run(|ops| ops.sampling.run(&ops.device, logits, requests, answers));
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
