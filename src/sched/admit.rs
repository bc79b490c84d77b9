//! Who may start: room in the batch, room in KV memory, in order of age.
//!
//! A job is given the blocks of its whole prompt at once, so that a prompt once begun is never stopped halfway for
//! want of blocks; and only while every running sequence could still take one block more, so that admission is not
//! followed by preemption at once. The oldest job is never passed over for one that would fit: it would starve.

use super::job::{Age, Micros};
use super::lane::Lane;
use super::sequence::{Sequence, lacks_prompt_logprobs};
use crate::kv::{PrefixMatch, TokenParts};

/// The job that did not fit last time, and what was available then: it is not worth hashing its prompt again until
/// something has been released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocked {
    age: Age,
    num_available: usize,
}

impl<S: Clone> Lane<S> {
    /// Admits the waiting job at `index` if there is room for it, and returns its place in `running`.
    pub(super) fn admit(&mut self, index: usize, now: Micros) -> Option<usize> {
        let job = self.waiting.get(index)?;
        let (running, available) = (self.num_branches(), self.kv.num_available());
        if running + job.branches.len() > self.config.max_running {
            return None;
        }
        let age = job.age();
        if self.blocked.is_some_and(|blocked| blocked.age == age && available <= blocked.num_available) {
            return None;
        }
        let output = job.branches.first().map_or(&[][..], |branch| &branch.output);
        let tokens = TokenParts { prompt: &job.prompt, output };
        // A cached block would leave its prompt tokens without log-probabilities.
        let skips_cache = lacks_prompt_logprobs(job) || !self.config.prefix_cache;
        let found = if skips_cache { PrefixMatch::none(job.salt) } else { self.kv.lookup(tokens, job.salt) };
        // Alone, it needs no reserve: submission has made sure that any one sequence fits.
        let reserve = if running == 0 { 0 } else { running + job.branches.len() - 1 };
        if self.kv.cost(&found, tokens.len()) + reserve > available {
            self.blocked = Some(Blocked { age, num_available: available });
            return None;
        }
        if !skips_cache {
            self.totals.prefix_queries += tokens.len() as u64;
            self.totals.prefix_hits += found.num_tokens() as u64;
        }
        self.open(index, found, now)
    }

    fn open(&mut self, index: usize, found: PrefixMatch, now: Micros) -> Option<usize> {
        let job = self.waiting.remove(index)?;
        let cached_tokens = found.num_tokens() as u32;
        let mut table = self.kv.open(found);
        let mut copies = Vec::new();
        self.kv.reserve(&mut table, job.num_tokens(), &mut copies).expect("the cost was compared with what there is");
        debug_assert!(copies.is_empty(), "a found prefix is made of full blocks");
        let queued_us = now.saturating_sub(job.arrived_at);
        let place = self.running.partition_point(|seq| seq.job.age() < job.age());
        let seq = Sequence { id: self.next_seq_id(), job, table, queued_us, cached_tokens, drafter: None };
        self.running.insert(place, seq);
        Some(place)
    }
}
