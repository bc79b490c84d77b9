//! Layer 0: what every other layer stands on.
//!
//! Owns the validated configuration, the one external error type, ids, the clock, metrics and logging.
//! Never knows about any other layer.

pub mod clock;
pub mod config;
pub mod error;
pub mod id;
pub mod metrics;
pub mod telemetry;
