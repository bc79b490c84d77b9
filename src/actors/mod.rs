//! Layer 4: thin shells that give the pure cores an address, a clock and neighbours.
//!
//! Never decides anything itself: what to do comes from a core as a value.

pub mod auth;
pub mod quota;
