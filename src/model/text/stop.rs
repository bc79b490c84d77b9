//! Stop strings in a stream of text. Owns the text that may yet turn out to belong to a stop string, and nothing else.
//!
//! One Knuth-Morris-Pratt automaton per stop string runs over the bytes, so the cost is linear in the text (times the
//! number of stop strings, which the API limits to 16) and the text held back is shorter than the longest stop string.
//! The stop string that *ends* first wins, of those that end together the longest: the only rule by which a result does
//! not depend on how the text was cut into pushes.

use std::sync::Arc;

struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix that is also a suffix of the first `n + 1` bytes.
    fallback: Vec<usize>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = fallback[matched - 1];
            }
            if bytes[at] == bytes[matched] {
                matched += 1;
            }
            fallback[at] = matched;
        }
        Pattern { bytes, fallback }
    }

    /// How much of the pattern ends at `byte`, when `matched` (less than all) ended before it.
    fn step(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.fallback[matched - 1];
        }
        if self.bytes[matched] == byte { matched + 1 } else { 0 }
    }
}

/// What a push released.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Text that belongs to the answer for certain.
    pub emit: String,
    /// Index of the stop string that completed; nothing is released after it.
    pub hit: Option<usize>,
}

pub struct StopMatcher {
    patterns: Arc<[Pattern]>,
    matched: Vec<usize>,
    held: String,
    includes_stop: bool,
    has_stopped: bool,
}

impl StopMatcher {
    /// `includes_stop` keeps the stop string itself in the text. An empty stop string never matches.
    pub fn new(stops: &[String], includes_stop: bool) -> Self {
        StopMatcher {
            patterns: stops.iter().map(|stop| Pattern::new(stop)).collect(),
            matched: vec![0; stops.len()],
            held: String::new(),
            includes_stop,
            has_stopped: false,
        }
    }

    /// There is nothing to look for: text may pass by.
    pub fn is_idle(&self) -> bool {
        self.patterns.is_empty()
    }

    pub fn push(&mut self, text: &str) -> Stopped {
        if self.has_stopped {
            return Stopped::default();
        }
        if self.patterns.is_empty() {
            return Stopped { emit: text.to_owned(), hit: None };
        }
        let num_held = self.held.len();
        self.held.push_str(text);
        for at in num_held..self.held.len() {
            if let Some((hit, len)) = self.step(self.held.as_bytes()[at]) {
                self.has_stopped = true;
                let mut emit = std::mem::take(&mut self.held);
                emit.truncate(if self.includes_stop { at + 1 } else { at + 1 - len });
                return Stopped { emit, hit: Some(hit) };
            }
        }
        let num_possible = self.matched.iter().copied().max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - num_possible);
        Stopped { emit: std::mem::replace(&mut self.held, kept), hit: None }
    }

    /// The text held back, now that nothing follows it.
    pub fn finish(&mut self) -> String {
        self.matched.fill(0);
        std::mem::take(&mut self.held)
    }

    /// Advances every automaton by one byte; the index and length of the longest stop string that ends here.
    fn step(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut hit: Option<(usize, usize)> = None;
        for (index, pattern) in self.patterns.iter().enumerate() {
            if pattern.bytes.is_empty() {
                continue;
            }
            let matched = pattern.step(self.matched[index], byte);
            self.matched[index] = matched;
            if matched == pattern.bytes.len() && hit.is_none_or(|(_, len)| matched > len) {
                hit = Some((index, matched));
            }
        }
        hit
    }
}
