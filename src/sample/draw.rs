//! Temperature, the three filters and the draw.
//!
//! The filters are cuts of one ranking (probability, lowest token first among equals), so none of them needs the
//! ranking itself: each finds its border and drops what lies beyond, leaving the candidates in token order.

use super::select::{self, SelectScratch};
use super::weight::{first_beyond, total, units, weight};
use super::{TokenId, argmax};
use crate::model::draws::{Draw, WHOLE};

/// What may still be drawn, in token order.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    tokens: Vec<TokenId>,
    /// `(logit - max) / temperature`: none above zero.
    values: Vec<f32>,
    /// The probability relative to the most likely token's.
    weights: Vec<f32>,
    select: SelectScratch,
}

/// Draws by these numbers, of which the temperature is above zero.
pub(super) fn draw(logits: &[f32], draw: &Draw, candidates: &mut Candidates) -> TokenId {
    let (best, max) = argmax(logits);
    if max.is_infinite() {
        return best;
    }
    candidates.fill(logits, max, draw.temperature);
    if draw.top_k > 0 || draw.top_p < WHOLE {
        candidates.drop_vanished();
    }
    if draw.top_k > 0 && (draw.top_k as usize) < candidates.tokens.len() {
        candidates.keep_top_k(draw.top_k);
    }
    if draw.top_p < WHOLE {
        candidates.keep_top_p(draw.top_p);
    }
    if draw.min_p > 0.0 {
        candidates.keep_min_p(draw.min_p);
    }
    candidates.pick(draw.at).unwrap_or(best)
}

impl Candidates {
    fn fill(&mut self, logits: &[f32], max: f32, temperature: f32) {
        self.values.clear();
        self.values.extend(logits.iter().map(|&x| (x - max) / temperature));
        self.weights.clear();
        self.weights.extend(self.values.iter().map(|&v| weight(v)));
        self.tokens.clear();
        self.tokens.extend(0..logits.len() as TokenId);
    }

    /// Tokens whose weight is zero do not count for top-k, and are never drawn.
    fn drop_vanished(&mut self) {
        self.retain(|_, weight, _| weight > 0.0);
    }

    /// Exactly `k` stay: among equals at the border the lowest tokens.
    fn keep_top_k(&mut self, k: u32) {
        let cut = select::cut(&self.values, |_| 1, u64::from(k) - 1, &mut self.select);
        if let Some(cut) = cut {
            self.retain(|value, _, position| cut.keeps(select::key(value), position));
        }
    }

    /// The fewest most likely tokens whose probabilities (of those that top-k left) reach `p` of [`WHOLE`]; at least one.
    fn keep_top_p(&mut self, p: u64) {
        // To reach it is to exceed the largest number of units below it.
        let below = (u128::from(p) * u128::from(total(&self.weights, |w| w))).saturating_sub(1) / u128::from(WHOLE);
        let weights = &self.weights;
        let cut = select::cut(&self.values, |i| units(weights[i]), below as u64, &mut self.select);
        if let Some(cut) = cut {
            self.retain(|value, _, position| cut.keeps(select::key(value), position));
        }
    }

    /// Tokens at least `min_p` times as likely as the most likely one, which always stays (arXiv 2407.01082).
    fn keep_min_p(&mut self, min_p: f32) {
        self.retain(|_, weight, _| weight >= min_p);
    }

    /// Inverse of the cumulative distribution, in token order, at this part of [`WHOLE`].
    fn pick(&self, at: u64) -> Option<TokenId> {
        let target = u128::from(at) * u128::from(total(&self.weights, |w| w)) / u128::from(WHOLE);
        first_beyond(&self.weights, target as u64).map(|position| self.tokens[position])
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
