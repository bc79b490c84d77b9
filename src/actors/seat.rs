//! Where a long-lived actor is found: its present address, which its owner replaces when the actor has died.
//!
//! Owns the address. Never starts anything: that is the owner's ([`super::supervisor`]).

use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};
use arc_swap::ArcSwapOption;

use super::supervisor::LOOK_EVERY;
use crate::base::error::Error;

/// Until a dead actor has been started again, unless it keeps dying.
const RETRY_AFTER_S: u64 = 1;

/// Shared by everyone who talks to the actor.
pub struct Seat<A: Actor>(ArcSwapOption<Addr<A>>);

impl<A: Actor> Default for Seat<A> {
    fn default() -> Self {
        Self(ArcSwapOption::empty())
    }
}

impl<A: Actor> Seat<A> {
    /// Puts a (new) actor in its place.
    pub fn install(&self, address: Addr<A>) {
        self.0.store(Some(address.into()));
    }

    /// None before the first [`Seat::install`]. The actor may have died.
    pub fn address(&self) -> Option<Addr<A>> {
        self.0.load().as_deref().cloned()
    }

    pub fn is_alive(&self) -> bool {
        self.0.load().as_ref().is_some_and(|address| address.connected())
    }

    /// Waits, up to `limit`, for a living actor other than `dead`.
    pub async fn successor(&self, dead: Option<&Addr<A>>, limit: Duration) {
        let is_there = || self.address().is_some_and(|present| present.connected() && Some(&present) != dead);
        let wait = async {
            while !is_there() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let _ = tokio::time::timeout(limit, wait).await;
    }

    /// Sends and waits for the answer. An actor that is dead, or dies of it, is a `503`: it comes back.
    pub async fn ask<M>(&self, message: M) -> Result<M::Result, Error>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let answer = match self.address() {
            Some(address) => address.send(message).await.map_err(|e| e.to_string()),
            None => Err("not started".to_owned()),
        };
        answer.map_err(|e| {
            let error = Error::unavailable("a part of the server is being restarted; try again", RETRY_AFTER_S);
            error.with_internal(format!("{}: {e}", std::any::type_name::<A>()))
        })
    }
}
