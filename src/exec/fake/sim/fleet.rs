//! A fleet's random life: what arrives, what leaves, what breaks; and what must hold at every moment of it.

use super::super::FakeSpec;
use super::Rng;
use super::lanes::{Lanes, Sink, Step, device};
use super::ledger::{Account, Ledger};
use super::request::{self, Limits, POISON};
use crate::sched::job::{Delivery, Job, Micros, RequestId};
use crate::sched::plan::StepOutput;
use crate::sched::{Fault, LaneConfig, LaneLoad, LaneStats, Speculation, place};

/// What goes wrong in a run.
#[derive(Clone, Copy, PartialEq)]
enum Faults {
    None,
    /// Steps fail that have a poisoned request in them.
    Poison,
    /// Steps fail at random.
    Steps,
    /// Schedulers die.
    Deaths,
    /// Devices fail, and are lost.
    Devices,
}

pub struct Fleet {
    rng: Rng,
    lanes: Lanes,
    /// By lane: output of a step that was given up.
    stale: Vec<Option<StepOutput>>,
    ledger: Ledger,
    faults: Faults,
    limits: Limits,
    now: Micros,
    num_to_come: usize,
    next_arrival: Micros,
    text_ends: Vec<TextEnd>,
    num_deaths: u64,
    /// Rounds since a step was under way or a request was to come.
    num_idle_rounds: usize,
}

/// A choice that the text side has ended, which the lane that produced it is about to learn.
struct TextEnd {
    due: Micros,
    request: RequestId,
    choice: u32,
    lane: usize,
}

/// What happened in all runs: the simulation must not become blind to something unnoticed.
#[derive(Default)]
pub struct Totals {
    num_stolen: u64,
    preemptions: u64,
    prefix_hits: u64,
    failed_steps: u64,
    num_deaths: u64,
    num_lost: u64,
    moved_jobs: u64,
    draft_tokens: u64,
    accepted_drafts: u64,
    num_finished: [u64; 7],
}

/// None in half of the fleets; in some wherever possible.
fn speculation(rng: &mut Rng) -> Option<Speculation> {
    let min_ngram = rng.range(1, 3);
    let speculation = Speculation {
        max_drafts: rng.range(1, 40),
        min_ngram,
        max_ngram: min_ngram + rng.range(0, 3),
        always: rng.one_in(2),
    };
    rng.one_in(2).then_some(speculation)
}

impl Totals {
    pub fn add(&mut self, other: &Totals) {
        self.num_stolen += other.num_stolen;
        self.preemptions += other.preemptions;
        self.prefix_hits += other.prefix_hits;
        self.failed_steps += other.failed_steps;
        self.num_deaths += other.num_deaths;
        self.num_lost += other.num_lost;
        self.moved_jobs += other.moved_jobs;
        self.draft_tokens += other.draft_tokens;
        self.accepted_drafts += other.accepted_drafts;
        self.num_finished.iter_mut().zip(other.num_finished).for_each(|(sum, n)| *sum += n);
    }

    pub fn assert_everything_happened(&self) {
        let Self { num_stolen, preemptions, prefix_hits, failed_steps, num_deaths, num_finished, .. } = self;
        let Self { num_lost, moved_jobs, .. } = self;
        let (accepted, rejected) = (&self.accepted_drafts, &(self.draft_tokens - self.accepted_drafts));
        println!(
            "stolen {num_stolen}, preempted {preemptions}, prefix hits {prefix_hits}, failed steps {failed_steps}, \
             deaths {num_deaths}, lanes lost {num_lost}, jobs moved {moved_jobs}, drafts accepted {accepted} and rejected {rejected}, finished (stop, length, cancel, deadline, failed, text, dropped) {num_finished:?}"
        );
        let counts =
            [num_stolen, preemptions, prefix_hits, failed_steps, num_deaths, num_lost, moved_jobs, accepted, rejected];
        assert!(counts.into_iter().chain(num_finished).all(|&count| count > 20));
    }
}

impl Fleet {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let num_lanes = rng.range(1, 4);
        let max_running = rng.range(1, 10);
        let config = LaneConfig {
            num_blocks: rng.range(4, 40),
            max_batch_tokens: max_running + rng.range(0, 60),
            max_chunk_tokens: rng.range(1, 64),
            max_slowdown: rng.range(1, 5) as f64 + 0.5,
            max_running,
            max_model_len: rng.range(40, 200),
            prefix_cache: !rng.one_in(4),
            speculation: speculation(&mut rng),
        };
        let device = FakeSpec { period: [0, 1, 3, 11][rng.range(0, 3)], ..device() };
        let faults = [Faults::None, Faults::None, Faults::Poison, Faults::Steps, Faults::Deaths, Faults::Devices]
            [rng.range(0, 5)];
        let max_sequence_tokens = config.max_sequence_tokens();
        let limits = Limits {
            max_prompt: max_sequence_tokens - 1,
            max_sequence_tokens,
            max_choices: max_running.min(5),
            poison: faults == Faults::Poison,
            steps_per_fault: [4, 20, 60][rng.range(0, 2)],
            device: device.clone(),
        };
        Self {
            lanes: Lanes::new(num_lanes, &config, &device, seed),
            stale: vec![None; num_lanes],
            ledger: Ledger { may_fail: faults == Faults::Steps, ..Ledger::default() },
            num_to_come: rng.range(5, 60),
            faults,
            limits,
            now: 0,
            next_arrival: 0,
            text_ends: Vec::new(),
            num_deaths: 0,
            num_idle_rounds: 0,
            rng,
        }
    }

    pub fn run(mut self) -> Result<Totals, String> {
        while self.num_to_come > 0 || self.lanes.has_work() {
            self.arrive();
            self.leave();
            self.end_texts();
            self.finish_steps()?;
            self.act()?;
            self.lanes.check_rest()?;
            self.ledger.close_dropped(self.faults == Faults::Deaths)?;
            self.advance()?;
        }
        self.settle()
    }

    fn arrive(&mut self) {
        while self.num_to_come > 0 && self.next_arrival <= self.now {
            self.num_to_come -= 1;
            // Ids count down: age is by arrival first.
            let request = request::random(&mut self.rng, self.num_to_come as u64, self.now, &self.limits);
            let job = request.job.clone();
            let Some(best) = self.best_lane(&job) else {
                self.num_to_come = 0;
                return;
            };
            let index = if self.rng.one_in(2) && !self.lanes.sites[0].is_lost { 0 } else { best };
            self.ledger.open(request, index, self.now);
            self.lanes.submit(index, job);
            let gap = if self.rng.one_in(8) { self.rng.range(0, 20_000) } else { self.rng.range(0, 200) };
            self.next_arrival += gap as u64;
        }
    }

    /// None when all are lost.
    fn best_lane(&self, job: &Job<Sink>) -> Option<usize> {
        let alive: Vec<_> = self.lanes.alive().collect();
        let loads: Vec<_> = alive
            .iter()
            .map(|index| {
                let site = &self.lanes.sites[*index];
                let LaneStats { waiting_tokens, running, .. } = site.lane.stats();
                let cached_prefix_tokens = site.lane.cached_prefix_tokens(&job.prompt, job.salt);
                LaneLoad { waiting_tokens, running, cached_prefix_tokens }
            })
            .collect();
        place(&loads, 64).map(|place| alive[place])
    }

    fn leave(&mut self) {
        for account in self.ledger.accounts.values().filter(|account| !account.is_ended()) {
            if account.request.cancels_at.is_some_and(|at| at <= self.now) {
                account.request.job.cancel.set();
            }
        }
    }

    /// The text side's word arrives.
    fn end_texts(&mut self) {
        for end in self.text_ends.extract_if(.., |end| end.due <= self.now) {
            self.ledger.accounts[&end.request].request.job.cancel.finish_choice(end.choice);
            // The message may come or not, before or after a theft; the mark is enough.
            if self.rng.one_in(2) {
                self.lanes.sites[end.lane].lane.finish(end.request, end.choice);
                self.lanes.wake(end.lane);
            }
        }
    }

    fn act(&mut self) -> Result<(), String> {
        // Each lane may act again for mail that it got meanwhile; that cannot go on without end.
        for _ in 0..1000 {
            let first = self.rng.range(0, self.lanes.sites.len() - 1);
            let Some(index) = self.lanes.next_to_act(first) else { return Ok(()) };
            let acted = self.lanes.act(index, self.now)?;
            for sink in acted.stolen {
                self.ledger.moved(RequestId(*sink), index, self.now);
            }
            self.deliver(index, acted.deliveries)?;
        }
        Err("lanes keep waking each other".into())
    }

    fn finish_steps(&mut self) -> Result<(), String> {
        for index in 0..self.lanes.sites.len() {
            self.lanes.end_rest(index, self.now);
            let Some(step) = self.lanes.take_step(index, self.now) else { continue };
            if self.faults == Faults::Deaths && self.rng.one_in(40) {
                self.num_deaths += 1;
                self.lanes.replace(index, self.rng.next());
                continue;
            }
            self.finish_step(index, &step)?;
            self.lanes.sites[index].lane.reuse(step.plan);
        }
        Ok(())
    }

    fn finish_step(&mut self, index: usize, Step { plan, planned_at, .. }: &Step) -> Result<(), String> {
        if let Some(stale) = self.stale[index].take()
            && !self.lanes.sites[index].lane.complete(stale).is_empty()
        {
            return Err("the output of a step that was given up had an effect".into());
        }
        if let Some(fault) = self.device_fault() {
            self.ledger.blame(self.lanes.sites[index].lane.in_step());
            let deliveries = self.lanes.fail(index, fault, self.now);
            self.ledger.may_fail |= self.lanes.alive().next().is_none();
            return self.deliver(index, deliveries);
        }
        let is_poisoned = plan.rows.iter().any(|rows| rows.tokens.contains(&POISON));
        let is_failed = is_poisoned || (self.faults == Faults::Steps && self.rng.one_in(12));
        if !is_failed {
            let output = self.lanes.compute(index, plan)?;
            let deliveries = self.lanes.sites[index].lane.complete(output);
            if self.faults == Faults::None {
                self.ledger.check_order(&deliveries, index, *planned_at)?;
            }
            return self.deliver(index, deliveries);
        }
        let site = &mut self.lanes.sites[index];
        let deliveries = if self.rng.one_in(3) {
            site.replace_executor();
            site.lane.lose_memory("lost")
        } else {
            let output = StepOutput { step: plan.step, ..StepOutput::default() };
            self.stale[index] = self.rng.one_in(2).then_some(output);
            site.lane.fail("failed")
        };
        self.deliver(index, deliveries)
    }

    fn device_fault(&mut self) -> Option<Fault> {
        if self.faults != Faults::Devices || !self.rng.one_in(self.limits.steps_per_fault) {
            return None;
        }
        Some(if self.rng.one_in(3) { Fault::Lost } else { Fault::Device })
    }

    fn deliver(&mut self, index: usize, deliveries: Vec<Delivery<Sink>>) -> Result<(), String> {
        for delivery in deliveries {
            let request = delivery.request;
            for choice in self.ledger.receive(delivery, self.now)? {
                let due = self.now + self.rng.range(0, 400) as u64;
                self.text_ends.push(TextEnd { due, request, choice, lane: index });
            }
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<(), String> {
        // Each step brings the oldest sequence of its lane forward by a token at least, and only faults, thefts and
        // preemptions of the younger make anything be computed again.
        let tokens = |account: &Account| {
            let job = &account.request.job;
            account.request.alone.iter().map(|(output, _)| job.prompt.len() + output.len()).sum::<usize>()
        };
        let work: usize = self.ledger.accounts.values().map(tokens).sum();
        let num_steps = self.lanes.num_steps;
        if num_steps > 4 * work + 1000 {
            return Err(format!("{num_steps} steps for {work} tokens: nothing moves"));
        }
        let arrival = (self.num_to_come > 0).then_some(self.next_arrival);
        let texts = self.text_ends.iter().map(|end| end.due);
        let lanes = self.lanes.next_step_end().into_iter().chain(self.lanes.next_rest_end());
        let next = texts.chain(arrival).chain(lanes).min();
        self.num_idle_rounds = if next.is_some() { 0 } else { self.num_idle_rounds + 1 };
        if self.num_idle_rounds > 10 {
            return Err("there is work but nothing to wait for".into());
        }
        self.now = next.unwrap_or(self.now).max(self.now + 1);
        Ok(())
    }

    fn settle(self) -> Result<Totals, String> {
        if let Some((id, _)) = self.ledger.accounts.iter().find(|(_, account)| !account.is_ended()) {
            return Err(format!("request {} has never ended", id.0));
        }
        let mut totals = Totals {
            num_stolen: self.lanes.num_stolen,
            num_deaths: self.num_deaths,
            num_lost: self.lanes.sites.iter().filter(|site| site.is_lost).count() as u64,
            num_finished: self.ledger.num_finished,
            ..Totals::default()
        };
        for site in &self.lanes.sites {
            let stats = site.lane.stats();
            if stats.blocks.held + stats.running + stats.waiting_jobs != 0 {
                return Err(format!("all is done but the lane has {stats:?}"));
            }
            totals.preemptions += stats.preemptions;
            totals.prefix_hits += stats.prefix_hits;
            totals.failed_steps += stats.failed_steps;
            totals.draft_tokens += stats.draft_tokens;
            totals.accepted_drafts += stats.accepted_drafts;
            totals.moved_jobs += stats.moved_jobs;
        }
        if let Some(id) = self.ledger.held_sink() {
            return Err(format!("all is done but somebody still holds the sink of request {}", id.0));
        }
        Ok(totals)
    }
}
