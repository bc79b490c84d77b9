//! A model on GPUs: a lane each, or several that share one's weights and divide its KV memory.

use std::sync::Arc;

use super::super::engine::{EngineError, Progress};
use super::usage::{Usage, describe_memory, describe_weights, limits};
use super::{Lanes, cpu};
use crate::base::config::{Compute, Config, KvDtype as KvChoice, Weights};
use crate::exec::Executor;
use crate::exec::cuda::device::libraries::{Missing, Places, Wanted};
use crate::exec::cuda::device::{Gpu, Nvidia, open_gpu_with};
use crate::exec::cuda::kernels::KernelOptions;
use crate::exec::cuda::{CudaOps, kv_bytes_per_block};
use crate::exec::runner::ModelExecutor;
use crate::model::decoder::Decoder;
use crate::model::ops::KvDtype;
use crate::model::source::ModelSource;

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
        weights = describe_weights(&first);
        let mut own = vec![(first, decoder)];
        for _ in 1..own_lanes {
            let mut ops = own[0].0.fork();
            let decoder = own[0].1.share(&mut ops);
            own.push((ops, decoder));
        }
        let memory = measure(config, gpu, &mut own, dtype)?;
        let blocks = memory.blocks_per_lane(config, block_bytes, own_lanes, source.spec.max_positions)?;
        fewest_blocks = fewest_blocks.min(blocks);
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

/// Runs each lane's largest steps, so that activations have their memory before the rest is shared out.
fn measure<'a>(
    config: &Config,
    gpu: &'a Gpu,
    own: &mut [(CudaOps, Decoder<CudaOps>)],
    dtype: KvDtype,
) -> Result<Usage<'a>, EngineError> {
    let mut usage = Usage::of_weights(gpu, own[0].0.free_bytes()?);
    for (ops, decoder) in own {
        ops.reserve_activations(decoder, dtype, limits(config)).map_err(|e| usage.exceeded(&e))?;
        usage.with_activations(ops.free_bytes()?);
    }
    usage.log();
    Ok(usage)
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

    #[test]
    fn only_what_does_not_apply_warns() {
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
