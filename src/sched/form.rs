//! Forming a step: running decodes first, one row each, and drafts where they pay; then chunks of prompts already begun;
//! then new jobs. All in order of age, within one token budget, of which drafts leave every decode its row and prompts
//! their minimum.
//!
//! When a decode needs a block and there is none, the youngest running sequence gives up its own. It may be the one
//! that asks, but never the oldest while another runs.

use super::complete::{InFlight, InFlightRow};
use super::job::Micros;
use super::lane::Lane;
use super::plan::StepPlan;
use crate::kv::blocks_for;
use crate::model::TokenId;

/// A step in the making.
struct Forming {
    plan: StepPlan,
    in_flight: Vec<InFlightRow>,
    /// Rows left.
    budget: usize,
}

impl<S: Clone> Lane<S> {
    pub(super) fn form(&mut self, now: Micros) -> Option<StepPlan> {
        let mut step =
            Forming { plan: StepPlan::default(), in_flight: Vec::new(), budget: self.config.max_batch_tokens };
        if let Some(index) = self.suspect(now) {
            self.add_chunk(index, &mut step);
        } else {
            self.add_decodes(&mut step);
            let decodes = step.plan.rows.len();
            if decodes > 0 {
                let drafts = step.plan.num_tokens() - decodes;
                step.budget = step.budget.min(self.pace.prefill_rows(decodes, drafts, self.config.max_slowdown));
            }
            self.add_prefills(&mut step);
            self.add_admissions(now, &mut step);
        }
        if step.plan.rows.is_empty() {
            return None;
        }
        self.totals.steps += 1;
        step.plan.step = self.totals.steps;
        self.in_flight = Some(InFlight { step: step.plan.step, rows: step.in_flight });
        Some(step.plan)
    }

    /// The sequence that must run alone now, because a step that it was part of has failed.
    fn suspect(&mut self, now: Micros) -> Option<usize> {
        if let Some(index) = self.running.iter().position(|seq| seq.job.progress.suspect_until.is_some()) {
            return Some(index);
        }
        let index = self.waiting.position(|job| job.progress.suspect_until.is_some())?;
        self.admit(index, now)
    }

    fn add_decodes(&mut self, step: &mut Forming) {
        let mut index = 0;
        let mut stake = self.stake(step.budget);
        let mut drafts = std::mem::take(&mut self.drafts);
        while index < self.running.len() && step.budget > 0 {
            if self.running[index].is_decoding() {
                if !self.make_room(index, step) {
                    break;
                }
                self.draft(index, &mut stake, &mut drafts);
                self.add_rows(index, 1, &drafts, step);
            }
            index += 1;
        }
        self.drafts = drafts;
    }

    fn add_prefills(&mut self, step: &mut Forming) {
        for index in 0..self.running.len() {
            if !self.running[index].is_decoding() && step.budget > 0 {
                self.add_chunk(index, step);
            }
        }
    }

    fn add_admissions(&mut self, now: Micros, step: &mut Forming) {
        // A suspect that waits for room gets it before anybody new does.
        let has_suspect = self.waiting.position(|job| job.progress.suspect_until.is_some()).is_some();
        while step.budget > 0 && !has_suspect {
            let Some(index) = self.admit(0, now) else { break };
            self.add_chunk(index, step);
        }
    }

    /// Gives the sequence a place for its next token. False when it had to be preempted itself.
    fn make_room(&mut self, index: usize, step: &mut Forming) -> bool {
        loop {
            let seq = &mut self.running[index];
            let num_tokens = seq.num_tokens();
            if self.kv.reserve(&mut seq.table, num_tokens, &mut step.plan.copies).is_ok() {
                return true;
            }
            self.preempt_youngest(step);
            if index == self.running.len() {
                return false;
            }
        }
    }

    fn preempt_youngest(&mut self, step: &Forming) {
        let Some(seq) = self.running.pop() else { return };
        // A block that this step copies from must not be taken, and perhaps copied to, in the same step.
        for &(from, _) in step.plan.copies.iter().filter(|(from, _)| seq.table.blocks().contains(from)) {
            self.kv.pin(from);
            self.pinned.push(from);
        }
        self.totals.preemptions += 1;
        self.requeue(seq);
    }

    fn add_chunk(&mut self, index: usize, step: &mut Forming) {
        let pending = self.running[index].num_pending();
        self.add_rows(index, pending.min(self.config.max_chunk_tokens).min(step.budget), &[], step);
    }

    fn add_rows(&mut self, index: usize, num_certain: usize, drafts: &[TokenId], step: &mut Forming) {
        let seq = &self.running[index];
        let (tokens, start) = (seq.tokens(), seq.table.num_tokens());
        let end = start + num_certain;
        let mut rows = self.spare_rows.pop().unwrap_or_default();
        rows.seq = seq.id;
        rows.start = start as u32;
        rows.tokens.clear();
        rows.tokens.extend((start..end).filter_map(|position| tokens.get(position)));
        rows.tokens.extend_from_slice(drafts);
        rows.num_drafts = drafts.len() as u32;
        rows.blocks.clear();
        rows.blocks.extend_from_slice(&seq.table.blocks()[..blocks_for(end + drafts.len())]);
        seq.samples(end, &self.no_tokens, &mut rows.samples);
        seq.draft_samples(drafts, &self.no_tokens, &mut rows.samples);
        rows.prompt_logprobs = seq.prompt_logprobs(end);
        step.in_flight.push(InFlightRow::new(&rows));
        step.plan.rows.push(rows);
        step.budget -= num_certain + drafts.len();
    }
}
