//! Which full block holds which tokens after which other block.
//!
//! A content is the chain `hash(parent, tokens)` with the tenant's salt at its root. The parent is the number of an
//! entry and not a hash of it, and parent and tokens are compared on every hit: a collision costs a hit, never gives
//! somebody else's KV; hashes are keyed at random, so nobody can bring one about. Entry numbers are not reused, so the
//! children of a lost block become unreachable, not wrong.
//!
//! Contents stand once, by block, and the map holds their hashes alone: where it looks about at random there is little
//! memory to touch, and little to move when it grows in the middle of a step.
//!
//! Never knows who holds a block.

use std::hash::{BuildHasher, RandomState};

use rustc_hash::FxHashMap;

use super::{BLOCK_TOKENS, BlockId};
use crate::model::TokenId;

/// A place in a chain of full blocks: what a following block has as its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chain {
    /// Before the first block. Different salts never share a block.
    Root {
        salt: u64,
    },
    Entry(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Content {
    parent: Chain,
    tokens: [TokenId; BLOCK_TOKENS],
}

#[derive(Debug, Clone)]
struct Entry {
    number: u64,
    content: Content,
}

/// The tokens of a sequence, prompt then output, without joining them.
#[derive(Debug, Clone, Copy)]
pub struct TokenParts<'a> {
    pub prompt: &'a [TokenId],
    pub output: &'a [TokenId],
}

impl TokenParts<'_> {
    pub fn len(&self) -> usize {
        self.prompt.len() + self.output.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, position: usize) -> Option<TokenId> {
        self.prompt.get(position).or_else(|| self.output.get(position - self.prompt.len())).copied()
    }

    /// Tokens of the `index`th block if it is full.
    fn block(&self, index: usize) -> Option<[TokenId; BLOCK_TOKENS]> {
        let start = index * BLOCK_TOKENS;
        (start + BLOCK_TOKENS <= self.len())
            .then(|| std::array::from_fn(|i| self.get(start + i).expect("within the length just checked")))
    }
}

/// Blocks whose content is the beginning of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixMatch {
    pub blocks: Vec<BlockId>,
    /// Where the chain goes on.
    pub chain: Chain,
}

impl PrefixMatch {
    pub fn none(salt: u64) -> Self {
        Self { blocks: Vec::new(), chain: Chain::Root { salt } }
    }

    pub fn num_tokens(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }
}

#[derive(Debug, Clone, Default)]
pub struct PrefixIndex {
    hasher: RandomState,
    /// By hash of the content.
    blocks: FxHashMap<u64, BlockId>,
    /// By block: what it is known for.
    entries: Vec<Option<Entry>>,
    next_number: u64,
}

impl PrefixIndex {
    /// The longest known chain of full blocks, which always leaves at least one token to compute: without a computed
    /// row there are no logits to draw from.
    pub fn lookup(&self, tokens: TokenParts<'_>, salt: u64) -> PrefixMatch {
        let mut found = PrefixMatch::none(salt);
        let max_blocks = tokens.len().saturating_sub(1) / BLOCK_TOKENS;
        for index in 0..max_blocks {
            let Some(tokens) = tokens.block(index) else { break };
            let content = Content { parent: found.chain, tokens };
            let Some(&block) = self.blocks.get(&self.hasher.hash_one(&content)) else { break };
            let Some(entry) = self.entry(block).filter(|entry| entry.content == content) else { break };
            found.blocks.push(block);
            found.chain = Chain::Entry(entry.number);
        }
        found
    }

    fn entry(&self, block: BlockId) -> Option<&Entry> {
        self.entries.get(block as usize)?.as_ref()
    }

    /// Makes the `index`th block of a sequence findable under `parent`. When the same content is already known in
    /// another block that one stays, and the flag is false.
    pub fn insert(&mut self, parent: Chain, tokens: TokenParts<'_>, index: usize, block: BlockId) -> (Chain, bool) {
        let Some(tokens) = tokens.block(index) else { return (parent, false) };
        let content = Content { parent, tokens };
        let hash = self.hasher.hash_one(&content);
        let holder = self.blocks.get(&hash).and_then(|&holder| self.entry(holder));
        if let Some(known) = holder.filter(|known| known.content == content) {
            return (Chain::Entry(known.number), false);
        }
        let (number, is_free) = (self.next_number, holder.is_none());
        self.next_number += 1;
        // Two contents with one hash: the later one stays unknown, and so does what follows it.
        if is_free {
            self.blocks.insert(hash, block);
            let place = block as usize;
            self.entries.resize_with(self.entries.len().max(place + 1), || None);
            self.entries[place] = Some(Entry { number, content });
        }
        (Chain::Entry(number), is_free)
    }

    /// The block is about to hold something else.
    pub fn forget(&mut self, block: BlockId) {
        if let Some(entry) = self.entries.get_mut(block as usize).and_then(Option::take) {
            self.blocks.remove(&self.hasher.hash_one(&entry.content));
        }
    }

    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }
}
