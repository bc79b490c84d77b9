//! When a dead actor is started again: with back-off, and not for ever.
//!
//! Pure: it is asked while the actor is dead, with the time, and says what to do.

use std::time::{Duration, Instant};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// An actor that dies this often in a row, each time within [`HEALTHY_AFTER`], is given up at its next death.
pub const MAX_RESTARTS: u32 = 8;
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What to do about a dead actor now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its death is news; it is started again after this.
    Died(Duration),
    Wait,
    Start,
    /// It has died too often, which is news.
    GiveUp,
    GivenUp,
}

/// One actor's deaths.
#[derive(Debug, Clone)]
pub struct Restarts {
    started_at: Instant,
    in_a_row: u32,
    retry_at: Option<Instant>,
    given_up: bool,
}

impl Restarts {
    /// Of an actor that was started at `now`.
    pub fn new(now: Instant) -> Self {
        Self { started_at: now, in_a_row: 0, retry_at: None, given_up: false }
    }

    /// The actor is dead at `now`. After [`Verdict::Start`] it is taken to be started.
    pub fn dead(&mut self, now: Instant) -> Verdict {
        if self.given_up {
            return Verdict::GivenUp;
        }
        if let Some(retry_at) = self.retry_at {
            if now < retry_at {
                return Verdict::Wait;
            }
            (self.started_at, self.retry_at) = (now, None);
            return Verdict::Start;
        }
        let was_healthy = now.saturating_duration_since(self.started_at) > HEALTHY_AFTER;
        self.in_a_row = if was_healthy { 1 } else { self.in_a_row + 1 };
        if self.in_a_row > MAX_RESTARTS {
            self.given_up = true;
            return Verdict::GiveUp;
        }
        let backoff = (FIRST_BACKOFF * 2u32.pow(self.in_a_row - 1)).min(MAX_BACKOFF);
        self.retry_at = Some(now + backoff);
        Verdict::Died(backoff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dies at `now` and is waited for; returns the back-off.
    fn die(restarts: &mut Restarts, now: &mut Instant) -> Duration {
        let Verdict::Died(backoff) = restarts.dead(*now) else { panic!("{restarts:?}") };
        assert_eq!(restarts.dead(*now + backoff / 2), Verdict::Wait);
        *now += backoff;
        assert_eq!(restarts.dead(*now), Verdict::Start);
        backoff
    }

    #[test]
    fn the_wait_doubles_up_to_a_bound_and_then_it_is_given_up_once() {
        let mut now = Instant::now();
        let mut restarts = Restarts::new(now);
        let waits: Vec<_> = (0..MAX_RESTARTS).map(|_| die(&mut restarts, &mut now).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(restarts.dead(now), Verdict::GiveUp);
        assert_eq!(restarts.dead(now + HEALTHY_AFTER * 9), Verdict::GivenUp);
    }

    #[test]
    fn an_actor_that_lived_long_is_forgiven() {
        let mut now = Instant::now();
        let mut restarts = Restarts::new(now);
        for _ in 0..3 * MAX_RESTARTS {
            now += HEALTHY_AFTER + Duration::from_secs(1);
            assert_eq!(die(&mut restarts, &mut now), FIRST_BACKOFF);
        }
    }
}
