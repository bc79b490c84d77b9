//! Block-allocated KV cache metadata: which block holds what, who refers to it, what can be found again.
//!
//! Owns block numbers only; the memory behind them belongs to an executor. Never knows about requests, steps or
//! devices.
//!
//! Invariant: every block is exactly one of free, cached (findable, no holder) or held, so that
//! `free + cached + held == total`; a held block's count equals the number of tables that list it.

mod pool;
mod prefix;
mod table;

#[cfg(test)]
mod tests;

pub use pool::{BlockCounts, BlockId, BlockPool, Taken};
pub use prefix::{Chain, PrefixIndex, PrefixMatch, TokenParts};
pub use table::{BlockTable, KvBlocks, OutOfBlocks};

/// Tokens in one KV block.
pub const BLOCK_TOKENS: usize = 16;

/// Blocks that `num_tokens` tokens fill, the last one perhaps partly.
pub fn blocks_for(num_tokens: usize) -> usize {
    num_tokens.div_ceil(BLOCK_TOKENS)
}
