//! A model on the CPU: lanes share the weights, and divide threads and KV memory.

use super::super::cores;
use super::super::engine::{EngineError, Progress};
use super::super::memory::{self, Demand, TooLittle};
use super::Lanes;
use crate::base::config::{
    Compute as ComputeChoice, Config, Isa as IsaChoice, KvDtype as KvChoice, Weights as WeightsChoice,
};
use crate::exec::Executor;
use crate::exec::cpu::{self, Compute, CpuError, CpuOps, CpuOptions, Format, Isa, Peaks, Stored};
use crate::exec::runner::ModelExecutor;
use crate::model::decoder::Decoder;
use crate::model::ops::KvDtype;
use crate::model::source::ModelSource;
use crate::model::weights::Dtype;

/// Share of the memory left after the weights that the KV cache gets, where nothing else is configured.
const MEMORY_SHARE: f64 = 0.5;

pub fn open(config: &Config, source: &ModelSource, progress: Progress) -> Result<Lanes, EngineError> {
    let (isa, compute, weights) = (isa(config), compute(config), weights(config));
    let dtype = kv_dtype(config, source)?;
    let block_bytes = cpu::kv_bytes_per_block(&source.spec, dtype).ok_or(EngineError::KvShape)?;

    let lanes = config.engine.lanes;
    let threads = threads(config);
    let options = |lane: usize| CpuOptions {
        threads: threads / lanes + usize::from(lane < threads % lanes),
        isa,
        compute,
        weights,
    };
    let mut first = CpuOps::new(options(0))?;
    let mut on_load = |done, total| progress("loading weights", done, total);
    let decoder = Decoder::load(&mut first, &source.spec, &source.tensors, &mut on_load)?;
    let num_blocks = num_blocks(config, block_bytes, source.spec.max_positions)?;
    let (weights, warnings) = (describe_weights(&first), describe_obstacles(&first));

    let mut all = vec![(first, decoder)];
    for lane in 1..lanes {
        let mut ops = CpuOps::new(options(lane))?;
        let decoder = all[0].1.share(&mut ops);
        all.push((ops, decoder));
    }
    let mut executors = Vec::with_capacity(lanes);
    for (ops, decoder) in all {
        let device = format!("cpu ({}, {} thread(s))", ops.isa(), ops.threads());
        executors.push(Box::new(ModelExecutor::new(ops, decoder, device, dtype, num_blocks)?) as Box<dyn Executor>);
    }
    Ok(Lanes { executors, num_blocks, block_bytes, weights, warnings })
}

/// As "bf16, 942 MiB, computed in bf16", for every format that there is.
fn describe_weights(ops: &CpuOps) -> String {
    let one = |s: &Stored| format!("{}, {} MiB, computed in {}", s.format, s.bytes >> 20, s.compute);
    ops.stored().iter().map(one).collect::<Vec<_>>().join("; ")
}

fn describe_obstacles(ops: &CpuOps) -> Vec<String> {
    let asked = ops.compute();
    let one = |s: &Stored| {
        let obstacle = s.obstacle(asked, ops.isa())?;
        Some(format!(
            "engine.compute={asked} does not apply to {} MiB of {} weights, which are computed in {}: {obstacle}",
            s.bytes >> 20,
            s.format,
            s.compute
        ))
    };
    ops.stored().iter().filter_map(one).collect()
}

fn isa(config: &Config) -> Option<Isa> {
    match config.engine.isa {
        IsaChoice::Auto => None,
        IsaChoice::Avx512Dot => Some(Isa::Avx512Dot),
        IsaChoice::Avx512 => Some(Isa::Avx512),
        IsaChoice::Avx2 => Some(Isa::Avx2),
        IsaChoice::Scalar => Some(Isa::Scalar),
    }
}

fn compute(config: &Config) -> Compute {
    match config.engine.compute {
        ComputeChoice::F32 => Compute::F32,
        ComputeChoice::Bf16 => Compute::Bf16,
        ComputeChoice::Int8 => Compute::Int8,
    }
}

/// `None`: as the file has them.
pub fn weights(config: &Config) -> Option<Format> {
    match config.engine.weights {
        WeightsChoice::Auto => None,
        WeightsChoice::F32 => Some(Format::F32),
        WeightsChoice::F16 => Some(Format::F16),
        WeightsChoice::Bf16 => Some(Format::Bf16),
        WeightsChoice::Fp8 => Some(Format::Fp8),
        WeightsChoice::Int8 => Some(Format::Int8),
        WeightsChoice::Int4Of32 => Some(Format::Int4Min(1)),
        WeightsChoice::Int4 => Some(Format::Int4Min(2)),
        WeightsChoice::Int4Of128 => Some(Format::Int4Min(4)),
    }
}

/// What the machine gives at most, with the configured threads and level.
pub fn probe(config: &Config) -> Result<Peaks, CpuError> {
    cpu::probe(CpuOptions { threads: threads(config), isa: isa(config), ..CpuOptions::default() })
}

/// Compute threads over all lanes; every lane has at least one.
fn threads(config: &Config) -> usize {
    config.engine.threads.unwrap_or_else(cores::physical).max(config.engine.lanes)
}

/// KV blocks of a lane.
pub fn num_blocks(config: &Config, block_bytes: usize, max_model_len: usize) -> Result<usize, TooLittle> {
    let demand = Demand {
        block_bytes,
        num_lanes: config.engine.lanes,
        max_running: config.scheduler.max_running,
        max_model_len,
    };
    // Where nothing says how much is free, a gigabyte is a safe guess; kv.memory overrides it.
    let free = memory::free_bytes().unwrap_or(1 << 30);
    memory::blocks_per_lane(&config.kv, MEMORY_SHARE, free, demand)
}

/// `auto` keeps the KV cache in 16 bits when the weights are, or activations are rounded anyway; quantised weights stand
/// for float32 numbers.
fn kv_dtype(config: &Config, source: &ModelSource) -> Result<KvDtype, EngineError> {
    let is_wide = |dtype: Dtype| dtype == Dtype::F32 || dtype.is_quantised();
    let weights_are_wide = || source.tensors.values().any(|t| t.shape.len() > 1 && is_wide(t.dtype));
    Ok(match config.kv.dtype {
        KvChoice::F32 => KvDtype::F32,
        KvChoice::Bf16 => KvDtype::Bf16,
        KvChoice::Int8 => KvDtype::Int8,
        KvChoice::Fp8 => return Err(EngineError::KvOnCpu),
        KvChoice::Auto if config.engine.compute == ComputeChoice::F32 && weights_are_wide() => KvDtype::F32,
        KvChoice::Auto => KvDtype::Bf16,
    })
}
