//! Who sleeps and who is woken: the protocol by which no job waits in a window beside a sleeping lane.
//!
//! A lane that has nothing to do sets its bit and **then** looks at every window once more ([`IdleLanes::go_idle`]). Whoever
//! may have left something for others (a lane that planned or stole, anybody who gave a job to a lane in a step) **then**
//! looks at the windows and, if one holds a job, at the bits ([`IdleLanes::next_to_wake`]). A fence stands between the two
//! halves of each, so of any two one sees what the other did: either the sleeper finds the job, or the other finds the
//! sleeper. In the same way a job that is given to a lane just as its step begins is seen by the lane, which says so
//! first ([`IdleLanes::begin_step`]) and looks for jobs then, or by the giver, who finds the lane at work
//! ([`IdleLanes::is_at_work`]). One lane is woken at a time; when it has taken its share it wakes the next, as long as a window holds
//! anything. So idle lanes do not crowd round the deques of the busy ones.
//!
//! Model-checked under the C11 memory model in `model.rs`; simulated with everything around it beside the fake executor.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::window::Take;
use super::{MAX_STOLEN, VictimOrder};

/// A shared word: std's, or a model checker's. Read-modify-writes are acquire and release, loads acquire.
pub trait Word {
    fn new(value: u64) -> Self;
    fn load(&self) -> u64;
    fn fetch_or(&self, bits: u64) -> u64;
    fn fetch_and(&self, bits: u64) -> u64;
    /// A sequentially consistent fence.
    fn fence();
}

/// A macro, so that what is model-checked has the orderings of what runs.
macro_rules! word {
    ($atomic:ty, $fence:path) => {
        impl Word for $atomic {
            fn new(value: u64) -> Self {
                <$atomic>::new(value)
            }

            fn load(&self) -> u64 {
                self.load(Ordering::Acquire)
            }

            fn fetch_or(&self, bits: u64) -> u64 {
                self.fetch_or(bits, Ordering::AcqRel)
            }

            fn fetch_and(&self, bits: u64) -> u64 {
                self.fetch_and(bits, Ordering::AcqRel)
            }

            fn fence() {
                $fence(Ordering::SeqCst);
            }
        }
    };
}

word!(AtomicU64, fence);
#[cfg(test)]
word!(loom::sync::atomic::AtomicU64, loom::sync::atomic::fence);

/// One round of lane `thief` over the windows of all lanes: the first that gives anything, `limit` jobs at most, ends it.
/// Empty when nobody has anything to spare.
pub fn search<T, V: Take<T>>(thief: usize, limit: usize, windows: &[V], order: &mut VictimOrder) -> Vec<T> {
    order
        .round(windows.len())
        .filter(|&victim| victim != thief)
        .map(|victim| windows[victim].take_half(limit.min(MAX_STOLEN)))
        .find(|stolen| !stolen.is_empty())
        .unwrap_or_default()
}

/// Shared by all lanes of a process; bit `i` stands for lane `i`.
#[derive(Debug)]
pub struct IdleLanes<W = AtomicU64> {
    /// It has nothing to do and sleeps until it is sent something.
    asleep: W,
    /// It has a step under way and looks at nothing until that is over.
    at_work: W,
}

impl<W: Word> IdleLanes<W> {
    /// As many lanes as there are bits.
    pub const MAX_LANES: usize = 64;

    /// Lane `thief` has nothing to run: a [`search`]. When it gives nothing the lane is asleep: whoever has a job to
    /// spare wakes it.
    pub fn go_idle<T, V: Take<T>>(&self, thief: usize, limit: usize, windows: &[V], order: &mut VictimOrder) -> Vec<T> {
        self.asleep.fetch_or(1 << thief);
        W::fence();
        let stolen = search(thief, limit, windows, order);
        if !stolen.is_empty() {
            self.wake_up(thief);
        }
        stolen
    }

    /// Lane `lane` has something to do.
    pub fn wake_up(&self, lane: usize) {
        self.asleep.fetch_and(!(1 << lane));
    }

    /// Lane `lane` begins a step. Whoever says so asks [`IdleLanes::next_to_wake`] afterwards: a job may have come that
    /// the plan knows nothing of.
    pub fn begin_step(&self, lane: usize) {
        self.wake_up(lane);
        self.at_work.fetch_or(1 << lane);
    }

    /// Lane `lane` has no step under way, and will look at what it was given.
    pub fn end_step(&self, lane: usize) {
        self.at_work.fetch_and(!(1 << lane));
    }

    /// To be asked by whoever has given lane `lane` a job: whether it stays away for long enough that others should be
    /// told of the job. If not, the lane itself is to be told.
    pub fn is_at_work(&self, lane: usize) -> bool {
        W::fence();
        self.at_work.load() & (1 << lane) != 0
    }

    /// Whether `lane` sleeps.
    #[cfg(test)]
    pub fn is_idle(&self, lane: usize) -> bool {
        self.asleep.load() & (1 << lane) != 0
    }

    /// To be asked by whoever may have left something for others: a sleeping lane that must be sent a wake-up, because some window
    /// holds a job. The lane counts as awake from now on, so no other is told to wake it.
    pub fn next_to_wake<T, V: Take<T>>(&self, windows: &[V]) -> Option<usize> {
        W::fence();
        let mut idle = self.asleep.load();
        if idle == 0 || windows.iter().all(Take::is_empty) {
            return None;
        }
        while idle != 0 {
            let lane = idle.trailing_zeros() as usize;
            if self.asleep.fetch_and(!(1 << lane)) & (1 << lane) != 0 {
                return Some(lane);
            }
            idle &= !(1 << lane);
        }
        None
    }
}

impl<W: Word> Default for IdleLanes<W> {
    fn default() -> Self {
        Self { asleep: W::new(0), at_work: W::new(0) }
    }
}
