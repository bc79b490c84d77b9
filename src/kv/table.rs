//! Block tables of sequences, and the one place that changes them.
//!
//! [`KvBlocks`] joins pool and prefix index so that no caller can update one and not the other. Tables do not free
//! themselves: a table that is dropped without [`KvBlocks::release`] is a leak that [`KvBlocks::check`] reports.
//!
//! Invariant: a block that is full and findable is never written again; a block with more than one holder is never
//! written at all (copy on write).

use super::{BLOCK_TOKENS, BlockCounts, BlockId, BlockPool, Chain, PrefixIndex, PrefixMatch, TokenParts, blocks_for};

/// The blocks of one sequence, in the order of positions.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// Positions whose K and V are in the blocks.
    num_tokens: usize,
    /// Full blocks that were offered to the prefix index, and where their chain stands.
    num_chained: usize,
    chain: Chain,
}

impl BlockTable {
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}

/// There are not enough blocks; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more KV blocks are needed and {available} are available")]
pub struct OutOfBlocks {
    pub needed: usize,
    pub available: usize,
}

/// The KV blocks of one lane.
#[derive(Debug, Clone)]
pub struct KvBlocks {
    pool: BlockPool,
    /// None when the prefix cache is off.
    prefix: Option<PrefixIndex>,
}

impl KvBlocks {
    pub fn new(num_blocks: usize, prefix_cache: bool) -> Self {
        Self { pool: BlockPool::new(num_blocks), prefix: prefix_cache.then(PrefixIndex::default) }
    }

    pub fn counts(&self) -> BlockCounts {
        self.pool.counts()
    }

    pub fn num_available(&self) -> usize {
        self.pool.num_available()
    }

    /// Cached blocks that begin the sequence, not yet held: see [`KvBlocks::open`].
    pub fn lookup(&self, tokens: TokenParts<'_>, salt: u64) -> PrefixMatch {
        self.prefix.as_ref().map_or_else(|| PrefixMatch::none(salt), |index| index.lookup(tokens, salt))
    }

    /// Blocks that would have to be taken to hold `num_tokens` tokens beyond what `found` brings, counting those of
    /// its blocks that nobody holds yet: compare it with [`KvBlocks::num_available`].
    pub fn cost(&self, found: &PrefixMatch, num_tokens: usize) -> usize {
        let unheld = found.blocks.iter().filter(|&&b| self.pool.refs(b) == 0).count();
        blocks_for(num_tokens).saturating_sub(found.blocks.len()) + unheld
    }

    /// Starts a table with the blocks found.
    pub fn open(&mut self, found: PrefixMatch) -> BlockTable {
        found.blocks.iter().for_each(|&block| self.pool.retain(block));
        BlockTable {
            num_tokens: found.num_tokens(),
            num_chained: found.blocks.len(),
            chain: found.chain,
            blocks: found.blocks,
        }
    }

    /// Makes positions up to `num_tokens` writable: takes the blocks that are missing, and replaces the partly
    /// filled last one by a copy when others hold it too. Copies to be made are appended to `copies` as `(from, to)`.
    pub fn reserve(
        &mut self,
        table: &mut BlockTable,
        num_tokens: usize,
        copies: &mut Vec<(BlockId, BlockId)>,
    ) -> Result<(), OutOfBlocks> {
        let partial = (!table.num_tokens.is_multiple_of(BLOCK_TOKENS)).then_some(table.num_tokens / BLOCK_TOKENS);
        let shared = partial.filter(|&i| num_tokens > table.num_tokens && self.pool.refs(table.blocks[i]) > 1);
        let missing = blocks_for(num_tokens).saturating_sub(table.blocks.len());
        let (needed, available) = (missing + usize::from(shared.is_some()), self.num_available());
        if needed > available {
            return Err(OutOfBlocks { needed, available });
        }
        if let Some(index) = shared {
            let copy = self.take();
            let original = std::mem::replace(&mut table.blocks[index], copy);
            self.pool.release(original);
            copies.push((original, copy));
        }
        for _ in 0..missing {
            let block = self.take();
            table.blocks.push(block);
        }
        Ok(())
    }

    /// Gives back the blocks beyond what `num_tokens` tokens fill: places that were reserved in vain. They hold no computed
    /// position, so nobody finds them.
    pub fn shrink(&mut self, table: &mut BlockTable, num_tokens: usize) {
        let kept = blocks_for(num_tokens.max(table.num_tokens));
        for block in table.blocks.drain(kept.min(table.blocks.len())..).rev() {
            self.pool.release(block);
        }
    }

    /// K and V of positions up to `num_tokens` have been computed; blocks that became full become findable.
    pub fn advance(&mut self, table: &mut BlockTable, num_tokens: usize, tokens: TokenParts<'_>) {
        assert!(
            num_tokens >= table.num_tokens && blocks_for(num_tokens) <= table.blocks.len(),
            "a table of {} blocks cannot go from {} to {num_tokens} tokens",
            table.blocks.len(),
            table.num_tokens
        );
        table.num_tokens = num_tokens;
        let Some(index) = &mut self.prefix else { return };
        while (table.num_chained + 1) * BLOCK_TOKENS <= num_tokens {
            let block = table.blocks[table.num_chained];
            let (chain, is_new) = index.insert(table.chain, tokens, table.num_chained, block);
            if is_new {
                self.pool.mark_findable(block);
            }
            table.chain = chain;
            table.num_chained += 1;
        }
    }

    /// A second sequence with the same past. Shares every block, the partly filled one until either writes to it.
    pub fn fork(&mut self, table: &BlockTable) -> BlockTable {
        let blocks = table.blocks[..blocks_for(table.num_tokens)].to_vec();
        blocks.iter().for_each(|&block| self.pool.retain(block));
        BlockTable { blocks, num_tokens: table.num_tokens, num_chained: table.num_chained, chain: table.chain }
    }

    /// Gives up a table. Its last block goes first, so that a prefix outlives what follows it.
    pub fn release(&mut self, table: BlockTable) {
        table.blocks.iter().rev().for_each(|&block| self.pool.release(block));
    }

    /// Keeps one block from being reused until [`KvBlocks::unpin`].
    pub fn pin(&mut self, block: BlockId) {
        self.pool.retain(block);
    }

    pub fn unpin(&mut self, block: BlockId) {
        self.pool.release(block);
    }

    /// The memory behind the blocks was lost: nothing can be found any more. Tables stay as they are.
    pub fn forget_all(&mut self) {
        (0..self.counts().total as BlockId).for_each(|block| self.pool.mark_forgotten(block));
        self.prefix = self.prefix.take().map(|_| PrefixIndex::default());
    }

    /// Proves the accounting against everything that is said to be held: `held` lists the blocks of every table and
    /// every pin, repeated as often as they are held.
    pub fn check(&self, held: impl Iterator<Item = BlockId>) -> Result<(), String> {
        self.pool.check()?;
        let mut refs = vec![0u32; self.counts().total];
        held.for_each(|block| refs[block as usize] += 1);
        let wrong = (0..).zip(&refs).find(|&(block, &refs)| refs != self.pool.refs(block));
        if let Some((block, refs)) = wrong {
            return Err(format!("block {block} is in {refs} tables but counts {} holders", self.pool.refs(block)));
        }
        let (cached, findable) = (self.counts().cached, self.prefix.as_ref().map_or(0, PrefixIndex::num_blocks));
        if cached > findable {
            return Err(format!("{cached} blocks are cached but only {findable} can be found"));
        }
        Ok(())
    }

    fn take(&mut self) -> BlockId {
        let taken = self.pool.take().expect("the caller has compared need and availability");
        if let (true, Some(index)) = (taken.evicted, &mut self.prefix) {
            index.forget(taken.block);
        }
        taken.block
    }
}
