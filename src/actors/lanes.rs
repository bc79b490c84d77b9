//! The lanes of this process as the rest of it sees them.
//!
//! Owns the present address of each scheduler (the supervisor replaces those that died), what lanes publish about
//! themselves, and the windows through which they steal from each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use actix::Addr;
use arc_swap::ArcSwap;

use super::events::Sink;
use super::messages::{FinishChoice, Wake};
use super::scheduler::SchedulerActor;
use crate::sched::lane::LaneStats;
use crate::sched::place::{self, LaneLoad};
use crate::sched::steal::{LaneStealer, SearchGate};

/// Shared by everyone who talks to lanes.
pub struct Lanes {
    lanes: Vec<LaneSlot>,
    /// Bit `i`: lane `i` found nothing to do and sleeps. At most 64 lanes.
    idle: AtomicU64,
    pub search: SearchGate,
}

/// One lane's place; it outlives the scheduler in it.
struct LaneSlot {
    address: ArcSwap<Option<Addr<SchedulerActor>>>,
    stealer: ArcSwap<Option<LaneStealer<Sink>>>,
    stats: Mutex<LaneStats>,
}

impl Lanes {
    pub const MAX: usize = 64;

    pub fn new(num_lanes: usize) -> Arc<Self> {
        assert!((1..=Self::MAX).contains(&num_lanes));
        let slot = || LaneSlot {
            address: ArcSwap::from_pointee(None),
            stealer: ArcSwap::from_pointee(None),
            stats: Mutex::default(),
        };
        Arc::new(Self {
            lanes: (0..num_lanes).map(|_| slot()).collect(),
            idle: AtomicU64::new(0),
            search: SearchGate::new(num_lanes),
        })
    }

    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Puts a (new) scheduler in its place.
    pub fn install(&self, lane: usize, address: Addr<SchedulerActor>) {
        self.lanes[lane].address.store(Arc::new(Some(address)));
    }

    pub fn install_stealer(&self, lane: usize, stealer: LaneStealer<Sink>) {
        self.lanes[lane].stealer.store(Arc::new(Some(stealer)));
    }

    pub fn address(&self, lane: usize) -> Option<Addr<SchedulerActor>> {
        self.lanes[lane].address.load().as_ref().clone()
    }

    pub fn stealer(&self, lane: usize) -> Option<LaneStealer<Sink>> {
        self.lanes[lane].stealer.load().as_ref().clone()
    }

    pub fn publish(&self, lane: usize, stats: LaneStats) {
        *self.lanes[lane].stats.lock().unwrap_or_else(|e| e.into_inner()) = stats;
    }

    /// The last published numbers of each lane.
    pub fn stats(&self) -> Vec<LaneStats> {
        self.lanes.iter().map(|l| l.stats.lock().unwrap_or_else(|e| e.into_inner()).clone()).collect()
    }

    /// The lane that a new job should go to.
    pub fn place(&self) -> Option<(usize, Addr<SchedulerActor>)> {
        let alive: Vec<usize> = (0..self.len()).filter(|&i| self.address(i).is_some_and(|a| a.connected())).collect();
        let loads: Vec<LaneLoad> = alive
            .iter()
            .map(|&i| LaneLoad::from(&*self.lanes[i].stats.lock().unwrap_or_else(|e| e.into_inner())))
            .collect();
        let lane = *alive.get(place::choose(&loads)?)?;
        Some((lane, self.address(lane)?))
    }

    /// Tells every lane that a choice is over (it may have been stolen, so nobody knows which one runs it).
    pub fn finish_choice(&self, message: FinishChoice) {
        for address in (0..self.len()).filter_map(|i| self.address(i)) {
            // `send` waits for room where `try_send` would lose the message and waste a device on unread tokens.
            actix::spawn(async move {
                let _ = address.send(message).await;
            });
        }
    }

    /// Makes every lane look at its cancel flags now.
    pub fn wake_all(&self) {
        for address in (0..self.len()).filter_map(|i| self.address(i)) {
            let _ = address.try_send(Wake);
        }
    }

    // ── idleness ───────────────────────────────────────────────────────────────────────────────────
    // A lane that goes idle sets its bit and only then looks at the windows once more; a lane that fills its window
    // does so before it reads the bits. Both sides are SeqCst, so one of them sees the other: no job waits in a window
    // while a lane sleeps beside it.

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
            // Whoever clears the bit sends the message; two lanes do not wake the same one.
            let before = self.idle.fetch_and(!(1 << other), Ordering::SeqCst);
            if before & (1 << other) != 0 && self.address(other).is_some_and(|a| a.try_send(Wake).is_ok()) {
                return;
            }
            idle &= !(1 << other);
        }
    }
}
