//! One device's continuous batch: the jobs that wait for it, the sequences that run on it, and its KV blocks.
//!
//! Pure: it is told the time, plans one step at a time ([`Lane::plan`]) and takes its outcome ([`Lane::complete`], or
//! [`Lane::judge`] and what follows). Never knows actors, devices, text or tenants.
//!
//! Invariants: every choice of a submitted job ends with exactly one `Finished`, unless the text side ended it;
//! at most one step is in flight; the oldest running sequence is never preempted, so every plan brings it forward and
//! nothing waits for ever; [`Lane::check`] holds after every call.

use std::sync::Arc;

use super::admit::Blocked;
use super::complete::InFlight;
use super::config::{DoesNotFit, LaneConfig, LaneConfigError};
use super::draft::Rates;
use super::fault::Health;
use super::job::{Delivery, Event, Finish, Job, Micros, RequestId};
use super::pace::Pace;
use super::plan::{SeqId, SeqRows, StepPlan};
use super::queue::{Outbox, Queue};
use super::sequence::{Sequence, finished};
use super::window::Window;
use crate::kv::{BlockCounts, BlockId, KvBlocks, TokenParts, blocks_for};
use crate::model::TokenId;

#[derive(Debug)]
pub struct Lane<S> {
    pub(super) config: LaneConfig,
    pub(super) kv: KvBlocks,
    pub(super) waiting: Queue<S>,
    /// Oldest first.
    pub(super) running: Vec<Sequence<S>>,
    pub(super) in_flight: Option<InFlight>,
    /// Sources of this step's copies that their last holder gave up while planning.
    pub(super) pinned: Vec<BlockId>,
    pub(super) outbox: Outbox<S>,
    pub(super) no_tokens: Arc<[TokenId]>,
    pub(super) blocked: Option<Blocked>,
    pub(super) pace: Pace,
    pub(super) health: Health,
    /// How often drafts came true.
    pub(super) rates: Rates,
    pub(super) totals: Totals,
    /// Buffers that are filled anew for each row: events and drafts of one sequence, and rows of plans that came back.
    pub(super) events: Vec<Event>,
    pub(super) spare_rows: Vec<SeqRows>,
    pub(super) drafts: Vec<TokenId>,
    next_seq: u64,
}

/// What [`Lane::plan`] decided.
#[derive(Debug)]
pub struct Planned<S> {
    /// None when there is nothing to compute, or when a step is still in flight.
    pub plan: Option<StepPlan>,
    /// For choices that ended without a step.
    pub deliveries: Vec<Delivery<S>>,
}

/// Counted since the lane was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemptions: u64,
    pub steps: u64,
    pub failed_steps: u64,
    pub prefill_tokens: u64,
    pub output_tokens: u64,
    pub drafts: u64,
    pub draft_tokens: u64,
    pub accepted_drafts: u64,
    pub moved_jobs: u64,
}

/// A lane at a glance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Jobs that wait, those in the window included (as of the last plan or offer).
    pub waiting_jobs: usize,
    /// Tokens that they need computed.
    pub waiting_tokens: usize,
    /// Sequences that hold KV, and how many of them still have more than their next token to compute.
    pub running: usize,
    pub prefilling: usize,
    pub blocks: BlockCounts,
    /// Tokens looked up in the prefix cache and found there, since the start.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemptions: u64,
    /// Steps planned, and those of them that failed.
    pub steps: u64,
    pub failed_steps: u64,
    /// Rows computed for prompts (and for recomputed output), and tokens drawn.
    pub prefill_tokens: u64,
    pub output_tokens: u64,
    /// Times that a sequence had drafts, tokens in them, and those of them that were drawn.
    pub drafts: u64,
    pub draft_tokens: u64,
    pub accepted_drafts: u64,
    /// Jobs that other lanes took over because the device failed.
    pub moved_jobs: u64,
    pub step_in_flight: bool,
}

impl<S: Clone> Lane<S> {
    pub fn new(config: LaneConfig) -> Result<Self, LaneConfigError> {
        config.validate()?;
        Ok(Self {
            kv: KvBlocks::new(config.num_blocks, config.prefix_cache),
            config,
            waiting: Queue::new(),
            running: Vec::new(),
            in_flight: None,
            pinned: Vec::new(),
            outbox: Outbox::new(),
            no_tokens: Arc::from([]),
            blocked: None,
            pace: Pace::default(),
            health: Health::default(),
            rates: Rates::default(),
            totals: Totals::default(),
            events: Vec::new(),
            spare_rows: Vec::new(),
            drafts: Vec::new(),
            next_seq: 0,
        })
    }

    pub fn config(&self) -> &LaneConfig {
        &self.config
    }

    /// See [`LaneConfig::fits`].
    pub fn fits(&self, prompt_len: usize, max_tokens: usize, num_choices: usize) -> Result<(), DoesNotFit> {
        self.config.fits(prompt_len, max_tokens, num_choices)
    }

    /// Takes a job that was another lane's.
    pub fn submit_stolen(&mut self, mut job: Job<S>) {
        job.progress.num_moves += 1;
        self.submit(job);
    }

    /// Takes a job. One that [`Lane::fits`] would refuse ends as [`Finish::Failed`] in the next plan.
    pub fn submit(&mut self, job: Job<S>) {
        match self.fits(job.prompt.len(), job.stop.max_tokens as usize, job.branches.len()) {
            Ok(()) if job.branches.is_empty() => {}
            Ok(()) => self.waiting.insert(job),
            Err(error) => self.outbox.tell(&job, finished(&job, &Finish::Failed(error.to_string()))),
        }
    }

    /// The text side has ended a choice (a stop string): its blocks are free from now on, a token in flight for it is
    /// dropped, and there is **no** `Finished` event for it. Callers also mark
    /// [`finish_choice`](super::job::CancelFlag::finish_choice) on the job's flag, which reaches a preempted choice
    /// wherever it has been stolen to; that mark alone is enough, one step later.
    pub fn finish(&mut self, request: RequestId, choice: u32) {
        let is_it = |job: &Job<S>| job.request == request && job.branches.iter().any(|b| b.choice == choice);
        if let Some(index) = self.running.iter().position(|seq| is_it(&seq.job)) {
            self.running[index].job.cancel.finish_choice(choice);
            if self.running[index].num_branches() == 1 {
                let seq = self.running.remove(index);
                self.kv.release(seq.table);
            }
        } else if let Some(index) = self.waiting.position(is_it)
            && let Some(mut job) = self.waiting.remove(index)
        {
            job.branches.retain(|branch| branch.choice != choice);
            if !job.branches.is_empty() {
                self.waiting.insert(job);
            }
        }
    }

    /// Decides the next step: none while the device rests. Nothing happens while one is in flight.
    pub fn plan(&mut self, now: Micros, window: &mut dyn Window<S>) -> Planned<S> {
        if self.in_flight.is_some() {
            return Planned { plan: None, deliveries: self.outbox.take() };
        }
        self.waiting.recall(window);
        self.sweep(now);
        let plan = if self.health.may_plan(now) { self.form(now) } else { None };
        self.waiting.offer(window);
        Planned { plan, deliveries: self.outbox.take() }
    }

    /// Sequences that could begin now beside those that run: none while a job waits, a step is in flight, the device
    /// rests, or no block is free. Takes back what thieves have left in the window; [`Lane::plan`] offers it again.
    pub fn room(&mut self, now: Micros, window: &mut dyn Window<S>) -> usize {
        if self.in_flight.is_some() || !self.health.may_plan(now) {
            return 0;
        }
        self.waiting.recall(window);
        let blocks = self.kv.counts();
        if self.waiting.num_jobs() > 0 {
            return 0;
        }
        (self.config.max_running - self.num_branches()).min(blocks.free + blocks.cached)
    }

    /// Takes back a plan that is done with: the next one is written into its memory.
    pub fn reuse(&mut self, plan: StepPlan) {
        self.spare_rows = plan.rows;
        // They are taken from the end; most sequences get the row that they had before.
        self.spare_rows.reverse();
    }

    /// Whether there is anything to plan for.
    pub fn has_work(&self) -> bool {
        !self.running.is_empty() || self.waiting.num_jobs() > 0
    }

    pub fn has_step_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Tokens of a prompt that are cached here, for placement.
    pub fn cached_prefix_tokens(&self, prompt: &[TokenId], salt: u64) -> usize {
        self.kv.lookup(TokenParts { prompt, output: &[] }, salt).num_tokens()
    }

    /// Ends everything, waiting (the window included) and running; a step in flight is forgotten.
    pub fn drain(&mut self, window: &mut dyn Window<S>, finish: &Finish) -> Vec<Delivery<S>> {
        self.waiting.recall(window);
        self.forget_step();
        for seq in std::mem::take(&mut self.running) {
            self.end(seq, finish);
        }
        while let Some(job) = self.waiting.remove(0) {
            self.outbox.tell(&job, finished(&job, finish));
        }
        self.outbox.take()
    }

    /// Requests that the step in flight works for, once for each of their sequences.
    #[cfg(test)]
    pub fn in_step(&self) -> Vec<RequestId> {
        let rows = self.in_flight.iter().flat_map(|flight| &flight.rows);
        rows.filter_map(|row| self.running.iter().find(|seq| seq.id == row.seq)).map(|seq| seq.job.request).collect()
    }

    pub fn stats(&self) -> LaneStats {
        let totals = self.totals;
        LaneStats {
            waiting_jobs: self.waiting.num_jobs(),
            waiting_tokens: self.waiting.num_tokens(),
            running: self.running.len(),
            prefilling: self.running.iter().filter(|seq| !seq.is_decoding()).count(),
            blocks: self.kv.counts(),
            prefix_queries: totals.prefix_queries,
            prefix_hits: totals.prefix_hits,
            preemptions: totals.preemptions,
            steps: totals.steps,
            failed_steps: totals.failed_steps,
            prefill_tokens: totals.prefill_tokens,
            output_tokens: totals.output_tokens,
            drafts: totals.drafts,
            draft_tokens: totals.draft_tokens,
            accepted_drafts: totals.accepted_drafts,
            moved_jobs: totals.moved_jobs,
            step_in_flight: self.in_flight.is_some(),
        }
    }

    /// Proves the books: blocks against tables, order, and limits. O(blocks + tokens held).
    pub fn check(&self) -> Result<(), String> {
        let tables = self.running.iter().flat_map(|seq| seq.table.blocks().iter().copied());
        self.kv.check(tables.chain(self.pinned.iter().copied()))?;
        if !self.running.is_sorted_by_key(|seq| seq.job.age()) {
            return Err("running sequences are not in order of age".into());
        }
        let branches = self.num_branches();
        if branches > self.config.max_running {
            return Err(format!("{branches} sequences run, the limit is {}", self.config.max_running));
        }
        if let Some(seq) = self.running.iter().find(|seq| seq.table.num_tokens() >= seq.num_tokens()) {
            return Err(format!("sequence {} has nothing left to compute but runs", seq.id.0));
        }
        let has_spare = |seq: &&Sequence<S>| seq.table.blocks().len() > blocks_for(seq.num_tokens());
        if self.in_flight.is_none()
            && let Some(seq) = self.running.iter().find(has_spare)
        {
            return Err(format!("sequence {} holds more blocks than its tokens fill", seq.id.0));
        }
        if self.in_flight.is_none() && !self.pinned.is_empty() {
            return Err(format!("{} blocks are pinned but no step is in flight", self.pinned.len()));
        }
        Ok(())
    }

    /// Drops what nobody waits for any more: cancelled, past its deadline, or ended by the text side.
    pub(super) fn sweep(&mut self, now: Micros) {
        let outbox = &mut self.outbox;
        self.waiting.retain_mut(|job| match verdict(job, now) {
            Some(finish) => {
                outbox.tell(job, finished(job, &finish));
                false
            }
            None => !job.branches.is_empty(),
        });
        for index in (0..self.running.len()).rev() {
            let verdict = verdict(&mut self.running[index].job, now);
            if verdict.is_none() && self.running[index].num_branches() > 0 {
                continue;
            }
            let seq = self.running.remove(index);
            match verdict {
                Some(finish) => self.end(seq, &finish),
                None => self.kv.release(seq.table),
            }
        }
    }

    /// A running sequence ends in every branch.
    pub(super) fn end(&mut self, seq: Sequence<S>, finish: &Finish) {
        self.outbox.tell(&seq.job, seq.finished(finish));
        self.kv.release(seq.table);
    }

    /// Back among the waiting, tokens kept, KV given up.
    pub(super) fn requeue(&mut self, mut seq: Sequence<S>) {
        self.kv.release(seq.table);
        seq.job.progress.num_moves = 0;
        self.waiting.insert(seq.job);
    }

    pub(super) fn num_branches(&self) -> usize {
        self.running.iter().map(Sequence::num_branches).sum()
    }

    pub(super) fn next_seq_id(&mut self) -> SeqId {
        self.next_seq += 1;
        SeqId(self.next_seq)
    }
}

/// Why a job ends now, if it does; choices that the text side has ended are taken out of it.
fn verdict<S>(job: &mut Job<S>, now: Micros) -> Option<Finish> {
    if job.cancel.is_set() {
        return Some(Finish::Cancelled);
    }
    let cancel = &job.cancel;
    job.branches.retain(|branch| !cancel.is_finished(branch.choice));
    job.deadline.is_some_and(|deadline| now >= deadline).then_some(Finish::DeadlineExceeded)
}
