//! An executor without a model: deterministic tokens, plausible log-probabilities and a time model, for simulation,
//! drills, and measuring everything around a model.
//!
//! It keeps a KV memory of its own kind: each slot holds its token and a hash of all tokens up to it, written and
//! read through the block tables of the plan. A drawn token depends on that hash, so a block that was mixed up,
//! skipped or written twice changes what comes out, as it would with a real model.
//!
//! Never draws its end token (the last of the vocabulary) of its own accord: generation stops by length, or on
//! request, when a `logit_bias` of 100 or more forces a stop token.

mod draw;
#[cfg(test)]
mod sim;
mod spec;
pub mod text;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use draw::{Past, prompt_logprobs, sample};
pub use spec::{FakeSpec, FakeSpecError};

use smallvec::SmallVec;

use super::{BLOCK_TOKENS, ExecError, Executor, ExecutorInfo};
use crate::sample::Sampled;
use crate::sched::plan::{SeqOutput, SeqRows, StepOutput, StepPlan};

/// Below this a sleeping thread would wake too late to be true to the time model.
const MIN_SLEEP: Duration = Duration::from_micros(100);

/// See the module's text.
pub struct FakeExecutor {
    info: ExecutorInfo,
    spec: FakeSpec,
    /// By `block * BLOCK_TOKENS + offset`.
    slots: Vec<Past>,
    num_steps: u64,
    is_lost: bool,
    reads_everything: bool,
}

impl FakeExecutor {
    pub fn new(spec: FakeSpec, num_blocks: usize) -> Self {
        let slots = vec![Past::START; num_blocks * BLOCK_TOKENS];
        let info = ExecutorInfo {
            device: spec.to_string(),
            num_blocks,
            kv_bytes: size_of_val(slots.as_slice()),
            vocab_size: spec.vocab as usize,
        };
        Self { info, spec, slots, num_steps: 0, is_lost: false, reads_everything: false }
    }

    /// Every drawn token reads every earlier slot, as attention would, and fails the step where one does not follow
    /// from the one before. Costs time in proportion to the sequence.
    pub fn reading_everything(mut self) -> Self {
        self.reads_everything = true;
        self
    }

    pub fn spec(&self) -> &FakeSpec {
        &self.spec
    }

    /// The step without its cost in time.
    pub fn compute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecError> {
        for &(from, to) in &plan.copies {
            let (from, to) = (self.slot(from, 0)?, self.slot(to, 0)?);
            self.slots.copy_within(from..from + BLOCK_TOKENS, to);
        }
        let rows = plan.rows.iter().map(|rows| self.compute_rows(rows)).collect::<Result<_, _>>()?;
        Ok(StepOutput { step: plan.step, rows, elapsed_us: self.spec.cost_us(plan), replayed: false })
    }

    fn compute_rows(&mut self, rows: &SeqRows) -> Result<SeqOutput, ExecError> {
        let mut past = match rows.start as usize {
            0 => Past::START,
            start => self.slots[self.position(rows, start - 1)?],
        };
        let mut pasts = Vec::with_capacity(rows.tokens.len());
        for (position, &token) in (rows.start as usize..).zip(&rows.tokens) {
            past = past.then(token);
            let slot = self.position(rows, position)?;
            self.slots[slot] = past;
            pasts.push(past);
        }
        if self.reads_everything {
            self.read_everything(rows)?;
        }
        Ok(SeqOutput {
            seq: rows.seq,
            sampled: self.draw(rows, &pasts),
            prompt_logprobs: prompt_logprobs(rows, self.spec.vocab),
        })
    }

    /// Draws after the last row; with drafts after each row that has one and is right, and the first that is not.
    fn draw(&self, rows: &SeqRows, pasts: &[Past]) -> SmallVec<[Sampled; 1]> {
        let drafts = rows.drafts();
        let pasts = &pasts[pasts.len() - drafts.len() - 1..];
        let mut sampled = SmallVec::with_capacity(rows.samples.len());
        for (i, spec) in rows.samples.iter().enumerate() {
            let drawn = sample(pasts[i.min(drafts.len())], spec, &self.spec);
            let is_wrong = drafts.get(i).is_some_and(|draft| *draft != drawn.token);
            sampled.push(drawn);
            if is_wrong {
                break;
            }
        }
        sampled
    }

    fn read_everything(&self, rows: &SeqRows) -> Result<(), ExecError> {
        let mut past = Past::START;
        for position in 0..rows.start as usize + rows.tokens.len() {
            let slot = self.slots[self.position(rows, position)?];
            past = past.then(slot.token());
            if slot != past {
                let seq = rows.seq.0;
                return Err(ExecError::Failed(format!("sequence {seq} finds another's KV at position {position}")));
            }
        }
        Ok(())
    }

    fn position(&self, rows: &SeqRows, position: usize) -> Result<usize, ExecError> {
        let block = rows.blocks.get(position / BLOCK_TOKENS).ok_or_else(|| {
            let (seq, num_blocks) = (rows.seq.0, rows.blocks.len());
            ExecError::Failed(format!("sequence {seq} has {num_blocks} blocks but writes position {position}"))
        })?;
        self.slot(*block, position % BLOCK_TOKENS)
    }

    fn slot(&self, block: u32, offset: usize) -> Result<usize, ExecError> {
        if block as usize >= self.info.num_blocks {
            let num_blocks = self.info.num_blocks;
            return Err(ExecError::Failed(format!("block {block} is in the plan but there are only {num_blocks}")));
        }
        Ok(block as usize * BLOCK_TOKENS + offset)
    }

    /// What the drill keys ask for at this step.
    fn drill(&mut self, plan: &StepPlan) -> Result<(), ExecError> {
        let num_steps = self.num_steps;
        let is_now = |step: Option<u64>| step == Some(num_steps);
        if is_now(self.spec.wedge_at_step) {
            std::thread::sleep(Duration::from_millis(self.spec.wedge_ms));
        }
        assert!(!is_now(self.spec.panic_at_step), "drill: panic_at_step={}", self.num_steps);
        let computes = |poison: Option<u64>| {
            let is_it = |&token: &u32| poison == Some(token.into());
            plan.rows.iter().any(|rows| rows.tokens.iter().any(is_it))
        };
        assert!(!computes(self.spec.panic_on_token), "drill: panic_on_token");
        self.is_lost |= computes(self.spec.lose_on_token);
        self.is_lost |= self.spec.lose_at_step.is_some_and(|step| self.num_steps >= step);
        if self.is_lost {
            return Err(ExecError::Lost(format!("drill: lost at step {}", self.num_steps)));
        }
        let faults = self.spec.fault_at_step.map(|first| first..first.saturating_add(self.spec.fault_steps));
        if faults.is_some_and(|faults| faults.contains(&self.num_steps)) {
            return Err(ExecError::Device(format!("drill: fault at step {}", self.num_steps)));
        }
        if is_now(self.spec.fail_at_step) {
            return Err(ExecError::Failed(format!("drill: fail_at_step={}", self.num_steps)));
        }
        Ok(())
    }
}

impl Executor for FakeExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecError> {
        let started = Instant::now();
        self.num_steps += 1;
        self.drill(plan)?;
        let output = self.compute(plan)?;
        wait_until(started, Duration::from_micros(output.elapsed_us));
        Ok(output)
    }
}

fn wait_until(started: Instant, cost: Duration) {
    let left = cost.saturating_sub(started.elapsed());
    if left >= MIN_SLEEP {
        std::thread::sleep(left);
    }
    while started.elapsed() < cost {
        std::hint::spin_loop();
    }
}
