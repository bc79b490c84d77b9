//! The configuration: one validated tree, made once at start from defaults, a file, the environment and arguments.
//!
//! Owns every key, its default and its limits. Never opens a file or reads the environment itself: [`load`] is a pure
//! function of texts.
//!
//! Invariant: a [`Config`] that [`load`] returned satisfies every limit of [`keys::KEYS`] and the rules between keys,
//! so nobody checks them again.

pub mod keys;
mod load;
mod sections;
mod suggest;
mod value;

#[cfg(test)]
mod tests;

pub use keys::MAX_QUOTA;
pub use load::{ConfigError, Flag, load};
pub use sections::{
    Admission, Auth, Compute, Config, Device, Engine, Isa, Kv, KvDtype, LogFormat, Model, Quota, SamplingDefaults,
    Scheduler, Server, Speculative, Store, Telemetry, Weights,
};
