//! A model on GPUs that share it: each lane is a group of `engine.tensor_parallel` of them, with a shard on each.

use std::sync::Arc;

use super::super::engine::{EngineError, Progress};
use super::cuda::{kernel_options, kv_dtype, obstacles, products};
use super::usage::{Usage, describe_memory, describe_weights, limits};
use super::{Lanes, cpu};
use crate::base::config::Config;
use crate::exec::Executor;
use crate::exec::cuda::device::{Absent, Communicator, Gpu, connect, open_gpu_with};
use crate::exec::cuda::{CudaOps, kv_bytes_per_block, reserve_on_ranks};
use crate::exec::parallel::TensorParallel;
use crate::model::decoder::Decoder;
use crate::model::ops::{DeviceError, KvDtype};
use crate::model::shard::{Shard, ShardError};
use crate::model::source::ModelSource;

/// Why `engine.tensor_parallel` cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("engine.tensor_parallel is {num_ranks}, which takes GPUs, but {absent}")]
    NoGpu { num_ranks: usize, absent: Absent },
    #[error("engine.tensor_parallel is {num_ranks}, but only {num_gpus} GPU(s) can be used")]
    TooFew { num_ranks: usize, num_gpus: usize },
    #[error(
        "engine.lanes is {lanes}, but {num_gpus} GPUs are at most {groups} lane(s) of engine.tensor_parallel {num_ranks}: \
         groups of GPUs cannot be shared by lanes"
    )]
    TooManyLanes { lanes: usize, num_gpus: usize, groups: usize, num_ranks: usize },
    #[error(
        "engine.tensor_parallel: {one} and {other} would share a lane, but its GPUs must be alike, to the same bits"
    )]
    Unlike { one: String, other: String },
    #[error("engine.tensor_parallel is {num_ranks}: {error}")]
    Shard { num_ranks: usize, error: ShardError },
}

pub fn open(config: &Config, source: &ModelSource, gpus: &[Gpu], progress: Progress) -> Result<Lanes, EngineError> {
    let num_ranks = config.engine.tensor_parallel;
    let groups = groups(gpus, num_ranks, config.engine.lanes)?;
    // All ranks have as many heads.
    let spec = Shard::new(0, num_ranks).spec(&source.spec).map_err(|error| GroupError::Shard { num_ranks, error })?;
    let dtype = kv_dtype(config);
    let block_bytes = kv_bytes_per_block(&spec, dtype).ok_or(EngineError::KvShape)?;
    let mut loaded = Vec::with_capacity(groups.len());
    let (mut fewest_blocks, mut weights) = (usize::MAX, String::new());
    let mut warnings = obstacles(config);
    for gpus in &groups {
        let mut group = Group::load(config, gpus, source, &mut warnings, progress)?;
        group.measure(config, dtype)?;
        let blocks = group.fullest().blocks_per_lane(config, block_bytes, 1, source.spec.max_positions)?;
        fewest_blocks = fewest_blocks.min(blocks);
        weights.clone_from(&group.weights);
        loaded.push(group);
    }
    let usages = loaded.iter().flat_map(|group| &group.usages);
    let weights = describe_memory(&weights, &usages.map(|usage| usage.activations).collect::<Vec<_>>());
    let mut executors = Vec::with_capacity(groups.len());
    for (gpus, group) in groups.iter().zip(loaded) {
        let device = label(gpus, &group.products);
        executors.push(group.executor(device, dtype, fewest_blocks)?);
    }
    // Of all ranks, as a lane's block has a part on each.
    let block_bytes = num_ranks * block_bytes;
    Ok(Lanes { executors, num_blocks: fewest_blocks, block_bytes, weights, warnings })
}

/// The GPUs of each lane: consecutive ones.
fn groups(gpus: &[Gpu], num_ranks: usize, lanes: usize) -> Result<Vec<&[Gpu]>, GroupError> {
    let (num_gpus, groups) = (gpus.len(), gpus.len() / num_ranks);
    if groups == 0 {
        return Err(GroupError::TooFew { num_ranks, num_gpus });
    }
    if lanes > groups {
        return Err(GroupError::TooManyLanes { lanes, num_gpus, groups, num_ranks });
    }
    let used: Vec<&[Gpu]> = gpus.chunks_exact(num_ranks).take(lanes).collect();
    for group in &used {
        // Other chips sum in another order, and then ranks would choose other experts.
        let is_alike = |gpu: &&Gpu| (&gpu.name, gpu.capability) == (&group[0].name, group[0].capability);
        if let Some(other) = group.iter().find(|gpu| !is_alike(gpu)) {
            return Err(GroupError::Unlike { one: group[0].name.clone(), other: other.name.clone() });
        }
    }
    Ok(used)
}

/// As `cuda:0,1 (NVIDIA H200, products by own kernels)`.
fn label(gpus: &[Gpu], products: &str) -> String {
    let ordinals: Vec<String> = gpus.iter().map(|gpu| gpu.ordinal.to_string()).collect();
    format!("cuda:{} ({}, products by {products})", ordinals.join(","), gpus[0].name)
}

/// A shard on each GPU.
struct Group<'a> {
    ranks: Vec<(CudaOps, Decoder<CudaOps>)>,
    communicators: Vec<Arc<dyn Communicator>>,
    /// Of each rank's GPU.
    usages: Vec<Usage<'a>>,
    /// What the first has of the weights, which is most.
    weights: String,
    /// What multiplies.
    products: String,
}

impl<'a> Group<'a> {
    fn load(
        config: &Config,
        gpus: &'a [Gpu],
        source: &ModelSource,
        warnings: &mut Vec<String>,
        progress: Progress,
    ) -> Result<Group<'a>, EngineError> {
        let kernels = kernel_options(config);
        let (mut devices, mut multipliers) = (Vec::with_capacity(gpus.len()), Vec::with_capacity(gpus.len()));
        for gpu in gpus {
            let mut device =
                open_gpu_with(gpu, &kernels, &mut |done, total| progress("compiling kernels", done, total))?;
            multipliers.push(products(config, &mut device, warnings));
            devices.push(Arc::new(device));
        }
        let products = multipliers.swap_remove(0);
        if let Some(other) = multipliers.into_iter().find(|other| *other != products) {
            return Err(GroupError::Unlike { one: products, other }.into());
        }
        let communicators = connect(&devices, &kernels.libraries)?;
        let num_ranks = gpus.len();
        let mut ranks = Vec::with_capacity(num_ranks);
        let (mut usages, mut weights) = (Vec::with_capacity(num_ranks), String::new());
        for (rank, (device, communicator)) in devices.into_iter().zip(&communicators).enumerate() {
            let mut ops = CudaOps::of_group(device, communicator.clone()).with_weights(cpu::weights(config));
            // One rank after the other, all from the same mapped files.
            let mut on_load = |done, total| {
                progress("loading weights", rank as u64 * total + done, num_ranks as u64 * total);
            };
            let shard = Shard::new(rank, num_ranks);
            let decoder = Decoder::load_shard(&mut ops, &source.spec, &source.tensors, shard, &mut on_load)?;
            usages.push(Usage::of_weights(&gpus[rank], ops.free_bytes()?));
            if rank == 0 {
                weights = describe_weights(&ops);
            }
            ranks.push((ops, decoder));
        }
        Ok(Group { ranks, communicators, usages, weights, products })
    }

    /// Runs the largest steps, so that activations have their memory before the rest is shared out.
    fn measure(&mut self, config: &Config, dtype: KvDtype) -> Result<(), EngineError> {
        reserve_on_ranks(&mut self.ranks, dtype, limits(config))
            .map_err(|(rank, error)| self.usages[rank].exceeded(&error))?;
        for ((ops, _), usage) in self.ranks.iter_mut().zip(&mut self.usages) {
            usage.with_activations(ops.free_bytes()?);
            usage.log();
        }
        Ok(())
    }

    /// The GPU that has least left.
    fn fullest(&self) -> &Usage<'a> {
        self.usages.iter().min_by_key(|usage| usage.free).expect("a first rank")
    }

    fn executor(self, device: String, dtype: KvDtype, num_blocks: usize) -> Result<Box<dyn Executor>, DeviceError> {
        let communicators = self.communicators;
        let release = Box::new(move || communicators.iter().for_each(|communicator| communicator.abort()));
        Ok(Box::new(TensorParallel::new(self.ranks, device, dtype, num_blocks, release)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(names: &[&str]) -> Vec<Gpu> {
        let gpu = |(ordinal, name): (usize, &&str)| Gpu {
            ordinal,
            name: (*name).to_owned(),
            capability: (9, 0),
            total_bytes: 1 << 30,
            free_bytes: 1 << 30,
            kernels: "sm_90a".to_owned(),
            is_prebuilt: true,
        };
        names.iter().enumerate().map(gpu).collect()
    }

    #[test]
    fn lanes_have_consecutive_gpus_and_the_rest_is_left() {
        let gpus = gpus(&["H200", "H200", "L4", "L4", "L4"]);
        let ordinals = |lanes: usize| -> Vec<String> {
            groups(&gpus, 2, lanes).unwrap().into_iter().map(|gpus| label(gpus, "hand")).collect()
        };
        assert_eq!(ordinals(1), ["cuda:0,1 (H200, products by hand)"]);
        assert_eq!(ordinals(2), ["cuda:0,1 (H200, products by hand)", "cuda:2,3 (L4, products by hand)"]);
    }

    #[test]
    fn what_the_machine_has_not_is_refused_with_the_numbers() {
        let error = |names: &[&str], num_ranks, lanes| groups(&gpus(names), num_ranks, lanes).unwrap_err().to_string();
        assert_eq!(error(&["A"; 3], 4, 1), "engine.tensor_parallel is 4, but only 3 GPU(s) can be used");
        let lanes = error(&["A"; 5], 2, 3);
        assert!(
            lanes.starts_with("engine.lanes is 3, but 5 GPUs are at most 2 lane(s) of engine.tensor_parallel 2"),
            "{lanes}"
        );
        let unlike = error(&["A", "A", "A", "B"], 2, 2);
        assert!(unlike.contains("A and B would share a lane"), "{unlike}");
        assert!(groups(&gpus(&["A", "A", "A", "B"]), 2, 1).is_ok(), "what is not used does not matter");
    }
}
