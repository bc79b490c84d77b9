//! Log-probabilities of the model's own distribution.

use super::exp::exp;
use super::{TokenLogprobs, maximum};
use crate::model::TokenId;

/// Log-softmax of the raw `logits` (`[vocab]`) for `token` and the `top` most likely tokens.
///
/// Rank and order count equal logits by token, lowest first. A token of probability zero (a logit of minus
/// infinity, or not a number, or none at all) has the log-probability minus infinity, which JSON cannot say.
pub fn token_logprobs(logits: &[f32], token: TokenId, top: usize) -> TokenLogprobs {
    let normaliser = log_sum_exp(logits);
    let logprob = |logit: f32| match logit {
        f32::NEG_INFINITY => f32::NEG_INFINITY,
        f32::INFINITY => 0.0,
        _ => (f64::from(logit) - normaliser) as f32,
    };
    let own = logits.get(token as usize).copied().filter(|x| !x.is_nan()).unwrap_or(f32::NEG_INFINITY);
    let before = |(other, x): (usize, &f32)| *x > own || (*x == own && other < token as usize);
    let rank = 1 + logits.iter().enumerate().filter(|&entry| before(entry)).count() as u32;
    let top = largest(logits, top).into_iter().map(|(token, logit)| (token, logprob(logit))).collect();
    TokenLogprobs { token, logprob: logprob(own), rank, top }
}

/// `ln Σ exp(logit)`, with the sum in eight lanes of double precision so that its order is fixed and it vectorises.
fn log_sum_exp(logits: &[f32]) -> f64 {
    const LANES: usize = 8;
    let max = maximum(logits);
    if max.is_infinite() {
        return f64::from(max);
    }
    let mut lanes = [0f64; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(exp(x - max));
        }
    }
    let sum: f64 = lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(exp(x - max))).sum::<f64>();
    f64::from(max) + sum.ln()
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
