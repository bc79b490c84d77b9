//! Keys that were looked up lately, good and bad ones.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Principal;
use crate::gate::key::KeyHash;
use crate::sched::job::Micros;

/// What the store said of a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Known(Arc<Principal>),
    Unknown,
}

/// Bounded, and of one age limit. Unknown keys have a quarter of the room to themselves, so that a flood of them pushes
/// no good key out.
#[derive(Debug)]
pub struct KeyCache {
    ttl: Micros,
    known: Shelf,
    unknown: Shelf,
}

impl KeyCache {
    pub fn new(ttl: Micros, max_keys: usize) -> Self {
        let max_unknown = (max_keys / 4).max(1);
        let max_known = max_keys.saturating_sub(max_unknown).max(1);
        Self { ttl, known: Shelf::new(max_known), unknown: Shelf::new(max_unknown) }
    }

    /// None when the store must be asked.
    pub fn get(&self, now: Micros, hash: &KeyHash) -> Option<&Verdict> {
        self.known.get(now, hash).or_else(|| self.unknown.get(now, hash))
    }

    pub fn put(&mut self, now: Micros, hash: KeyHash, verdict: Verdict) {
        let until = now.saturating_add(self.ttl);
        self.known.remove(&hash);
        self.unknown.remove(&hash);
        let shelf = if matches!(verdict, Verdict::Known(_)) { &mut self.known } else { &mut self.unknown };
        shelf.put(until, hash, verdict);
    }

    /// Whether this was a good key when the store was last asked, however long ago.
    pub fn was_known(&self, hash: &KeyHash) -> bool {
        self.known.entries.contains_key(hash)
    }

    pub fn forget(&mut self, key_id: &str) {
        let is_it = |v: &Verdict| matches!(v, Verdict::Known(p) if &*p.key_id == key_id);
        let hashes: Vec<_> = self.known.entries.iter().filter(|(_, e)| is_it(&e.1)).map(|(h, _)| *h).collect();
        hashes.iter().for_each(|hash| self.known.remove(hash));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.entries.len() + self.unknown.entries.len()
    }
}

/// Entries end in the order in which they came, since all live equally long.
#[derive(Debug)]
struct Shelf {
    max: usize,
    entries: HashMap<KeyHash, (Micros, Verdict)>,
    /// Exactly the keys of `entries`, oldest first.
    order: VecDeque<KeyHash>,
}

impl Shelf {
    fn new(max: usize) -> Self {
        Self { max, entries: HashMap::new(), order: VecDeque::new() }
    }

    fn get(&self, now: Micros, hash: &KeyHash) -> Option<&Verdict> {
        self.entries.get(hash).filter(|(until, _)| now < *until).map(|(_, verdict)| verdict)
    }

    /// `hash` is not there. Drops the oldest when there is no room.
    fn put(&mut self, until: Micros, hash: KeyHash, verdict: Verdict) {
        while self.entries.len() >= self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        self.entries.insert(hash, (until, verdict));
        self.order.push_back(hash);
    }

    fn remove(&mut self, hash: &KeyHash) {
        // The walk is rare: a hash is put again only after it ended, and then it is near the front.
        if self.entries.remove(hash).is_some()
            && let Some(at) = self.order.iter().position(|h| h == hash)
        {
            self.order.remove(at);
        }
    }
}
