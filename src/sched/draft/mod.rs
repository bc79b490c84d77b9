//! Drafts of one sequence: guesses at its next tokens, and how often such guesses are right.
//!
//! A guess is what followed the same tokens where they stood last ([`PromptLookup`]). Each drawn token says whether it
//! would have been guessed, also where no guess was computed ahead: so acceptance is measured all the time and costs
//! nothing, no step is spent on trying again, and what fails is not drafted until it would have come true for a while.
//!
//! Guesses after long matches come true more often than those after short ones, so rates are kept by length.

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
/// Weight of the newest guess.
const NEWEST: f64 = 0.125;

/// See the module's text.
#[derive(Debug)]
pub struct Drafter {
    lookup: PromptLookup,
    /// What is guessed for the token after those taken in.
    guess: Option<Match>,
    /// Share of guesses that were right lately, by the length of what matched, less one.
    rates: [f64; MAX_NGRAM],
}

impl Drafter {
    pub fn new(config: &Speculation) -> Self {
        Self { lookup: PromptLookup::new(config.min_ngram, config.max_ngram), guess: None, rates: [PRIOR; MAX_NGRAM] }
    }

    /// Takes in the tokens that have come since the last call; they say how good its guesses were. The first call, and
    /// those at which the table doubles, cost time in proportion to the sequence; any other, to what has come.
    pub fn catch_up(&mut self, tokens: TokenParts<'_>) {
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
                let rate = &mut self.rates[guess.len - 1];
                *rate += NEWEST * (f64::from(u8::from(is_right)) - *rate);
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
            chance *= self.rates[(len + drafts.len()).min(self.lookup.max_len()) - 1];
            // Past the end it goes on with the guesses themselves: a short period repeats.
            let position = next + drafts.len();
            let token = tokens.get(position).or_else(|| drafts.get(position - tokens.len()).copied());
            let Some(token) = token.filter(|_| stake.take(chance)) else { return };
            drafts.push(token);
        }
    }
}
