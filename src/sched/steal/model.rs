//! [`IdleLanes`] under loom: every interleaving of a few lanes (up to a bound on preemptions), and every value that the
//! C11 memory model lets them read. Crossbeam's deque, which loom cannot look into, is stood in for by a counter with
//! the deque's orderings: an owner that publishes with a release store, thieves that may read an old length.
//!
//! The scenario: lane 0 has a job for each lane. A lane that has a job runs it and never comes back, as a step that takes
//! for ever; so each job must reach a lane of its own, through wake-ups alone. A lost wake-up leaves a lane waiting for
//! ever, which loom reports as a deadlock.

use crossbeam::deque::Steal;
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};

use super::{IdleLanes, Take, VictimOrder, search};

/// A window of jobs that are all alike.
#[derive(Default)]
struct Window(AtomicUsize);

impl Window {
    fn push(&self, num_jobs: usize) {
        self.0.fetch_add(num_jobs, Ordering::Release);
    }
}

impl Take<()> for Window {
    fn len(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn take(&self) -> Steal<()> {
        let num_jobs = self.0.load(Ordering::Acquire);
        if num_jobs == 0 {
            return Steal::Empty;
        }
        match self.0.compare_exchange(num_jobs, num_jobs - 1, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Steal::Success(()),
            Err(_) => Steal::Retry,
        }
    }
}

/// A mailbox for wake-ups.
#[derive(Default)]
struct Mailbox {
    has_mail: Mutex<bool>,
    arrived: Condvar,
}

impl Mailbox {
    fn send(&self) {
        *self.has_mail.lock().unwrap() = true;
        self.arrived.notify_one();
    }

    fn receive(&self) {
        let mut has_mail = self.has_mail.lock().unwrap();
        while !*has_mail {
            has_mail = self.arrived.wait(has_mail).unwrap();
        }
        *has_mail = false;
    }
}

struct Fleet {
    idle: IdleLanes<AtomicU64>,
    windows: Vec<Window>,
    mailboxes: Vec<Mailbox>,
}

impl Fleet {
    fn new(num_lanes: usize) -> Arc<Self> {
        Arc::new(Self {
            idle: IdleLanes::default(),
            windows: (0..num_lanes).map(|_| Window::default()).collect(),
            mailboxes: (0..num_lanes).map(|_| Mailbox::default()).collect(),
        })
    }

    fn share(&self) {
        if let Some(lane) = self.idle.next_to_wake(&self.windows) {
            self.mailboxes[lane].send();
        }
    }

    /// A lane with nothing of its own, until it has a job.
    fn thief(&self, lane: usize, limit: usize) {
        let mut order = VictimOrder::new(lane as u64);
        loop {
            let stolen = self.idle.go_idle(lane, limit, &self.windows, &mut order).len();
            if stolen > 0 {
                self.windows[lane].push(stolen - 1);
                self.share();
                return;
            }
            self.mailboxes[lane].receive();
        }
    }
}

fn check(num_lanes: usize, max_preemptions: usize, scenario: impl Fn(&Arc<Fleet>) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(max_preemptions);
    builder.check(move || scenario(&Fleet::new(num_lanes)));
}

/// Lanes `first_thief..` take a job each, while `busy` goes on on this thread; how many jobs are left in the end.
fn run(fleet: &Arc<Fleet>, first_thief: usize, limit: usize, busy: impl FnOnce(&Fleet)) -> usize {
    let thieves: Vec<_> = (first_thief..fleet.windows.len())
        .map(|lane| {
            let fleet = fleet.clone();
            loom::thread::spawn(move || fleet.thief(lane, limit))
        })
        .collect();
    busy(fleet);
    thieves.into_iter().for_each(|thief| thief.join().unwrap());
    fleet.windows.iter().map(|window| window.0.load(Ordering::Acquire)).sum()
}

/// An offer races with a lane that goes to sleep.
#[test]
fn an_offer_is_found_or_finds_the_sleeper() {
    check(2, 6, |fleet| {
        let left = run(fleet, 1, 1, |fleet| {
            fleet.windows[0].push(1);
            fleet.share();
        });
        assert_eq!(left, 0);
    });
}

/// A job is brought to a lane that begins a step just then, beside a lane that goes to sleep.
#[test]
fn a_job_for_a_lane_in_a_step_is_found_or_finds_the_sleeper() {
    check(2, 4, |fleet| {
        let owner = fleet.clone();
        let step = loom::thread::spawn(move || {
            owner.idle.begin_step(0);
            owner.share();
        });
        let left = run(fleet, 1, 1, |fleet| {
            fleet.windows[0].push(1);
            if fleet.idle.is_at_work(0) {
                fleet.share();
            }
        });
        step.join().unwrap();
        assert_eq!(left, 0);
    });
}

/// Both others are wanted, but the owner speaks once.
#[test]
fn a_thief_wakes_the_next() {
    check(3, 3, |fleet| {
        let left = run(fleet, 1, 8, |fleet| {
            fleet.windows[0].push(2);
            fleet.share();
        });
        assert_eq!(left, 0);
    });
}

/// The second job comes while the first is being stolen.
#[test]
fn offers_one_after_the_other_wake_one_lane_each() {
    check(3, 3, |fleet| {
        let left = run(fleet, 1, 1, |fleet| {
            for _ in 0..2 {
                fleet.windows[0].push(1);
                fleet.share();
            }
        });
        assert_eq!(left, 0);
    });
}

/// A lane with work of its own takes one of two jobs at the same time as the sleeper looks.
#[test]
fn a_busy_thief_does_not_hide_what_it_leaves() {
    check(3, 3, |fleet| {
        let owner = fleet.clone();
        let offers = loom::thread::spawn(move || {
            owner.windows[0].push(2);
            owner.share();
        });
        let left = run(fleet, 2, 1, |fleet| {
            search(1, 1, &fleet.windows, &mut VictimOrder::new(1));
            fleet.share();
        });
        offers.join().unwrap();
        assert!(left <= 1, "the sleeper has one");
    });
}
