//! Devices that compute one model together, as each of them sees the others.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Address;
use crate::model::ops::DeviceError;

/// One rank's end of a group. All ranks call [`Communicator::all_gather`] equally often, with as many bytes.
pub trait Communicator: Send + Sync {
    fn num_ranks(&self) -> usize;
    /// Brings every rank's bytes to this one, in order of rank, when all that was asked of the device before is done. It may
    /// be done later, but before what is asked of the device next. An error loses the group.
    ///
    /// # Safety
    /// `from` is followed by `bytes` bytes of one allocation of this rank's device, `to` by that many for each rank.
    unsafe fn all_gather(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError>;
    /// Nobody waits any more: calls that wait for other ranks, now or later, end with an error or with wrong bytes. From any
    /// thread, as often as one likes.
    fn abort(&self);
}

/// A group of threads of this process that reach each other's memory: devices on the emulator.
pub struct Threads {
    num_ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What each rank offers in this round.
    offers: Vec<Option<(Address, usize)>>,
    arrived: usize,
    /// Times that all have arrived, to offer or to leave.
    round: u64,
    is_aborted: bool,
}

struct Rank {
    group: Arc<Threads>,
    rank: usize,
}

impl Threads {
    /// The ends of a new group, by rank.
    pub fn connect(num_ranks: usize) -> Vec<Arc<dyn Communicator>> {
        let state = Mutex::new(State { offers: vec![None; num_ranks], ..State::default() });
        let group = Arc::new(Threads { num_ranks, state, changed: Condvar::new() });
        (0..num_ranks).map(|rank| Arc::new(Rank { group: group.clone(), rank }) as Arc<dyn Communicator>).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every rank has made its offer, and gives all of them; an error once the group is aborted, on every rank or
    /// on none.
    fn offer(&self, rank: usize, from: Address, bytes: usize) -> Result<Vec<(Address, usize)>, DeviceError> {
        let mut state = self.lock();
        let round = state.round;
        if !state.is_aborted {
            state.offers[rank] = Some((from, bytes));
            state.arrive(self);
        }
        while state.round == round && !state.is_aborted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.round == round {
            return Err(DeviceError::Lost("another rank of the group has failed".into()));
        }
        Ok(state.offers.iter().flatten().copied().collect())
    }

    /// Waits until nobody reads an offer of this round any more. All who saw the offers come here, aborted or not.
    fn leave(&self) {
        let mut state = self.lock();
        let round = state.round;
        state.arrive(self);
        while state.round == round {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn arrive(&mut self, group: &Threads) {
        self.arrived += 1;
        if self.arrived == group.num_ranks {
            (self.arrived, self.round) = (0, self.round + 1);
            group.changed.notify_all();
        }
    }
}

impl Communicator for Rank {
    fn num_ranks(&self) -> usize {
        self.group.num_ranks
    }

    unsafe fn all_gather(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        let offers = self.group.offer(self.rank, from, bytes)?;
        let differs = offers.iter().find(|(_, other)| *other != bytes);
        if differs.is_none() {
            for (rank, (from, _)) in offers.iter().enumerate() {
                // SAFETY: the caller's promise; every rank holds still until all have left.
                unsafe {
                    std::ptr::copy_nonoverlapping(*from as *const u8, (to as *mut u8).add(rank * bytes), bytes);
                }
            }
        }
        self.group.leave();
        match differs {
            None => Ok(()),
            Some((_, other)) => {
                Err(DeviceError::Lost(format!("this rank offers {bytes} bytes and another one {other}")))
            }
        }
    }

    fn abort(&self) {
        self.group.lock().is_aborted = true;
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What a rank gathers in some rounds; it stops after `leaves_after` of them.
    fn rounds(rank: &dyn Communicator, own: u32, leaves_after: usize) -> Vec<Result<[u32; 3], DeviceError>> {
        let one = |round: usize| {
            let (from, mut to) = ([own + 10 * round as u32], [0; 3]);
            // SAFETY: four bytes, and room for four of each of three ranks.
            unsafe { rank.all_gather(from.as_ptr() as Address, to.as_mut_ptr() as Address, 4) }.map(|()| to)
        };
        let found = (0..leaves_after).map(one).collect();
        if leaves_after < ROUNDS {
            rank.abort();
        }
        found
    }

    const ROUNDS: usize = 50;

    #[test]
    fn every_rank_gets_all_parts_in_order_round_after_round() {
        let ranks = Threads::connect(3);
        thread::scope(|scope| {
            for (i, rank) in ranks.iter().enumerate() {
                scope.spawn(move || {
                    let expected: Vec<_> = (0..ROUNDS as u32).map(|n| Ok([10 * n, 10 * n + 1, 10 * n + 2])).collect();
                    assert_eq!(rounds(&**rank, i as u32, ROUNDS), expected);
                });
            }
        });
    }

    #[test]
    fn a_rank_that_leaves_releases_the_others_now_and_later() {
        let ranks = Threads::connect(3);
        thread::scope(|scope| {
            for (i, rank) in ranks.iter().enumerate() {
                let leaves_after = if i == 1 { 7 } else { ROUNDS };
                scope.spawn(move || {
                    let found = rounds(&**rank, i as u32, leaves_after);
                    // Whoever was slow to leave the last common round finds the group gone there already.
                    assert!(found[..6].iter().all(Result::is_ok), "{i}: {found:?}");
                    assert!(found[7..].iter().all(Result::is_err), "{i}: {found:?}");
                });
            }
        });
    }

    #[test]
    fn ranks_that_disagree_on_the_size_find_out() {
        let ranks = Threads::connect(2);
        thread::scope(|scope| {
            for (i, rank) in ranks.iter().enumerate() {
                scope.spawn(move || {
                    let (from, mut to) = ([0u8; 8], [0u8; 16]);
                    let bytes = 4 + 4 * i;
                    // SAFETY: at most eight bytes, and room for as many of both.
                    let found = unsafe { rank.all_gather(from.as_ptr() as Address, to.as_mut_ptr() as Address, bytes) };
                    assert!(matches!(found, Err(DeviceError::Lost(_))), "{found:?}");
                });
            }
        });
    }
}
