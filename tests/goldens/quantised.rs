//! Quantised weights on the CUDA device, against the CPU's float32 with the same weights.

use std::sync::Arc;

use garrick::exec::cpu::Format;
use garrick::exec::cuda::CudaOps;
use garrick::exec::cuda::device::Order;
use garrick::model::ops::{Batch, DeviceError, Role};
use garrick::model::weights::{Dtype, Tensor};
use half::{bf16, f16};

use super::cuda::{NewOps, cuda};
use super::*;
use crate::harness::project;

const BLOCKS: [Dtype; 8] =
    [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K];
const ROUNDED: [Format; 4] = [Format::Int8, Format::Int4Min(1), Format::Int4Min(2), Format::Int4Min(4)];

/// SplitMix64: the same numbers on every machine.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Blocks of any numbers, whose scales and minima are about 0.1.
    fn blocks(&mut self, dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        let mut bytes: Vec<u8> = (0..rows * dtype.row_bytes(cols)).map(|_| self.next() as u8).collect();
        let halves: &[usize] = match dtype {
            Dtype::Q6K => &[208],
            Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for at in halves {
                block[*at..at + 2].copy_from_slice(&f16::from_f32(self.value() * 0.2).to_le_bytes());
            }
        }
        tensor(dtype, vec![rows, cols], bytes)
    }

    pub fn floats(&mut self, rows: usize, cols: usize) -> Tensor {
        let bytes = (0..rows * cols).flat_map(|_| self.value().to_le_bytes()).collect();
        tensor(Dtype::F32, vec![rows, cols], bytes)
    }

    /// What both devices multiply alike.
    pub fn activations(&mut self, rows: usize, cols: usize) -> Tensor {
        let bytes = (0..rows * cols).flat_map(|_| bf16::from_f32(self.value()).to_le_bytes()).collect();
        tensor(Dtype::Bf16, vec![rows, cols], bytes)
    }
}

pub fn tensor(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Tensor {
    let all = 0..bytes.len();
    Tensor::new("w".into(), dtype, shape, Arc::new(bytes), all)
}

/// The table's rows, each times `scale`.
fn rows_of<O: Ops>(ops: &mut O, table: &O::Matrix, count: usize, scale: f32) -> O::Rows {
    let (mut step, mut rows) = (ops.new_step(), ops.new_rows());
    ops.prepare(&Batch { tokens: (0..count as u32).collect(), ..Batch::default() }, &mut step);
    ops.embed(&step, table, scale, &mut rows);
    rows
}

/// What [`stored`] multiplies weights by.
pub const STORED_TIMES: f32 = 1.5;

/// The stored weights, as an embedding gives them.
pub fn stored<O: Ops>(mut ops: O, role: Role, table: &Tensor) -> Vec<f32> {
    let matrix = ops.load_matrix(role, std::slice::from_ref(table));
    let rows = rows_of(&mut ops, &matrix, table.shape[0], STORED_TIMES);
    ops.read(&rows).unwrap().to_vec()
}

/// `x · wᵀ + bias`.
pub fn product<O: Ops>(mut ops: O, x: &Tensor, role: Role, parts: &[Tensor]) -> Vec<f32> {
    let (table, w) = (ops.load_matrix(Role::Embedding, std::slice::from_ref(x)), ops.load_matrix(role, parts));
    let outputs: usize = parts.iter().map(|part| part.shape[0]).sum();
    let bias = ops.load_vector(&(0..outputs).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<_>>());
    let (rows, mut out) = (rows_of(&mut ops, &table, x.shape[0], 1.0), ops.new_rows());
    ops.matmul(&rows, &w, Some(&bias), &mut out);
    ops.read(&out).unwrap().to_vec()
}

pub fn cpu(weights: Option<Format>) -> CpuOps {
    CpuOps::new(CpuOptions { threads: 1, weights, ..CpuOptions::default() }).unwrap()
}

/// `relative` to each value, and to the typical one.
pub fn assert_near(found: &[f32], expected: &[f32], relative: f32, of_typical: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let typical = rms(expected, &vec![0.0; expected.len()]);
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let allowed = relative * b.abs() + of_typical * typical;
        assert!((a - b).abs() <= allowed, "{what}, value {i}: {a} is not {b}, {allowed} away at most");
    }
}

#[test]
fn a_file_s_weights_are_embedded_and_multiplied_without_rounding_them() {
    let Some(device) = cuda(Order::Random(3)) else { return };
    let mut random = Random(1);
    for dtype in BLOCKS {
        let w = random.blocks(dtype, 37, 512);
        let expected = stored(cpu(None), Role::Head, &w);
        assert_near(&stored(device(), Role::Head, &w), &expected, 3e-7, 0.0, &format!("{dtype} stored"));
        for rows in [1, 20, 70] {
            let (x, w) = (random.activations(rows, 512), std::slice::from_ref(&w));
            let expected = product(cpu(None), &x, Role::Head, w);
            // Weights rounded to bfloat16 would be a hundred times as far off.
            let found = product(device(), &x, Role::Head, w);
            assert_near(&found, &expected, 0.0, 2e-5, &format!("{dtype}, {rows} rows"));
        }
    }
}

/// As q, k and v in a Q4_K_M file; float16 beside a quantised part makes all of them bfloat16.
#[test]
fn parts_of_several_formats_make_one_product() {
    let Some(device) = cuda(Order::Forward) else { return };
    let mut random = Random(2);
    let mut part = |dtype, rows| random.blocks(dtype, rows, 512);
    let mixed = vec![part(Dtype::Q4K, 40), part(Dtype::Q6K, 7), part(Dtype::Q5_0, 9), part(Dtype::Q8_0, 20)];
    let mixed = [mixed, vec![part(Dtype::Q5K, 3)]].concat();
    let beside = [part(Dtype::Q4_0, 33), Random(3).activations(6, 512)];
    for (parts, of_typical, formats) in
        [(&mixed[..], 1e-5, ["q4_k", "q6_k", "q5_0", "int8", "q5_k"].to_vec()), (&beside[..], 1e-2, vec![])]
    {
        let mut ops = device();
        ops.load_matrix(Role::Projection, parts);
        let bf16_only = ["bf16"].to_vec();
        let expected = if formats.is_empty() { &bf16_only } else { &formats };
        assert_eq!(&ops.stored().iter().map(|s| s.format.to_string()).collect::<Vec<_>>(), expected);
        for rows in [2, 40, 100] {
            let x = Random(4).activations(rows, 512);
            let expected = product(cpu(None), &x, Role::Projection, parts);
            let found = product(device(), &x, Role::Projection, parts);
            assert_near(&found, &expected, 1.0 / 256.0, of_typical, &format!("{rows} rows"));
        }
    }
}

#[test]
fn weights_are_rounded_as_on_the_cpu_and_the_same_roles_are_spared() {
    let Some(device) = cuda(Order::Forward) else { return };
    let mut random = Random(5);
    // From a file that has small numbers already too.
    for w in [random.floats(21, 200), random.blocks(Dtype::Q4_0, 21, 96), random.blocks(Dtype::Q6K, 21, 256)] {
        for format in ROUNDED {
            for role in [Role::Projection, Role::Embedding, Role::Head, Role::Router] {
                let what = format!("{} as {format} for {role:?}", w.dtype);
                let expected = stored(cpu(Some(format)), role, &w);
                let found = stored(device().with_weights(Some(format)), role, &w);
                let is_spared = role == Role::Router && w.dtype == Dtype::F32;
                // What is spared is float32 there and bfloat16 here.
                assert_near(&found, &expected, if is_spared { 1.0 / 256.0 } else { 3e-7 }, 0.0, &what);
                let bits = |ops: &CudaOps| ops.stored()[0].bytes as f32 * 8.0 / w.num_elements() as f32;
                let mut ops = device().with_weights(Some(format));
                ops.load_matrix(role, std::slice::from_ref(&w));
                assert!(if is_spared { bits(&ops) == 16.0 } else { bits(&ops) < 10.0 }, "{what}: {} bits", bits(&ops));
            }
        }
    }
    let w = random.blocks(Dtype::Q4K, 8, 256);
    for (format, bytes) in [(None, 8 * 144), (Some(Format::Bf16), 8 * 512), (Some(Format::F32), 8 * 512)] {
        let mut ops = device().with_weights(format);
        ops.load_matrix(Role::Projection, std::slice::from_ref(&w));
        assert_eq!(ops.stored()[0].bytes, bytes, "{format:?}");
    }
}

#[test]
fn experts_in_different_formats_are_refused() {
    let Some(device) = cuda(Order::Forward) else { return };
    let (mut ops, mut random) = (device(), Random(6));
    let matrices = [Dtype::Q4_0, Dtype::Q8_0].map(|dtype| random.blocks(dtype, 4, 32));
    let matrices = matrices.map(|w| ops.load_matrix(Role::Projection, &[w]));
    ops.load_experts(matrices.into());
    let error = ops.free_bytes().unwrap_err();
    assert!(matches!(&error, DeviceError::Failed(message) if message.contains("set engine.weights")), "{error}");
}

/// The file's model on both devices; what is left is rounded activations, K and V.
#[test]
fn a_gguf_file_gives_the_cpu_s_logits() {
    /// Of the logits' own rms.
    const BOUND: f32 = 0.02;
    let Some(device) = cuda(Order::Random(7)) else { return };
    let path = project().join("tests/fixtures/gguf/llama.gguf");
    let prompt: Vec<u32> = (0..50).map(|i| (i * 37 + 11) % 280).collect();
    let expected = Model::open(cpu(None), &path, KvDtype::F32, None).prefill(&prompt, 50);
    let found = Model::open(device(), &path, KvDtype::Bf16, None).prefill(&prompt, 16);
    let error = rms(&found, &expected) / rms(&expected, &vec![0.0; expected.len()]);
    println!("llama.gguf: relative rms error {error}");
    assert!(error <= BOUND, "relative rms error {error}");
}

/// Golden models with rounded weights: as far from the CPU's as rounded activations may carry logits.
fn check_rounded(name: &str, format: Format, is_moe: bool) {
    let Some(device) = cuda(Order::Reverse) else { return };
    check_against(Model::load(cpu(Some(format)), name, KvDtype::F32, None), &device, name, format, is_moe);
}

/// The reference has the weights that the format makes of the model's.
pub fn check_against(mut reference: Model<CpuOps>, device: &NewOps, name: &str, format: Format, is_moe: bool) {
    let golden = Golden::read(name);
    let new_ops = || device().with_weights(Some(format));
    let mut model = Model::load(new_ops(), name, KvDtype::Bf16, None);
    for (i, prompt) in golden.prompts.iter().enumerate().filter(|(i, _)| EARLY_TIE != (name, *i)) {
        let (expected, found) = (reference.prefill(prompt, 48), model.prefill(prompt, 48));
        let error = if is_moe { median_rms(&found, &expected, model.vocab) } else { rms(&found, &expected) };
        let bound = super::cuda::ALLOWED * golden.bf16_error[i].rms;
        println!("{name}, {format}, prompt {i}: rms error {error}, {} of the bound", error / bound);
        assert!(error <= bound, "{name}, {format}, prompt {i}: rms error {error} above {bound}");
    }
    check_batched(name, new_ops);
}

#[test]
fn llama_rounded() {
    check_rounded("llama", Format::Int8, false);
    check_rounded("llama", Format::Int4Min(2), false);
}

#[test]
fn tied_head_rounded() {
    check_rounded("qwen2-tied", Format::Int4Min(4), false);
}

#[test]
fn experts_rounded() {
    check_rounded("mixtral", Format::Int8, true);
    check_rounded("qwen3-moe", Format::Int4Min(2), true);
}
