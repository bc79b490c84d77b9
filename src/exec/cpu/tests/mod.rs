//! Every operation against a plain float64 twin, at every level of this machine; and batch invariance, bit for bit.

mod attention;
mod invariance;
mod operations;
mod twins;

use std::sync::Arc;

use half::{bf16, f16};

use super::*;
use crate::model::weights::{Bytes, Dtype};

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
pub const BLOCK_DTYPES: [Dtype; 8] =
    [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K];

/// A step of this batch.
pub fn step_of(batch: Batch) -> CpuStep {
    let mut step = CpuStep::default();
    step.set(&batch);
    step
}

/// Seeded numbers: the same test data on every machine.
pub struct Random(pub u64);

impl Random {
    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    pub fn rows(&mut self, rows: usize, width: usize) -> CpuRows {
        CpuRows::from_values(self.values(rows * width), width)
    }

    /// A matrix of random elements, its bytes at an odd place, and its values as stored.
    pub fn tensor(&mut self, dtype: Dtype, rows: usize, cols: usize) -> (Tensor, Vec<f32>) {
        let mut bytes = vec![0xffu8];
        for x in self.values(rows * cols) {
            match dtype {
                Dtype::F32 => bytes.extend(x.to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                Dtype::Bf16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                quantised => panic!("{quantised} elements are not made one by one"),
            }
        }
        let range = 1..bytes.len();
        let tensor = Tensor::new("test.weight".into(), dtype, vec![rows, cols], Arc::new(Owned(bytes)), range);
        let values = tensor.to_f32();
        (tensor, values)
    }
}

impl Random {
    /// A matrix of random blocks, whose weights are below one or so.
    pub fn blocks(&mut self, dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        let mut bytes: Vec<u8> = (0..rows * dtype.row_bytes(cols)).map(|_| self.next() as u8).collect();
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            let mut put = |at: usize, largest: f32| {
                block[at..at + 2].copy_from_slice(&f16::from_f32(largest * self.value()).to_le_bytes());
            };
            match dtype {
                Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q5_0 => put(0, 0.01),
                Dtype::Q4_1 | Dtype::Q5_1 => {
                    put(0, 0.01);
                    put(2, 0.1);
                }
                Dtype::Q4K | Dtype::Q5K => {
                    put(0, 1e-3);
                    put(2, 1e-2);
                }
                _ => put(208, 3e-4),
            }
        }
        let all = 0..bytes.len();
        Tensor::new("blocks".into(), dtype, vec![rows, cols], Arc::new(bytes), all)
    }
}

struct Owned(Vec<u8>);

impl Bytes for Owned {
    fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

pub fn ops(isa: Isa, threads: usize) -> CpuOps {
    computing(isa, Compute::F32, threads)
}

pub fn computing(isa: Isa, compute: Compute, threads: usize) -> CpuOps {
    CpuOps::new(CpuOptions { threads, isa: Some(isa), compute, weights: None }).unwrap()
}

/// Every level and way of computing that this machine has.
pub fn ways() -> impl Iterator<Item = (Isa, Compute)> {
    Isa::available().flat_map(|isa| [Compute::F32, Compute::Bf16].map(|compute| (isa, compute)))
}

/// The same with quantised weights.
pub fn quantised_ways() -> impl Iterator<Item = CpuOptions> {
    let formats = [Format::Int8, Format::Int4Min(1), Format::Int4Min(4)];
    let ways = Isa::available().flat_map(|isa| [Compute::F32, Compute::Int8].map(|compute| (isa, compute)));
    ways.flat_map(move |(isa, compute)| {
        formats.map(|format| CpuOptions { threads: 1, isa: Some(isa), compute, weights: Some(format) })
    })
}

/// Asserts that every value is within `tolerance` times the scale of its sum (or 1) of the exact one.
pub fn assert_close(got: &[f32], exact: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), exact.len(), "{what}");
    for (i, (&got, &exact)) in got.iter().zip(exact).enumerate() {
        let error = (f64::from(got) - exact).abs();
        assert!(error <= tolerance * exact.abs().max(1.0), "{what}: value {i} is {got}, not {exact}");
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn options_are_checked_and_forks_share_weights() {
    assert!(matches!(
        CpuOps::new(CpuOptions { threads: MAX_THREADS + 1, isa: None, ..CpuOptions::default() }),
        Err(CpuError::TooManyThreads(_))
    ));
    let mut first = CpuOps::new(CpuOptions { threads: 2, isa: None, ..CpuOptions::default() }).unwrap();
    assert_eq!((first.threads(), first.isa()), (2, Isa::detect()));
    let mut second = first.fork(1).unwrap();
    assert_eq!((second.threads(), second.isa()), (1, Isa::detect()));
    let mut random = Random(1);
    let (tensor, _) = random.tensor(Dtype::Bf16, 40, 50);
    let w = first.load_matrix(Role::Projection, &[tensor]);
    let x = random.rows(3, 50);
    let (mut a, mut b) = (CpuRows::default(), CpuRows::default());
    first.matmul(&x, &w, None, &mut a);
    second.matmul(&x, &w.clone(), None, &mut b);
    assert_eq!(bits(a.values()), bits(b.values()));
}

/// Rounding asked for is rounding of what stands in layers: routers stay, embedding and head keep eight bits.
#[test]
fn routers_embeddings_and_heads_are_spared() {
    let mut random = Random(2);
    let (plain, _) = random.tensor(Dtype::Bf16, 3, 256);
    let five_bits = random.blocks(Dtype::Q5K, 3, 256);
    let formats = |weights, tensor: &Tensor| {
        let mut ops = CpuOps::new(CpuOptions { weights: Some(weights), ..CpuOptions::default() }).unwrap();
        [Role::Projection, Role::Embedding, Role::Head, Role::Router]
            .map(|role| ops.load_matrix(role, std::slice::from_ref(tensor)).sections()[0].layout.format)
    };
    let (four, eight) = (Format::Int4Min(2), Format::Int8);
    assert_eq!(formats(four, &plain), [four, eight, eight, Format::Bf16]);
    assert_eq!(formats(four, &five_bits), [four, Format::Int5Super, Format::Int5Super, Format::Int5Super]);
    assert_eq!(formats(eight, &plain), [eight, eight, eight, Format::Bf16]);
    assert_eq!(formats(Format::F32, &plain), [Format::F32; 4]);
}
