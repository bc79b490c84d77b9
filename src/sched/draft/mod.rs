//! Drafts of one sequence: guesses at its next tokens, and how often such guesses are right.
//!
//! A guess is what followed the same tokens where they stood last ([`PromptLookup`]). Each drawn token says whether it
//! would have been guessed, also where no guess was computed ahead: so acceptance is measured all the time and costs
//! nothing, no step is spent on trying again, and what fails is not drafted until it would have come true for a while.
//!
//! Guesses after long matches come true more often than those after short ones, so rates are kept by length. A sequence
//! begins with what the lane's others have found: where nothing repeats, not every newcomer has to find out.

mod lookup;
mod stake;

pub use lookup::MAX_NGRAM;
use lookup::{Match, PromptLookup};
pub use stake::Stake;

use super::config::Speculation;
use crate::kv::TokenParts;
use crate::model::TokenId;

/// Share of guesses that are right, where nothing was measured.
const PRIOR: f64 = 0.5;
/// Weight of the newest guess, for its sequence and for those to come.
const NEWEST: f64 = 1.0 / 8.0;
const NEWEST_OF_ALL: f64 = 1.0 / 32.0;

/// Share of guesses that were right lately, by the length of what matched, less one.
#[derive(Debug, Clone, Copy)]
pub struct Rates([f64; MAX_NGRAM]);

impl Default for Rates {
    fn default() -> Self {
        Self([PRIOR; MAX_NGRAM])
    }
}

impl Rates {
    fn note(&mut self, len: usize, is_right: bool, weight: f64) {
        let rate = &mut self.0[len - 1];
        *rate += weight * (f64::from(u8::from(is_right)) - *rate);
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Drafter {
    lookup: PromptLookup,
    /// What is guessed for the token after those taken in.
    guess: Option<Match>,
    rates: Rates,
}

impl Drafter {
    /// `rates` are those of its lane.
    pub fn new(config: &Speculation, rates: Rates) -> Self {
        Self { lookup: PromptLookup::new(config.min_ngram, config.max_ngram), guess: None, rates }
    }

    /// Takes in the tokens that have come since the last call; they say how good its guesses were, to its lane too. The
    /// first call, and those at which the table doubles, cost time in proportion to the sequence; any other, to what has
    /// come.
    pub fn catch_up(&mut self, tokens: TokenParts<'_>, of_all: &mut Rates) {
        let known = self.lookup.num_tokens();
        self.lookup.reserve(tokens.len());
        while self.lookup.num_tokens() < tokens.len() {
            let end = self.lookup.num_tokens();
            // A prompt says little about its answer: only what was drawn since counts, and that once.
            if known > 0
                && end >= known
                && let Some(guess) = self.guess
            {
                let is_right = tokens.get(guess.next) == tokens.get(end);
                self.rates.note(guess.len, is_right, NEWEST);
                of_all.note(guess.len, is_right, NEWEST_OF_ALL);
            }
            self.guess = self.lookup.push(tokens);
        }
    }

    /// Writes the tokens that probably follow into `drafts`, as many as the stake pays for and `max` at most. `tokens` are
    /// those of the last [`Drafter::catch_up`].
    pub fn draft(&self, tokens: TokenParts<'_>, max: usize, stake: &mut Stake, drafts: &mut Vec<TokenId>) {
        drafts.clear();
        let Some(Match { len, next }) = self.guess else { return };
        let mut chance = 1.0;
        while drafts.len() < max {
            // What follows a right guess follows a longer match.
            chance *= self.rates.0[(len + drafts.len()).min(self.lookup.max_len()) - 1];
            // Past the end it goes on with the guesses themselves: a short period repeats.
            let position = next + drafts.len();
            let token = tokens.get(position).or_else(|| drafts.get(position - tokens.len()).copied());
            let Some(token) = token.filter(|_| stake.take(chance)) else { return };
            drafts.push(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Speculation = Speculation { max_drafts: 8, min_ngram: 2, max_ngram: 3, always: false };

    fn parts(output: &[TokenId]) -> TokenParts<'_> {
        TokenParts { prompt: &[1, 2, 3, 1, 2, 3], output }
    }

    /// Drafts after this output at a price of a row, in steps.
    fn drafts(drafter: &Drafter, output: &[TokenId], row_us: f64) -> Vec<TokenId> {
        let mut stake = Stake { rows: 64, us: 1.0, tokens: 1.0, row_us, max_us: f64::INFINITY };
        let mut drafts = Vec::new();
        drafter.draft(parts(output), CONFIG.max_drafts, &mut stake, &mut drafts);
        drafts
    }

    #[test]
    fn what_comes_true_makes_drafts_longer_for_it_and_for_newcomers() {
        let mut of_all = Rates::default();
        let mut drafter = Drafter::new(&CONFIG, of_all);
        drafter.catch_up(parts(&[]), &mut of_all);
        assert_eq!(drafts(&drafter, &[], 0.0), [1, 2, 3, 1, 2, 3, 1, 2], "free, and past the end in the same period");
        let at_first = drafts(&drafter, &[], 0.1).len();
        let output: Vec<_> = (0..300).map(|i| 1 + i % 3).collect();
        // Token by token, and many at once.
        (1..=9).chain([300]).for_each(|end| drafter.catch_up(parts(&output[..end]), &mut of_all));
        assert_eq!(drafts(&drafter, &output, 0.1).len(), 8);
        let mut newcomer = Drafter::new(&CONFIG, of_all);
        newcomer.catch_up(parts(&[]), &mut of_all);
        assert!(drafts(&newcomer, &[], 0.1).len() > at_first);
    }

    #[test]
    fn what_never_comes_true_is_not_drafted_and_is_found_to_again_without_being_computed() {
        let mut of_all = Rates::default();
        let mut drafter = Drafter::new(&CONFIG, of_all);
        let mut output: Vec<_> = (0..60).map(|i| if i % 3 == 2 { 100 + i } else { 1 + i % 3 }).collect();
        output.extend([1, 2]);
        drafter.catch_up(parts(&[]), &mut of_all);
        drafter.catch_up(parts(&output), &mut of_all);
        assert!(drafts(&drafter, &output, 0.1).is_empty());
        assert!(!drafts(&drafter, &output, 0.0).is_empty(), "there is a guess, it is not worth anything");
        output.extend((0..60).map(|i| 1 + (i + 2) % 3));
        drafter.catch_up(parts(&output), &mut of_all);
        assert!(drafts(&drafter, &output, 0.1).len() > 3);
    }
}
