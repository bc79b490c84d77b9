//! Work stealing between lanes: the shared window, whom to rob, and how many may look at once.
//!
//! Never knows when a lane is idle; whoever calls [`search`] does. Stolen jobs are submitted to the thief's lane as
//! they are. A job whose client has left is stolen like any other and ends, with its event, in the thief's next plan.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::deque::{Steal, Stealer, Worker};

use super::job::Job;
use super::window::Window;

/// Most jobs that one theft takes.
pub const MAX_STOLEN: usize = 8;

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

/// Half of what a window holds, oldest first, at most `limit`. A single job is taken whole.
pub fn steal_half<S>(from: &Stealer<Job<S>>, limit: usize) -> Vec<Job<S>> {
    let wanted = from.len().div_ceil(2).min(limit);
    let mut stolen = Vec::with_capacity(wanted);
    let mut retries = 0;
    while stolen.len() < wanted {
        match from.steal() {
            Steal::Success(job) => stolen.push(job),
            Steal::Retry if retries < MAX_RETRIES => retries += 1,
            Steal::Retry | Steal::Empty => break,
        }
    }
    stolen
}

/// One round of lane `thief` over the windows of all lanes in `order`: the first that gives anything ends it. Empty
/// when nobody has anything to spare, or when enough lanes are searching already.
pub fn search<S>(thief: usize, windows: &[Stealer<Job<S>>], gate: &SearchGate, order: &mut VictimOrder) -> Vec<Job<S>> {
    let Some(_permit) = gate.enter() else { return Vec::new() };
    order
        .round(windows.len())
        .filter(|&victim| victim != thief)
        .map(|victim| steal_half(&windows[victim], MAX_STOLEN))
        .find(|stolen| !stolen.is_empty())
        .unwrap_or_default()
}

/// Lets at most half of the lanes search at once (and always one), so that idle lanes do not wear out the deques of
/// the busy ones.
#[derive(Debug, Clone)]
pub struct SearchGate {
    searching: Arc<AtomicUsize>,
    max_searching: usize,
}

/// The right to search, given back on drop.
#[derive(Debug)]
pub struct SearchPermit(Arc<AtomicUsize>);

impl SearchGate {
    pub fn new(num_lanes: usize) -> Self {
        Self { searching: Arc::default(), max_searching: (num_lanes / 2).max(1) }
    }

    pub fn enter(&self) -> Option<SearchPermit> {
        // Relaxed: the counter guards no data, it only bounds how many look; the deques order their own contents.
        let more = |searching| (searching < self.max_searching).then_some(searching + 1);
        self.searching.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(SearchPermit(self.searching.clone()))
    }
}

impl Drop for SearchPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A seeded source of starting points: every round visits each lane once, from a random one on.
#[derive(Debug, Clone)]
pub struct VictimOrder(u64);

impl VictimOrder {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn round(&mut self, num_lanes: usize) -> impl Iterator<Item = usize> + use<> {
        // splitmix64 (Steele, Lea, Flood 2014): enough to keep thieves from all starting at the same victim.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let start = mixed as usize % num_lanes.max(1);
        (0..num_lanes).map(move |i| (start + i) % num_lanes)
    }
}
