//! Random requests: all that a client can ask of the engine, with prompts that share beginnings.

use std::sync::Arc;

use garrick::kv::BLOCK_TOKENS;
use garrick::model::TokenId;
use garrick::sample::SamplingParams;
use garrick::sched::job::{CancelFlag, Job, Progress, RequestId, StopRules};

use crate::model::Model;
use crate::random::Random;

/// One request and 31 others.
pub const CROWD: usize = 32;

/// Lengths around the ends of KV blocks, and some that pass row blocks and windows.
const LENGTHS: [usize; 14] = [1, 2, 9, 15, 16, 17, 20, 31, 32, 33, 48, 64, 90, LONGEST];
const LONGEST: usize = 150;
/// Most tokens of a prompt and its output, so that a small pool is small.
pub const MAX_TOKENS: usize = LONGEST + MAX_OUTPUT;
const MAX_OUTPUT: usize = 60;

#[derive(Debug, Clone)]
pub struct Request {
    prompt: Arc<[TokenId]>,
    params: Arc<SamplingParams>,
    stop: StopRules,
    prompt_logprobs: Option<u8>,
    salt: u64,
    pub num_choices: u32,
}

impl Request {
    /// The same after a short prompt and to the last token: many of these fit a pool that cannot hold what they become.
    fn talkative(self) -> Self {
        let prompt = self.prompt.iter().copied().take(BLOCK_TOKENS).collect();
        let stop = StopRules { stop_tokens: Arc::new([]), max_tokens: MAX_OUTPUT as u32, ..self.stop };
        Self { prompt, stop, ..self }
    }

    /// The job that asks for it; `order` is its place in the order of arrival.
    pub fn job(&self, number: usize, order: u64) -> Job<()> {
        Job {
            request: RequestId(number as u64),
            sink: (),
            prompt: self.prompt.clone(),
            params: self.params.clone(),
            stop: self.stop.clone(),
            prompt_logprobs: self.prompt_logprobs,
            salt: self.salt,
            arrived_at: order,
            deadline: None,
            cancel: CancelFlag::default(),
            branches: Job::<()>::new_branches(self.num_choices),
            progress: Progress::default(),
        }
    }
}

/// Requests of [`requests`] that outgrow a small pool.
pub fn talkers(model: &Model, seed: u64, num: usize) -> Vec<Request> {
    requests(model, seed, num).into_iter().map(Request::talkative).collect()
}

/// Talkers that like two tokens of their own better than all others: much of what they say has been said before.
pub fn parrots(model: &Model, seed: u64, num: usize) -> Vec<Request> {
    let mut random = Random::new(!seed);
    let mut parrot = |request: Request| {
        let mut params = (*request.params).clone();
        params.logit_bias = (0..2).map(|_| (random.within(0..model.vocab_size()) as TokenId, 12.0)).collect();
        Request { params: Arc::new(params), ..request }
    };
    talkers(model, seed, num).into_iter().map(&mut parrot).collect()
}

/// `num` requests, the same for the same seed.
pub fn requests(model: &Model, seed: u64, num: usize) -> Vec<Request> {
    let mut random = Random::new(seed);
    let mut requests: Vec<Request> = Vec::with_capacity(num);
    for _ in 0..num {
        let prompt = prompt(&mut random, &requests, model.vocab_size());
        requests.push(Request {
            prompt: prompt.into(),
            params: Arc::new(params(&mut random, model.vocab_size())),
            stop: stop(&mut random, model.vocab_size()),
            prompt_logprobs: random.once_in(4).then(|| random.pick(&[0, 1, 4])),
            salt: random.pick(&[0, 0, 0, 1]),
            num_choices: random.pick(&[1, 1, 1, 1, 1, 2, 3]),
        });
    }
    requests
}

/// New tokens; or the beginning of another's prompt, or all of it, and then new ones; or what stands in another's
/// blocks after a block of its own, which must not be taken for the same.
fn prompt(random: &mut Random, others: &[Request], vocab_size: usize) -> Vec<TokenId> {
    let len = random.pick(&LENGTHS);
    let mut tokens = Vec::with_capacity(len);
    if !others.is_empty() && random.once_in(2) {
        let other = &others[random.within(0..others.len())].prompt;
        let own_block = if random.once_in(3) { BLOCK_TOKENS.min(len) } else { 0 };
        tokens.extend((0..own_block).map(|_| random.within(0..vocab_size) as TokenId));
        let skipped = if own_block > 0 { random.pick(&[0, BLOCK_TOKENS]) } else { 0 };
        tokens.extend(other.iter().skip(skipped).take(len - tokens.len()));
    }
    tokens.extend((tokens.len()..len).map(|_| random.within(0..vocab_size) as TokenId));
    tokens
}

/// Log-probabilities are asked for almost always: the more of them, the more bits are compared.
fn params(random: &mut Random, vocab_size: usize) -> SamplingParams {
    let mut params = SamplingParams {
        temperature: random.pick(&[0.0, 0.0, 0.7, 1.0, 1.6]),
        logprobs: (!random.once_in(8)).then(|| random.pick(&[0, 5, 20])),
        seed: random.next(),
        ..SamplingParams::default()
    };
    if random.once_in(3) {
        params.top_k = random.pick(&[1, 8, 50]);
        params.top_p = random.pick(&[0.5, 0.9, 1.0]);
        params.min_p = random.pick(&[0.0, 0.05]);
    }
    if random.once_in(3) {
        params.repetition_penalty = random.pick(&[1.0, 1.3]);
        params.frequency_penalty = random.between(-0.5, 1.5);
        params.presence_penalty = random.between(-0.5, 1.5);
    }
    if random.once_in(4) {
        params.logit_bias =
            (0..3).map(|_| (random.within(0..vocab_size) as TokenId, random.between(-5.0, 3.0))).collect();
    }
    params
}

fn stop(random: &mut Random, vocab_size: usize) -> StopRules {
    let num_stop_tokens = random.pick(&[0, 0, 4]);
    let stop_tokens: Vec<_> = (0..num_stop_tokens).map(|_| random.within(0..vocab_size) as TokenId).collect();
    StopRules {
        stop_tokens: stop_tokens.into(),
        min_tokens: random.pick(&[0, 0, 3]),
        max_tokens: random.pick(&[0, 1, 5, 12, 20, 33, 47, MAX_OUTPUT as u32]),
    }
}
