//! What changes logits before the temperature: penalties, bias, bans.

use super::{SampleSpec, SamplingParams};
use crate::model::TokenId;

/// Which tokens a history holds, in a table over the vocabulary that is cleared by its own list of entries.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// `[vocab]`: 0 never seen; `1 + n` seen, `n` times of it in the output.
    table: Vec<u32>,
    tokens: Vec<TokenId>,
}

impl Seen {
    /// Tokens outside the vocabulary have no logit and are passed over.
    fn note(&mut self, token: TokenId, in_output: bool) {
        let Some(entry) = self.table.get_mut(token as usize) else { return };
        if *entry == 0 {
            *entry = 1;
            self.tokens.push(token);
        }
        *entry = entry.saturating_add(u32::from(in_output));
    }

    fn clear(&mut self) {
        for token in self.tokens.drain(..) {
            self.table[token as usize] = 0;
        }
    }
}

/// Most requests ask for none of it; their logits need no copy.
pub(super) fn changes_nothing(spec: &SampleSpec) -> bool {
    spec.history.is_none() && spec.params.logit_bias.is_empty() && spec.banned.is_empty()
}

pub(super) fn adjust(logits: &mut [f32], spec: &SampleSpec, seen: &mut Seen) {
    if let Some(history) = &spec.history {
        seen.table.resize(logits.len().max(seen.table.len()), 0);
        history.prompt.iter().for_each(|&t| seen.note(t, false));
        history.output.iter().for_each(|&t| seen.note(t, true));
        for &token in &seen.tokens {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = penalised(*logit, seen.table[token as usize] - 1, &spec.params);
            }
        }
        seen.clear();
    }
    for &(token, bias) in &spec.params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    for &token in spec.banned.iter() {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The logit of a token of the history that stands `in_output` times in the output.
///
/// Repetition as in CTRL (arXiv 1909.05858, section 4.1) with the sign taken into account, as everyone does:
/// positive logits are divided, negative ones multiplied. Frequency and presence as the OpenAI API defines them:
/// `logit - count * frequency - (count > 0) * presence`, counting the output only.
fn penalised(logit: f32, in_output: u32, params: &SamplingParams) -> f32 {
    let repetition = params.repetition_penalty;
    let logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
    if in_output == 0 {
        return logit;
    }
    logit - in_output as f32 * params.frequency_penalty - params.presence_penalty
}
