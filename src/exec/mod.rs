//! Layer 2: devices. An [`Executor`] runs one [`StepPlan`] at a time over weights and KV memory that it owns.
//!
//! Never knows about requests, queues, tenants or HTTP.

mod batch;
pub mod cpu;
pub mod cuda;
pub mod fake;
pub mod format;
pub mod runner;
mod tokens;

use std::time::Duration;

use crate::model::ops::DeviceError;
use crate::sched::plan::{StepOutput, StepPlan};

/// Tokens in one KV block.
pub use crate::kv::BLOCK_TOKENS;

/// One device that runs steps.
pub trait Executor: Send {
    fn info(&self) -> &ExecutorInfo;
    /// Runs the step to its end. An error leaves no sampled token behind and, but for [`ExecError::Lost`], the executor
    /// usable.
    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecError>;
}

/// What `garrick check` and the log print, and what the lane needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecutorInfo {
    /// e.g. `cpu (AVX-512, 2 threads)`.
    pub device: String,
    pub num_blocks: usize,
    pub kv_bytes: usize,
    pub vocab_size: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("step failed: {0}")]
    Failed(String),
    /// The device failed, and can still be used: the next step may succeed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The device will not run another step.
    #[error("the device is lost: {0}")]
    Lost(String),
    #[error("step exceeded its time limit of {0:?}")]
    TimedOut(Duration),
}

impl From<DeviceError> for ExecError {
    fn from(error: DeviceError) -> ExecError {
        match error {
            DeviceError::Failed(message) => ExecError::Device(message),
            DeviceError::Lost(message) => ExecError::Lost(message),
        }
    }
}
