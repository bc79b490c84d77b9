//! Continuous batching as a pure core: no actix, no clock, no IO. Cores take `now` and return values.

pub mod job;
pub mod plan;
