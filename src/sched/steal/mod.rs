//! Work stealing between lanes: what can be taken ([`Stock`]: [`StealWindow`] and [`Inbox`]), from whom ([`VictimOrder`]),
//! and who is woken for it ([`IdleLanes`]).
//!
//! A lane with room and nobody waiting takes what another lane cannot get to. Only waiting jobs move: a sequence that
//! holds KV stays on its device. Stolen jobs are taken up as they are; one whose client has left ends, with its event,
//! in the thief's next plan.
//!
//! Bounds on unfairness. In each lane jobs see the device in order of age. A thief has nobody waiting, so at most
//! [`MAX_STOLEN`] − 1 jobs, all older, stand before a stolen one. And a job moves at most [`MAX_MOVES`] times between
//! two stays on a device, so that one which needs more blocks than are free becomes the head of some lane's queue, where
//! nobody passes it.

mod idle;
mod inbox;
mod window;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use idle::{IdleLanes, search};
pub use inbox::{Inbox, Stock};
pub use window::{StealWindow, Take};

/// Most jobs that one theft takes.
pub const MAX_STOLEN: usize = 8;

/// How often a job that waits may be stolen before it stays where it is.
pub const MAX_MOVES: u8 = 3;

/// A seeded source of starting points: every round visits each lane once, from a random one on.
#[derive(Debug, Clone)]
pub struct VictimOrder(u64);

impl VictimOrder {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn round(&mut self, num_lanes: usize) -> impl Iterator<Item = usize> + use<> {
        // splitmix64 (Steele, Lea, Flood 2014): enough to keep thieves from all starting at the same victim.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let start = mixed as usize % num_lanes.max(1);
        (0..num_lanes).map(move |i| (start + i) % num_lanes)
    }
}
