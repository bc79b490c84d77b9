//! The scheduler actor: one lane, one thread. A shell around [`Lane`] that gives it time, a window and an executor.
//!
//! Owns the lane and the step in flight. Never computes, never sees text.
//!
//! Handlers only enqueue; [`Tick`] plans, and runs once the mailbox is drained, so a step is formed from everything
//! that has arrived: the batch boundary. Permits bound what can be in the mailbox, so Tick cannot starve.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::fut::ActorFutureExt;
use actix::{Actor, Addr, AsyncContext, Context, Handler, MessageResult, WrapFuture};

use super::events::Sink;
use super::executor::ExecutorActor;
use super::lanes::Lanes;
use super::messages::{Inspect, LaneReport, RunStep, Submit, Tick, Wake};
use crate::base::clock;
use crate::base::metrics::{LaneMetrics, metrics};
use crate::sched::job::Delivery;
use crate::sched::plan::{StepOutput, StepPlan};
use crate::sched::{Lane, LaneStats, StealWindow, VictimOrder, search};

/// How often an idle lane looks around by itself, in case the one message that would have woken it met a dead lane.
const HEARTBEAT: Duration = Duration::from_secs(1);

pub struct SchedulerActor {
    index: usize,
    lane: Lane<Sink>,
    window: StealWindow<Sink>,
    lanes: Arc<Lanes>,
    victims: VictimOrder,
    executor: Addr<ExecutorActor>,
    step_started: Option<Instant>,
    /// The end of the last step, or the last look that found nothing to do.
    progressed_at: Instant,
    ticking: bool,
    metrics: LaneMetrics,
    counted: LaneStats,
}

impl SchedulerActor {
    /// `window` is lane `index`'s; its stealer must already be among the lanes' windows.
    pub fn new(
        index: usize,
        lane: Lane<Sink>,
        window: StealWindow<Sink>,
        lanes: Arc<Lanes>,
        executor: Addr<ExecutorActor>,
    ) -> Self {
        Self {
            index,
            lane,
            window,
            lanes,
            victims: VictimOrder::new(index as u64),
            executor,
            step_started: None,
            progressed_at: Instant::now(),
            ticking: false,
            metrics: metrics().lane(index),
            counted: LaneStats::default(),
        }
    }

    fn tick_soon(&mut self, ctx: &mut Context<Self>) {
        if !self.ticking {
            self.ticking = true;
            ctx.notify(Tick);
        }
    }

    fn advance(&mut self, ctx: &mut Context<Self>) {
        if self.step_started.is_some() {
            // Jobs that arrived during the step may be taken by an idle lane meanwhile.
            self.lane.offer(&mut self.window);
            self.share();
            return;
        }
        let planned = self.lane.plan(clock::now_us(), &mut self.window);
        deliver(planned.deliveries);
        match planned.plan {
            Some(plan) => self.run(plan, ctx),
            None => self.steal(ctx),
        }
        self.share();
        self.publish();
    }

    fn run(&mut self, plan: StepPlan, ctx: &mut Context<Self>) {
        self.lanes.set_busy(self.index);
        self.step_started = Some(Instant::now());
        self.metrics.step_tokens.record(plan.num_tokens() as f64);
        self.metrics.step_sequences.record(plan.rows.len() as f64);
        // The answer comes through the reply channel, which no full mailbox can refuse.
        let step = self.executor.send(RunStep(plan)).into_actor(self);
        ctx.spawn(step.map(|answer, lane, ctx| {
            let outcome = match answer {
                Ok(outcome) => outcome.map_err(|e| e.to_string()),
                Err(e) => Err(format!("the executor is gone: {e}")),
            };
            if !lane.executor.connected() {
                lane.lanes.set_lost(lane.index);
            }
            lane.step_done(outcome, ctx);
        }));
    }

    fn step_done(&mut self, outcome: Result<StepOutput, String>, ctx: &mut Context<Self>) {
        self.progressed_at = Instant::now();
        if let Some(started) = self.step_started.take() {
            self.metrics.step_s.record(started.elapsed().as_secs_f64());
        }
        deliver(match outcome {
            Ok(output) => self.lane.complete(output),
            Err(error) => {
                tracing::error!(lane = self.index, error, "a step failed");
                self.lane.fail(&error)
            }
        });
        self.tick_soon(ctx);
    }

    /// Nothing to run here: take what another lane cannot get to. See [`Lanes`] for why no job is overlooked.
    fn steal(&mut self, ctx: &mut Context<Self>) {
        if self.lane.has_work() {
            return;
        }
        self.progressed_at = Instant::now();
        if self.lanes.len() == 1 || !self.executor.connected() {
            return;
        }
        self.lanes.set_idle(self.index);
        let stolen = search(self.index, &self.lanes.windows(), self.lanes.search_gate(), &mut self.victims);
        if stolen.is_empty() {
            return;
        }
        self.lanes.set_busy(self.index);
        self.metrics.steals.increment(stolen.len() as u64);
        stolen.into_iter().for_each(|job| self.lane.submit(job));
        self.tick_soon(ctx);
    }

    /// Wakes a sleeping lane if there is something for it to take.
    fn share(&self) {
        use crate::sched::Window;
        if self.lanes.len() > 1 && !self.window.is_empty() {
            self.lanes.wake_idle(self.index);
        }
    }

    fn publish(&mut self) {
        let stats = self.lane.stats();
        let m = &self.metrics;
        m.waiting.set(stats.waiting_jobs as f64);
        m.running.set(stats.running as f64);
        m.blocks_free.set(stats.blocks.free as f64);
        m.blocks_cached.set(stats.blocks.cached as f64);
        m.blocks_held.set(stats.blocks.held as f64);
        m.steps.increment(stats.steps - self.counted.steps);
        m.failed_steps.increment(stats.failed_steps - self.counted.failed_steps);
        m.preemptions.increment(stats.preemptions - self.counted.preemptions);
        m.prefix_queries.increment(stats.prefix_queries - self.counted.prefix_queries);
        m.prefix_hits.increment(stats.prefix_hits - self.counted.prefix_hits);
        let hops = &metrics().hops;
        hops.prefill.increment(stats.prefill_tokens - self.counted.prefill_tokens);
        hops.decode.increment(stats.output_tokens - self.counted.output_tokens);
        self.counted = stats;
        self.lanes.publish(self.index, stats);
    }
}

fn deliver(deliveries: Vec<Delivery<Sink>>) {
    for Delivery { request, sink, events } in deliveries {
        sink.push(request, events);
    }
}

impl Actor for SchedulerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(HEARTBEAT, |lane, ctx| lane.tick_soon(ctx));
        self.publish();
        // A lane that nobody has sent anything yet is one of the idle: it looks around, and can be woken, from now on.
        self.tick_soon(ctx);
    }
}

impl Handler<Submit> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, Submit(job): Submit, ctx: &mut Self::Context) {
        self.lane.submit(job);
        self.tick_soon(ctx);
    }
}

impl Handler<Wake> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        self.tick_soon(ctx);
    }
}

impl Handler<Tick> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        self.ticking = false;
        self.advance(ctx);
    }
}

impl Handler<Inspect> for SchedulerActor {
    type Result = MessageResult<Inspect>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        MessageResult(LaneReport {
            stats: self.lane.stats(),
            has_executor: self.executor.connected(),
            step_age: self.step_started.map(|t| t.elapsed()),
            idle_age: (self.lane.has_work() && self.step_started.is_none()).then(|| self.progressed_at.elapsed()),
            check: self.lane.check(),
        })
    }
}

/// A drill: the handler panics.
#[cfg(test)]
pub struct Die;

#[cfg(test)]
impl actix::Message for Die {
    type Result = ();
}

#[cfg(test)]
impl Handler<Die> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: Die, _: &mut Self::Context) {
        panic!("drill: the scheduler of lane {} dies", self.index);
    }
}
