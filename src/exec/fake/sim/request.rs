//! A random request, and what it must give when it is computed alone.

use std::sync::Arc;

use super::super::FakeSpec;
use super::super::draw::{Past, sample};
use super::Rng;
use super::lanes::Sink;
use crate::model::TokenId;
use crate::sample::{SampleSpec, SamplingParams};
use crate::sched::job::{CancelFlag, Finish, Job, Micros, Progress, RequestId, StopRules};

pub const VOCAB: u32 = 64;
/// A step with this token in it fails. Never drawn.
pub const POISON: TokenId = VOCAB - 1;

pub struct Request {
    pub job: Job<Sink>,
    /// The text side ends choice 0 once it has this many tokens.
    pub stops_text_at: Option<usize>,
    /// The client leaves then.
    pub cancels_at: Option<Micros>,
    /// By choice.
    pub alone: Vec<(Vec<TokenId>, Finish)>,
}

pub struct Limits {
    pub max_prompt: usize,
    pub max_sequence_tokens: usize,
    pub max_choices: usize,
    pub poison: bool,
    /// One step in so many fails where devices do.
    pub steps_per_fault: usize,
    pub device: FakeSpec,
}

pub fn random(rng: &mut Rng, id: u64, now: Micros, limits: &Limits) -> Request {
    let max_prompt = limits.max_prompt;
    let prompt = random_prompt(rng, max_prompt, limits.poison && rng.clone().one_in(8));
    let num_choices = if rng.one_in(4) { rng.range(1, limits.max_choices) } else { 1 };
    let stop = StopRules {
        stop_tokens: (0..rng.range(0, 2)).map(|_| rng.range(0, 40) as TokenId).collect(),
        min_tokens: rng.range(0, 6) as u32,
        max_tokens: if rng.one_in(12) { 0 } else { rng.range(1, 60) as u32 },
    };
    let params = SamplingParams {
        temperature: (rng.range(0, 2) as f32) / 2.0,
        frequency_penalty: if rng.one_in(5) { 0.5 } else { 0.0 },
        seed: rng.range(0, 3) as u64,
        ..SamplingParams::default()
    };
    let job = Job {
        request: RequestId(id),
        sink: Sink::new(id),
        prompt: prompt.into(),
        params: Arc::new(params),
        stop,
        prompt_logprobs: rng.one_in(6).then_some(2),
        salt: rng.range(0, 1) as u64,
        arrived_at: now,
        deadline: rng.one_in(10).then(|| now + rng.range(0, 30_000) as u64),
        cancel: CancelFlag::default(),
        branches: Job::<Sink>::new_branches(num_choices as u32),
        progress: Progress::default(),
    };
    let alone = (0..num_choices).map(|choice| run_alone(&job, choice as u32, limits)).collect();
    Request {
        stops_text_at: rng.one_in(6).then(|| rng.range(1, 20)),
        cancels_at: rng.one_in(8).then(|| now + rng.range(0, 20_000) as u64),
        job,
        alone,
    }
}

/// Often the beginning of one of a few long texts, so that prefixes are shared.
fn random_prompt(rng: &mut Rng, max_len: usize, poisoned: bool) -> Vec<TokenId> {
    let len = rng.range(1, max_len);
    let mut text = Rng(rng.range(0, 2) as u64);
    let shared = if rng.one_in(3) { 0 } else { rng.range(0, len) };
    let mut prompt: Vec<TokenId> = (0..shared).map(|_| text.range(0, 40) as TokenId).collect();
    prompt.extend((shared..len).map(|_| rng.range(0, 40) as TokenId));
    if poisoned {
        let at = rng.range(0, len - 1);
        prompt[at] = POISON;
    }
    prompt
}

/// The request as its definition says, with no lane, no blocks, no batch and no drafts.
fn run_alone(job: &Job<Sink>, choice: u32, limits: &Limits) -> (Vec<TokenId>, Finish) {
    let mut past = job.prompt.iter().fold(Past::START, |past, &token| past.then(token));
    let mut output: Vec<TokenId> = Vec::new();
    while output.len() < job.stop.max_tokens as usize && job.prompt.len() + output.len() < limits.max_sequence_tokens {
        let may_stop = output.len() >= job.stop.min_tokens as usize;
        let spec = SampleSpec {
            params: job.params.clone(),
            choice,
            index: output.len() as u32,
            history: None,
            banned: if may_stop { Arc::from([]) } else { job.stop.stop_tokens.clone() },
        };
        let token = sample(past, &spec, &limits.device).token;
        output.push(token);
        past = past.then(token);
        if may_stop && job.stop.stop_tokens.contains(&token) {
            return (output, Finish::Stop);
        }
    }
    (output, Finish::Length)
}
