//! Which lane saw a prefix last: what placement knows of the lanes' prefix caches without asking them.
//!
//! Approximate on purpose. A lane may have dropped the blocks since; then placement was merely not better than random,
//! and the lane's own lookup, which compares tokens, decides what is reused.
//!
//! Bounded: at [`MAX_ENTRIES`] everything is forgotten and learnt again.

use std::hash::{Hash, Hasher};

use dashmap::DashMap;
use rustc_hash::{FxBuildHasher, FxHasher};

use crate::kv::BLOCK_TOKENS;
use crate::model::TokenId;

const MAX_ENTRIES: usize = 1 << 17;
/// Blocks of a prompt that are remembered: enough to tell conversations apart, whatever the prompt's length.
const MAX_BLOCKS: usize = 256;

/// From the hash of a prefix to the lane that computed it.
#[derive(Debug, Default)]
pub struct Affinity(DashMap<u64, usize, FxBuildHasher>);

impl Affinity {
    /// Tokens of the prompt's prefix that each lane has seen last, `[num_lanes]`.
    pub fn seen(&self, prompt: &[TokenId], salt: u64, num_lanes: usize) -> Vec<usize> {
        let mut seen = vec![0; num_lanes];
        for (index, hash) in prefixes(prompt, salt).enumerate() {
            let Some(lane) = self.0.get(&hash) else { break };
            if let Some(tokens) = seen.get_mut(*lane) {
                *tokens = (index + 1) * BLOCK_TOKENS;
            }
        }
        seen
    }

    /// `lane` is about to compute this prompt.
    pub fn learn(&self, prompt: &[TokenId], salt: u64, lane: usize) {
        if self.0.len() >= MAX_ENTRIES {
            self.0.clear();
        }
        for hash in prefixes(prompt, salt) {
            self.0.insert(hash, lane);
        }
    }
}

fn prefixes(prompt: &[TokenId], salt: u64) -> impl Iterator<Item = u64> {
    prompt.chunks_exact(BLOCK_TOKENS).take(MAX_BLOCKS).scan(salt, |parent, block| {
        let mut hasher = FxHasher::default();
        (*parent, block).hash(&mut hasher);
        *parent = hasher.finish();
        Some(*parent)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lane_that_saw_the_longest_prefix_is_known() {
        let affinity = Affinity::default();
        let prompt: Vec<u32> = (0..100).collect();
        affinity.learn(&prompt[..32], 7, 1);
        assert_eq!(affinity.seen(&prompt, 7, 3), [0, 32, 0]);
        affinity.learn(&prompt, 7, 2);
        assert_eq!(affinity.seen(&prompt, 7, 3), [0, 0, 96]);
        assert_eq!(affinity.seen(&prompt, 8, 3), [0, 0, 0], "another tenant's prefixes are not seen");
    }
}
