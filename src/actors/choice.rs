//! One choice of a stream: from sampled tokens to text that may be shown.
//!
//! Pure: no actor, no clock. Text is held back while it could still become a stop string, and tokens (kept only when
//! log-probabilities were asked for) travel with the text they led to.

use super::messages::{Delta, FinishReason, Texts};
use crate::base::metrics::metrics;
use crate::model::text::{Detokenizer, StopMatcher};
use crate::sample::{Sampled, TokenLogprobs};

pub struct Choice {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    tokens: Vec<TokenLogprobs>,
    last_token_us: Option<u64>,
    num_tokens: u64,
    /// The text has ended; what still arrives was computed in vain and is dropped.
    done: bool,
    /// The lane has let go of it.
    pub released: bool,
}

impl Choice {
    pub fn new(detokenizer: Detokenizer, stops: StopMatcher) -> Self {
        Self {
            detokenizer,
            stops,
            tokens: Vec::new(),
            last_token_us: None,
            num_tokens: 0,
            done: false,
            released: false,
        }
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Counts a token, and records time to first token, then the time between tokens. False for one that came together
    /// with the one before, which the caller records with others of its kind.
    pub fn clock_token(&mut self, now_us: u64, began_us: u64) -> bool {
        self.num_tokens += 1;
        match self.last_token_us.replace(now_us) {
            None => metrics().ttft_s.record(now_us.saturating_sub(began_us) as f64 / 1e6),
            Some(last) if last == now_us => return false,
            Some(last) => metrics().itl_s.record(now_us.saturating_sub(last) as f64 / 1e6),
        }
        true
    }

    /// Takes a token; `ends` says that it is a stop token, which has no text of its own. What can be shown now is added
    /// to `texts` if it is a text alone, and returned if there is more to it.
    pub fn push(&mut self, index: u32, sampled: Sampled, ends: bool, texts: &mut Texts) -> Option<Delta> {
        if self.done {
            return None;
        }
        self.tokens.extend(sampled.logprobs.map(|logprobs| *logprobs));
        if ends {
            return None;
        }
        if self.tokens.is_empty() && self.stops.is_idle() {
            texts.push(self.detokenizer.push(sampled.token));
            return None;
        }
        let stopped = self.stops.push(self.detokenizer.push(sampled.token));
        self.done = stopped.hit.is_some();
        self.delta(index, stopped.emit, stopped.hit.map(|_| FinishReason::Stop))
    }

    /// The lane ended it: flushes what was held back.
    pub fn finish(&mut self, index: u32, reason: FinishReason) -> Option<Delta> {
        if self.done {
            return None;
        }
        self.done = true;
        let mut stopped = self.stops.push(self.detokenizer.finish());
        if stopped.hit.is_none() {
            stopped.emit.push_str(&self.stops.finish());
        }
        self.delta(index, stopped.emit, Some(if stopped.hit.is_some() { FinishReason::Stop } else { reason }))
    }

    fn delta(&mut self, index: u32, text: String, finish: Option<FinishReason>) -> Option<Delta> {
        if text.is_empty() && finish.is_none() {
            return None;
        }
        Some(Delta { index, text, tokens: std::mem::take(&mut self.tokens), finish })
    }
}
