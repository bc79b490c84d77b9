//! What a failed step says of a lane's device, and what becomes of the lane's sequences.
//!
//! Three faults ([`Fault`]), three verdicts ([`Verdict`]). A step that failed by itself is run again at once, sequence by
//! sequence. A device that failed but can still be used is left alone for a while, longer each time in a row, and its lane
//! retires when that does not help. A device that is lost retires its lane at once; everything that ran or waited there
//! moves to other lanes, tokens kept, and goes on as a preempted sequence does.
//!
//! Bound: whatever was in the step that cost a device, or fails alone on one that fails, may be the cause. Such a job moves
//! [`MAX_RESCUES`] times at most and runs alone until it is past the point of failure, so that one request which kills devices
//! ends before it has killed them all.

#[cfg(test)]
mod tests;

use super::complete::InFlightRow;
use super::job::{Delivery, Finish, Job, Micros};
use super::lane::Lane;
use super::sequence::{Sequence, finished};
use super::window::Window;

/// How often a job may leave a device that failed in a step of its own.
pub const MAX_RESCUES: u8 = 2;

/// Steps that the device fails in a row: with the last its lane retires.
pub const MAX_FAULTS: u32 = 8;
const FIRST_REST: Micros = 100_000;
const MAX_REST: Micros = 5_000_000;

/// Whose fault a failed step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The step's own: a panic, logits that are no numbers, an executor that died.
    Step,
    /// The device's, which can still be used.
    Device,
    /// There is no device any more.
    Lost,
}

/// What a lane is fit for after a failed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    GoOn,
    /// It plans nothing until then.
    Rest {
        until: Micros,
    },
    /// It never plans again: see [`Lane::retire`].
    Retire,
}

/// Gives a job to another lane; gives it back where no other takes it.
pub type Elsewhere<'a, S> = &'a mut dyn FnMut(Job<S>) -> Option<Job<S>>;

/// The state of a lane's device, as its steps show it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Steps that it failed since one succeeded.
    faults: u32,
    rests_until: Option<Micros>,
    pub is_retired: bool,
}

impl Health {
    /// A step succeeded.
    pub fn succeeded(&mut self) {
        self.faults = 0;
    }

    pub fn may_plan(&self, now: Micros) -> bool {
        !self.is_retired && self.rests_until.is_none_or(|until| now >= until)
    }

    fn judge(&mut self, fault: Fault, now: Micros) -> Verdict {
        match fault {
            Fault::Step => Verdict::GoOn,
            Fault::Lost => self.retire(),
            Fault::Device => {
                self.faults += 1;
                if self.faults >= MAX_FAULTS {
                    return self.retire();
                }
                let until = now + (FIRST_REST << (self.faults - 1)).min(MAX_REST);
                self.rests_until = Some(until);
                Verdict::Rest { until }
            }
        }
    }

    fn retire(&mut self) -> Verdict {
        self.is_retired = true;
        Verdict::Retire
    }
}

impl<S: Clone> Lane<S> {
    /// The step in flight failed. Callers follow the verdict: [`Lane::fail`], [`Lane::fail_on_device`] and a plan when the
    /// rest is over, or [`Lane::retire`].
    pub fn judge(&mut self, fault: Fault, now: Micros) -> Verdict {
        self.health.judge(fault, now)
    }

    /// As [`Lane::fail`], where the device is to blame, or perhaps: a sequence that failed alone moves to another lane, where
    /// one takes it, and waits here otherwise.
    pub fn fail_on_device(&mut self, error: &str, elsewhere: Elsewhere<'_, S>) -> Vec<Delivery<S>> {
        for (row, mut seq) in self.take_failed() {
            let is_alone = seq.job.progress.suspect_until.is_some();
            if seq.job.cancel.is_set() {
                self.end(seq, &Finish::Cancelled);
            } else if is_alone && seq.job.progress.num_rescues >= MAX_RESCUES {
                self.end(seq, &Finish::Failed(error.to_owned()));
            } else {
                suspect(&mut seq, &row);
                if is_alone {
                    seq.job.progress.num_rescues += 1;
                    self.move_out(seq, elsewhere);
                } else {
                    self.requeue(seq);
                }
            }
        }
        self.outbox.take()
    }

    /// The lane's device is gone, with all K and V: everything that ran or waited here (the window included) moves to other
    /// lanes, or ends as [`Finish::Failed`] where none takes it. To be called again for what is submitted later.
    pub fn retire(
        &mut self,
        error: &str,
        now: Micros,
        window: &mut dyn Window<S>,
        elsewhere: Elsewhere<'_, S>,
    ) -> Vec<Delivery<S>> {
        self.health.is_retired = true;
        self.waiting.recall(window);
        for (row, mut seq) in self.take_failed() {
            if seq.job.progress.num_rescues >= MAX_RESCUES {
                self.end(seq, &Finish::Failed(format!("{} devices failed with it: {error}", MAX_RESCUES + 1)));
                continue;
            }
            suspect(&mut seq, &row);
            seq.job.progress.num_rescues += 1;
            self.requeue(seq);
        }
        for seq in std::mem::take(&mut self.running) {
            self.requeue(seq);
        }
        self.kv.forget_all();
        // Those who left meanwhile need no other lane.
        self.sweep(now);
        while let Some(job) = self.waiting.remove(0) {
            if let Some(job) = self.hand_over(job, elsewhere) {
                self.outbox.tell(&job, finished(&job, &Finish::Failed(error.to_owned())));
            }
        }
        self.outbox.take()
    }

    /// The sequences of the step in flight, which failed; they are not among the running any more.
    pub(super) fn take_failed(&mut self) -> Vec<(InFlightRow, Sequence<S>)> {
        let Some(flight) = self.in_flight.take() else { return Vec::new() };
        self.forget_step();
        self.totals.failed_steps += 1;
        let take = |row: InFlightRow| {
            let index = self.running.iter().position(|seq| seq.id == row.seq)?;
            Some((row, self.running.remove(index)))
        };
        flight.rows.into_iter().filter_map(take).collect()
    }

    fn move_out(&mut self, seq: Sequence<S>, elsewhere: Elsewhere<'_, S>) {
        self.kv.release(seq.table);
        let mut job = seq.job;
        job.progress.num_moves = 0;
        if let Some(job) = self.hand_over(job, elsewhere) {
            self.waiting.insert(job);
        }
    }

    /// None when another lane has taken it.
    fn hand_over(&mut self, job: Job<S>, elsewhere: Elsewhere<'_, S>) -> Option<Job<S>> {
        let refused = elsewhere(job);
        self.totals.moved_jobs += u64::from(refused.is_none());
        refused
    }
}

/// It runs alone from now on, until it is past the step that failed.
pub(super) fn suspect<S>(seq: &mut Sequence<S>, row: &InFlightRow) {
    seq.job.progress.suspect_until = Some(row.certain_end() as u32);
    seq.job.progress.drafts_failed |= !row.drafts.is_empty();
}
