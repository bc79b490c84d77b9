//! Layer 5: HTTP. Translates between the wire and the actors; decides nothing about models, lanes or quotas.

mod body;
mod chat;
mod completions;
mod connection;
mod docs;
mod edge;
mod error;
mod generate;
mod health;
mod logprobs;
mod models;
pub mod openapi;
mod prompt;
mod server;
mod sse;
mod text;
pub mod wire;

pub use server::{Bound, Edge, bind};

/// Every route, as it appears in metrics.
pub(crate) const ROUTES: &[&str] = &[
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{id:.+}",
    "/tokenize",
    "/detokenize",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/openapi.json",
    "/docs",
];
