//! The lanes of this process as the rest of it sees them.
//!
//! Owns the present address of each scheduler (the supervisor replaces those that died), what lanes publish about
//! themselves, and the windows through which they steal from each other. Never plans.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use actix::Addr;
use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam::deque::Stealer;

use super::events::Sink;
use super::messages::Wake;
use super::scheduler::SchedulerActor;
use crate::sched::affinity::Affinity;
use crate::sched::job::Job;
use crate::sched::{LaneLoad, LaneStats, SearchGate, place};

/// Backlog that a longer cached prefix is worth: about what recomputing a long system prompt costs.
const MAX_MARGIN_TOKENS: usize = 2048;

type Windows = Vec<Stealer<Job<Sink>>>;

/// Shared by everyone who talks to lanes.
pub struct Lanes {
    lanes: Vec<Slot>,
    windows: ArcSwap<Windows>,
    /// Bit `i`: lane `i` found nothing to do and sleeps.
    idle: AtomicU64,
    search_gate: SearchGate,
    affinity: Affinity,
}

/// One lane's place; it outlives the scheduler in it.
#[derive(Default)]
struct Slot {
    address: ArcSwapOption<Addr<SchedulerActor>>,
    stats: Mutex<LaneStats>,
    /// Its executor is gone: what is sent there can only fail.
    is_lost: AtomicBool,
    /// Its scheduler died too often and is not built again.
    is_given_up: AtomicBool,
}

impl Lanes {
    /// As many as `idle` has bits.
    pub const MAX: usize = 64;

    /// `windows` has one stealer for each lane.
    pub fn new(windows: Windows) -> Arc<Self> {
        assert!((1..=Self::MAX).contains(&windows.len()), "{} lanes", windows.len());
        Arc::new(Self {
            lanes: windows.iter().map(|_| Slot::default()).collect(),
            search_gate: SearchGate::new(windows.len()),
            windows: ArcSwap::from_pointee(windows),
            idle: AtomicU64::new(0),
            affinity: Affinity::default(),
        })
    }

    #[allow(clippy::len_without_is_empty, reason = "there is always a lane")]
    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    /// Puts a (new) scheduler in its place.
    pub fn install(&self, lane: usize, address: Addr<SchedulerActor>) {
        self.lanes[lane].address.store(Some(Arc::new(address)));
    }

    /// Replaces a dead lane's window. The jobs left in the old one are returned: nobody would look there again.
    pub fn replace_window(&self, lane: usize, window: Stealer<Job<Sink>>) -> Vec<Job<Sink>> {
        let old = self.windows.load_full();
        let mut windows = (*old).clone();
        windows[lane] = window;
        self.windows.store(Arc::new(windows));
        std::iter::from_fn(|| {
            loop {
                match old[lane].steal() {
                    crossbeam::deque::Steal::Success(job) => return Some(job),
                    crossbeam::deque::Steal::Empty => return None,
                    crossbeam::deque::Steal::Retry => {}
                }
            }
        })
        .collect()
    }

    pub fn windows(&self) -> Arc<Windows> {
        self.windows.load_full()
    }

    pub fn search_gate(&self) -> &SearchGate {
        &self.search_gate
    }

    pub fn address(&self, lane: usize) -> Option<Addr<SchedulerActor>> {
        self.lanes[lane].address.load().as_deref().cloned()
    }

    /// No step will run in this lane any more.
    pub fn set_lost(&self, lane: usize) {
        self.lanes[lane].is_lost.store(true, Ordering::Relaxed);
    }

    pub fn give_up(&self, lane: usize) {
        self.lanes[lane].is_given_up.store(true, Ordering::Relaxed);
    }

    pub fn is_given_up(&self, lane: usize) -> bool {
        self.lanes[lane].is_given_up.load(Ordering::Relaxed)
    }

    pub fn publish(&self, lane: usize, stats: LaneStats) {
        *self.stats_of(lane) = stats;
    }

    /// The last published numbers of a lane.
    pub fn stats(&self, lane: usize) -> LaneStats {
        *self.stats_of(lane)
    }

    fn stats_of(&self, lane: usize) -> std::sync::MutexGuard<'_, LaneStats> {
        self.lanes[lane].stats.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The lane that a job should go to, and its address. None when no lane lives.
    pub fn place(&self, job: &Job<Sink>) -> Option<(usize, Addr<SchedulerActor>)> {
        let works = |lane: usize| !self.lanes[lane].is_lost.load(Ordering::Relaxed);
        let alive = |lane: usize| self.address(lane).filter(|address| works(lane) && address.connected());
        if self.len() == 1 {
            return Some((0, alive(0)?));
        }
        let seen = self.affinity.seen(&job.prompt, job.salt, self.len());
        let (lanes, loads): (Vec<_>, Vec<_>) = (0..self.len())
            .filter(|&lane| alive(lane).is_some())
            .map(|lane| {
                let stats = self.stats(lane);
                let load = LaneLoad {
                    waiting_tokens: stats.waiting_tokens,
                    running: stats.running,
                    cached_prefix_tokens: seen[lane],
                };
                (lane, load)
            })
            .unzip();
        let lane = lanes[place(&loads, MAX_MARGIN_TOKENS)?];
        self.affinity.learn(&job.prompt, job.salt, lane);
        // What is on its way counts until the lane speaks for itself, or a burst would all go to one lane.
        self.stats_of(lane).waiting_tokens += job.prompt.len();
        Some((lane, alive(lane)?))
    }

    /// Makes every lane look at its cancel flags now.
    pub fn wake_all(&self) {
        for address in (0..self.len()).filter_map(|lane| self.address(lane)) {
            let _ = address.try_send(Wake);
        }
    }

    // ── idleness ───────────────────────────────────────────────────────────────────────────────────
    // A lane that goes idle sets its bit and only then looks at the windows once more; a lane that fills its window
    // does so before it reads the bits. Both sides are SeqCst, so one of them sees the other: no job waits in a window
    // while a lane sleeps beside it. (A search that the gate turned away is made up for by the lane's heartbeat.)

    pub fn set_idle(&self, lane: usize) {
        self.idle.fetch_or(1 << lane, Ordering::SeqCst);
    }

    pub fn set_busy(&self, lane: usize) {
        self.idle.fetch_and(!(1 << lane), Ordering::SeqCst);
    }

    /// Wakes one sleeping lane other than `lane`, which has jobs to spare.
    pub fn wake_idle(&self, lane: usize) {
        let mut idle = self.idle.load(Ordering::SeqCst) & !(1 << lane);
        while idle != 0 {
            let other = idle.trailing_zeros() as usize;
            let bit = 1 << other;
            // Whoever clears the bit sends the message; two lanes do not wake the same one.
            let won = self.idle.fetch_and(!bit, Ordering::SeqCst) & bit != 0;
            if won && self.address(other).is_some_and(|a| a.try_send(Wake).is_ok()) {
                return;
            }
            idle &= !bit;
        }
    }
}
