//! OpenAI's wire types: request bodies in, response bodies out. Pure; knows JSON, neither HTTP nor actors.
//!
//! Owns the names, types and limits of every field, and the messages about those that are wrong. A request's JSON is
//! taken apart field by field (see [`fields`]) and not derived, so that each message names the field's path, the value
//! and the limit.
//!
//! [`schema`] says the same in JSON Schema, for the OpenAPI document.
//!
//! Invariant: no field is dropped silently. A field is understood, or on the list of those that OpenAI itself ignores,
//! or refused by name; `null` is the same as absent. No body can panic.

pub mod chat;
pub mod completion;
pub mod error;
mod fields;
pub mod health;
pub mod logprobs;
mod messages;
pub mod models;
pub mod response;
pub mod sampling;
pub mod schema;
pub mod tokenize;

pub use chat::{ChatRequest, RenderRequest};
pub use completion::{CompletionRequest, Prompt};
pub use sampling::{Sampling, Streaming};

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
