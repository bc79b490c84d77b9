//! Layer 5: HTTP. Routes, server-sent events, and OpenAI's wire types.

pub mod wire;
