//! Lanes and executors, driven as the actors drive them, and what the requests were told.

use std::ops::AddAssign;

use garrick::exec::{ExecError, Executor};
use garrick::model::TokenId;
use garrick::model::ops::KvDtype;
use garrick::sample::{Sampled, TokenLogprobs};
use garrick::sched::job::{CancelFlag, Delivery, Event, Finish};
use garrick::sched::plan::{StepOutput, StepPlan};
use garrick::sched::{FifoWindow, Lane, Window};

use crate::crowd::Request;
use crate::model::Model;
use crate::random::Random;
use crate::situation::Situation;

/// Jobs that lanes show each other.
const WINDOW: usize = 4;
/// A crowd needs some thousands; a lane that goes on for longer has lost somebody.
const MAX_ROUNDS: u64 = 100_000;

/// The first step to be lost, while prompts are still being computed.
const FIRST_LOST: u64 = 4;

/// What a request was told, floats by their bits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    prompt: Vec<Logprobs>,
    choices: Vec<Choice>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Choice {
    tokens: Vec<(TokenId, Option<Logprobs>)>,
    finish: Option<Finish>,
}

#[derive(Debug, Clone, PartialEq)]
struct Logprobs {
    token: TokenId,
    logprob: u32,
    rank: u32,
    top: Vec<(TokenId, u32)>,
}

impl From<TokenLogprobs> for Logprobs {
    fn from(from: TokenLogprobs) -> Self {
        let TokenLogprobs { token, logprob, rank, top } = from;
        let top = top.into_iter().map(|(token, logprob)| (token, logprob.to_bits())).collect();
        Self { token, logprob: logprob.to_bits(), rank, top }
    }
}

impl Answer {
    fn new(request: &Request) -> Self {
        Self { prompt: Vec::new(), choices: vec![Choice::default(); request.num_choices as usize] }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Started { .. } => {}
            Event::Prompt(logprobs) => self.prompt.extend(logprobs.into_iter().map(Logprobs::from)),
            Event::Token { choice, sampled: Sampled { token, logprobs } } => {
                let choice = &mut self.choices[choice as usize];
                assert_eq!(choice.finish, None, "a token after the end");
                choice.tokens.push((token, logprobs.map(|logprobs| Logprobs::from(*logprobs))));
            }
            Event::Finished { choice, finish } => {
                let before = self.choices[choice as usize].finish.replace(finish);
                assert_eq!(before, None, "a second end");
            }
        }
    }

    fn is_over(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// Where this differs from what the request was told `alone`. One whose client has left need only agree as far as
    /// it goes.
    pub fn difference(&self, alone: &Answer, left: bool) -> Option<String> {
        if let Some(difference) = compare(&self.prompt, &alone.prompt, left) {
            return Some(format!("log-probability of the prompt, {difference}"));
        }
        for (i, (choice, expected)) in self.choices.iter().zip(&alone.choices).enumerate() {
            if let Some(Finish::Failed(error)) = &choice.finish {
                return Some(format!("choice {i} failed: {error}"));
            }
            let was_cut = left && choice.finish == Some(Finish::Cancelled);
            if let Some(difference) = compare(&choice.tokens, &expected.tokens, was_cut) {
                return Some(format!("choice {i}, token {difference}"));
            }
            if !was_cut && choice.finish != expected.finish {
                return Some(format!("choice {i} ended with {:?}, alone with {:?}", choice.finish, expected.finish));
            }
        }
        None
    }
}

fn compare<T: PartialEq + std::fmt::Debug>(found: &[T], expected: &[T], was_cut: bool) -> Option<String> {
    if let Some(i) = found.iter().zip(expected).position(|(a, b)| a != b) {
        return Some(format!("number {i}:\n  {:?}\n  {:?} alone", found[i], expected[i]));
    }
    let (num, all) = (found.len(), expected.len());
    (num > all || (num < all && !was_cut)).then(|| format!("{num} of them, {all} alone"))
}

/// What really happened in a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Witnessed {
    pub max_sequences: usize,
    pub max_rows: usize,
    /// Parts of prompts that were not their ends.
    pub chunks: u64,
    pub preemptions: u64,
    pub prefix_hits: u64,
    /// Blocks copied before a write.
    pub copies: u64,
    pub lost_steps: u64,
    /// Waiting jobs that changed lanes, and those of them that had run before.
    pub passed_on: u64,
    pub passed_on_begun: u64,
    pub left: u64,
    /// Drafts that were drawn, and others.
    pub accepted: u64,
    pub rejected: u64,
}

impl AddAssign for Witnessed {
    fn add_assign(&mut self, other: Self) {
        self.max_sequences = self.max_sequences.max(other.max_sequences);
        self.max_rows = self.max_rows.max(other.max_rows);
        self.chunks += other.chunks;
        self.preemptions += other.preemptions;
        self.prefix_hits += other.prefix_hits;
        self.copies += other.copies;
        self.lost_steps += other.lost_steps;
        self.passed_on += other.passed_on;
        self.passed_on_begun += other.passed_on_begun;
        self.left += other.left;
        self.accepted += other.accepted;
        self.rejected += other.rejected;
    }
}

/// One lane and its device.
struct Device {
    lane: Lane<()>,
    window: FifoWindow<()>,
    executor: Box<dyn Executor>,
    /// Every so many steps one is lost.
    lost_steps: Option<u64>,
    steps: u64,
}

impl Device {
    /// One round: a step, if there is anything to do.
    fn advance(&mut self, now: u64, seen: &mut Witnessed) -> Vec<Delivery<()>> {
        let planned = self.lane.plan(now, &mut self.window);
        let mut deliveries = planned.deliveries;
        if let Some(plan) = planned.plan {
            witness(&plan, seen);
            deliveries.extend(match self.step(&plan) {
                Ok(output) => self.lane.complete(output),
                Err(error) => {
                    seen.lost_steps += 1;
                    self.lane.fail(&error.to_string())
                }
            });
        }
        self.lane.check().unwrap();
        deliveries
    }

    /// Loses a step now and then: K and V are written, tokens were drawn, and nobody hears of it. A sequence that runs
    /// alone is spared, because losing it twice ends it.
    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecError> {
        let output = self.executor.step(plan)?;
        self.steps += 1;
        let is_due = self.lost_steps.is_some_and(|every| self.steps % every == FIRST_LOST);
        let is_lost = plan.rows.len() > 1 && is_due;
        if is_lost { Err(ExecError::Failed("lost".into())) } else { Ok(output) }
    }
}

fn witness(plan: &StepPlan, seen: &mut Witnessed) {
    seen.max_sequences = seen.max_sequences.max(plan.rows.len());
    seen.max_rows = seen.max_rows.max(plan.num_tokens());
    seen.copies += plan.copies.len() as u64;
    seen.chunks += plan.rows.iter().filter(|rows| rows.samples.is_empty()).count() as u64;
}

/// Everyone and everything of a run.
struct Run<'a> {
    requests: &'a [Request],
    situation: &'a Situation,
    devices: Vec<Device>,
    answers: Vec<Answer>,
    cancels: Vec<CancelFlag>,
    now: u64,
    random: Random,
    seen: Witnessed,
}

/// A request's answer with nobody else there.
pub fn alone(model: &Model, dtype: KvDtype, request: &Request) -> Answer {
    let (mut answers, _) = together(model, dtype, std::slice::from_ref(request), &Situation::calm(1));
    answers.remove(0)
}

/// The answers of all requests in a situation. With several visits they are those of the last.
pub fn together(
    model: &Model,
    dtype: KvDtype,
    requests: &[Request],
    situation: &Situation,
) -> (Vec<Answer>, Witnessed) {
    let device = |threads: &usize| Device {
        lane: Lane::new(situation.lane_config(model.max_positions())).unwrap(),
        window: FifoWindow::new(WINDOW),
        executor: model.executor(*threads, dtype, situation.num_blocks),
        lost_steps: situation.lost_steps,
        steps: 0,
    };
    let mut run = Run {
        requests,
        situation,
        devices: situation.lanes.iter().map(device).collect(),
        answers: Vec::new(),
        cancels: Vec::new(),
        now: 0,
        random: Random::new(situation.seed),
        seen: Witnessed::default(),
    };
    for _ in 0..situation.visits {
        run.visit();
    }
    for device in &run.devices {
        let stats = device.lane.stats();
        assert_eq!((stats.blocks.held, stats.running, stats.waiting_jobs), (0, 0, 0), "something is left in a lane");
        run.seen.preemptions += stats.preemptions;
        run.seen.prefix_hits += stats.prefix_hits;
        run.seen.accepted += stats.accepted_drafts;
        run.seen.rejected += stats.draft_tokens - stats.accepted_drafts;
    }
    (run.answers, run.seen)
}

impl Run<'_> {
    /// The whole crowd comes, and is served to its end.
    fn visit(&mut self) {
        self.answers = self.requests.iter().map(Answer::new).collect();
        self.cancels = self.requests.iter().map(|_| CancelFlag::default()).collect();
        let (began, last) = (self.now, self.now + MAX_ROUNDS);
        while !self.answers.iter().all(Answer::is_over) {
            assert!(self.now < last, "the crowd is not served in {MAX_ROUNDS} rounds");
            self.arrive(self.now - began);
            self.leave(self.now - began);
            for i in 0..self.devices.len() {
                let deliveries = self.devices[i].advance(self.now, &mut self.seen);
                for delivery in deliveries {
                    let answer = &mut self.answers[delivery.request.0 as usize];
                    delivery.events.into_iter().for_each(|event| answer.take(event));
                }
            }
            self.pass_on();
            self.now += 1;
        }
    }

    fn arrive(&mut self, round: u64) {
        for (number, request) in self.requests.iter().enumerate() {
            if self.situation.arrivals[number] == round {
                let mut job = request.job(number, self.now);
                job.cancel = self.cancels[number].clone();
                let lane = self.random.within(0..self.devices.len());
                self.devices[lane].lane.submit(job);
            }
        }
    }

    fn leave(&mut self, round: u64) {
        for (number, leaves) in self.situation.leaves.iter().enumerate() {
            if *leaves == Some(round) {
                self.cancels[number].set();
                self.seen.left += 1;
            }
        }
    }

    /// A waiting job goes to another lane now and then.
    fn pass_on(&mut self) {
        let (from, to) = (self.random.within(0..self.devices.len()), self.random.within(0..self.devices.len()));
        if from != to
            && let Some(job) = self.devices[from].window.pop()
        {
            self.seen.passed_on += 1;
            self.seen.passed_on_begun += u64::from(job.progress.started);
            self.devices[to].lane.submit(job);
        }
    }
}
