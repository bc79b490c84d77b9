//! The scheduler actor: one lane. A shell around [`Lane`] that gives it time, jobs, a window and an executor.
//!
//! Owns the lane and the step in flight. Never computes, never sees text.
//!
//! Shares its thread with the lane's executor: from a plan to its step and back there is no other thread to wake, which
//! would cost more than a short step does. So it hears nothing during a step. What must not wait for one goes past it:
//! jobs through an inbox that other lanes can take from ([`Lanes::submit`]), the step's age through [`Lanes::step_age`].
//!
//! Handlers only ask for a [`Tick`], which plans, and runs once the mailbox is drained, so a step is formed from everything
//! that has arrived: the batch boundary. Permits bound what can be in the mailbox, so Tick cannot starve.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::fut::ActorFutureExt;
use actix::{Actor, AsyncContext, Context, Handler, MessageResult, WrapFuture};

use super::events::Sink;
use super::lanes::Lanes;
use super::messages::{Inspect, LaneReport, RunStep, Tick, Wake};
use crate::base::metrics::{LaneMetrics, metrics};
use crate::base::{clock, faults};
use crate::exec::ExecError;
use crate::sched::job::{Delivery, Job};
use crate::sched::plan::{StepOutput, StepPlan};
use crate::sched::{Fault, Lane, LaneStats, StealWindow, Verdict, VictimOrder};

/// How often an idle lane looks around by itself, in case the one message that would have woken it met a dead lane.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Longest wait for a dead executor: longer than its owner's longest back-off.
const EXECUTOR_RETURN: Duration = Duration::from_secs(10);

/// Why what comes to a lane that has retired is refused, where no other lane is left.
const DEVICE_LOST: &str = "the device is lost";

pub struct SchedulerActor {
    index: usize,
    lane: Lane<Sink>,
    window: StealWindow<Sink>,
    lanes: Arc<Lanes>,
    victims: VictimOrder,
    step_started: Option<Instant>,
    /// The end of the last step, or the last look that found nothing to do.
    progressed_at: Instant,
    /// The step that was planned last.
    plan: Option<Arc<StepPlan>>,
    ticking: bool,
    metrics: LaneMetrics,
    counted: LaneStats,
    /// Steps when the books were last checked.
    checked_steps: u64,
}

impl SchedulerActor {
    /// `window` is lane `index`'s; its stealer must already be among the lanes' windows.
    pub fn new(index: usize, lane: Lane<Sink>, window: StealWindow<Sink>, lanes: Arc<Lanes>) -> Self {
        // Its predecessor may have died with a step under way, or at rest.
        lanes.end_step(index);
        lanes.set_resting(index, false);
        Self {
            index,
            lane,
            window,
            lanes,
            victims: VictimOrder::new(index as u64),
            step_started: None,
            progressed_at: Instant::now(),
            plan: None,
            ticking: false,
            metrics: metrics().lane(index),
            counted: LaneStats::default(),
            checked_steps: 0,
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
            return;
        }
        self.lanes.take_inbox(self.index).into_iter().for_each(|job| self.lane.submit(job));
        if self.lanes.is_lost(self.index) {
            self.retire(DEVICE_LOST);
            return self.publish();
        }
        let num_stolen = self.steal();
        let planned = self.lane.plan(clock::now_us(), &mut self.window);
        deliver(planned.deliveries);
        match planned.plan {
            Some(plan) => self.run(plan, ctx),
            // What was stolen has ended without a step: look again before sleeping.
            None if num_stolen > 0 => self.tick_soon(ctx),
            // A lane that rests has jobs for those who do not.
            None => self.lanes.share(),
        }
        self.publish();
    }

    fn run(&mut self, plan: StepPlan, ctx: &mut Context<Self>) {
        self.lanes.begin_step(self.index);
        self.step_started = Some(Instant::now());
        self.metrics.step_tokens.record(plan.num_tokens() as f64);
        self.metrics.step_sequences.record(plan.rows.len() as f64);
        // The answer comes through the reply channel, which no full mailbox can refuse.
        let plan = Arc::new(plan);
        let step = run_step(self.lanes.clone(), self.index, plan.clone()).into_actor(self);
        self.plan = Some(plan);
        ctx.spawn(step.map(|outcome, lane, ctx| lane.step_done(outcome, ctx)));
    }

    fn step_done(&mut self, outcome: Result<StepOutput, ExecError>, ctx: &mut Context<Self>) {
        self.lanes.end_step(self.index);
        self.progressed_at = Instant::now();
        if let Some(started) = self.step_started.take() {
            self.metrics.step_s.record((self.progressed_at - started).as_secs_f64());
        }
        // Before the next plan: that may preempt a sequence, which another lane may then steal and bring to its end.
        match outcome {
            Ok(output) => {
                self.metrics.replayed_steps.increment(output.replayed.into());
                deliver(self.lane.complete(output))
            }
            Err(error) => self.step_failed(&error, ctx),
        }
        // The executor has let go of it before it answered.
        if let Some(plan) = self.plan.take().and_then(Arc::into_inner) {
            self.lane.reuse(plan);
        }
        self.tick_soon(ctx);
    }

    fn step_failed(&mut self, error: &ExecError, ctx: &mut Context<Self>) {
        let (lane, now, text) = (self.index, clock::now_us(), error.to_string());
        tracing::error!(lane, error = text, "a step failed");
        match self.lane.judge(fault(error), now) {
            Verdict::GoOn => deliver(self.lane.fail(&text)),
            Verdict::Rest { until } => {
                let rest = Duration::from_micros(until - now);
                tracing::warn!(
                    lane,
                    rest_ms = rest.as_millis() as u64,
                    "the device is left alone before the next step"
                );
                self.metrics.rests.increment(1);
                self.lanes.set_resting(lane, true);
                let deliveries = self.lane.fail_on_device(&text, &mut elsewhere(&self.lanes, lane));
                deliver(deliveries);
                ctx.run_later(rest, |lane, ctx| {
                    lane.lanes.set_resting(lane.index, false);
                    lane.tick_soon(ctx);
                });
            }
            Verdict::Retire => {
                tracing::error!(lane, error = text, "the device is lost: its lane runs no more steps");
                metrics().lane_health(lane).lost.set(1.0);
                self.lanes.set_lost(lane);
                self.retire(&text);
            }
        }
    }

    /// What is here goes to the lanes that are left.
    fn retire(&mut self, why: &str) {
        let mut elsewhere = elsewhere(&self.lanes, self.index);
        let deliveries = self.lane.retire(why, clock::now_us(), &mut self.window, &mut elsewhere);
        deliver(deliveries);
    }

    /// Room here and nobody waiting: takes what another lane cannot get to, and says how much.
    fn steal(&mut self) -> usize {
        if !self.lane.has_work() {
            self.progressed_at = Instant::now();
        }
        if self.lanes.len() == 1 {
            return 0;
        }
        let room = self.lane.room(clock::now_us(), &mut self.window);
        if room == 0 {
            return 0;
        }
        let stolen = self.lanes.steal(self.index, room, !self.lane.has_work(), &mut self.victims);
        let num_stolen = stolen.len();
        self.metrics.steals.increment(num_stolen as u64);
        stolen.into_iter().for_each(|job| self.lane.submit_stolen(job));
        num_stolen
    }

    /// Once after each spell of work: it looks at every block, so not while there is anything better to do.
    fn check_books(&mut self) {
        if self.lane.has_work() || self.checked_steps == self.counted.steps {
            return;
        }
        self.checked_steps = self.counted.steps;
        if let Err(error) = self.lane.check() {
            tracing::error!(lane = self.index, error, "the lane's block counts do not add up");
            metrics().book_errors.increment(1);
        }
    }

    fn publish(&mut self) {
        let stats = self.lane.stats();
        let m = &self.metrics;
        m.running.set(stats.running as f64);
        m.blocks_free.set(stats.blocks.free as f64);
        m.blocks_cached.set(stats.blocks.cached as f64);
        m.blocks_held.set(stats.blocks.held as f64);
        m.steps.increment(stats.steps - self.counted.steps);
        m.failed_steps.increment(stats.failed_steps - self.counted.failed_steps);
        m.preemptions.increment(stats.preemptions - self.counted.preemptions);
        m.drafts.increment(stats.drafts - self.counted.drafts);
        m.draft_tokens.increment(stats.draft_tokens - self.counted.draft_tokens);
        m.accepted_draft_tokens.increment(stats.accepted_drafts - self.counted.accepted_drafts);
        m.moved_jobs.increment(stats.moved_jobs - self.counted.moved_jobs);
        m.prefix_queries.increment(stats.prefix_queries - self.counted.prefix_queries);
        m.prefix_hits.increment(stats.prefix_hits - self.counted.prefix_hits);
        let hops = &metrics().hops;
        hops.prefill.increment(stats.prefill_tokens - self.counted.prefill_tokens);
        hops.decode.increment(stats.output_tokens - self.counted.output_tokens);
        self.counted = stats;
        self.lanes.publish(self.index, stats);
    }
}

/// Runs a step to its end, good or bad. An executor that is dead is waited for, within bounds, before the step is told
/// to have failed: its sequences run again then, and should find one that lives.
///
/// The step is under way when this returns, not only when the future is polled.
fn run_step(
    lanes: Arc<Lanes>,
    lane: usize,
    plan: Arc<StepPlan>,
) -> impl Future<Output = Result<StepOutput, ExecError>> + 'static {
    let executor = lanes.executor(lane).address();
    let sent = executor.as_ref().map(|executor| executor.send(RunStep(plan)));
    async move {
        let (Some(executor), Some(sent)) = (executor, sent) else {
            return Err(ExecError::Failed("the executor was never started".to_owned()));
        };
        match sent.await {
            Ok(outcome) => outcome,
            Err(e) => {
                lanes.executor(lane).successor(Some(&executor), EXECUTOR_RETURN).await;
                Err(ExecError::Failed(format!("the executor died: {e}")))
            }
        }
    }
}

fn fault(error: &ExecError) -> Fault {
    match error {
        ExecError::Failed(_) | ExecError::TimedOut(_) => Fault::Step,
        ExecError::Device(_) => Fault::Device,
        ExecError::Lost(_) => Fault::Lost,
    }
}

/// Gives a job of lane `from` to the lane that it would go to now, if that is another.
fn elsewhere(lanes: &Lanes, from: usize) -> impl FnMut(Job<Sink>) -> Option<Job<Sink>> {
    move |job| match lanes.place(&job).filter(|lane| *lane != from) {
        Some(lane) => {
            lanes.submit(lane, job);
            None
        }
        None => Some(job),
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
        ctx.run_interval(HEARTBEAT, |lane, ctx| {
            lane.check_books();
            lane.tick_soon(ctx);
        });
        self.publish();
        // A lane that nobody has sent anything yet is one of the idle: it looks around, and can be woken, from now on.
        self.tick_soon(ctx);
    }
}

impl Handler<Wake> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        faults::hit("Scheduler.Wake");
        self.tick_soon(ctx);
    }
}

impl Handler<Tick> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        faults::hit("Scheduler.Tick");
        self.ticking = false;
        self.advance(ctx);
    }
}

impl Handler<Inspect> for SchedulerActor {
    type Result = MessageResult<Inspect>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        faults::hit("Scheduler.Inspect");
        MessageResult(LaneReport {
            step_age: self.step_started.map(|t| t.elapsed()),
            idle_age: (self.lane.has_work() && self.step_started.is_none()).then(|| self.progressed_at.elapsed()),
        })
    }
}
