//! Layer 1: what a model *is*. Shapes, weights, the one decoder, text in and out.
//!
//! Knows nothing of devices (only the [`ops::Ops`] trait), of scheduling, of HTTP.

pub mod decoder;
pub mod draws;
pub mod gguf;
pub mod ops;
pub mod source;
pub mod spec;
pub mod text;
pub mod weights;

/// A token's number in the vocabulary.
pub type TokenId = u32;
