//! What a step's outcome does to the sequences in it.

use smallvec::SmallVec;

use super::fault::suspect;
use super::job::{Branch, Delivery, Event, Finish, Job};
use super::lane::Lane;
use super::plan::{SeqId, SeqOutput, SeqRows, StepOutput};
use super::sequence::Sequence;
use crate::kv::TokenParts;
use crate::model::TokenId;
use crate::sample::{Sampled, TokenLogprobs};

/// What was drawn for one row, one for each branch.
type Draws = SmallVec<[Sampled; 1]>;

/// The step that an executor is busy with.
#[derive(Debug)]
pub(super) struct InFlight {
    pub step: u64,
    pub rows: Vec<InFlightRow>,
}

#[derive(Debug)]
pub(super) struct InFlightRow {
    pub seq: SeqId,
    start: usize,
    end: usize,
    num_samples: usize,
    num_prompt_logprobs: usize,
    /// The tokens of its last rows.
    pub drafts: Vec<TokenId>,
}

impl InFlightRow {
    pub fn new(rows: &SeqRows) -> Self {
        let start = rows.start as usize;
        Self {
            seq: rows.seq,
            start,
            end: start + rows.tokens.len(),
            num_samples: rows.samples.len(),
            num_prompt_logprobs: rows
                .prompt_logprobs
                .map_or(0, |wanted| rows.tokens.len() - usize::from(wanted.next.is_none())),
            drafts: rows.drafts().to_vec(),
        }
    }

    /// Where its certain tokens end, and drafts begin.
    pub fn certain_end(&self) -> usize {
        self.end - self.drafts.len()
    }

    fn is_decode(&self) -> bool {
        self.certain_end() - self.start == 1 && self.num_samples > 0
    }

    /// Draws go on as long as they are the drafts.
    fn num_draws(&self, sampled: &[Sampled]) -> usize {
        let right = self.drafts.iter().zip(sampled).take_while(|(draft, sampled)| **draft == sampled.token).count();
        self.num_samples - self.drafts.len() + right
    }

    fn is_answered_by(&self, output: &SeqOutput) -> bool {
        self.seq == output.seq
            && self.num_draws(&output.sampled) == output.sampled.len()
            && self.num_prompt_logprobs == output.prompt_logprobs.len()
    }
}

impl<S: Clone> Lane<S> {
    /// The step in flight is done. The output of any other step (one that was given up) is ignored; an output that
    /// does not answer the plan is a failed step.
    pub fn complete(&mut self, output: StepOutput) -> Vec<Delivery<S>> {
        let Some(flight) = self.in_flight.take_if(|flight| flight.step == output.step) else {
            return self.outbox.take();
        };
        let is_answered = flight.rows.len() == output.rows.len()
            && flight.rows.iter().zip(&output.rows).all(|(row, output)| row.is_answered_by(output));
        if !is_answered {
            self.in_flight = Some(flight);
            return self.fail("the executor's output does not match its plan");
        }
        let decodes = flight.rows.iter().filter(|row| row.is_decode()).count();
        let drafts = flight.rows.iter().map(|row| row.drafts.len()).sum();
        let prefills = flight.rows.iter().filter(|row| !row.is_decode()).map(|row| row.end - row.start).sum();
        self.pace.learn(decodes, drafts, prefills, output.elapsed_us);
        self.forget_step();
        self.health.succeeded();
        let mut forks = Vec::new();
        let mut next = 0;
        for (row, output) in flight.rows.iter().zip(output.rows) {
            // A sequence that the text side ended meanwhile has left; its row is dropped.
            if let Some(index) = self.place_of(row.seq, next) {
                self.apply(index, row, output, &mut forks);
                next = index + 1;
            }
        }
        self.release_ended();
        if !forks.is_empty() {
            self.running.append(&mut forks);
            self.running.sort_by_key(|seq| seq.job.age());
        }
        self.outbox.take()
    }

    /// The step in flight failed, and left no token behind. Its sequences lose their KV and wait again, tokens kept,
    /// each under suspicion: it runs alone until it has got past where it was. One that fails again before that is
    /// the cause, or as good as, and ends as [`Finish::Failed`]; so one bad request takes nobody down with it.
    pub fn fail(&mut self, error: &str) -> Vec<Delivery<S>> {
        for (row, mut seq) in self.take_failed() {
            if seq.job.cancel.is_set() {
                self.end(seq, &Finish::Cancelled);
            } else if seq.job.progress.suspect_until.is_some() {
                self.end(seq, &Finish::Failed(error.to_owned()));
            } else {
                suspect(&mut seq, &row);
                self.requeue(seq);
            }
        }
        self.outbox.take()
    }

    /// The device's memory was lost with its executor: as [`Lane::fail`], and everything else that ran waits again
    /// too, unsuspected; nothing is cached any more.
    pub fn lose_memory(&mut self, error: &str) -> Vec<Delivery<S>> {
        let deliveries = self.fail(error);
        for seq in std::mem::take(&mut self.running) {
            self.requeue(seq);
        }
        self.kv.forget_all();
        deliveries
    }

    pub(super) fn forget_step(&mut self) {
        self.in_flight = None;
        for block in std::mem::take(&mut self.pinned) {
            self.kv.unpin(block);
        }
    }

    /// Where a sequence is among the running. Rows are for the most part in their order, so it is looked for from
    /// `first` on, and then in front of it.
    fn place_of(&self, seq: SeqId, first: usize) -> Option<usize> {
        let (before, after) = self.running.split_at(first);
        let place = |among: &[Sequence<S>]| among.iter().position(|running| running.id == seq);
        place(after).map(|index| first + index).or_else(|| place(before))
    }

    fn apply(&mut self, index: usize, row: &InFlightRow, output: SeqOutput, forks: &mut Vec<Sequence<S>>) {
        let Self { kv, running, outbox, totals, .. } = self;
        let seq = &mut running[index];
        if seq.job.cancel.is_set() {
            outbox.tell(&seq.job, seq.finished(&Finish::Cancelled));
            seq.job.branches.clear();
            return;
        }
        let end = row.certain_end();
        totals.prefill_tokens += (end - row.start - usize::from(seq.is_decoding())) as u64;
        let Sequence { job, table, .. } = seq;
        let output_tokens = job.branches.first().map_or(&[][..], |branch| &branch.output);
        kv.advance(table, end, TokenParts { prompt: &job.prompt, output: output_tokens });
        job.progress.suspect_until.take_if(|until| end >= *until as usize);
        let mut events = std::mem::take(&mut self.events);
        seq.first_events(row, output.prompt_logprobs, &mut events);
        if row.num_samples == 0 && row.end == seq.num_tokens() {
            // Nothing was to be drawn (`max_tokens` is 0): the prompt was all.
            events.append(&mut seq.finished(&Finish::Length));
            seq.job.branches.clear();
        }
        let mut sampled = output.sampled;
        if !row.drafts.is_empty() {
            self.draw_drafted(index, row, sampled, &mut events);
        } else if let ([_], 1) = (&*sampled, self.running[index].num_branches()) {
            let only = sampled.pop().expect("one was drawn");
            self.draw_one(index, only, &mut events);
        } else {
            self.draw_all(index, sampled, &mut events, forks);
        }
        self.outbox.tell(&self.running[index].job, events.drain(..));
        self.events = events;
    }

    /// The draws of a decode with drafts, each as if it had had a step of its own: what comes after the end of the sequence
    /// never was, and K and V that stand on a wrong guess are forgotten.
    fn draw_drafted(&mut self, index: usize, row: &InFlightRow, sampled: Draws, events: &mut Vec<Event>) {
        self.totals.drafts += 1;
        self.totals.draft_tokens += row.drafts.len() as u64;
        for (i, sampled) in sampled.into_iter().enumerate() {
            let seq = &mut self.running[index];
            if seq.job.branches.is_empty() {
                break;
            }
            if i > 0 {
                self.totals.accepted_drafts += 1;
                let Sequence { job, table, .. } = seq;
                let tokens = TokenParts { prompt: &job.prompt, output: &job.branches[0].output };
                self.kv.advance(table, row.certain_end() + i, tokens);
            }
            self.draw_one(index, sampled, events);
        }
        let seq = &mut self.running[index];
        let num_tokens = seq.num_tokens();
        self.kv.shrink(&mut seq.table, num_tokens);
    }

    /// One token for the only branch, which is what nearly every row brings: nothing moves.
    fn draw_one(&mut self, index: usize, sampled: Sampled, events: &mut Vec<Event>) {
        let max_sequence_tokens = self.config.max_sequence_tokens();
        let seq = &mut self.running[index];
        let (choice, token) = (seq.job.branches[0].choice, sampled.token);
        if seq.job.cancel.is_finished(choice) {
            return seq.job.branches.clear();
        }
        self.totals.output_tokens += 1;
        seq.job.branches[0].output.push(token);
        events.push(Event::Token { choice, sampled });
        if let Some(finish) = seq.finish_after(token, max_sequence_tokens) {
            events.push(Event::Finished { choice, finish });
            seq.job.branches.clear();
        }
    }

    fn draw_all(&mut self, index: usize, sampled: Draws, events: &mut Vec<Event>, forks: &mut Vec<Sequence<S>>) {
        let drawn = self.draw(index, sampled, events);
        self.spread(index, drawn, forks);
    }

    /// Appends the drawn tokens to their branches and returns the branches that go on. Leaves the job without any
    /// when something was drawn.
    fn draw(&mut self, index: usize, sampled: Draws, events: &mut Vec<Event>) -> Option<Vec<Branch>> {
        if sampled.is_empty() {
            return None;
        }
        let max_sequence_tokens = self.config.max_sequence_tokens();
        let seq = &mut self.running[index];
        let mut going_on = Vec::with_capacity(sampled.len());
        for (mut branch, sampled) in std::mem::take(&mut seq.job.branches).into_iter().zip(sampled) {
            if seq.job.cancel.is_finished(branch.choice) {
                continue;
            }
            self.totals.output_tokens += 1;
            let (choice, token) = (branch.choice, sampled.token);
            branch.output.push(token);
            events.push(Event::Token { choice, sampled });
            seq.job.branches.push(branch);
            let finish = seq.finish_after(token, max_sequence_tokens);
            let branch = seq.job.branches.pop();
            match finish {
                Some(finish) => events.push(Event::Finished { choice, finish }),
                None => going_on.extend(branch),
            }
        }
        Some(going_on)
    }

    /// One sequence for each branch: the first keeps the table, the others fork it.
    fn spread(&mut self, index: usize, branches: Option<Vec<Branch>>, forks: &mut Vec<Sequence<S>>) {
        let Some(branches) = branches else { return };
        let mut branches = branches.into_iter();
        let first = branches.next();
        for branch in branches {
            let id = self.next_seq_id();
            let seq = &self.running[index];
            let job = Job { branches: vec![branch], ..seq.job.clone() };
            let table = self.kv.fork(&seq.table);
            forks.push(Sequence { id, job, table, queued_us: 0, cached_tokens: 0, drafter: None });
        }
        self.running[index].job.branches.extend(first);
    }

    /// Sequences that [`Lane::apply`] left without a branch.
    fn release_ended(&mut self) {
        let kv = &mut self.kv;
        let ended = self.running.extract_if(.., |seq| seq.job.branches.is_empty());
        ended.for_each(|seq| kv.release(seq.table));
    }
}

impl<S> Sequence<S> {
    /// What is told once: that it started, and the prompt's log-probabilities that were not delivered before.
    fn first_events(&mut self, row: &InFlightRow, logprobs: Vec<TokenLogprobs>, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.job.progress.started, true) {
            events.push(Event::Started { queued_us: self.queued_us, cached_tokens: self.cached_tokens });
        }
        // The first entry is the log-probability of the token after `row.start`; `delivered` counts from token 1.
        let delivered = self.job.progress.num_prompt_logprobs;
        let fresh: Vec<_> = logprobs.into_iter().skip((delivered as usize).saturating_sub(row.start)).collect();
        if !fresh.is_empty() {
            self.job.progress.num_prompt_logprobs += fresh.len() as u32;
            events.push(Event::Prompt(fresh));
        }
    }
}
