//! The way into a lane: jobs that it has been given and has not looked at yet.
//!
//! A lane looks at nothing while a step is under way, and a step may be long. Whoever brings a job leaves it here and goes
//! on; the lane takes all of them before its next plan, unless a thief was quicker. So a job waits for no step but its own
//! lane's, and for that only while no other lane has room.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::deque::{Steal, Stealer};

use super::{MAX_MOVES, Take};
use crate::sched::job::Job;

/// Jobs in order of arrival. What is in it is bounded by the permits of whoever submits.
pub struct Inbox<S> {
    jobs: Mutex<VecDeque<Job<S>>>,
    /// As many as there are; read without the lock.
    num_jobs: AtomicUsize,
}

impl<S> Default for Inbox<S> {
    fn default() -> Self {
        Self { jobs: Mutex::default(), num_jobs: AtomicUsize::new(0) }
    }
}

impl<S> Inbox<S> {
    /// True when it was empty before.
    pub fn push(&self, job: Job<S>) -> bool {
        self.change(|jobs| {
            jobs.push_back(job);
            jobs.len() == 1
        })
    }

    /// Everything that is there.
    pub fn take_all(&self) -> VecDeque<Job<S>> {
        if self.is_empty() { VecDeque::new() } else { self.change(std::mem::take) }
    }

    pub fn len(&self) -> usize {
        self.num_jobs.load(Ordering::Acquire)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The oldest, unless it has been moved about enough.
    fn steal(&self) -> Steal<Job<S>> {
        if self.is_empty() {
            return Steal::Empty;
        }
        match self.change(|jobs| jobs.pop_front_if(|job| job.progress.num_moves < MAX_MOVES)) {
            Some(job) => Steal::Success(job),
            None => Steal::Empty,
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut VecDeque<Job<S>>) -> T) -> T {
        // A panic while the lock is held can only come from the allocator; the jobs are still whole.
        let mut jobs: MutexGuard<'_, _> = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut jobs);
        self.num_jobs.store(jobs.len(), Ordering::Release);
        done
    }
}

/// What thieves may take from a lane: its window, and then what has come in since its last plan.
pub struct Stock<S> {
    pub window: Stealer<Job<S>>,
    pub inbox: Arc<Inbox<S>>,
}

impl<S> Clone for Stock<S> {
    fn clone(&self) -> Self {
        Self { window: self.window.clone(), inbox: self.inbox.clone() }
    }
}

impl<S> Take<Job<S>> for Stock<S> {
    fn len(&self) -> usize {
        self.window.len() + self.inbox.len()
    }

    fn take(&self) -> Steal<Job<S>> {
        match self.window.steal() {
            Steal::Empty => self.inbox.steal(),
            found => found,
        }
    }
}
