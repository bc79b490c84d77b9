//! The supervisor: starts the lanes, keeps them alive, gives up loudly.
//!
//! actix's own `Supervisor` does not survive a panic, and an address says only that its actor is gone. So one actor
//! owns every lane: it looks at each address a few times a second and builds a dead scheduler again, on the same
//! thread, with back-off. What the dead one held comes back by itself: sinks that drop tell their requests, the
//! executor's memory is metadata-free, and jobs in its window are submitted to the new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Arbiter, AsyncContext, Context};

use super::events::Sink;
use super::executor::ExecutorActor;
use super::lanes::Lanes;
use super::messages::Submit;
use super::scheduler::SchedulerActor;
use crate::base::metrics::metrics;
use crate::exec::Executor;
use crate::sched::{Lane, LaneConfig, LaneConfigError, StealWindow};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = if cfg!(test) { FIRST_BACKOFF } else { Duration::from_secs(5) };
/// A lane that dies this often in a row, each time within [`HEALTHY_AFTER`], is given up.
const MAX_RESTARTS: u32 = 8;
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Bounds the mailbox of a scheduler. Submissions wait for room, so this is no limit on requests (permits are).
const SCHEDULER_MAILBOX: usize = 256;

pub struct SupervisorActor {
    lanes: Arc<Lanes>,
    posts: Vec<Post>,
}

/// One lane's threads and what it takes to build its scheduler again.
struct Post {
    index: usize,
    config: LaneConfig,
    steal_window: usize,
    scheduler_arbiter: Arbiter,
    _executor_arbiter: Arbiter,
    executor: Addr<ExecutorActor>,
    started_at: Instant,
    restarts: u32,
    retry_at: Option<Instant>,
}

/// A lane to start: its executor, and the limits that follow from it.
pub struct LaneSeed {
    pub executor: Box<dyn Executor>,
    pub config: LaneConfig,
    pub steal_window: usize,
}

/// Starts every lane; they run, and are looked after, until the system stops.
pub fn start(seeds: Vec<LaneSeed>) -> Result<(Arc<Lanes>, Addr<SupervisorActor>), LaneConfigError> {
    let windows: Vec<StealWindow<Sink>> = seeds.iter().map(|s| StealWindow::new(s.steal_window)).collect();
    let lanes = Lanes::new(windows.iter().map(StealWindow::stealer).collect());
    let posts = std::iter::zip(seeds, windows)
        .enumerate()
        .map(|(index, (seed, window))| Post::start(index, seed, window, &lanes))
        .collect::<Result<_, _>>()?;
    let supervisor = SupervisorActor { lanes: lanes.clone(), posts };
    Ok((lanes, supervisor.start()))
}

impl Post {
    fn start(
        index: usize,
        seed: LaneSeed,
        window: StealWindow<Sink>,
        lanes: &Arc<Lanes>,
    ) -> Result<Self, LaneConfigError> {
        let lane = Lane::new(seed.config.clone())?;
        let (executor_arbiter, scheduler_arbiter) = (Arbiter::new(), Arbiter::new());
        let executor = ExecutorActor::new(seed.executor);
        let executor = Actor::start_in_arbiter(&executor_arbiter.handle(), |_| executor);
        let post = Self {
            index,
            config: seed.config,
            steal_window: seed.steal_window,
            scheduler_arbiter,
            _executor_arbiter: executor_arbiter,
            executor,
            started_at: Instant::now(),
            restarts: 0,
            retry_at: None,
        };
        post.install(lane, window, lanes);
        Ok(post)
    }

    fn install(&self, lane: Lane<Sink>, window: StealWindow<Sink>, lanes: &Arc<Lanes>) {
        let (index, executor, shared) = (self.index, self.executor.clone(), lanes.clone());
        let address = Actor::start_in_arbiter(&self.scheduler_arbiter.handle(), move |ctx: &mut Context<_>| {
            ctx.set_mailbox_capacity(SCHEDULER_MAILBOX);
            SchedulerActor::new(index, lane, window, shared, executor)
        });
        lanes.install(self.index, address);
    }

    /// Builds the scheduler again if it has died and its back-off is over.
    fn look(&mut self, lanes: &Arc<Lanes>) {
        if lanes.address(self.index).is_some_and(|a| a.connected()) || self.restarts > MAX_RESTARTS {
            return;
        }
        let now = Instant::now();
        let Some(retry_at) = self.retry_at else {
            self.restarts = if now - self.started_at > HEALTHY_AFTER { 1 } else { self.restarts + 1 };
            if self.restarts > MAX_RESTARTS {
                tracing::error!(lane = self.index, restarts = MAX_RESTARTS, "the lane keeps dying and is given up");
                lanes.give_up(self.index);
                metrics().lane_health(self.index).given_up.set(1.0);
                return;
            }
            let backoff = (FIRST_BACKOFF * 2u32.pow(self.restarts - 1)).min(MAX_BACKOFF);
            tracing::error!(lane = self.index, backoff_ms = backoff.as_millis() as u64, "a scheduler died");
            self.retry_at = Some(now + backoff);
            return;
        };
        if now < retry_at {
            return;
        }
        let window = StealWindow::new(self.steal_window);
        let orphans = lanes.replace_window(self.index, window.stealer());
        match Lane::new(self.config.clone()) {
            Ok(lane) => self.install(lane, window, lanes),
            Err(e) => return tracing::error!(lane = self.index, error = %e, "the lane cannot be built again"),
        }
        (self.started_at, self.retry_at) = (now, None);
        metrics().lane_health(self.index).restarts.increment(1);
        tracing::info!(lane = self.index, orphans = orphans.len(), "the scheduler runs again");
        if let Some(address) = lanes.address(self.index) {
            actix::spawn(async move {
                for job in orphans {
                    let _ = address.send(Submit(job)).await;
                }
            });
        }
    }
}

impl Actor for SupervisorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(LOOK_EVERY, |supervisor, _| {
            for post in &mut supervisor.posts {
                post.look(&supervisor.lanes);
            }
        });
    }
}
