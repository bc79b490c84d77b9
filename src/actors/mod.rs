//! Layer 4: thin actor shells around pure cores. `actors.md` tells who they are and what they say to each other.
//!
//! An actor gives its core time, addresses and a thread; every decision is the core's.

pub mod admit;
pub mod auth;
mod choice;
pub mod ended;
pub mod events;
pub mod executor;
pub mod lanes;
pub mod messages;
pub mod outlet;
mod post;
pub mod quota;
pub mod readiness;
pub mod request;
pub mod restarts;
pub mod scheduler;
pub mod seat;
pub mod services;
pub mod stream;
pub mod supervisor;
