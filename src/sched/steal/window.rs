//! The two ends of a window: the lane's own, and the thieves'.

use crossbeam::deque::{Steal, Stealer, Worker};

use crate::sched::job::Job;
use crate::sched::window::Window;

/// Tries at a deque whose owner is at work on it, before the thief goes on to the next.
const MAX_RETRIES: usize = 8;

/// A lane's window on a deque that other threads can take from.
pub struct StealWindow<S> {
    jobs: Worker<Job<S>>,
    max_jobs: usize,
}

impl<S> StealWindow<S> {
    pub fn new(max_jobs: usize) -> Self {
        Self { jobs: Worker::new_fifo(), max_jobs }
    }

    /// The thieves' end; cheap to clone.
    pub fn stealer(&self) -> Stealer<Job<S>> {
        self.jobs.stealer()
    }
}

impl<S> Window<S> for StealWindow<S> {
    fn push(&mut self, job: Job<S>) -> Result<(), Job<S>> {
        // Only the owner adds, so a concurrent theft can make this refuse too early but never exceed the bound.
        if self.jobs.len() >= self.max_jobs {
            return Err(job);
        }
        self.jobs.push(job);
        Ok(())
    }

    fn pop(&mut self) -> Option<Job<S>> {
        self.jobs.pop()
    }

    fn len(&self) -> usize {
        self.jobs.len()
    }
}

/// The thieves' end of a window. A trait because a model checker cannot look into crossbeam's deque and brings its own.
pub trait Take<T> {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The oldest, if nobody else is at it.
    fn take(&self) -> Steal<T>;

    /// Half of what is there, oldest first, at most `limit`. A single one is taken whole.
    fn take_half(&self, limit: usize) -> Vec<T> {
        let wanted = self.len().div_ceil(2).min(limit);
        let mut taken = Vec::with_capacity(wanted);
        let mut retries = 0;
        while taken.len() < wanted {
            match self.take() {
                Steal::Success(job) => taken.push(job),
                Steal::Retry if retries < MAX_RETRIES => retries += 1,
                Steal::Retry | Steal::Empty => break,
            }
        }
        taken
    }
}

impl<S> Take<Job<S>> for Stealer<Job<S>> {
    fn len(&self) -> usize {
        Stealer::len(self)
    }

    fn take(&self) -> Steal<Job<S>> {
        self.steal()
    }
}
