//! The jobs that other lanes may take.
//!
//! A lane keeps its waiting jobs in its own queue and, between two plans, lays the ones that have waited longest in
//! a window. Planning takes them back first, so the window never changes the order of a lane: **within a lane no job
//! overtakes another because of the window**. What theft can do to the order is bounded in [`super::steal`].

use std::collections::VecDeque;

use super::job::Job;

/// A bounded FIFO between a lane and its thieves. Jobs in it hold no KV on any device.
pub trait Window<S> {
    /// Hands the job back when the window is full.
    #[allow(clippy::result_large_err, reason = "the job is handed back, not boxed for the rare refusal")]
    fn push(&mut self, job: Job<S>) -> Result<(), Job<S>>;
    /// The job that was pushed first. None when empty or when a thief was quicker.
    fn pop(&mut self) -> Option<Job<S>>;
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A window that nobody else looks into: one lane, tests, simulation.
#[derive(Debug)]
pub struct FifoWindow<S> {
    jobs: VecDeque<Job<S>>,
    max_jobs: usize,
}

impl<S> FifoWindow<S> {
    pub fn new(max_jobs: usize) -> Self {
        Self { jobs: VecDeque::new(), max_jobs }
    }
}

impl<S> Window<S> for FifoWindow<S> {
    fn push(&mut self, job: Job<S>) -> Result<(), Job<S>> {
        if self.jobs.len() >= self.max_jobs {
            return Err(job);
        }
        self.jobs.push_back(job);
        Ok(())
    }

    fn pop(&mut self) -> Option<Job<S>> {
        self.jobs.pop_front()
    }

    fn len(&self) -> usize {
        self.jobs.len()
    }
}
