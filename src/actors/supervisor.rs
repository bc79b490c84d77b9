//! The supervisor: looks after every long-lived actor, starts the dead again, gives up loudly.
//!
//! actix's own `Supervisor` does not survive a panic, and an address says only that its actor is gone. So one actor owns
//! all the others: it looks at each address a few times a second and starts a dead one again, on the same thread, with
//! back-off ([`Restarts`]). What the dead one held comes back by itself: sinks that drop tell their requests, devices
//! and the ledger of quotas outlive their actors, and jobs in a scheduler's window are submitted anew.
//!
//! The supervisor's own owner is the program's main future ([`Wards::keep`]); whoever starts the program owns that.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Arbiter, AsyncContext, Context};

use super::events::Sink;
use super::lanes::Lanes;
use super::post::{ExecutorPost, SchedulerPost};
use super::restarts::{MAX_RESTARTS, Restarts, Verdict};
use super::seat::Seat;
use crate::base::faults;
use crate::base::metrics::{Counter, metrics};
use crate::exec::Executor;
use crate::sched::{LaneConfig, LaneConfigError, StealWindow};

pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A long-lived actor, as its owner sees it.
pub trait Ward {
    /// Its name in `actors.md`.
    fn actor(&self) -> &'static str;
    fn lane(&self) -> Option<usize>;
    fn is_alive(&self) -> bool;
    fn start_again(&mut self);
    /// It will not be started again.
    fn give_up(&mut self) {}
}

/// An actor on the supervisor's own thread, which `make` can make again.
struct Neighbour<A: Actor, F> {
    name: &'static str,
    seat: Arc<Seat<A>>,
    make: F,
}

impl<A: Actor<Context = Context<A>>, F: FnMut() -> A> Ward for Neighbour<A, F> {
    fn actor(&self) -> &'static str {
        self.name
    }

    fn lane(&self) -> Option<usize> {
        None
    }

    fn is_alive(&self) -> bool {
        self.seat.is_alive()
    }

    fn start_again(&mut self) {
        self.seat.install((self.make)().start());
    }
}

/// Everyone who is looked after. Shared by the supervisor and its owner, so that it outlives the supervisor.
#[derive(Clone, Default)]
pub struct Wards(Rc<RefCell<Vec<Watched>>>);

struct Watched {
    ward: Box<dyn Ward>,
    restarts: Restarts,
    counter: Counter,
}

impl Watched {
    fn new(ward: impl Ward + 'static) -> Self {
        let counter = metrics().restarts(ward.actor());
        Self { ward: Box::new(ward), restarts: Restarts::new(Instant::now()), counter }
    }

    fn look(&mut self, now: Instant) {
        if self.ward.is_alive() {
            return;
        }
        let (actor, lane) = (self.ward.actor(), self.ward.lane());
        match self.restarts.dead(now) {
            Verdict::Died(backoff) => {
                tracing::error!(actor, lane, backoff_ms = backoff.as_millis() as u64, "an actor died");
            }
            Verdict::Start => {
                self.ward.start_again();
                self.counter.increment(1);
                tracing::info!(actor, lane, "the actor runs again");
            }
            Verdict::GiveUp => {
                tracing::error!(actor, lane, restarts = MAX_RESTARTS, "an actor keeps dying and is given up");
                self.ward.give_up();
            }
            Verdict::Wait | Verdict::GivenUp => {}
        }
    }
}

/// A lane to start: its executor, and the limits that follow from it.
pub struct LaneSeed {
    pub executor: Box<dyn Executor>,
    pub config: LaneConfig,
    pub steal_window: usize,
}

impl Wards {
    /// Starts every lane; they run until the system stops.
    pub fn start_lanes(&self, seeds: Vec<LaneSeed>) -> Result<Arc<Lanes>, LaneConfigError> {
        let windows: Vec<StealWindow<Sink>> = seeds.iter().map(|s| StealWindow::new(s.steal_window)).collect();
        let lanes = Lanes::new(windows.iter().map(StealWindow::stealer).collect());
        for (index, (seed, window)) in std::iter::zip(seeds, windows).enumerate() {
            let thread = Arbiter::new().handle();
            let executor = ExecutorPost::start(index, seed.executor, thread.clone(), &lanes);
            let scheduler = SchedulerPost::start(index, seed.config, (window, seed.steal_window), thread, &lanes)?;
            self.0.borrow_mut().extend([Watched::new(executor), Watched::new(scheduler)]);
        }
        Ok(lanes)
    }

    /// Starts an actor on this thread; `make` makes it, now and again after each death.
    pub fn start<A>(&self, name: &'static str, mut make: impl FnMut() -> A + 'static) -> Arc<Seat<A>>
    where
        A: Actor<Context = Context<A>>,
    {
        let seat = Arc::new(Seat::default());
        seat.install(make().start());
        self.0.borrow_mut().push(Watched::new(Neighbour { name, seat: seat.clone(), make }));
        seat
    }

    /// Starts the supervisor, and starts it again whenever it has died. Never resolves; await it in the main future.
    pub async fn keep(self, seat: Arc<Seat<SupervisorActor>>) {
        let wards = self.clone();
        let make = move || SupervisorActor { wards: wards.clone() };
        seat.install(make().start());
        let mut supervisor = Watched::new(Neighbour { name: "Supervisor", seat, make });
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            supervisor.look(Instant::now());
        }
    }
}

pub struct SupervisorActor {
    wards: Wards,
}

impl Actor for SupervisorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(LOOK_EVERY, |supervisor, _| {
            faults::hit("Supervisor.look");
            let now = Instant::now();
            supervisor.wards.0.borrow_mut().iter_mut().for_each(|watched| watched.look(now));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never lives for long.
    struct Sickly {
        starts: Rc<RefCell<u32>>,
        given_up: Rc<RefCell<u32>>,
    }

    impl Ward for Sickly {
        fn actor(&self) -> &'static str {
            "Sickly"
        }

        fn lane(&self) -> Option<usize> {
            None
        }

        fn is_alive(&self) -> bool {
            false
        }

        fn start_again(&mut self) {
            *self.starts.borrow_mut() += 1;
        }

        fn give_up(&mut self) {
            *self.given_up.borrow_mut() += 1;
        }
    }

    #[test]
    fn what_keeps_dying_is_given_up_once() {
        let (starts, given_up) = (Rc::default(), Rc::default());
        let mut watched = Watched::new(Sickly { starts: Rc::clone(&starts), given_up: Rc::clone(&given_up) });
        let mut now = Instant::now();
        for _ in 0..1000 {
            watched.look(now);
            now += LOOK_EVERY;
        }
        assert_eq!((*starts.borrow(), *given_up.borrow()), (MAX_RESTARTS, 1));
    }
}
