//! How a GPU's memory is used before there is a KV cache.

use super::super::engine::EngineError;
use super::super::memory::{self, Demand, TooLittle};
use crate::base::config::{Config, Speculative};
use crate::exec::cuda::device::Gpu;
use crate::exec::cuda::{CudaOps, Limits, Stored};
use crate::exec::format::Format;

/// Share of the memory left after weights and activations that the KV cache gets, where nothing else is configured; the
/// rest is for graphs of decode steps and what the driver wants.
const MEMORY_SHARE: f64 = 0.9;

/// Of one GPU, in bytes.
pub struct Usage<'a> {
    pub gpu: &'a Gpu,
    pub weights: usize,
    pub activations: usize,
    pub free: usize,
}

impl<'a> Usage<'a> {
    /// Of a GPU that has its weights.
    pub fn of_weights(gpu: &'a Gpu, free: usize) -> Usage<'a> {
        Usage { gpu, weights: gpu.free_bytes.saturating_sub(free), activations: 0, free }
    }

    /// So much is left with (more) activations.
    pub fn with_activations(&mut self, free: usize) {
        self.activations += self.free.saturating_sub(free);
        self.free = free;
    }

    pub fn log(&self) {
        let [weights_mib, activations_mib, free_mib] =
            [self.weights, self.activations, self.free].map(|bytes| bytes >> 20);
        tracing::info!(gpu = self.gpu.ordinal, weights_mib, activations_mib, free_mib, "memory before the KV cache");
    }

    /// KV blocks of each of the `own_lanes` that are here, where a block takes so many bytes of this GPU.
    pub fn blocks_per_lane(
        &self,
        config: &Config,
        block_bytes: usize,
        own_lanes: usize,
        max_model_len: usize,
    ) -> Result<usize, EngineError> {
        blocks_per_lane(config, self.free, block_bytes, own_lanes, max_model_len).map_err(|e| self.exceeded(&e))
    }

    /// What does not fit, with all numbers.
    pub fn exceeded(&self, error: &dyn std::fmt::Display) -> EngineError {
        let [total, weights, activations, free] =
            [self.gpu.total_bytes, self.weights, self.activations, self.free].map(|bytes| bytes >> 20);
        EngineError::GpuMemory(format!(
            "cuda:{} ({}): {error}. Of its {total} MiB weights take {weights}, activations {activations}, and {free} are \
             left; lower scheduler.max_batch_tokens, scheduler.max_running or model.max_model_len, or set kv.memory",
            self.gpu.ordinal, self.gpu.name
        ))
    }
}

/// `kv.memory` is for the whole blocks of all lanes, a share of a GPU's own memory for what its own lanes have there.
fn blocks_per_lane(
    config: &Config,
    free: usize,
    block_bytes: usize,
    own_lanes: usize,
    max_model_len: usize,
) -> Result<usize, TooLittle> {
    let (parts, num_lanes) = match config.kv.memory {
        Some(_) => (config.engine.tensor_parallel, config.engine.lanes),
        None => (1, own_lanes),
    };
    let max_running = config.scheduler.max_running;
    let demand = Demand { block_bytes: parts * block_bytes, num_lanes, max_running, max_model_len };
    memory::blocks_per_lane(&config.kv, MEMORY_SHARE, free as u64, demand)
}

/// The largest steps that there will be.
pub fn limits(config: &Config) -> Limits {
    Limits {
        batch_tokens: config.scheduler.max_batch_tokens,
        sequences: config.scheduler.max_running,
        drafts: match config.scheduler.speculative {
            Speculative::Off => 0,
            Speculative::Auto | Speculative::Always => config.scheduler.num_speculative_tokens,
        },
    }
}

/// As "q4_k, 942 MiB, computed in bf16", for every format that there is.
pub fn describe_weights(ops: &CudaOps) -> String {
    let one = |s: &Stored| describe(s, ops.multiplies_fp8());
    ops.stored().iter().map(one).collect::<Vec<_>>().join("; ")
}

fn describe(stored: &Stored, multiplies_fp8: bool) -> String {
    let computed = match stored.format {
        Format::Fp8 if multiplies_fp8 => "bf16, in fp8 with many rows",
        _ => "bf16",
    };
    format!("{}, {} MiB, computed in {computed}", stored.format, stored.bytes >> 20)
}

/// The weights of each GPU, and what activations take on all of them.
pub fn describe_memory(weights: &str, activations: &[usize]) -> String {
    let each = match activations.len() {
        1 => String::new(),
        count => format!(" on each of {count} GPUs"),
    };
    format!("{weights}{each}; activations {} MiB", activations.iter().sum::<usize>() >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::{Engine, Kv};

    #[test]
    fn an_explicit_size_is_for_all_gpus_together() {
        let blocks = |lanes, tensor_parallel, own_lanes, memory| {
            let config = Config {
                engine: Engine { lanes, tensor_parallel, ..Engine::default() },
                kv: Kv { memory, ..Kv::default() },
                ..Config::default()
            };
            blocks_per_lane(&config, 80_000, 1000, own_lanes, 8192)
        };
        // Two lanes on each of two GPUs: 10 blocks each; of a GPU's own memory, half of its 72.
        assert_eq!((blocks(4, 1, 2, Some(40_000)), blocks(4, 1, 2, None)), (Ok(10), Ok(36)));
        // Two lanes of four GPUs each: 10 blocks' parts on each; 0.9 of what each has free.
        assert_eq!((blocks(2, 4, 1, Some(80_000)), blocks(2, 4, 1, None)), (Ok(10), Ok(72)));
    }

    #[test]
    fn too_little_memory_names_all_numbers() {
        let mib = |n: usize| n << 20;
        let gpu = Gpu {
            ordinal: 1,
            name: "NVIDIA L4".into(),
            capability: (8, 9),
            total_bytes: mib(23_000),
            free_bytes: mib(22_506),
            kernels: "sm_89".into(),
            is_prebuilt: true,
        };
        let mut usage = Usage::of_weights(&gpu, mib(6_505));
        usage.with_activations(mib(6_000));
        usage.with_activations(mib(5_803));
        let message = usage.exceeded(&"no 9000 MiB left").to_string();
        for part in ["cuda:1 (NVIDIA L4): no 9000 MiB left.", "23000 MiB", "16001", "702", "5803 are left"] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn what_memory_holds_is_named() {
        assert_eq!(describe_memory("bf16", &[3 << 20, 4 << 20]), "bf16 on each of 2 GPUs; activations 7 MiB");
        assert_eq!(describe_memory("bf16", &[3 << 20]), "bf16; activations 3 MiB");
        let of = |format, mib: usize| Stored { format, bytes: mib << 20 };
        assert_eq!(describe(&of(Format::Int4Super, 30), true), "q4_k, 30 MiB, computed in bf16");
        assert_eq!(describe(&of(Format::Fp8, 30), false), "fp8, 30 MiB, computed in bf16");
        assert_eq!(describe(&of(Format::Fp8, 30), true), "fp8, 30 MiB, computed in bf16, in fp8 with many rows");
    }
}
