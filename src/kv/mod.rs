//! Block-allocated KV cache metadata: which block holds what, who refers to it, what can be found again.
//!
//! Owns block numbers only; the memory behind them belongs to an executor.

/// Tokens in one KV block.
pub const BLOCK_TOKENS: usize = 16;
