//! Garrick: an actor-based LLM inference server. See `actors.md` for the cast and README for use.

pub mod actors;
pub mod api;
pub mod app;
pub mod base;
pub mod cli;
pub mod exec;
pub mod gate;
pub mod kv;
pub mod model;
pub mod route;
pub mod sample;
pub mod sched;
pub mod store;
