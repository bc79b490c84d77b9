//! A sum over the last 60 seconds, kept in slots of one second.

use std::collections::VecDeque;

use crate::sched::job::Micros;

const SECOND: Micros = 1_000_000;
/// A slot counts until everything in it is at least this old.
const SPAN_S: u64 = 60;

/// At most 61 slots, whatever the rate. A charge leaves the sum between 60 and 61 seconds after it came: never early,
/// so that no 60 seconds hold more than the limit, and at most one second late.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// `(second, amount)`, ascending; amounts may be zero after refunds.
    slots: VecDeque<(u64, u64)>,
    sum: u64,
}

impl Window {
    /// Adds to the current slot, whose number it returns. Time never runs backwards here: callers read the clock before
    /// they come in turn.
    pub fn charge(&mut self, now: Micros, amount: u64) -> u64 {
        self.expire(now);
        let latest = self.slots.back().map_or(0, |slot| slot.0);
        let second = (now / SECOND).max(latest);
        match self.slots.back_mut() {
            Some(slot) if slot.0 == second => slot.1 = slot.1.saturating_add(amount),
            _ => self.slots.push_back((second, amount)),
        }
        self.sum = self.sum.saturating_add(amount);
        second
    }

    /// Takes back what was charged to slot `second`, unless that has left the window.
    pub fn refund(&mut self, second: u64, amount: u64) {
        if let Ok(at) = self.slots.binary_search_by_key(&second, |slot| slot.0) {
            let amount = amount.min(self.slots[at].1);
            self.slots[at].1 -= amount;
            self.sum = self.sum.saturating_sub(amount);
        }
    }

    /// None when `amount` fits under `max` now, otherwise the time until it does if nothing else happens.
    /// `amount` must not be larger than `max`.
    pub fn wait(&mut self, now: Micros, amount: u64, max: u64) -> Option<Micros> {
        self.expire(now);
        let mut sum = self.sum;
        if sum.saturating_add(amount) <= max {
            return None;
        }
        for (second, charged) in &self.slots {
            sum = sum.saturating_sub(*charged);
            if sum.saturating_add(amount) <= max {
                return Some(((second + SPAN_S + 1) * SECOND).saturating_sub(now));
            }
        }
        Some((SPAN_S + 1) * SECOND)
    }

    pub fn is_empty(&mut self, now: Micros) -> bool {
        self.expire(now);
        self.slots.is_empty()
    }

    fn expire(&mut self, now: Micros) {
        while let Some((second, amount)) = self.slots.front().copied() {
            if now / SECOND <= second + SPAN_S {
                break;
            }
            self.slots.pop_front();
            self.sum = self.sum.saturating_sub(amount);
        }
    }
}
