//! The only place that knows everything: builds the process from a [`Config`], runs it, and takes it down in reverse.

mod cores;
mod descriptors;
pub mod devices;
pub mod engine;
mod memory;
mod serve;

pub use serve::{ServeError, Started, serve};
