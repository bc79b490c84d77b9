//! Time: one monotonic count for deadlines and durations, and the wall clock for what people read.
//!
//! Owns the process's zero. Cores never call it: they take `now`.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static START: OnceLock<Instant> = OnceLock::new();

/// Microseconds since the process started (since the first call, if [`start`] was not called).
pub fn now_us() -> u64 {
    start().elapsed().as_micros() as u64
}

/// The zero of [`now_us`]; `main` calls it first, so that later times count from the start.
pub fn start() -> Instant {
    *START.get_or_init(Instant::now)
}

/// The moment that `us` on the scale of [`now_us`] stands for; timers want an [`Instant`].
pub fn instant_at(us: u64) -> Instant {
    start() + std::time::Duration::from_micros(us)
}

/// Seconds since 1970, for `created` fields and rows.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_forward_on_one_scale() {
        let a = now_us();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let b = now_us();
        assert!(b >= a + 2000, "{a} {b}");
        assert!(instant_at(b) > instant_at(a) && instant_at(b) <= Instant::now());
    }

    #[test]
    fn the_wall_clock_is_in_seconds() {
        let (before, ms, after) = (unix_s(), unix_ms(), unix_s());
        assert!(before <= ms / 1000 && ms / 1000 <= after);
    }
}
