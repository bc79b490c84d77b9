//! Layer 3: which model answers to a name, and what a request must fit to run on it.
//!
//! Owns the served model's names and limits. Never knows addresses or lanes.

mod served;

pub use served::ServedModel;
