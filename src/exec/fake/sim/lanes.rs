//! Lanes over fake executors in virtual time, run as the scheduler actors run them: each acts when it is sent something
//! or when its step is done, and at no other time. There is no heartbeat here, so a lost wake-up shows.

use std::sync::Arc;

use super::super::{FakeExecutor, FakeSpec};
use super::request::VOCAB;
use crate::sched::job::{Delivery, Job, Micros};
use crate::sched::plan::{StepOutput, StepPlan};
use crate::sched::{
    Elsewhere, Fault, IdleLanes, Inbox, Lane, LaneConfig, LaneStats, StealWindow, Stock, Take, Verdict, VictimOrder,
    Window, search,
};

/// Where a request's events go: its id. Shared, so that it shows when nobody is left to send any.
pub type Sink = Arc<u64>;

pub struct Site {
    pub lane: Lane<Sink>,
    window: StealWindow<Sink>,
    inbox: Arc<Inbox<Sink>>,
    pub executor: FakeExecutor,
    /// The step under way, when it was planned and when it is done.
    pub step: Option<Step>,
    order: VictimOrder,
    /// Something was sent that it has not looked at.
    has_mail: bool,
    /// Its device failed: it looks around again then.
    rests_until: Option<Micros>,
    pub is_lost: bool,
}

pub struct Step {
    pub plan: StepPlan,
    pub planned_at: Micros,
    pub done_at: Micros,
}

pub struct Lanes {
    pub sites: Vec<Site>,
    stock: Vec<Stock<Sink>>,
    idle: IdleLanes,
    pub num_stolen: u64,
    pub num_steps: usize,
}

/// What a lane did when it acted.
#[derive(Default)]
pub struct Acted {
    pub deliveries: Vec<Delivery<Sink>>,
    pub stolen: Vec<Sink>,
}

impl Lanes {
    pub fn new(num_lanes: usize, config: &LaneConfig, spec: &FakeSpec, seed: u64) -> Self {
        let sites: Vec<_> = (0..num_lanes).map(|i| Site::new(config, spec, seed ^ i as u64)).collect();
        Self {
            stock: sites.iter().map(Site::stock).collect(),
            idle: IdleLanes::default(),
            sites,
            num_stolen: 0,
            num_steps: 0,
        }
    }

    pub fn submit(&mut self, index: usize, job: Job<Sink>) {
        let is_first = self.sites[index].inbox.push(job);
        if self.idle.is_at_work(index) {
            self.share();
        } else if is_first {
            self.wake(index);
        }
    }

    fn share(&mut self) {
        if let Some(other) = self.idle.next_to_wake(&self.stock) {
            self.wake(other);
        }
    }

    pub fn wake(&mut self, index: usize) {
        self.sites[index].has_mail = true;
    }

    /// Whose turn it is, from lane `first` on.
    pub fn next_to_act(&self, first: usize) -> Option<usize> {
        (0..self.sites.len()).map(|i| (first + i) % self.sites.len()).find(|&i| self.sites[i].has_mail)
    }

    /// What `SchedulerActor` does in a tick.
    pub fn act(&mut self, index: usize, now: Micros) -> Result<Acted, String> {
        let mut acted = Acted::default();
        let site = &mut self.sites[index];
        site.has_mail = false;
        if site.step.is_some() {
            return Ok(acted);
        }
        site.inbox.take_all().into_iter().for_each(|job| site.lane.submit(job));
        if site.is_lost {
            acted.deliveries = self.retire(index, now);
            return Ok(acted);
        }
        acted.stolen = self.steal(index, now)?;
        let site = &mut self.sites[index];
        let planned = site.lane.plan(now, &mut site.window);
        acted.deliveries = planned.deliveries;
        match planned.plan {
            Some(plan) => {
                self.num_steps += 1;
                let done_at = now + 1 + site.executor.spec().cost_us(&plan);
                site.step = Some(Step { plan, planned_at: now, done_at });
                self.idle.begin_step(index);
                self.share();
            }
            None => {
                site.has_mail |= !acted.stolen.is_empty();
                self.share();
            }
        }
        self.sites[index].lane.check()?;
        Ok(acted)
    }

    fn steal(&mut self, index: usize, now: Micros) -> Result<Vec<Sink>, String> {
        let site = &mut self.sites[index];
        let room = site.lane.room(now, &mut site.window);
        if self.stock.len() == 1 || room == 0 {
            return Ok(Vec::new());
        }
        if site.lane.stats().waiting_jobs > 0 {
            return Err("a lane steals while jobs of its own wait".into());
        }
        let stolen = if site.lane.has_work() {
            search(index, room, &self.stock, &mut site.order)
        } else {
            self.idle.go_idle(index, room, &self.stock, &mut site.order)
        };
        self.num_stolen += stolen.len() as u64;
        let sinks = stolen.iter().map(|job| job.sink.clone()).collect();
        stolen.into_iter().for_each(|job| site.lane.submit_stolen(job));
        Ok(sinks)
    }

    /// The step whose end has come.
    pub fn take_step(&mut self, index: usize, now: Micros) -> Option<Step> {
        let step = self.sites[index].step.take_if(|step| step.done_at <= now)?;
        self.idle.end_step(index);
        self.wake(index);
        Some(step)
    }

    /// The step failed by the device's fault: what `SchedulerActor` does about it.
    pub fn fail(&mut self, index: usize, fault: Fault, now: Micros) -> Vec<Delivery<Sink>> {
        let site = &mut self.sites[index];
        match site.lane.judge(fault, now) {
            Verdict::GoOn => site.lane.fail("failed"),
            Verdict::Rest { until } => {
                site.rests_until = Some(until);
                self.move_out(index, |site, elsewhere| site.lane.fail_on_device("failed", elsewhere))
            }
            Verdict::Retire => {
                site.is_lost = true;
                self.retire(index, now)
            }
        }
    }

    fn retire(&mut self, index: usize, now: Micros) -> Vec<Delivery<Sink>> {
        let deliveries =
            self.move_out(index, |site, elsewhere| site.lane.retire("lost", now, &mut site.window, elsewhere));
        let LaneStats { running, waiting_jobs, blocks, .. } = self.sites[index].lane.stats();
        assert_eq!((running, waiting_jobs, blocks.held, blocks.cached), (0, 0, 0, 0), "a lost lane keeps nothing");
        deliveries
    }

    /// Jobs that leave go to the lane where least waits, of those that are left.
    fn move_out(
        &mut self,
        index: usize,
        leave: impl FnOnce(&mut Site, Elsewhere<'_, Sink>) -> Vec<Delivery<Sink>>,
    ) -> Vec<Delivery<Sink>> {
        let others = self.alive().filter(|other| *other != index);
        let other = others.min_by_key(|other| self.sites[*other].lane.stats().waiting_tokens);
        let mut leaving = Vec::new();
        let deliveries = leave(&mut self.sites[index], &mut |job| match other {
            Some(_) => {
                leaving.push(job);
                None
            }
            None => Some(job),
        });
        for job in leaving {
            self.submit(other.expect("it has taken jobs"), job);
        }
        deliveries
    }

    /// Lanes whose devices are not lost.
    pub fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.sites.len()).filter(|index| !self.sites[*index].is_lost)
    }

    /// Wakes the lane whose rest is over.
    pub fn end_rest(&mut self, index: usize, now: Micros) {
        if self.sites[index].rests_until.take_if(|until| *until <= now).is_some() {
            self.wake(index);
        }
    }

    pub fn compute(&mut self, index: usize, plan: &StepPlan) -> Result<StepOutput, String> {
        self.sites[index].executor.compute(plan).map_err(|error| error.to_string())
    }

    /// What the supervisor does with a scheduler that died.
    pub fn replace(&mut self, index: usize, seed: u64) {
        let old = &mut self.sites[index];
        let (config, spec) = (old.lane.config().clone(), old.executor.spec().clone());
        let orphans: Vec<_> = std::iter::from_fn(|| old.window.pop()).collect();
        // The inbox outlives the scheduler.
        *old = Site { inbox: old.inbox.clone(), ..Site::new(&config, &spec, seed) };
        self.stock[index] = old.stock();
        self.wake(index);
        orphans.into_iter().for_each(|job| self.submit(index, job));
    }

    /// Nobody has anything to look at: no lane may sleep while a job waits in a window.
    pub fn check_rest(&self) -> Result<(), String> {
        let waiting: usize = self.stock.iter().map(Take::len).sum();
        let sleeper = (0..self.sites.len()).find(|&i| self.idle.is_idle(i));
        match sleeper {
            Some(lane) if waiting > 0 => {
                Err(format!("lane {lane} sleeps while {waiting} jobs wait in windows and inboxes"))
            }
            _ => Ok(()),
        }
    }

    pub fn next_step_end(&self) -> Option<Micros> {
        self.sites.iter().filter_map(|site| site.step.as_ref()).map(|step| step.done_at).min()
    }

    pub fn next_rest_end(&self) -> Option<Micros> {
        self.sites.iter().filter_map(|site| site.rests_until).min()
    }

    pub fn has_work(&self) -> bool {
        self.sites.iter().any(|site| site.lane.has_work() || !site.inbox.is_empty())
    }
}

impl Site {
    fn new(config: &LaneConfig, spec: &FakeSpec, seed: u64) -> Self {
        Self {
            lane: Lane::new(config.clone()).expect("a valid configuration"),
            window: StealWindow::new(16),
            inbox: Arc::default(),
            executor: executor(spec, config.num_blocks),
            step: None,
            order: VictimOrder::new(seed),
            // As an actor that has just started.
            has_mail: true,
            rests_until: None,
            is_lost: false,
        }
    }

    fn stock(&self) -> Stock<Sink> {
        Stock { window: self.window.stealer(), inbox: self.inbox.clone() }
    }

    /// The device has lost its memory.
    pub fn replace_executor(&mut self) {
        self.executor = executor(&self.executor.spec().clone(), self.executor.info.num_blocks);
    }
}

fn executor(spec: &FakeSpec, num_blocks: usize) -> FakeExecutor {
    FakeExecutor::new(spec.clone(), num_blocks).reading_everything()
}

/// A time model of a device: a step costs something, each sequence in it a little.
pub fn device() -> FakeSpec {
    FakeSpec {
        prefill_us_per_token: 5.0,
        decode_us_per_step: 100.0,
        decode_us_per_seq: 10.0,
        vocab: VOCAB,
        ..FakeSpec::default()
    }
}
