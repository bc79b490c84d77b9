//! Tokens and log-probabilities out of hashes.

use super::FakeSpec;
use super::text::first_word;
use crate::model::TokenId;
use crate::sample::{SampleSpec, Sampled, TokenLogprobs};
use crate::sched::plan::SeqRows;

/// A bias of this size forces or forbids a token, as in the OpenAI API.
const DECISIVE_BIAS: f32 = 100.0;

/// What a slot of the fake KV memory holds: a token, and a hash of everything up to and including it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Past {
    token: TokenId,
    hash: u64,
}

impl Past {
    pub const START: Self = Self { token: 0, hash: 0 };

    pub fn then(self, token: TokenId) -> Self {
        Self { token, hash: mix(self.hash ^ mix(u64::from(token) + 1)) }
    }

    pub fn token(self) -> TokenId {
        self.token
    }
}

/// Finaliser of splitmix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// One token in so many does not follow the period, if there is one.
const DEVIATIONS: u64 = 16;

/// The token after `past`. Greedy requests get the same token whatever their seed and choice, as from a model.
pub(super) fn sample(past: Past, spec: &SampleSpec, fake: &FakeSpec) -> Sampled {
    let (params, vocab) = (&spec.params, fake.vocab);
    let draw = if params.temperature == 0.0 { 0 } else { mix(params.seed ^ mix(u64::from(spec.choice) + 1)) };
    let mut hash = mix(past.hash ^ draw ^ mix(u64::from(spec.index) << 32));
    if fake.period > 0 && !hash.is_multiple_of(DEVIATIONS) {
        hash = mix(draw ^ u64::from(spec.index % fake.period));
    }
    let token = forced(spec).unwrap_or_else(|| allowed(hash, spec, vocab));
    Sampled { token, logprobs: params.logprobs.map(|top| Box::new(logprobs(token, top, vocab))) }
}

fn is_banned(spec: &SampleSpec, token: TokenId) -> bool {
    let bias = &spec.params.logit_bias;
    spec.banned.contains(&token) || bias.iter().any(|&(biased, bias)| biased == token && bias <= -DECISIVE_BIAS)
}

fn forced(spec: &SampleSpec) -> Option<TokenId> {
    let bias = &spec.params.logit_bias;
    bias.iter().find(|&&(token, bias)| bias >= DECISIVE_BIAS && !is_banned(spec, token)).map(|&(token, _)| token)
}

/// The first token from `hash` on that is not banned; the end token only when everything else is.
fn allowed(hash: u64, spec: &SampleSpec, vocab: u32) -> TokenId {
    let (end, word) = (vocab - 1, first_word(vocab));
    let num_words = end - word;
    let first = (hash % u64::from(num_words)) as TokenId;
    let mut words = (0..num_words).map(|i| word + (first + i) % num_words);
    words.find(|&token| !is_banned(spec, token)).unwrap_or(end)
}

/// The token at one half, its neighbours at a quarter, an eighth, and so on.
fn logprobs(token: TokenId, top: u8, vocab: u32) -> TokenLogprobs {
    let halvings = |n: u32| -(n as f32) * std::f32::consts::LN_2;
    let top = (0..u32::from(top).min(vocab)).map(|i| ((token + i) % vocab, halvings(i + 1))).collect();
    TokenLogprobs { token, logprob: halvings(1), rank: 1, top }
}

pub(super) fn prompt_logprobs(rows: &SeqRows, vocab: u32) -> Vec<TokenLogprobs> {
    let Some(wanted) = rows.prompt_logprobs else { return Vec::new() };
    let following = rows.tokens.iter().skip(1).copied().chain(wanted.next);
    following.map(|token| logprobs(token, wanted.top, vocab)).collect()
}
