//! Quota: reserves what a request may use and hands out the [`Lease`] for it. A shell around [`Ledger`].
//!
//! Owns the order of reservations. Never knows what a request is.
//!
//! Invariant: every lease is settled exactly once, when it is dropped. Dropping settles in the ledger itself, behind a
//! mutex, and not by a message: a message can be refused by a full mailbox or find the actor gone, and a lease lost is
//! a place lost for ever. The lock is held for a few map operations, never across an await.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::prelude::*;

use crate::base::error::Error;
use crate::base::metrics::metrics;
use crate::base::{clock, faults};
use crate::gate::auth::Principal;
use crate::gate::quota::{Ledger, QuotaError, Reservation};

/// Lets a request of up to `tokens` in, or says when to come back. See [`crate::gate::quota::tokens_to_reserve`].
#[derive(Debug, Message)]
#[rtype(result = "Result<Lease, Error>")]
pub struct Reserve {
    pub principal: Arc<Principal>,
    pub tokens: u64,
}

/// The ledger, shared with the leases. Only the actor reserves.
#[derive(Debug, Clone, Default)]
struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    /// A panic elsewhere while the lock was held cannot have left a half-done entry that matters more than serving on.
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clones share the ledger: one that takes a dead one's place knows what is held.
#[derive(Debug, Clone, Default)]
pub struct QuotaActor {
    ledger: SharedLedger,
}

impl QuotaActor {
    pub fn new() -> Self {
        Self::default()
    }
}

impl Actor for QuotaActor {
    type Context = Context<Self>;
}

impl Handler<Reserve> for QuotaActor {
    type Result = Result<Lease, Error>;

    fn handle(&mut self, msg: Reserve, _: &mut Self::Context) -> Self::Result {
        faults::hit("Quota.Reserve");
        let reserved = self.ledger.lock().reserve(clock::now_us(), &msg.principal, msg.tokens);
        match reserved {
            Ok(reservation) => {
                metrics().hops.quota.increment(reservation.tokens());
                Ok(Lease::new(self.ledger.clone(), reservation))
            }
            Err(e) => {
                let limit = match &e {
                    QuotaError::Exceeded { limit, .. } => limit.as_str(),
                    QuotaError::TooLargeForLimit { .. } => "tpm",
                };
                metrics().quota_refused(limit);
                metrics().tenant(&msg.principal.tenant).refusals.increment(1);
                Err(e.into())
            }
        }
    }
}

/// A request's share of its key's quota, held as long as the request lives. Dropping it returns the place and charges
/// what [`Lease::use_tokens`] counted, no matter how the request ended. A reply that nobody waits for any longer drops
/// its lease as well.
pub struct Lease {
    ledger: SharedLedger,
    /// Taken by `drop`.
    reservation: Option<Reservation>,
    used: AtomicU64,
}

impl Lease {
    fn new(ledger: SharedLedger, reservation: Reservation) -> Self {
        Self { ledger, reservation: Some(reservation), used: AtomicU64::new(0) }
    }

    /// `num` more tokens were used: the prompt's when it reaches a device, then each that is generated.
    pub fn use_tokens(&self, num: u64) {
        // Only the sum is read, by whoever drops the lease, and sharing it (`Arc`) orders that after this.
        self.used.fetch_add(num, Ordering::Relaxed);
    }

    /// Ends the lease with `used` tokens in all, whatever was counted before.
    pub fn settle(mut self, used: u64) {
        *self.used.get_mut() = used;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            let used = *self.used.get_mut();
            self.ledger.lock().settle(clock::now_us(), reservation, used);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("reservation", &self.reservation).field("used", &self.used).finish()
    }
}

#[cfg(test)]
mod tests;
