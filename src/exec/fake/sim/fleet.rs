//! The fleet: lanes, their executors, and what happens to them.

use crossbeam::deque::Stealer;

use super::super::{FakeExecutor, FakeSpec};
use super::Rng;
use super::ledger::Ledger;
use super::request::{self, Limits, POISON, VOCAB};
use crate::sched::job::{Delivery, Job, Micros, RequestId};
use crate::sched::plan::{StepOutput, StepPlan};
use crate::sched::{Lane, LaneConfig, LaneLoad, LaneStats, SearchGate, StealWindow, VictimOrder, place, search};

struct Site {
    lane: Lane<u64>,
    window: StealWindow<u64>,
    executor: FakeExecutor,
    /// The step under way and when it is done.
    step: Option<(StepPlan, Micros)>,
    /// Output of a step that was given up.
    stale: Option<StepOutput>,
    order: VictimOrder,
}

/// How steps fail in this run.
#[derive(Clone, Copy, PartialEq)]
enum Faults {
    None,
    Poison,
    Random,
}

pub struct Fleet {
    rng: Rng,
    sites: Vec<Site>,
    stealers: Vec<Stealer<Job<u64>>>,
    gate: SearchGate,
    ledger: Ledger,
    faults: Faults,
    limits: Limits,
    now: Micros,
    num_to_come: usize,
    next_arrival: Micros,
    num_stolen: u64,
    num_steps: usize,
    text_ends: Vec<TextEnd>,
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
    num_finished: [u64; 6],
}

impl Totals {
    pub fn add(&mut self, other: &Totals) {
        self.num_stolen += other.num_stolen;
        self.preemptions += other.preemptions;
        self.prefix_hits += other.prefix_hits;
        self.failed_steps += other.failed_steps;
        self.num_finished.iter_mut().zip(other.num_finished).for_each(|(sum, n)| *sum += n);
    }

    pub fn assert_everything_happened(&self) {
        let Self { num_stolen, preemptions, prefix_hits, failed_steps, num_finished } = self;
        println!(
            "stolen {num_stolen}, preempted {preemptions}, prefix hits {prefix_hits}, failed steps {failed_steps}, \
             finished (stop, length, cancel, deadline, failed, text) {num_finished:?}"
        );
        let counts = [num_stolen, preemptions, prefix_hits, failed_steps];
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
            max_running,
            max_model_len: rng.range(40, 200),
            prefix_cache: !rng.one_in(4),
        };
        let faults = [Faults::None, Faults::None, Faults::Poison, Faults::Random][rng.range(0, 3)];
        let max_sequence_tokens = config.max_sequence_tokens();
        let limits = Limits {
            max_prompt: max_sequence_tokens - 1,
            max_sequence_tokens,
            max_choices: max_running.min(5),
            poison: faults == Faults::Poison,
        };
        let sites: Vec<_> = (0..num_lanes).map(|i| Site::new(&config, seed ^ i as u64)).collect();
        Self {
            stealers: sites.iter().map(|site| site.window.stealer()).collect(),
            gate: SearchGate::new(num_lanes),
            ledger: Ledger { may_fail: faults == Faults::Random, ..Ledger::default() },
            num_to_come: rng.range(5, 60),
            sites,
            faults,
            limits,
            now: 0,
            next_arrival: 0,
            num_stolen: 0,
            num_steps: 0,
            text_ends: Vec::new(),
            num_idle_rounds: 0,
            rng,
        }
    }

    pub fn run(mut self) -> Result<Totals, String> {
        while self.num_to_come > 0 || self.sites.iter().any(Site::has_work) {
            self.arrive();
            self.leave();
            self.end_texts();
            for index in 0..self.sites.len() {
                self.finish_step(index)?;
                self.start_step(index)?;
                self.sites[index].lane.check()?;
            }
            self.check_order()?;
            self.advance()?;
        }
        self.settle()
    }

    fn arrive(&mut self) {
        while self.num_to_come > 0 && self.next_arrival <= self.now {
            self.num_to_come -= 1;
            let request = request::random(&mut self.rng, self.num_to_come as u64, self.now, &self.limits);
            let job = request.job.clone();
            self.ledger.open(request);
            let index = if self.rng.one_in(2) { 0 } else { self.best_lane(&job) };
            let Site { lane, window, .. } = &mut self.sites[index];
            lane.submit(job);
            lane.offer(window);
            let gap = if self.rng.one_in(8) { self.rng.range(0, 20_000) } else { self.rng.range(0, 200) };
            self.next_arrival += gap as u64;
        }
    }

    fn best_lane(&self, job: &Job<u64>) -> usize {
        let load = |site: &Site| {
            let LaneStats { waiting_tokens, running, .. } = site.lane.stats();
            let cached_prefix_tokens = site.lane.cached_prefix_tokens(&job.prompt, job.salt);
            LaneLoad { waiting_tokens, running, cached_prefix_tokens }
        };
        place(&self.sites.iter().map(load).collect::<Vec<_>>(), 64).expect("a fleet has lanes")
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
                self.sites[end.lane].lane.finish(end.request, end.choice);
            }
        }
    }

    fn start_step(&mut self, index: usize) -> Result<(), String> {
        let site = &mut self.sites[index];
        let planned = site.lane.plan(self.now, &mut site.window);
        if let Some(plan) = planned.plan {
            let cost = site.executor.spec().cost_us(&plan);
            self.num_steps += 1;
            site.step = Some((plan, self.now + 1 + cost));
        } else if site.step.is_none() {
            let stolen = search(index, &self.stealers, &self.gate, &mut site.order);
            self.num_stolen += stolen.len() as u64;
            stolen.into_iter().for_each(|job| site.lane.submit(job));
        }
        self.deliver(index, planned.deliveries)
    }

    fn finish_step(&mut self, index: usize) -> Result<(), String> {
        let site = &mut self.sites[index];
        let Some((plan, _)) = site.step.take_if(|(_, done_at)| *done_at <= self.now) else { return Ok(()) };
        if let Some(stale) = site.stale.take()
            && !site.lane.complete(stale).is_empty()
        {
            return Err("the output of a step that was given up had an effect".into());
        }
        let is_poisoned = plan.rows.iter().any(|rows| rows.tokens.contains(&POISON));
        let is_failed = is_poisoned || (self.faults == Faults::Random && self.rng.one_in(12));
        let deliveries = if !is_failed {
            site.lane.complete(site.executor.compute(&plan).map_err(|error| error.to_string())?)
        } else if self.rng.one_in(3) {
            site.executor = executor(site.executor.info.num_blocks);
            site.lane.lose_memory("lost")
        } else {
            site.stale = self.rng.one_in(2).then(|| StepOutput { step: plan.step, ..StepOutput::default() });
            site.lane.fail("failed")
        };
        self.deliver(index, deliveries)
    }

    fn deliver(&mut self, index: usize, deliveries: Vec<Delivery<u64>>) -> Result<(), String> {
        for delivery in deliveries {
            let request = delivery.request;
            for choice in self.ledger.receive(delivery, self.now)? {
                let due = self.now + self.rng.range(0, 400) as u64;
                self.text_ends.push(TextEnd { due, request, choice, lane: index });
            }
        }
        Ok(())
    }

    /// On a single lane nobody is seen by the device before one who came earlier (ids count down).
    fn check_order(&self) -> Result<(), String> {
        if self.sites.len() > 1 || self.faults != Faults::None {
            return Ok(());
        }
        let waiting = |account: &&super::ledger::Account| !account.has_started && !account.is_ended();
        let age = |account: &super::ledger::Account| (account.request.job.arrived_at, account.request.job.request);
        let Some(oldest) = self.ledger.accounts.values().filter(waiting).map(age).min() else { return Ok(()) };
        let youngest = self.ledger.accounts.values().filter(|account| account.has_started).map(age).max();
        match youngest {
            Some(youngest) if youngest > oldest => Err(format!("{youngest:?} started while {oldest:?} waits")),
            _ => Ok(()),
        }
    }

    fn advance(&mut self) -> Result<(), String> {
        // Each step brings the oldest sequence of its lane forward by a token at least, and only faults, thefts and
        // preemptions of the younger make anything be computed again.
        let tokens = |account: &super::ledger::Account| {
            let job = &account.request.job;
            account.request.alone.iter().map(|(output, _)| job.prompt.len() + output.len()).sum::<usize>()
        };
        let work: usize = self.ledger.accounts.values().map(tokens).sum();
        if self.num_steps > 4 * work + 1000 {
            return Err(format!("{} steps for {work} tokens: nothing moves", self.num_steps));
        }
        let arrival = (self.num_to_come > 0).then_some(self.next_arrival);
        let steps = self.sites.iter().filter_map(|site| site.step.as_ref()).map(|&(_, done_at)| done_at);
        let texts = self.text_ends.iter().map(|end| end.due);
        let next = steps.chain(arrival).chain(texts).min();
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
        let mut totals =
            Totals { num_stolen: self.num_stolen, num_finished: self.ledger.num_finished, ..Totals::default() };
        for site in &self.sites {
            let stats = site.lane.stats();
            if stats.blocks.held + stats.running + stats.waiting_jobs != 0 {
                return Err(format!("all is done but the lane has {stats:?}"));
            }
            totals.preemptions += stats.preemptions;
            totals.prefix_hits += stats.prefix_hits;
            totals.failed_steps += stats.failed_steps;
        }
        Ok(totals)
    }
}

impl Site {
    fn new(config: &LaneConfig, seed: u64) -> Self {
        Self {
            lane: Lane::new(config.clone()).expect("a valid configuration"),
            window: StealWindow::new(16),
            executor: executor(config.num_blocks),
            step: None,
            stale: None,
            order: VictimOrder::new(seed),
        }
    }

    fn has_work(&self) -> bool {
        self.lane.has_work()
    }
}

fn executor(num_blocks: usize) -> FakeExecutor {
    let spec = FakeSpec {
        prefill_us_per_token: 5.0,
        decode_us_per_step: 100.0,
        decode_us_per_seq: 10.0,
        vocab: VOCAB,
        ..FakeSpec::default()
    };
    FakeExecutor::new(spec, num_blocks).reading_everything()
}
