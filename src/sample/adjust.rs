//! What changes logits before the temperature: penalties, bias, bans.

use super::{SampleSpec, TokenId};
use crate::model::draws::{BANNED, Change, Draw};

/// Collects the changes of a draw; kept between draws.
#[derive(Debug, Default)]
pub(super) struct Collector {
    /// `[vocab]`: 0 not yet in the list; else one more than its place there.
    places: Vec<u32>,
}

/// Most requests ask for none of it; their logits need no copy.
pub(super) fn changes_nothing(spec: &SampleSpec) -> bool {
    spec.history.is_none() && spec.params.logit_bias.is_empty() && spec.banned.is_empty()
}

impl Collector {
    /// Adds the changes that `spec` asks for to `changes`, each token once.
    pub fn collect(&mut self, spec: &SampleSpec, vocab_size: usize, changes: &mut Vec<Change>) {
        if changes_nothing(spec) {
            return;
        }
        self.places.resize(vocab_size.max(self.places.len()), 0);
        let first = changes.len();
        let mut list = List { places: &mut self.places[..vocab_size], first, changes };
        if let Some(history) = &spec.history {
            history.prompt.iter().for_each(|&token| list.change(token, |change| change.seen = 1));
            history.output.iter().for_each(|&token| list.change(token, |change| change.seen = change.seen.max(1) + 1));
        }
        for &(token, bias) in &spec.params.logit_bias {
            list.change(token, |change| change.bias += bias);
        }
        for &token in spec.banned.iter() {
            list.change(token, |change| change.seen = BANNED);
        }
        for change in &changes[first..] {
            self.places[change.token as usize] = 0;
        }
    }
}

/// The changes of one draw so far.
struct List<'a> {
    places: &'a mut [u32],
    first: usize,
    changes: &'a mut Vec<Change>,
}

impl List<'_> {
    /// Tokens outside the vocabulary have no logit and are passed over.
    #[inline]
    fn change(&mut self, token: TokenId, apply: impl FnOnce(&mut Change)) {
        let Some(place) = self.places.get_mut(token as usize) else { return };
        if *place == 0 {
            self.changes.push(Change { token, seen: 0, bias: 0.0 });
            *place = (self.changes.len() - self.first) as u32;
        }
        apply(&mut self.changes[self.first + *place as usize - 1]);
    }
}

/// Logits as the draw sees them; of each token that has a change, there is one.
pub(super) fn adjust(logits: &mut [f32], changes: &[Change], draw: &Draw) {
    for change in changes {
        let logit = &mut logits[change.token as usize];
        *logit = changed(*logit, change, draw);
    }
}

/// kernels/sample_change.cu is the twin.
///
/// Repetition as in CTRL (arXiv 1909.05858, section 4.1) with the sign taken into account, as everyone does:
/// positive logits are divided, negative ones multiplied. Frequency and presence as the OpenAI API defines them:
/// `logit - count * frequency - (count > 0) * presence`, counting the output only.
fn changed(mut logit: f32, change: &Change, draw: &Draw) -> f32 {
    if change.seen == BANNED {
        return f32::NEG_INFINITY;
    }
    if change.seen > 0 {
        let repetition = draw.repetition_penalty;
        logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
    }
    if change.seen > 1 {
        logit = logit - (change.seen - 1) as f32 * draw.frequency_penalty - draw.presence_penalty;
    }
    logit += change.bias;
    if logit.is_nan() { f32::NEG_INFINITY } else { logit }
}
