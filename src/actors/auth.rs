//! Auth: answers who a request comes from. A shell around [`Doorkeeper`] that fetches what only the store knows.
//!
//! Owns the doorkeeper and the lookups under way. Never waits: a lookup runs beside the next messages.
//!
//! Invariant: of one question one lookup runs at a time, and at most [`MAX_LOOKUPS`] of all.

use std::collections::HashMap;
use std::sync::Arc;

use actix::prelude::*;
use futures_util::future::{FutureExt, LocalBoxFuture, Shared};

use crate::base::error::Error;
use crate::base::{clock, faults};
use crate::gate::auth::{Answer, Doorkeeper, Found, Principal, Question};
use crate::store::{Store, StoreError};

/// Different keys being looked up at once: only a flood of made-up keys is met by it.
pub const MAX_LOOKUPS: usize = 64;

/// Who sends this? `secret` is what stands after `Bearer` in the `Authorization` header.
#[derive(Message)]
#[rtype(result = "Result<Arc<Principal>, Error>")]
pub struct Authenticate {
    pub secret: Option<String>,
}

/// This process revoked a key, which from now on opens nothing.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct KeyRevoked {
    pub key_id: String,
}

type Lookup = Shared<LocalBoxFuture<'static, Result<Found, Arc<StoreError>>>>;

pub struct AuthActor {
    store: Store,
    door: Doorkeeper,
    lookups: HashMap<Question, Lookup>,
    /// Counts revocations: a lookup that began before one may bring an old row and is asked again.
    epoch: u64,
}

impl AuthActor {
    pub fn new(store: Store, door: Doorkeeper) -> Self {
        Self { store, door, lookups: HashMap::new(), epoch: 0 }
    }

    fn decide(
        &mut self,
        answer: Answer,
        secret: Option<String>,
    ) -> ResponseActFuture<Self, Result<Arc<Principal>, Error>> {
        match answer {
            Answer::Enter(principal) => Box::pin(fut::ready(Ok(principal))),
            Answer::Refuse(refusal) => Box::pin(fut::ready(Err(refusal.into()))),
            Answer::Ask(question) => self.ask(question, secret),
        }
    }

    /// Two rounds at most (is there a key at all, then the key's row), and one more for a revocation in between.
    fn ask(
        &mut self,
        question: Question,
        secret: Option<String>,
    ) -> ResponseActFuture<Self, Result<Arc<Principal>, Error>> {
        let Some(lookup) = self.lookup(question) else {
            let error = Error::overloaded("too many unknown API keys are being looked up; try again", 1);
            return Box::pin(fut::ready(Err(error)));
        };
        let epoch = self.epoch;
        Box::pin(lookup.into_actor(self).then(move |found, actor, _| {
            if actor.epoch == epoch {
                actor.lookups.remove(&question);
            }
            match found {
                Err(e) => {
                    tracing::error!(error = %e, "API keys cannot be looked up");
                    let error = Error::unavailable("API keys cannot be checked at the moment; try again", 1);
                    Box::pin(fut::ready(Err(error.with_internal(e))))
                }
                Ok(_) if actor.epoch != epoch => {
                    let answer = actor.door.authenticate(clock::now_us(), secret.as_deref());
                    actor.decide(answer, secret)
                }
                Ok(found) => {
                    let answer = actor.door.learn(clock::now_us(), &found, secret.as_deref());
                    actor.decide(answer, secret)
                }
            }
        }))
    }

    /// The lookup for `question`: the one under way, or a new one if there is room.
    fn lookup(&mut self, question: Question) -> Option<Lookup> {
        if let Some(lookup) = self.lookups.get(&question) {
            return Some(lookup.clone());
        }
        if self.lookups.len() >= MAX_LOOKUPS && !self.door.was_known(&question) {
            return None;
        }
        let store = self.store.clone();
        let lookup = async move {
            match question {
                Question::AnyKeys => store.count_keys().await.map(Found::Keys),
                Question::Key(hash) => store.find_by_hash(&hash.0).await.map(|row| Found::Key(hash, row.map(Box::new))),
            }
            .map_err(Arc::new)
        };
        let lookup = lookup.boxed_local().shared();
        self.lookups.insert(question, lookup.clone());
        Some(lookup)
    }
}

impl Actor for AuthActor {
    type Context = Context<Self>;
}

impl Handler<Authenticate> for AuthActor {
    type Result = ResponseActFuture<Self, Result<Arc<Principal>, Error>>;

    fn handle(&mut self, msg: Authenticate, _: &mut Self::Context) -> Self::Result {
        faults::hit("Auth.Authenticate");
        let answer = self.door.authenticate(clock::now_us(), msg.secret.as_deref());
        self.decide(answer, msg.secret)
    }
}

impl Handler<KeyRevoked> for AuthActor {
    type Result = ();

    fn handle(&mut self, msg: KeyRevoked, _: &mut Self::Context) {
        faults::hit("Auth.KeyRevoked");
        self.epoch += 1;
        self.lookups.clear();
        self.door.forget(&msg.key_id);
    }
}

#[cfg(test)]
mod tests;
