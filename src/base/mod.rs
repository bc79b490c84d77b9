//! Layer 0: what every other layer stands on.
//!
//! Owns the validated configuration, the one external error type, ids, the clock, metrics, logging and the
//! points of drills.
//! Never knows about any other layer.

pub mod clock;
pub mod config;
pub mod error;
pub mod faults;
pub mod id;
pub mod metrics;
pub mod panics;
pub mod telemetry;
