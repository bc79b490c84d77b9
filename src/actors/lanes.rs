//! The lanes of this process as the rest of it sees them.
//!
//! Owns the seats of each lane's scheduler and executor (the supervisor replaces those that died), what lanes publish about
//! themselves, the inboxes through which jobs reach them, and the windows through which they steal from each other. Never
//! plans.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::Addr;
use arc_swap::ArcSwap;
use crossbeam::deque::Stealer;
use tokio::sync::Notify;

use super::events::Sink;
use super::executor::ExecutorActor;
use super::messages::Wake;
use super::scheduler::SchedulerActor;
use super::seat::Seat;
use crate::base::clock;
use crate::sched::affinity::Affinity;
use crate::sched::job::Job;
use crate::sched::{IdleLanes, Inbox, LaneLoad, LaneStats, Stock, VictimOrder, place, search};

/// Backlog that a longer cached prefix is worth: about what recomputing a long system prompt costs.
const MAX_MARGIN_TOKENS: usize = 2048;

type Windows = Vec<Stock<Sink>>;

/// Shared by everyone who talks to lanes.
pub struct Lanes {
    lanes: Vec<Slot>,
    windows: ArcSwap<Windows>,
    idle: IdleLanes,
    affinity: Affinity,
    none_left: Notify,
}

/// One lane's place; it outlives the actors in it.
#[derive(Default)]
struct Slot {
    scheduler: Seat<SchedulerActor>,
    executor: Seat<ExecutorActor>,
    inbox: Arc<Inbox<Sink>>,
    /// On the scale of [`clock::now_us`]; 0 while no step is under way.
    step_began_us: AtomicU64,
    stats: Mutex<LaneStats>,
    /// Its device is gone: what is sent there can only fail.
    is_lost: AtomicBool,
    /// Its device failed a step and is left alone for a while.
    is_resting: AtomicBool,
    /// Its scheduler died too often and is not built again.
    is_given_up: AtomicBool,
}

impl Lanes {
    pub const MAX: usize = <IdleLanes>::MAX_LANES;

    /// `windows` has one stealer for each lane.
    pub fn new(windows: Vec<Stealer<Job<Sink>>>) -> Arc<Self> {
        assert!((1..=Self::MAX).contains(&windows.len()), "{} lanes", windows.len());
        let lanes: Vec<Slot> = windows.iter().map(|_| Slot::default()).collect();
        let stock = |(window, slot): (_, &Slot)| Stock { window, inbox: slot.inbox.clone() };
        let windows: Windows = windows.into_iter().zip(&lanes).map(stock).collect();
        Arc::new(Self {
            lanes,
            idle: IdleLanes::default(),
            windows: ArcSwap::from_pointee(windows),
            affinity: Affinity::default(),
            none_left: Notify::default(),
        })
    }

    #[allow(clippy::len_without_is_empty, reason = "there is always a lane")]
    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    pub fn scheduler(&self, lane: usize) -> &Seat<SchedulerActor> {
        &self.lanes[lane].scheduler
    }

    pub fn executor(&self, lane: usize) -> &Seat<ExecutorActor> {
        &self.lanes[lane].executor
    }

    /// Replaces a dead lane's window. The jobs left in the old one are returned: nobody would look there again.
    pub fn replace_window(&self, lane: usize, window: Stealer<Job<Sink>>) -> Vec<Job<Sink>> {
        let old = self.windows.load_full();
        let mut windows = (*old).clone();
        windows[lane].window = window;
        self.windows.store(Arc::new(windows));
        std::iter::from_fn(|| {
            loop {
                match old[lane].window.steal() {
                    crossbeam::deque::Steal::Success(job) => return Some(job),
                    crossbeam::deque::Steal::Empty => return None,
                    crossbeam::deque::Steal::Retry => {}
                }
            }
        })
        .collect()
    }

    pub fn address(&self, lane: usize) -> Option<Addr<SchedulerActor>> {
        self.scheduler(lane).address()
    }

    /// No step will run in this lane any more.
    pub fn set_lost(&self, lane: usize) {
        self.lanes[lane].is_lost.store(true, Ordering::Relaxed);
        self.none_left.notify_one();
    }

    fn is_any_left(&self) -> bool {
        (0..self.len()).any(|lane| !self.is_lost(lane) && !self.is_given_up(lane))
    }

    /// Waits until no lane runs steps any more, nor will. One may wait.
    pub async fn none_left(&self) {
        while self.is_any_left() {
            self.none_left.notified().await;
        }
    }

    pub fn is_lost(&self, lane: usize) -> bool {
        self.lanes[lane].is_lost.load(Ordering::Relaxed)
    }

    /// Whether the lane plans no steps for a while: it gets new work only where no other lane does better.
    pub fn set_resting(&self, lane: usize, is_resting: bool) {
        self.lanes[lane].is_resting.store(is_resting, Ordering::Relaxed);
    }

    fn is_resting(&self, lane: usize) -> bool {
        self.lanes[lane].is_resting.load(Ordering::Relaxed)
    }

    pub fn give_up(&self, lane: usize) {
        self.lanes[lane].is_given_up.store(true, Ordering::Relaxed);
        self.none_left.notify_one();
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

    /// Jobs that wait in a lane: those of its last plan, and those that came since, which it looks at before its next.
    pub fn num_waiting(&self, lane: usize) -> usize {
        self.stats(lane).waiting_jobs + self.lanes[lane].inbox.len()
    }

    fn stats_of(&self, lane: usize) -> std::sync::MutexGuard<'_, LaneStats> {
        self.lanes[lane].stats.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The lane that a job should go to. None when no lane lives.
    pub fn place(&self, job: &Job<Sink>) -> Option<usize> {
        let is_alive = |lane: usize| !self.is_lost(lane) && self.scheduler(lane).is_alive();
        if self.len() == 1 {
            return is_alive(0).then_some(0);
        }
        let seen = self.affinity.seen(&job.prompt, job.salt, self.len());
        let is_well = |lane: usize| is_alive(lane) && !self.is_resting(lane);
        let is_any_well = (0..self.len()).any(is_well);
        let (lanes, loads): (Vec<_>, Vec<_>) = (0..self.len())
            .filter(|&lane| if is_any_well { is_well(lane) } else { is_alive(lane) })
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
        Some(lane)
    }

    /// Gives a job to a lane. That never waits for a step: the lane takes it before its next plan, or another lane does.
    pub fn submit(&self, lane: usize, job: Job<Sink>) {
        let is_first = self.lanes[lane].inbox.push(job);
        if self.idle.is_at_work(lane) {
            self.share();
        } else if let Some(address) = self.address(lane).filter(|_| is_first) {
            let _ = address.try_send(Wake);
        }
        if self.is_given_up(lane) {
            // It was given up meanwhile. Nobody will look: the jobs drop, and their sinks tell.
            self.take_inbox(lane);
        }
    }

    /// Everything that was submitted to the lane and not stolen since the last call.
    pub fn take_inbox(&self, lane: usize) -> VecDeque<Job<Sink>> {
        self.lanes[lane].inbox.take_all()
    }

    /// Makes every lane look at its cancel flags now.
    pub fn wake_all(&self) {
        for address in (0..self.len()).filter_map(|lane| self.address(lane)) {
            let _ = address.try_send(Wake);
        }
    }

    /// What lane `thief` can take from the others, with room for `limit` sequences. Without work of its own
    /// (`may_sleep`) it is asleep when nothing comes back.
    pub fn steal(&self, thief: usize, limit: usize, may_sleep: bool, order: &mut VictimOrder) -> Vec<Job<Sink>> {
        let windows = self.windows.load();
        if may_sleep { self.idle.go_idle(thief, limit, &windows, order) } else { search(thief, limit, &windows, order) }
    }

    /// The lane's thread is taken by a step from now on. What it may have left for others is shown to them.
    pub fn begin_step(&self, lane: usize) {
        self.lanes[lane].step_began_us.store(clock::now_us().max(1), Ordering::Relaxed);
        self.idle.begin_step(lane);
        self.share();
    }

    /// The lane plans next.
    pub fn end_step(&self, lane: usize) {
        self.lanes[lane].step_began_us.store(0, Ordering::Relaxed);
        self.idle.end_step(lane);
    }

    /// How long the lane's step has been under way, if one is.
    pub fn step_age(&self, lane: usize) -> Option<Duration> {
        let began = self.lanes[lane].step_began_us.load(Ordering::Relaxed);
        (began > 0).then(|| Duration::from_micros(clock::now_us().saturating_sub(began)))
    }

    /// Wakes a sleeping lane if there is something for it to take.
    pub fn share(&self) {
        if self.len() == 1 {
            return;
        }
        let windows = self.windows.load();
        // A lane that is dead is passed over; its successor looks around as soon as it lives.
        for _ in 0..self.len() {
            let Some(lane) = self.idle.next_to_wake(&windows) else { return };
            if self.address(lane).is_some_and(|a| a.try_send(Wake).is_ok()) {
                return;
            }
        }
    }
}
