//! Jobs that wait in a lane, in order of age, and what leaves a lane: [`Outbox`].

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::job::{Delivery, Event, Job};
use super::steal::MAX_MOVES;
use super::window::Window;

/// Waiting jobs, oldest first. A preempted job is older than all that came after it, so it stands before them.
#[derive(Debug)]
pub(super) struct Queue<S> {
    jobs: VecDeque<Job<S>>,
    num_tokens: usize,
    /// What was laid in the window last; thieves may have taken some of it since.
    num_offered: usize,
    num_offered_tokens: usize,
}

impl<S> Queue<S> {
    pub fn new() -> Self {
        Self { jobs: VecDeque::new(), num_tokens: 0, num_offered: 0, num_offered_tokens: 0 }
    }

    /// Jobs here and in the window, as far as known.
    pub fn num_jobs(&self) -> usize {
        self.jobs.len() + self.num_offered
    }

    pub fn num_tokens(&self) -> usize {
        self.num_tokens + self.num_offered_tokens
    }

    pub fn insert(&mut self, job: Job<S>) {
        let age = job.age();
        let younger = self.jobs.iter().rev().take_while(|waiting| waiting.age() > age).count();
        self.num_tokens += job.num_tokens();
        self.jobs.insert(self.jobs.len() - younger, job);
    }

    pub fn get(&self, index: usize) -> Option<&Job<S>> {
        self.jobs.get(index)
    }

    pub fn position(&self, wanted: impl FnMut(&Job<S>) -> bool) -> Option<usize> {
        self.jobs.iter().position(wanted)
    }

    pub fn remove(&mut self, index: usize) -> Option<Job<S>> {
        let job = self.jobs.remove(index)?;
        self.num_tokens -= job.num_tokens();
        Some(job)
    }

    /// Lets `keep` change or drop each job; it must not change a job's tokens or age.
    pub fn retain_mut(&mut self, mut keep: impl FnMut(&mut Job<S>) -> bool) {
        let num_tokens = &mut self.num_tokens;
        self.jobs.retain_mut(|job| {
            let tokens = job.num_tokens();
            let kept = keep(job);
            *num_tokens -= if kept { 0 } else { tokens };
            kept
        });
    }

    /// Takes back what thieves have left in the window.
    pub fn recall(&mut self, window: &mut dyn Window<S>) {
        while let Some(job) = window.pop() {
            self.insert(job);
        }
        (self.num_offered, self.num_offered_tokens) = (0, 0);
    }

    /// Lays the oldest jobs that may still move in the window, as far as it has room.
    pub fn offer(&mut self, window: &mut dyn Window<S>) {
        let may_move = |job: &Job<S>| job.progress.num_moves < MAX_MOVES;
        let mut index = self.jobs.iter().take_while(|job| !may_move(job)).count();
        while let Some(job) = self.jobs.remove(index) {
            let tokens = job.num_tokens();
            if let Err(job) = window.push(job) {
                self.jobs.insert(index, job);
                break;
            }
            index += self.jobs.range(index..).take_while(|job| !may_move(job)).count();
            self.num_tokens -= tokens;
            self.num_offered += 1;
            self.num_offered_tokens += tokens;
        }
    }
}

/// What the requests are told, in order. What follows each other for one request goes together.
#[derive(Debug)]
pub(super) struct Outbox<S> {
    deliveries: Vec<Delivery<S>>,
}

impl<S: Clone> Outbox<S> {
    pub fn new() -> Self {
        Self { deliveries: Vec::new() }
    }

    pub fn tell(&mut self, job: &Job<S>, events: impl IntoIterator<Item = Event>) {
        // A request's choices mostly come one after the other.
        if let Some(last) = self.deliveries.last_mut().filter(|last| last.request == job.request) {
            return last.events.extend(events);
        }
        let events: SmallVec<_> = events.into_iter().collect();
        if !events.is_empty() {
            self.deliveries.push(Delivery { request: job.request, sink: job.sink.clone(), events });
        }
    }

    pub fn take(&mut self) -> Vec<Delivery<S>> {
        let num_deliveries = self.deliveries.len();
        std::mem::replace(&mut self.deliveries, Vec::with_capacity(num_deliveries))
    }
}
