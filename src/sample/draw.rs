//! Temperature, the three filters and the draw.
//!
//! The filters are cuts of one ranking (probability, lowest token first among equals), so none of them needs the
//! ranking itself: each finds its border and drops what lies beyond, leaving the candidates in token order.

use super::exp::exp;
use super::select::{self, SelectScratch};
use super::{SamplingParams, argmax};
use crate::model::TokenId;

/// What may still be drawn, in token order.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    tokens: Vec<TokenId>,
    /// `(logit - max) / temperature`: none above zero.
    values: Vec<f32>,
    /// `exp(value)`: the probability relative to the most likely token's.
    weights: Vec<f32>,
    select: SelectScratch,
}

/// Draws at `u` in `[0, 1)` under `params` (whose temperature is above zero).
pub(super) fn draw(logits: &[f32], params: &SamplingParams, u: f64, candidates: &mut Candidates) -> TokenId {
    let (best, max) = argmax(logits);
    if max.is_infinite() {
        return best;
    }
    candidates.fill(logits, max, params.temperature);
    if params.top_k > 0 && (params.top_k as usize) < candidates.tokens.len() {
        candidates.keep_top_k(params.top_k);
    }
    if params.top_p < 1.0 {
        candidates.keep_top_p(params.top_p);
    }
    if params.min_p > 0.0 {
        candidates.keep_min_p(params.min_p);
    }
    candidates.pick(u).unwrap_or(best)
}

impl Candidates {
    /// All tokens whose weight does not vanish in float32.
    fn fill(&mut self, logits: &[f32], max: f32, temperature: f32) {
        self.values.clear();
        self.values.extend(logits.iter().map(|&x| (x - max) / temperature));
        self.weights.clear();
        self.weights.extend(self.values.iter().map(|&v| exp(v)));
        self.tokens.clear();
        self.tokens.extend(0..logits.len() as TokenId);
        self.retain(|_, weight, _| weight > 0.0);
    }

    /// Exactly `k` stay: among equals at the border the lowest tokens.
    fn keep_top_k(&mut self, k: u32) {
        let cut = select::cut(&self.values, |_| 1.0, f64::from(k), &mut self.select);
        if let Some(cut) = cut {
            self.retain(|value, _, position| cut.keeps(select::key(value), position));
        }
    }

    /// The fewest most likely tokens whose probabilities (of those that top-k left) reach `p`; at least one.
    fn keep_top_p(&mut self, p: f32) {
        let target = f64::from(p) * total(&self.weights);
        let weights = &self.weights;
        let cut = select::cut(&self.values, |i| f64::from(weights[i]), target, &mut self.select);
        if let Some(cut) = cut {
            self.retain(|value, _, position| cut.keeps(select::key(value), position));
        }
    }

    /// Tokens at least `min_p` times as likely as the most likely one, which always stays (arXiv 2407.01082).
    fn keep_min_p(&mut self, min_p: f32) {
        let min_p = min_p.min(1.0);
        self.retain(|_, weight, _| weight >= min_p);
    }

    /// Inverse of the cumulative distribution, in token order.
    fn pick(&self, u: f64) -> Option<TokenId> {
        let target = u * total(&self.weights);
        let mut reached = 0.0;
        for (&token, &weight) in self.tokens.iter().zip(&self.weights) {
            reached += f64::from(weight);
            if reached > target {
                return Some(token);
            }
        }
        self.tokens.last().copied()
    }

    fn retain(&mut self, keep: impl Fn(f32, f32, usize) -> bool) {
        let mut kept = 0;
        for i in 0..self.tokens.len() {
            let keep = keep(self.values[i], self.weights[i], i);
            self.tokens[kept] = self.tokens[i];
            self.values[kept] = self.values[i];
            self.weights[kept] = self.weights[i];
            kept += usize::from(keep);
        }
        self.tokens.truncate(kept);
        self.values.truncate(kept);
        self.weights.truncate(kept);
    }
}

/// Sum in token order and double precision: the order is what makes it reproducible.
fn total(weights: &[f32]) -> f64 {
    weights.iter().map(|&w| f64::from(w)).sum()
}
