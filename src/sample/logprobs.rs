//! Log-probabilities of the model's own distribution.

use super::weight::{total, weight};
use super::{TokenLogprobs, maximum};
use crate::model::TokenId;
use crate::model::draws::{Scored, UNIT};

/// Log-softmax of the raw `logits` (`[vocab]`) for `token` and the `top` most likely tokens.
///
/// Rank and order count equal logits by token, lowest first. A token of probability zero (a logit of minus
/// infinity, or not a number, or none at all) has the log-probability minus infinity, which JSON cannot say.
pub fn token_logprobs(logits: &[f32], token: TokenId, top: usize) -> TokenLogprobs {
    let max = maximum(logits);
    let logit = logits.get(token as usize).copied().filter(|x| !x.is_nan()).unwrap_or(f32::NEG_INFINITY);
    // Of equal logits those of lower tokens come before this one.
    let (lower, higher) = logits.split_at(logits.len().min(token as usize));
    let before = lower.iter().filter(|x| **x >= logit).count() + higher.iter().filter(|x| **x > logit).count();
    let rank = 1 + before as u32;
    // Unwanted where it is infinite: then nothing has a probability between 0 and 1.
    let total = if max.is_infinite() { 0 } else { total(logits, |x| weight(x - max)) };
    Scored { token, logit, rank, max, total, top: largest(logits, top) }.into()
}

impl From<Scored> for TokenLogprobs {
    fn from(scored: Scored) -> TokenLogprobs {
        let Scored { token, logit, rank, max, total, top } = scored;
        let normaliser = f64::from(max) + (total as f64 * f64::from(UNIT)).ln();
        let logprob = |logit: f32| match logit {
            f32::NEG_INFINITY => f32::NEG_INFINITY,
            f32::INFINITY => 0.0,
            // Beside an infinite one.
            _ if max.is_infinite() => f32::NEG_INFINITY,
            _ => (f64::from(logit) - normaliser) as f32,
        };
        let top = top.into_iter().map(|(token, logit)| (token, logprob(logit))).collect();
        TokenLogprobs { token, logprob: logprob(logit), rank, top }
    }
}

/// The `n` largest logits, largest first, lowest token first among equals; not-a-numbers are left out.
fn largest(logits: &[f32], n: usize) -> Vec<(TokenId, f32)> {
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(n.min(logits.len()) + 1);
    if n == 0 {
        return best;
    }
    for (token, &logit) in logits.iter().enumerate() {
        let full = best.len() == n;
        if logit.is_nan() || (full && best.last().is_some_and(|&(_, worst)| logit <= worst)) {
            continue;
        }
        let at = best.partition_point(|&(_, other)| other >= logit);
        best.insert(at, (token as TokenId, logit));
        best.truncate(n);
    }
    best
}
