//! Who a request comes from, decided without IO: what is known is answered, what is not becomes a [`Question`].
//!
//! Owns the rule for servers without keys and the memory of keys that were looked up. Never knows how a question is
//! answered.
//!
//! Invariant: once a key was ever made, nobody enters without one; revoking the last key closes the server, it does
//! not open it.

mod cache;

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use sha2::{Digest, Sha256};

use super::key::{KeyHash, Secret};
use crate::base::error::Error;
use crate::sched::job::Micros;
use crate::store::{KeyCounts, KeyRow};

pub use cache::{KeyCache, Verdict};

/// Whom a request belongs to, and how much that may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub key_id: Arc<str>,
    pub tenant: Arc<str>,
    /// Separates tenants in the prefix cache; see [`tenant_salt`].
    pub salt: u64,
    pub limits: Limits,
}

/// Limits of one key. None is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests in a minute.
    pub rpm: Option<u64>,
    /// Tokens, of prompt and output, in a minute.
    pub tpm: Option<u64>,
    /// Requests inside at once.
    pub concurrency: Option<u64>,
}

impl Principal {
    /// Everyone, on a server without keys: tenant `local`, no limits.
    pub fn local() -> Arc<Self> {
        static LOCAL: LazyLock<Arc<Principal>> = LazyLock::new(|| {
            let (salt, limits) = (tenant_salt("local"), Limits::default());
            Arc::new(Principal { key_id: "local".into(), tenant: "local".into(), salt, limits })
        });
        LOCAL.clone()
    }

    pub fn of_key(row: &KeyRow) -> Self {
        let key = &row.key;
        Self {
            key_id: key.id.as_str().into(),
            tenant: key.tenant.as_str().into(),
            salt: tenant_salt(&key.tenant),
            limits: Limits { rpm: key.rpm, tpm: key.tpm, concurrency: key.concurrency },
        }
    }
}

/// The first 8 bytes of SHA-256 over the tenant's name: keys of one tenant share cached prefixes, tenants never do
/// (two of a billion names coincide with a chance of 1 in 37).
pub fn tenant_salt(tenant: &str) -> u64 {
    let digest = Sha256::new().chain_update(b"garrick prefix cache salt\0").chain_update(tenant).finalize();
    digest.iter().take(8).fold(0, |salt, byte| salt << 8 | u64::from(*byte))
}

/// Whether anyone may come in, or holders of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Open,
    Keyed,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "server.listen = {listen} is reachable from other machines and there is no API key: make one with \
     'garrick keys create --tenant NAME', or listen on 127.0.0.1"
)]
pub struct OpenAbroad {
    pub listen: SocketAddr,
}

/// Decides before a port is bound. A server without any key may only listen on loopback.
pub fn access(listen: SocketAddr, keys: KeyCounts) -> Result<Access, OpenAbroad> {
    // ::ffff:127.0.0.1 is loopback too.
    match (keys.total, listen.ip().to_canonical().is_loopback()) {
        (0, true) => Ok(Access::Open),
        (0, false) => Err(OpenAbroad { listen }),
        _ => Ok(Access::Keyed),
    }
}

/// What only the store knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Question {
    /// Has a key been made by now?
    AnyKeys,
    Key(KeyHash),
}

/// The store's word on a [`Question`].
#[derive(Debug, Clone)]
pub enum Found {
    Keys(KeyCounts),
    Key(KeyHash, Option<Box<KeyRow>>),
}

/// What becomes of a request at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Enter(Arc<Principal>),
    Refuse(Refusal),
    /// Ask the store, then [`Doorkeeper::learn`].
    Ask(Question),
}

/// Unknown, revoked and mistyped keys read alike: a guesser learns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("an API key is needed: send it as 'Authorization: Bearer gk_…'")]
    NoKey,
    #[error("the API key is not valid: it is mistyped, unknown or revoked")]
    BadKey,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::unauthenticated(refusal.to_string())
    }
}

/// Decides who enters. What the store said is believed for `ttl`: so long may a key that another process revoked work,
/// and so long may a server stay open after its first key was made.
#[derive(Debug)]
pub struct Doorkeeper {
    ttl: Micros,
    access: Access,
    /// Until then an open door is believed to be open.
    open_until: Micros,
    cache: KeyCache,
}

impl Doorkeeper {
    /// `access` as it stood at `now`; at most `max_keys` keys, known and unknown, are remembered.
    pub fn new(now: Micros, access: Access, ttl: Micros, max_keys: usize) -> Self {
        Self { ttl, access, open_until: now.saturating_add(ttl), cache: KeyCache::new(ttl, max_keys) }
    }

    /// One that knows no more than `access` as it stood once: an open door asks before it believes that it still is.
    pub fn unsure(access: Access, ttl: Micros, max_keys: usize) -> Self {
        Self { open_until: 0, ..Self::new(0, access, ttl, max_keys) }
    }

    /// `secret` is what stands after `Bearer`. An open door does not look at it: clients send dummies.
    pub fn authenticate(&self, now: Micros, secret: Option<&str>) -> Answer {
        if self.access == Access::Open {
            let believed = now < self.open_until;
            return if believed { Answer::Enter(Principal::local()) } else { Answer::Ask(Question::AnyKeys) };
        }
        let Some(text) = secret else { return Answer::Refuse(Refusal::NoKey) };
        let Some(secret) = Secret::parse(text) else { return Answer::Refuse(Refusal::BadKey) };
        let hash = secret.hash();
        match self.cache.get(now, &hash) {
            Some(Verdict::Known(principal)) => Answer::Enter(principal.clone()),
            Some(Verdict::Unknown) => Answer::Refuse(Refusal::BadKey),
            None => Answer::Ask(Question::Key(hash)),
        }
    }

    /// Whether the question is about a key that was good when it was last asked about: it goes before the others, so that
    /// a flood of made-up keys shuts nobody out.
    pub fn was_known(&self, question: &Question) -> bool {
        matches!(question, Question::Key(hash) if self.cache.was_known(hash))
    }

    /// Takes the store's word and decides the request that it was asked for. Asks at most one further question.
    pub fn learn(&mut self, now: Micros, found: &Found, secret: Option<&str>) -> Answer {
        match found {
            Found::Keys(keys) if keys.total == 0 => {
                self.open_until = now.saturating_add(self.ttl);
                Answer::Enter(Principal::local())
            }
            Found::Keys(_) => {
                self.access = Access::Keyed;
                self.authenticate(now, secret)
            }
            Found::Key(hash, row) => {
                // The index finds by equality; the row's own hash is compared again, in constant time.
                let valid = row.as_deref().filter(|row| row.revoked_at.is_none() && KeyHash(row.key.sha256) == *hash);
                match valid.map(Principal::of_key).map(Arc::new) {
                    Some(principal) => {
                        self.cache.put(now, *hash, Verdict::Known(principal.clone()));
                        Answer::Enter(principal)
                    }
                    None => {
                        self.cache.put(now, *hash, Verdict::Unknown);
                        Answer::Refuse(Refusal::BadKey)
                    }
                }
            }
        }
    }

    /// This process revoked a key: it is not believed any longer.
    pub fn forget(&mut self, key_id: &str) {
        self.cache.forget(key_id);
    }
}

#[cfg(test)]
mod tests;
