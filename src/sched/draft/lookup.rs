//! Prompt lookup: where a sequence's last tokens stood before, in the sequence itself (Saxena, "Prompt Lookup Decoding",
//! 2023).
//!
//! A table from hashes of n-grams to where the last of them ended. One slot for each hash and no chains: whoever comes
//! later takes the slot, so that a token costs the same at any length of context, and what is found is the most recent.
//! Tokens are compared on every hit: a shared slot loses a match, and never makes one up.
//!
//! Memory: at most 16 bytes for each token and length, and 1 MiB in all: with three lengths, what is older than some 80
//! thousand tokens fades.

use crate::kv::TokenParts;

/// Longest n-gram.
pub const MAX_NGRAM: usize = 8;

const MIN_SLOTS: usize = 256;
const MAX_SLOTS: usize = 1 << 18;

/// Where the last `len` tokens stood before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    pub len: usize,
    /// Position of the token that followed them there.
    pub next: usize,
}

/// See the module's text.
#[derive(Debug)]
pub struct PromptLookup {
    min: usize,
    max: usize,
    /// Position after an n-gram by its hash; 0 where there is none.
    slots: Vec<u32>,
    /// Tokens that are in the table.
    num_tokens: usize,
}

impl PromptLookup {
    /// Looks for the last `max` tokens first, for the last `min` at least.
    pub fn new(min: usize, max: usize) -> Self {
        assert!((1..=max).contains(&min) && max <= MAX_NGRAM, "n-grams of {min} to {max} tokens");
        Self { min, max, slots: Vec::new(), num_tokens: 0 }
    }

    pub fn max_len(&self) -> usize {
        self.max
    }

    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Makes room for `num_tokens` tokens. A table that grows begins anew: tokens are at hand, and it doubles.
    pub fn reserve(&mut self, num_tokens: usize) {
        let wanted = (num_tokens * (self.max - self.min + 1)).next_power_of_two().clamp(MIN_SLOTS, MAX_SLOTS);
        if wanted > self.slots.len() {
            self.slots.clear();
            self.slots.resize((2 * wanted).min(MAX_SLOTS), 0);
            self.num_tokens = 0;
        }
    }

    /// Takes in the token after those that are in the table, and finds the longest n-gram that ends with it.
    pub fn push(&mut self, tokens: TokenParts<'_>) -> Option<Match> {
        let end = self.num_tokens + 1;
        let mut hash = 0;
        let mut longest = None;
        for len in 1..=self.max.min(end) {
            let Some(token) = tokens.get(end - len) else { break };
            hash = mixed(hash, token);
            if len < self.min {
                continue;
            }
            let slot = (hash >> (u64::BITS - self.slots.len().ilog2())) as usize;
            let next = std::mem::replace(&mut self.slots[slot], end as u32) as usize;
            let is_same = |back: &usize| tokens.get(next - back) == tokens.get(end - back);
            // Two lengths of this very place may share a slot.
            if (len..end).contains(&next) && (1..=len).rev().all(|back| is_same(&back)) {
                longest = Some(Match { len, next });
            }
        }
        self.num_tokens = end;
        longest
    }
}

/// One multiplication a token; its high bits choose the slot.
fn mixed(hash: u64, token: u32) -> u64 {
    (hash.rotate_left(23) ^ (u64::from(token) + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, looked for from the end.
    fn slowly(tokens: &[u32], min: usize, max: usize) -> Option<Match> {
        let end = tokens.len();
        let stood = |len: usize| (len..end).rev().find(|&next| tokens[next - len..next] == tokens[end - len..]);
        (min..=max.min(end)).rev().find_map(|len| stood(len).map(|next| Match { len, next }))
    }

    fn parts(tokens: &[u32], cut: usize) -> TokenParts<'_> {
        let (prompt, output) = tokens.split_at(cut.min(tokens.len()));
        TokenParts { prompt, output }
    }

    proptest! {
        #[test]
        fn finds_the_longest_and_most_recent(
            tokens in proptest::collection::vec(0u32..4, 1..120), min in 1usize..4, more in 0usize..5, cut in 0usize..120
        ) {
            let max = (min + more).min(MAX_NGRAM);
            let mut lookup = PromptLookup::new(min, max);
            lookup.reserve(tokens.len());
            for end in 1..=tokens.len() {
                let found = lookup.push(parts(&tokens, cut));
                let expected = slowly(&tokens[..end], min, max);
                // A slot that two n-grams share loses a match; it never makes one up.
                if found != expected {
                    let Match { len, next } = found.unwrap_or(Match { len: min, next: end });
                    prop_assert_eq!(&tokens[next - len..next], &tokens[end - len..end]);
                    prop_assert!(expected.is_some_and(|expected| expected.len >= len));
                }
            }
        }
    }

    #[test]
    fn nearly_everything_is_found_and_memory_is_bounded() {
        let period: Vec<u32> = (0..20_000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 8).collect();
        let tokens: Vec<u32> = period.iter().chain(&period).copied().collect();
        let mut lookup = PromptLookup::new(2, 4);
        lookup.reserve(tokens.len());
        let found: Vec<_> = (0..tokens.len()).map(|_| lookup.push(parts(&tokens, 7))).collect();
        let right = (period.len() + 3..tokens.len())
            .filter(|&i| found[i].is_some_and(|found| found.next == i + 1 - period.len()))
            .count();
        assert!(right * 100 > period.len() * 95, "{right} of {}", period.len());
        assert_eq!(found[..period.len()].iter().flatten().count(), 0, "nothing repeats in the first period");
        let mut small = PromptLookup::new(2, 4);
        small.reserve(100);
        assert!(small.slots.len() * size_of::<u32>() <= 100 * 3 * 16);
        small.push(parts(&tokens, 0));
        small.reserve(100_000_000);
        assert_eq!((small.slots.len(), small.num_tokens()), (MAX_SLOTS, 0));
    }
}
