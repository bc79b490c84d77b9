//! The devices that a model's lanes run on: GPUs where there are some, else the CPU.

pub mod cpu;
pub mod cuda;
mod group;
mod usage;

pub use self::group::GroupError;
use super::engine::{EngineError, Progress};
use crate::base::config::{Config, Device as DeviceChoice};
use crate::exec::Executor;
use crate::exec::cuda::device::Gpu;
pub use crate::exec::cuda::device::gpus;
use crate::model::source::ModelSource;

/// A model on its devices.
pub struct Lanes {
    pub executors: Vec<Box<dyn Executor>>,
    /// KV blocks of a lane, and bytes of one.
    pub num_blocks: usize,
    pub block_bytes: usize,
    /// What the weights are in memory and how they are computed.
    pub weights: String,
    /// What was asked for and does not apply.
    pub warnings: Vec<String>,
}

pub fn open(config: &Config, source: &ModelSource, progress: Progress) -> Result<Lanes, EngineError> {
    match choose(config)? {
        Some(gpus) if config.engine.tensor_parallel > 1 => group::open(config, source, &gpus, progress),
        Some(gpus) => cuda::open(config, source, &gpus, progress),
        None => cpu::open(config, source, progress),
    }
}

/// The GPUs to be used; `None`: the CPU.
fn choose(config: &Config) -> Result<Option<Vec<Gpu>>, EngineError> {
    if config.engine.device == DeviceChoice::Cpu {
        return Ok(None);
    }
    match gpus() {
        Ok(gpus) => Ok(Some(gpus)),
        Err(absent) if config.engine.device == DeviceChoice::Cuda => Err(EngineError::NoGpu(absent)),
        Err(absent) if config.engine.tensor_parallel > 1 => {
            Err(GroupError::NoGpu { num_ranks: config.engine.tensor_parallel, absent }.into())
        }
        Err(absent) => {
            tracing::info!("running on the CPU: {absent}");
            Ok(None)
        }
    }
}
