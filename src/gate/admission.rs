//! The door: how many requests may be inside, and how many prompt tokens may wait for a device.
//!
//! Owns the two counts and the measured rates from which `Retry-After` follows. Never knows who asks.
//!
//! Invariant: what a [`Permit`] took is given back when it is dropped, however the request ended.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::base::clock;
use crate::base::error::Error;

/// Longest wait that a refusal predicts; beyond it a number would be a guess.
const MAX_RETRY_AFTER_S: u64 = 60;
/// Time constant of the measured rates.
const RATE_TAU_US: f64 = 10e6;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_requests: usize,
    pub max_waiting_tokens: usize,
}

pub struct Admission {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    requests: usize,
    waiting_tokens: usize,
    releases: Rate,
    dequeued_tokens: Rate,
}

impl Admission {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// A permit, or a refusal with the predicted wait.
    pub fn try_admit(self: &Arc<Self>) -> Result<Permit, Error> {
        let mut state = self.lock();
        if state.requests >= self.limits.max_requests {
            let wait = state.releases.time_for(1.0, clock::now_us());
            return Err(Error::overloaded(
                format!("the server is full: {} requests are inside (admission.max_requests)", state.requests),
                wait,
            ));
        }
        state.requests += 1;
        Ok(Permit { admission: self.clone(), waiting_tokens: 0 })
    }

    /// Requests inside and prompt tokens waiting.
    pub fn in_use(&self) -> (usize, usize) {
        let state = self.lock();
        (state.requests, state.waiting_tokens)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The right of one request to be inside.
pub struct Permit {
    admission: Arc<Admission>,
    waiting_tokens: usize,
}

impl Permit {
    /// Counts prompt tokens as waiting, or refuses with the predicted wait. A prompt larger than the whole bound is
    /// let in when nothing else waits: the model's own context is its limit.
    pub fn queue_tokens(&mut self, num_tokens: usize) -> Result<(), Error> {
        let limit = self.admission.limits.max_waiting_tokens;
        let mut state = self.admission.lock();
        if state.waiting_tokens > 0 && state.waiting_tokens + num_tokens > limit {
            let excess = (state.waiting_tokens + num_tokens - limit) as f64;
            let wait = state.dequeued_tokens.time_for(excess, clock::now_us());
            return Err(Error::overloaded(
                format!(
                    "the queue is full: {} prompt tokens are waiting and this request has {num_tokens}; the limit is \
                     {limit} (admission.max_waiting_tokens)",
                    state.waiting_tokens
                ),
                wait,
            ));
        }
        state.waiting_tokens += num_tokens;
        drop(state);
        self.waiting_tokens += num_tokens;
        Ok(())
    }

    /// A prompt of this request reached a device.
    pub fn dequeue_tokens(&mut self, num_tokens: usize) {
        let num_tokens = num_tokens.min(self.waiting_tokens);
        self.waiting_tokens -= num_tokens;
        let mut state = self.admission.lock();
        state.waiting_tokens -= num_tokens;
        state.dequeued_tokens.add(num_tokens as f64, clock::now_us());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.requests -= 1;
        state.waiting_tokens -= self.waiting_tokens;
        state.releases.add(1.0, clock::now_us());
    }
}

/// An exponentially fading rate.
#[derive(Default)]
struct Rate {
    amount: f64,
    at_us: u64,
}

impl Rate {
    fn add(&mut self, amount: f64, now_us: u64) {
        self.amount = self.faded(now_us) + amount;
        self.at_us = now_us;
    }

    fn faded(&self, now_us: u64) -> f64 {
        self.amount * (-(now_us.saturating_sub(self.at_us) as f64) / RATE_TAU_US).exp()
    }

    /// Whole seconds until `amount` more will have passed at the present rate, 1 to [`MAX_RETRY_AFTER_S`].
    fn time_for(&self, amount: f64, now_us: u64) -> u64 {
        let per_second = self.faded(now_us) / (RATE_TAU_US / 1e6);
        ((amount / per_second.max(1e-9)).ceil() as u64).clamp(1, MAX_RETRY_AFTER_S)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Code;

    #[test]
    fn a_full_house_refuses_and_a_dropped_permit_makes_room() {
        let door = Admission::new(Limits { max_requests: 1, max_waiting_tokens: 10 });
        let permit = door.try_admit().unwrap();
        let refusal = door.try_admit().err().unwrap();
        assert_eq!(refusal.code, Code::Overloaded);
        assert!((1..=60).contains(&refusal.retry_after_s.unwrap()));
        drop(permit);
        assert!(door.try_admit().is_ok());
    }

    #[test]
    fn waiting_tokens_are_bounded_and_returned() {
        let door = Admission::new(Limits { max_requests: 9, max_waiting_tokens: 10 });
        let mut first = door.try_admit().unwrap();
        first.queue_tokens(25).unwrap();
        let mut second = door.try_admit().unwrap();
        assert!(second.queue_tokens(1).unwrap_err().message.contains("25 prompt tokens are waiting"));
        first.dequeue_tokens(25);
        second.queue_tokens(10).unwrap();
        drop((first, second));
        assert_eq!(door.in_use(), (0, 0));
    }

    #[test]
    fn the_predicted_wait_follows_the_rate() {
        let mut rate = Rate::default();
        assert_eq!(rate.time_for(1.0, 0), MAX_RETRY_AFTER_S);
        for second in 0..60 {
            rate.add(100.0, second * 1_000_000);
        }
        let wait = rate.time_for(1_000.0, 59_000_000);
        assert!((9..=11).contains(&wait), "100 a second, 1000 wanted: {wait}");
    }
}
