//! Continuous batching as a pure core: no actix, no clock, no IO. Cores take `now` and return values.

mod admit;
pub mod affinity;
mod complete;
mod config;
mod draft;
mod fault;
mod form;
pub mod job;
mod lane;
mod pace;
mod place;
pub mod plan;
mod queue;
mod sequence;
mod speculate;
mod steal;
mod window;

#[cfg(test)]
mod tests;

pub use config::{DoesNotFit, LaneConfig, LaneConfigError, Speculation};
pub use fault::{Elsewhere, Fault, MAX_FAULTS, MAX_RESCUES, Verdict};
pub use lane::{Lane, LaneStats, Planned};
pub use place::{LaneLoad, place};
pub use steal::{IdleLanes, Inbox, MAX_MOVES, MAX_STOLEN, StealWindow, Stock, Take, VictimOrder, search};
pub use window::{FifoWindow, Window};
