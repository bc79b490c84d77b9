//! From logits to a token: pure functions over `&[f32]`.
//!
//! Owns the order of the steps and the random numbers. Never knows about sequences, devices or text.
//!
//! The order: raw log-probabilities are recorded → repetition penalty → frequency and presence penalties →
//! logit bias → bans → temperature → top-k → top-p → min-p → draw. The last five follow the order of the
//! processors in Hugging Face transformers (`GenerationMixin._get_logits_processor`), so that the defaults of a
//! checkpoint's `generation_config.json` mean here what they meant to its authors. vLLM applies min-p before
//! top-p; the two differ only where both are set, and then by top-p's renormalisation alone.
//!
//! Not-a-number logits count as minus infinity. Where nothing can be drawn (every logit minus infinity, or
//! banned), the token is 0: the caller's step goes on, and a broken model shows in its text, not in a panic.
//!
//! Invariant: the draw depends only on the logits and the [`SampleSpec`]; same seed and index, same token.
//! `exp` is our own, and probabilities are rounded to a multiple of 2^-40 of the largest, so that their sums are exact in any
//! order: a device draws the same tokens as this does (kernels/README.md, Sampling), and both do so on every machine.

mod adjust;
mod draw;
mod logprobs;
mod params;
mod philox;
mod select;
#[cfg(test)]
mod tests;
mod weight;

pub use logprobs::token_logprobs;
pub use params::{History, SampleSpec, Sampled, SamplingParams, TokenLogprobs};
pub use philox::{philox4x32, uniform};

use crate::model::TokenId;
use crate::model::draws::{Change, Draw, Requests, WHOLE};

/// Buffers that one thread keeps between draws; they grow to the vocabulary's size once.
#[derive(Debug, Default)]
pub struct Scratch {
    collector: adjust::Collector,
    changes: Vec<Change>,
    draw: draw::Candidates,
    /// Logits after penalties, bias and bans.
    adjusted: Vec<f32>,
}

/// Draws one token from `raw` logits (`[vocab]`).
pub fn sample(raw: &[f32], spec: &SampleSpec, scratch: &mut Scratch) -> Sampled {
    scratch.changes.clear();
    scratch.collector.collect(spec, raw.len(), &mut scratch.changes);
    let draw = spec.draw();
    let logits = if scratch.changes.is_empty() {
        raw
    } else {
        scratch.adjusted.clear();
        scratch.adjusted.extend_from_slice(raw);
        adjust::adjust(&mut scratch.adjusted, &scratch.changes, &draw);
        &scratch.adjusted
    };
    let token = if draw.temperature > 0.0 { draw::draw(logits, &draw, &mut scratch.draw) } else { argmax(logits).0 };
    let logprobs = spec.params.logprobs.map(|top| Box::new(token_logprobs(raw, token, top as usize)));
    Sampled { token, logprobs }
}

/// Asks a device for the draws of one row of logits. What it is asked for is what [`sample`] draws by. False, and nothing is
/// asked, where they see different logits: a device changes a row for all of its draws.
pub fn request(specs: &[SampleSpec], row: u32, vocab_size: usize, scratch: &mut Scratch, to: &mut Requests) -> bool {
    let (first_draw, first_change) = (to.draws.len(), to.changes.len());
    for spec in specs {
        let start = to.changes.len();
        scratch.collector.collect(spec, vocab_size, &mut to.changes);
        let draw = Draw { row, first_change: first_change as u32, ..spec.draw() };
        let Some(first) = to.draws.get(first_draw) else {
            to.draws.push(Draw { num_changes: (to.changes.len() - start) as u32, ..draw });
            continue;
        };
        let penalties = |d: &Draw| [d.repetition_penalty, d.frequency_penalty, d.presence_penalty];
        if to.changes[first_change..start] != to.changes[start..] || penalties(first) != penalties(&draw) {
            to.draws.truncate(first_draw);
            to.changes.truncate(first_change);
            return false;
        }
        to.changes.truncate(start);
        to.draws.push(draw);
    }
    true
}

/// The largest logit and the lowest token that has it; `(0, -inf)` where there is no larger one.
fn argmax(logits: &[f32]) -> (TokenId, f32) {
    // Two passes, because a maximum alone is a loop that vectorises, and so is a search.
    let max = maximum(logits);
    let at = logits.iter().position(|&x| x == max).unwrap_or(0);
    (at as TokenId, max)
}

/// The largest logit, not-a-numbers apart; minus infinity where there is none.
fn maximum(logits: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}
