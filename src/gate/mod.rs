//! Layer 3: who may come in, and how much they may take. Pure: takes `now`, answers with values.
//!
//! Owns keys' format and hashes, the memory of keys that were looked up, and the ledger of quotas. Never knows about
//! actors, HTTP, or how a key is kept beyond its row.
//!
//! Invariant: a secret never leaves [`key::Secret`] by way of a log line or an error; what is reserved is settled
//! exactly once.

pub mod admission;
pub mod auth;
pub mod key;
pub mod quota;
