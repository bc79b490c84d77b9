//! Runs step plans on a model: plan → batch → logits → tokens.
//!
//! Owns one device, the decoder on it and its KV memory. Never knows why a plan is as it is.
//!
//! Invariant: what a sequence gets depends on its own rows only; a failed step leaves nothing behind but K and V in
//! slots that the plan named, which a retry overwrites.

use std::cell::RefCell;
use std::time::Instant;

use rayon::prelude::*;
use smallvec::SmallVec;

use super::tokens::Tokens;
use super::{BLOCK_TOKENS, ExecError, Executor, ExecutorInfo};
use crate::model::decoder::Decoder;
use crate::model::ops::{Batch, DeviceError, KvDtype, Ops, Span};
use crate::sample::{self, Scratch};
use crate::sched::plan::{SeqOutput, SeqRows, StepOutput, StepPlan};

/// An [`Executor`] over any device that offers [`Ops`].
pub struct ModelExecutor<O: Ops> {
    pub(super) info: ExecutorInfo,
    ops: O,
    decoder: Decoder<O>,
    batch: Batch,
    tokens: Tokens,
}

/// What a step gives its sequences, or why nothing can be drawn.
pub(super) type Drawn = Result<Vec<SeqOutput>, ExecError>;

/// Logits of a step under which waking threads costs more than it gains.
const MIN_PARALLEL_LOGITS: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<O: Ops> ModelExecutor<O> {
    /// Allocates `num_blocks` KV blocks. `device` is what people are told, e.g. `cpu (AVX-512, 2 threads)`.
    pub fn new(
        mut ops: O,
        decoder: Decoder<O>,
        device: String,
        dtype: KvDtype,
        num_blocks: usize,
    ) -> Result<Self, DeviceError> {
        let spec = decoder.spec();
        let kv_bytes = ops.allocate_kv(spec, dtype, num_blocks)?;
        let info = ExecutorInfo { device, num_blocks, kv_bytes, vocab_size: spec.vocab_size };
        Ok(Self { info, ops, decoder, batch: Batch::default(), tokens: Tokens::default() })
    }

    /// Lays the plan's rows out in `batch`, if they can be run.
    pub(super) fn lay_out(&self, plan: &StepPlan, batch: &mut Batch) -> Result<(), ExecError> {
        self.check(plan)?;
        fill(batch, plan);
        Ok(())
    }

    /// Runs a plan that was laid out in `batch`, and draws. The outer error is the device's; where there is an inner one, the
    /// device has done its work, and what it found is nothing to draw from.
    pub(super) fn run(&mut self, plan: &StepPlan, batch: &Batch) -> Result<Drawn, DeviceError> {
        if !plan.copies.is_empty() {
            self.ops.copy_blocks(&plan.copies);
        }
        if plan.rows.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let Some(logits) = self.decoder.start(&mut self.ops, batch) else {
            self.ops.finish()?;
            return Ok(draw(plan.rows.iter(), &[], self.info.vocab_size));
        };
        let vocab_size = self.info.vocab_size;
        // A device that draws need not bring whole vocabularies here.
        if self.ops.draws(vocab_size) {
            self.tokens.ask(plan, vocab_size);
            self.ops.draw(logits, &self.tokens.requests, &mut self.tokens.answers)?;
            let hosts = draw(self.tokens.hosts(plan), &self.tokens.answers.logits, vocab_size);
            return Ok(hosts.and_then(|hosts| self.tokens.take(plan, hosts)));
        }
        Ok(draw(plan.rows.iter(), self.ops.read(logits)?, vocab_size))
    }

    /// Token ids and lengths come from clients in the end: they are checked in release builds too.
    fn check(&self, plan: &StepPlan) -> Result<(), ExecError> {
        let vocab_size = self.info.vocab_size;
        for rows in &plan.rows {
            if let Some(token) = rows.tokens.iter().find(|token| **token as usize >= vocab_size) {
                let message =
                    format!("token {token} of sequence {} is outside the vocabulary of {vocab_size}", rows.seq.0);
                return Err(ExecError::Failed(message));
            }
            if rows.tokens.is_empty() {
                return Err(ExecError::Failed(format!("the plan has no tokens for sequence {}", rows.seq.0)));
            }
            let end = rows.start as usize + rows.tokens.len();
            let max_positions = self.decoder.spec().max_positions;
            if end > max_positions {
                let message =
                    format!("sequence {} has {end} positions; at most {max_positions} are possible", rows.seq.0);
                return Err(ExecError::Failed(message));
            }
            debug_assert!(rows.num_drafts == 0 || rows.samples.len() == 1 + rows.drafts().len());
            debug_assert!(rows.blocks.len() * BLOCK_TOKENS >= end, "sequence {}: table too short", rows.seq.0);
            debug_assert!(rows.blocks.iter().all(|block| (*block as usize) < self.info.num_blocks));
        }
        Ok(())
    }
}

impl<O: Ops + Send> Executor for ModelExecutor<O>
where
    Decoder<O>: Send,
{
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecError> {
        let started = Instant::now();
        let mut batch = std::mem::take(&mut self.batch);
        let outcome = self.lay_out(plan, &mut batch).and_then(|()| self.run(plan, &batch)?);
        self.batch = batch;
        let rows = outcome?;
        let replayed = !plan.rows.is_empty() && self.decoder.was_replayed();
        Ok(StepOutput { step: plan.step, rows, elapsed_us: started.elapsed().as_micros() as u64, replayed })
    }
}

/// Lays the sequences of a plan out one after the other, reusing the batch's buffers.
fn fill(batch: &mut Batch, plan: &StepPlan) {
    let Batch { tokens, positions, slots, spans, tables, logit_rows } = batch;
    tokens.clear();
    positions.clear();
    slots.clear();
    spans.clear();
    tables.clear();
    logit_rows.clear();
    for rows in &plan.rows {
        let row_start = tokens.len() as u32;
        let num_rows = rows.tokens.len() as u32;
        let end = rows.start + num_rows;
        let table = &rows.blocks[..(end as usize).div_ceil(BLOCK_TOKENS)];
        spans.push(Span {
            row_start,
            num_rows,
            first_position: rows.start,
            table_start: tables.len() as u32,
            num_blocks: table.len() as u32,
        });
        tokens.extend_from_slice(&rows.tokens);
        positions.extend(rows.start..end);
        let block = BLOCK_TOKENS as u32;
        slots.extend((rows.start..end).map(|p| table[(p / block) as usize] * block + p % block));
        tables.extend_from_slice(table);
        let end = if needs_last_row(rows) { num_rows } else { num_rows - 1 };
        let first = end - num_logit_rows(rows) as u32;
        logit_rows.extend((first..end).map(|i| row_start + i));
    }
}

/// The last row's where something is drawn, and those of rows before it whose next tokens are scored, or drafts.
pub(super) fn num_logit_rows(rows: &SeqRows) -> usize {
    let before = if rows.prompt_logprobs.is_some() { rows.tokens.len() - 1 } else { rows.num_drafts as usize };
    before + usize::from(needs_last_row(rows))
}

fn needs_last_row(rows: &SeqRows) -> bool {
    !rows.samples.is_empty() || rows.prompt_logprobs.is_some_and(|prompt| prompt.next.is_some())
}

/// Draws for these sequences of a plan from logits, which lie in the order in which [`fill`] asked for them.
fn draw<'a>(
    sequences: impl Iterator<Item = &'a SeqRows>,
    logits: &[f32],
    vocab_size: usize,
) -> Result<Vec<SeqOutput>, ExecError> {
    let mut rest = logits;
    let draws = sequences.map(|rows| {
        let (logits, later) = rest.split_at(num_logit_rows(rows) * vocab_size);
        rest = later;
        Draw { rows, logits: logits.chunks_exact(vocab_size) }
    });
    let draws: Vec<_> = draws.collect();
    let run = |draw: Draw| SCRATCH.with_borrow_mut(|scratch| draw.run(scratch));
    if draws.len() < 2 || logits.len() < MIN_PARALLEL_LOGITS {
        return draws.into_iter().map(run).collect();
    }
    draws.into_par_iter().map(run).collect()
}

/// Logits of one sequence, and what to do with them.
struct Draw<'a> {
    rows: &'a SeqRows,
    logits: std::slice::ChunksExact<'a, f32>,
}

impl<'a> Draw<'a> {
    fn run(mut self, scratch: &mut Scratch) -> Result<SeqOutput, ExecError> {
        let rows = self.rows;
        let mut output = SeqOutput {
            seq: rows.seq,
            sampled: SmallVec::with_capacity(rows.samples.len()),
            prompt_logprobs: Vec::new(),
        };
        if let Some(prompt) = rows.prompt_logprobs {
            for token in &rows.tokens[1..] {
                let logits = self.next()?;
                output.prompt_logprobs.push(sample::token_logprobs(logits, *token, prompt.top.into()));
            }
        }
        if !needs_last_row(rows) {
            return Ok(output);
        }
        if rows.num_drafts > 0 {
            self.draw_while_right(&mut output, scratch)?;
            return Ok(output);
        }
        let last = self.next()?;
        if let Some(prompt) = rows.prompt_logprobs
            && let Some(token) = prompt.next
        {
            output.prompt_logprobs.push(sample::token_logprobs(last, token, prompt.top.into()));
        }
        output.sampled.extend(rows.samples.iter().map(|spec| sample::sample(last, spec, scratch)));
        Ok(output)
    }

    /// Row by row, as far as the drafts are what is drawn.
    fn draw_while_right(&mut self, output: &mut SeqOutput, scratch: &mut Scratch) -> Result<(), ExecError> {
        for (i, spec) in self.rows.samples.iter().enumerate() {
            let sampled = sample::sample(self.next()?, spec, scratch);
            let is_right = self.rows.drafts().get(i) == Some(&sampled.token);
            output.sampled.push(sampled);
            if !is_right {
                break;
            }
        }
        Ok(())
    }

    /// Logits that are not numbers mean broken weights or a broken kernel; a token drawn from them would hide it.
    fn next(&mut self) -> Result<&'a [f32], ExecError> {
        let logits = self.logits.next().expect("one row of logits for each one asked for");
        // Without a way out early, so that it vectorises.
        if !logits.iter().fold(false, |any, x| any | x.is_nan()) {
            return Ok(logits);
        }
        let token = logits.iter().position(|x| x.is_nan()).unwrap_or(0);
        let message = format!("the logit of token {token} of sequence {} is not a number", self.rows.seq.0);
        Err(ExecError::Failed(message))
    }
}
