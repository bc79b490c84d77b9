//! From logits to a token: pure functions over `&mut [f32]`.
//!
//! Owns the order of the steps (penalties → bias → bans → temperature → top-k → top-p → min-p → draw) and the
//! random numbers. Never knows about sequences, devices or text.
//!
//! Invariant: the draw depends only on the logits and the [`SampleSpec`]; same seed and index, same token.

mod params;

pub use params::{History, SampleSpec, Sampled, SamplingParams, TokenLogprobs};
