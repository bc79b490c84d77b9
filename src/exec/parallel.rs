//! One model on several devices that compute every step together (tensor parallelism).
//!
//! Owns a thread for each rank but the first, which runs on the caller's: of all hand-overs between threads, those of the
//! rank that draws would cost most. Every rank gets the same batch and starts the same operations in the same order; the
//! first one gives logits and draws. Never knows what the devices are, nor how they reach each other.
//!
//! Invariants: a step ends when all ranks have ended it. A rank that fails or panics releases the others from waiting for it,
//! and the group is lost. The threads end when the group is dropped.

#[cfg(test)]
mod tests;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use super::runner::{Drawn, ModelExecutor};
use super::{ExecError, Executor, ExecutorInfo};
use crate::base::panics;
use crate::model::decoder::Decoder;
use crate::model::ops::{Batch, DeviceError, KvDtype, Ops};
use crate::sched::plan::{StepOutput, StepPlan};

/// Frees every rank that waits for another: what waits, now or later, ends soon, with whatever result.
pub type Release = Box<dyn Fn() + Send + Sync>;

/// An [`Executor`] over ranks that have a shard of one model each.
pub struct TensorParallel<O: Ops> {
    first: ModelExecutor<O>,
    others: Vec<Rank>,
    /// What the other ranks run; taken back from them after each step.
    work: Arc<Work>,
    fate: Arc<Fate>,
}

/// A step as every rank runs it.
#[derive(Default)]
struct Work {
    batch: Batch,
    copies: Vec<(u32, u32)>,
}

/// What became of the group.
struct Fate {
    /// The first failure.
    cause: Mutex<Option<String>>,
    release: Release,
}

impl Fate {
    /// The first to come says why; the others failed because of it.
    fn fail(&self, rank: usize, error: &str) {
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.get_or_insert_with(|| format!("rank {rank} of the group: {error}"));
        drop(cause);
        (self.release)();
    }

    fn check(&self) -> Result<(), ExecError> {
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.clone().map_or(Ok(()), |cause| Err(ExecError::Lost(cause)))
    }
}

/// A rank on a thread of its own.
struct Rank {
    /// None when the group is dropped, which ends the thread.
    work: Option<SyncSender<Arc<Work>>>,
    /// One message for each step that was run, whatever came of it; none any more when the thread has ended.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl<O: Ops + Send + 'static> TensorParallel<O>
where
    Decoder<O>: Send,
{
    /// Allocates `num_blocks` KV blocks on each rank. `ranks` have the shards in their order.
    pub fn new(
        ranks: Vec<(O, Decoder<O>)>,
        device: String,
        dtype: KvDtype,
        num_blocks: usize,
        release: Release,
    ) -> Result<Self, DeviceError> {
        let fate = Arc::new(Fate { cause: Mutex::default(), release });
        let mut ranks = ranks.into_iter();
        let (ops, decoder) = ranks.next().expect("a first rank");
        let mut first = ModelExecutor::new(ops, decoder, device, dtype, num_blocks)?;
        let mut others = Vec::new();
        for (index, (mut ops, decoder)) in ranks.enumerate() {
            first.info.kv_bytes += ops.allocate_kv(decoder.spec(), dtype, num_blocks)?;
            others.push(Rank::start(index + 1, ops, decoder, fate.clone())?);
        }
        Ok(Self { first, others, work: Arc::default(), fate })
    }

    /// The plan for all ranks, in buffers that are used again.
    fn lay_out(&mut self, plan: &StepPlan) -> Result<(), ExecError> {
        if Arc::get_mut(&mut self.work).is_none() {
            self.work = Arc::default();
        }
        let Work { batch, copies } = Arc::get_mut(&mut self.work).expect("nobody else has it");
        copies.clone_from(&plan.copies);
        self.first.lay_out(plan, batch)
    }

    /// The step on all ranks, to its end on each.
    fn run(&mut self, plan: &StepPlan) -> Option<Drawn> {
        for rank in &self.others {
            // A thread that has ended has failed before, and the group is lost; the others are released already.
            if let Some(work) = &rank.work {
                let _ = work.send(self.work.clone());
            }
        }
        let own = panics::caught(|| self.first.run(plan, &self.work.batch));
        let drawn = match own {
            Ok(Ok(drawn)) => Some(drawn),
            Ok(Err(error)) => {
                self.fate.fail(0, &error.to_string());
                None
            }
            Err(panic) => {
                self.fate.fail(0, &panic.to_string());
                None
            }
        };
        for rank in &self.others {
            let _ = rank.ended.recv();
        }
        drawn
    }
}

impl<O: Ops + Send + 'static> Executor for TensorParallel<O>
where
    Decoder<O>: Send,
{
    fn info(&self) -> &ExecutorInfo {
        &self.first.info
    }

    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecError> {
        let started = Instant::now();
        self.fate.check()?;
        self.lay_out(plan)?;
        let drawn = self.run(plan);
        // What a rank drew from is worth nothing if another failed.
        self.fate.check()?;
        let rows = drawn.expect("a rank that draws nothing has failed")?;
        Ok(StepOutput { step: plan.step, rows, elapsed_us: started.elapsed().as_micros() as u64, replayed: false })
    }
}

impl Rank {
    fn start<O: Ops + Send + 'static>(
        index: usize,
        mut ops: O,
        mut decoder: Decoder<O>,
        fate: Arc<Fate>,
    ) -> Result<Self, DeviceError>
    where
        Decoder<O>: Send,
    {
        let (work, steps) = sync_channel::<Arc<Work>>(1);
        let (tell, ended) = sync_channel(1);
        let run = move || {
            for work in steps {
                let outcome = panics::caught(|| step(&mut ops, &mut decoder, &work));
                // Given back before the others hear of it, so that the buffers can be filled again.
                drop(work);
                let error = match outcome {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(panic) => Some(panic.to_string()),
                };
                if let Some(error) = &error {
                    fate.fail(index, error);
                }
                if tell.send(()).is_err() || error.is_some() {
                    return;
                }
            }
        };
        let thread = Builder::new()
            .name(format!("rank-{index}"))
            .spawn(run)
            .map_err(|e| DeviceError::Failed(format!("no thread for rank {index}: {e}")))?;
        Ok(Self { work: Some(work), ended, thread: Some(thread) })
    }
}

/// A step on a rank that draws nothing.
fn step<O: Ops>(ops: &mut O, decoder: &mut Decoder<O>, work: &Work) -> Result<(), DeviceError> {
    if !work.copies.is_empty() {
        ops.copy_blocks(&work.copies);
    }
    if !work.batch.tokens.is_empty() {
        let logits = decoder.start(ops, &work.batch);
        debug_assert!(logits.is_none(), "the first rank gives the logits");
    }
    ops.finish()
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            // Its panics were caught, and told of.
            let _ = thread.join();
        }
    }
}
