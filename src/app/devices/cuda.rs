//! A model on GPUs: a lane each, or several that share one's weights and divide its KV memory.

use std::sync::Arc;

use super::super::engine::{EngineError, Progress};
use super::super::memory::{self, Demand};
use super::{Lanes, cpu};
use crate::base::config::{Compute, Config, KvDtype as KvChoice, Speculative, Weights};
use crate::exec::Executor;
use crate::exec::cuda::device::libraries::{Missing, Places, Wanted};
use crate::exec::cuda::device::{Gpu, Nvidia, open_gpu_with};
use crate::exec::cuda::kernels::KernelOptions;
use crate::exec::cuda::{CudaOps, Limits, Stored, kv_bytes_per_block};
use crate::exec::runner::ModelExecutor;
use crate::model::decoder::Decoder;
use crate::model::ops::KvDtype;
use crate::model::source::ModelSource;

/// Share of the memory left after weights and activations that the KV cache gets, where nothing else is configured; the
/// rest is for graphs of decode steps and what the driver wants.
pub const MEMORY_SHARE: f64 = 0.9;

pub fn open(config: &Config, source: &ModelSource, gpus: &[Gpu], progress: Progress) -> Result<Lanes, EngineError> {
    let lanes = config.engine.lanes;
    let used = &gpus[..gpus.len().min(lanes)];
    let dtype = kv_dtype(config);
    let block_bytes = kv_bytes_per_block(&source.spec, dtype).ok_or(EngineError::KvShape)?;
    let mut opened = Vec::with_capacity(used.len());
    let mut fewest_blocks = usize::MAX;
    let mut weights = String::new();
    let mut warnings = obstacles(config);
    let kernels = kernel_options(config);
    for (index, gpu) in used.iter().enumerate() {
        // Lane i is on GPU i, modulo their number.
        let own_lanes = (index..lanes).step_by(used.len()).count();
        let mut device = open_gpu_with(gpu, &kernels, &mut |done, total| progress("compiling kernels", done, total))?;
        let products = products(config, &mut device, &mut warnings);
        let graph_rows = if config.engine.cuda_graphs { config.scheduler.max_running } else { 0 };
        let mut first = CudaOps::new(Arc::new(device)).with_weights(cpu::weights(config)).with_graphs(graph_rows);
        let mut on_load = |done, total| progress("loading weights", done, total);
        let decoder = Decoder::load(&mut first, &source.spec, &source.tensors, &mut on_load)?;
        weights = describe_weights(first.stored());
        let mut own = vec![(first, decoder)];
        for _ in 1..own_lanes {
            let mut ops = own[0].0.fork();
            let decoder = own[0].1.share(&mut ops);
            own.push((ops, decoder));
        }
        let memory = measure(config, gpu, &mut own, dtype)?;
        let demand = Demand {
            block_bytes,
            num_lanes: sharing_lanes(config, own_lanes),
            max_running: config.scheduler.max_running,
            max_model_len: source.spec.max_positions,
        };
        let blocks = memory::blocks_per_lane(&config.kv, MEMORY_SHARE, memory.free as u64, demand);
        fewest_blocks = fewest_blocks.min(blocks.map_err(|e| memory.exceeded(&e))?);
        opened.push((own, memory, products));
    }
    let weights =
        describe_memory(&weights, &opened.iter().map(|(_, memory, _)| memory.activations).collect::<Vec<_>>());
    let mut boxed = Vec::with_capacity(lanes);
    for (own, memory, products) in opened {
        let kv_mib = (fewest_blocks * block_bytes * own.len()) >> 20;
        for (ops, decoder) in own {
            let device = format!("cuda:{} ({}, products by {products})", memory.gpu.ordinal, memory.gpu.name);
            let executor = ModelExecutor::new(ops, decoder, device, dtype, fewest_blocks);
            let executor =
                executor.map_err(|e| memory.exceeded(&format!("{e}; the KV cache is to have {kv_mib} MiB")))?;
            boxed.push(Box::new(executor) as Box<dyn Executor>);
        }
    }
    Ok(Lanes { executors: boxed, num_blocks: fewest_blocks, block_bytes, weights, warnings })
}

/// The weights of each GPU, and what activations take on all of them.
fn describe_memory(weights: &str, activations: &[usize]) -> String {
    let each = match activations.len() {
        1 => String::new(),
        count => format!(" on each of {count} GPUs"),
    };
    format!("{weights}{each}; activations {} MiB", activations.iter().sum::<usize>() >> 20)
}

/// Where kernels come from.
pub fn kernel_options(config: &Config) -> KernelOptions {
    KernelOptions {
        libraries: Places::new(config.engine.cuda_libraries.as_deref()),
        folder: config.engine.cuda_kernels.as_ref().map(Into::into),
    }
}

/// Has products done as configured, as far as it can be. Says by what.
pub fn products(config: &Config, device: &mut Nvidia, warnings: &mut Vec<String>) -> String {
    const OWN: &str = "own kernels";
    if config.engine.batch_invariant {
        return OWN.into();
    }
    let opened = match Places::new(config.engine.cuda_libraries.as_deref()).open(Wanted::CublasLt) {
        Ok(opened) => opened,
        Err(missing) => {
            match missing {
                Missing::NotFound { .. } => tracing::info!("products are by own kernels: {missing}"),
                Missing::Unusable { .. } => warnings.push(format!("products are by own kernels: {missing}")),
            }
            return OWN.into();
        }
    };
    let path = opened.path.display();
    match device.use_cublaslt(&opened) {
        Ok(about) => {
            tracing::info!("products are by {about} ({path})");
            about
        }
        Err(reason) => {
            warnings.push(format!("products are by own kernels: {path} does not start: {reason}"));
            OWN.into()
        }
    }
}

/// As "q4_k, 942 MiB, computed in bf16", for every format that there is.
pub fn describe_weights(stored: &[Stored]) -> String {
    let one = |s: &Stored| format!("{}, {} MiB, computed in bf16", s.format, s.bytes >> 20);
    stored.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// How a GPU's memory is used, in bytes.
struct Usage<'a> {
    gpu: &'a Gpu,
    weights: usize,
    activations: usize,
    free: usize,
}

impl Usage<'_> {
    fn exceeded(&self, error: &dyn std::fmt::Display) -> EngineError {
        let [total, weights, activations, free] =
            [self.gpu.total_bytes, self.weights, self.activations, self.free].map(|bytes| bytes >> 20);
        EngineError::GpuMemory(format!(
            "cuda:{} ({}): {error}. Of its {total} MiB weights take {weights}, activations {activations}, and {free} are \
             left; lower scheduler.max_batch_tokens, scheduler.max_running or model.max_model_len, or set kv.memory",
            self.gpu.ordinal, self.gpu.name
        ))
    }
}

/// Runs each lane's largest steps, so that activations have their memory before the rest is shared out.
fn measure<'a>(
    config: &Config,
    gpu: &'a Gpu,
    own: &mut [(CudaOps, Decoder<CudaOps>)],
    dtype: KvDtype,
) -> Result<Usage<'a>, EngineError> {
    let limits = Limits {
        batch_tokens: config.scheduler.max_batch_tokens,
        sequences: config.scheduler.max_running,
        drafts: match config.scheduler.speculative {
            Speculative::Off => 0,
            Speculative::Auto | Speculative::Always => config.scheduler.num_speculative_tokens,
        },
    };
    let loaded = own[0].0.free_bytes()?;
    let mut usage = Usage { gpu, weights: gpu.free_bytes.saturating_sub(loaded), activations: 0, free: loaded };
    for (ops, decoder) in own {
        ops.reserve_activations(decoder, dtype, limits).map_err(|e| usage.exceeded(&e))?;
        usage.free = ops.free_bytes()?;
        usage.activations = loaded.saturating_sub(usage.free);
    }
    let [weights_mib, activations_mib, free_mib] =
        [usage.weights, usage.activations, usage.free].map(|bytes| bytes >> 20);
    tracing::info!(gpu = gpu.ordinal, weights_mib, activations_mib, free_mib, "memory before the KV cache");
    Ok(usage)
}

/// Lanes that share the memory that is given out: `kv.memory` is for all of them, a share of a GPU's for its own.
fn sharing_lanes(config: &Config, own_lanes: usize) -> usize {
    if config.kv.memory.is_some() { config.engine.lanes } else { own_lanes }
}

/// `auto` is what the kernels are made for.
pub fn kv_dtype(config: &Config) -> KvDtype {
    match config.kv.dtype {
        KvChoice::F32 => KvDtype::F32,
        KvChoice::Int8 => KvDtype::Int8,
        KvChoice::Fp8 => KvDtype::Fp8,
        KvChoice::Bf16 | KvChoice::Auto => KvDtype::Bf16,
    }
}

/// What was asked for and is the CPU's alone.
pub fn obstacles(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if matches!(config.engine.weights, Weights::F32 | Weights::F16) {
        warnings.push("engine.weights of f32 and f16 are the CPU's: on GPUs weights are bf16".to_owned());
    }
    if config.engine.compute == Compute::Int8 {
        warnings.push("engine.compute=int8 applies to the CPU only: GPUs compute in bf16".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::{Engine, Kv};
    use crate::exec::format::Format;

    #[test]
    fn an_explicit_size_is_for_the_lanes_of_all_gpus() {
        let config = |memory| Config {
            engine: Engine { lanes: 4, ..Engine::default() },
            kv: Kv { memory, ..Kv::default() },
            ..Config::default()
        };
        let blocks = |config: Config| {
            let num_lanes = sharing_lanes(&config, 2);
            let demand = Demand { block_bytes: 1000, num_lanes, max_running: 64, max_model_len: 8192 };
            memory::blocks_per_lane(&config.kv, MEMORY_SHARE, 80_000, demand)
        };
        // Two lanes on each of two GPUs: 10 blocks each; of a GPU's own memory, half of its 72.
        assert_eq!(describe_memory("bf16", &[3 << 20, 4 << 20]), "bf16 on each of 2 GPUs; activations 7 MiB");
        assert_eq!(describe_memory("bf16", &[3 << 20]), "bf16; activations 3 MiB");
        assert_eq!((blocks(config(Some(40_000))), blocks(config(None))), (Ok(10), Ok(36)));
    }

    #[test]
    fn too_little_memory_names_all_numbers() {
        let mib = |n: usize| n << 20;
        let gpu = Gpu {
            ordinal: 1,
            name: "NVIDIA L4".into(),
            capability: (8, 9),
            total_bytes: mib(23_000),
            free_bytes: mib(22_500),
            kernels: "sm_89".into(),
            is_prebuilt: true,
        };
        let usage = Usage { gpu: &gpu, weights: mib(16_001), activations: mib(702), free: mib(5_803) };
        let message = usage.exceeded(&"no 9000 MiB left").to_string();
        for part in ["cuda:1 (NVIDIA L4): no 9000 MiB left.", "23000 MiB", "16001", "702", "5803 are left"] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn every_format_is_named_and_only_what_does_not_apply_warns() {
        let of = |format, mib: usize| Stored { format, bytes: mib << 20 };
        let stored = [of(Format::Int4Super, 30), of(Format::Bf16, 2)];
        assert_eq!(describe_weights(&stored), "q4_k, 30 MiB, computed in bf16; bf16, 2 MiB, computed in bf16");
        let warned = |weights, compute| {
            let mut config = Config::default();
            (config.engine.weights, config.engine.compute) = (weights, compute);
            obstacles(&config).len()
        };
        for weights in
            [Weights::Auto, Weights::Bf16, Weights::Int8, Weights::Int4, Weights::Int4Of32, Weights::Int4Of128]
        {
            assert_eq!(warned(weights, Compute::F32), 0, "{weights:?}");
        }
        assert_eq!((warned(Weights::F32, Compute::F32), warned(Weights::F16, Compute::Int8)), (1, 2));
    }
}
