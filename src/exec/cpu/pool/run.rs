//! The chunks that a thread has yet to take, some of which another may take instead.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Chunks that one thread has yet to take: the first (high 32 bits) and the end. Others may take from its end, and leave an
/// empty one alone, so that only its owner fills it.
#[derive(Default)]
pub struct Run(AtomicU64);

impl Run {
    /// By its owner while it is empty, or by whoever opens a job before that.
    pub fn set(&self, chunks: Range<usize>) {
        // What a chunk reads was there before the job was opened, and joining that orders it.
        self.0.store((chunks.start as u64) << 32 | chunks.end as u64, Relaxed);
    }

    pub fn take(&self) -> Option<usize> {
        self.update(|chunks| (chunks.start + 1..chunks.end, chunks.start))
    }

    /// At least one, if there is one.
    pub fn take_half(&self) -> Option<Range<usize>> {
        self.update(|chunks| {
            let middle = chunks.start + chunks.len() / 2;
            (chunks.start..middle, middle..chunks.end)
        })
    }

    /// `take` says what becomes of a run that is not empty, and what is taken from it.
    fn update<T>(&self, take: impl Fn(Range<usize>) -> (Range<usize>, T)) -> Option<T> {
        let mut bits = self.0.load(Relaxed);
        loop {
            let (start, end) = ((bits >> 32) as usize, bits as u32 as usize);
            if start >= end {
                return None;
            }
            let (left, taken) = take(start..end);
            let left = (left.start as u64) << 32 | left.end as u64;
            match self.0.compare_exchange_weak(bits, left, Relaxed, Relaxed) {
                Ok(_) => return Some(taken),
                Err(now) => bits = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_taken_from_both_ends_and_loses_nothing() {
        let run = Run::default();
        assert_eq!((run.take(), run.take_half()), (None, None));
        run.set(3..10);
        assert_eq!(run.take(), Some(3));
        assert_eq!(run.take_half(), Some(7..10));
        assert_eq!(run.take_half(), Some(5..7));
        assert_eq!((run.take(), run.take(), run.take_half()), (Some(4), None, None));
        run.set(1..2);
        assert_eq!((run.take_half(), run.take()), (Some(1..2), None));
    }
}
