//! The blocks themselves: reference counts, and the list of blocks that nobody holds.
//!
//! The list runs through the blocks' own `prev` and `next`, so taking, releasing and pulling a block out of its
//! middle (a prefix hit) are O(1) and allocate nothing. Empty blocks are at its front and are taken first; findable
//! ones queue at its back, so the one released longest ago is lost first.
//!
//! Never knows what a block holds, only whether somebody could still look for it.

/// Number of a block within its lane's KV memory.
pub type BlockId = u32;

#[derive(Debug, Clone, Copy)]
struct Block {
    refs: u32,
    findable: bool,
    prev: u32,
    next: u32,
}

/// How the blocks of a pool are divided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Hold nothing.
    pub free: usize,
    /// Held by nobody, but findable until they are taken.
    pub cached: usize,
    pub held: usize,
    pub total: usize,
}

/// A block that was just taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub block: BlockId,
    /// It was findable until now: whoever indexes contents must forget it.
    pub evicted: bool,
}

#[derive(Debug, Clone)]
pub struct BlockPool {
    /// One per block, and one more at the end: the list's head and tail.
    blocks: Vec<Block>,
    num_free: usize,
    num_cached: usize,
}

impl BlockPool {
    pub fn new(num_blocks: usize) -> Self {
        let end = u32::try_from(num_blocks).expect("block numbers are 32 bits");
        let mut pool = Self {
            blocks: vec![Block { refs: 0, findable: false, prev: end, next: end }; num_blocks + 1],
            num_free: num_blocks,
            num_cached: 0,
        };
        (0..end).for_each(|block| pool.link_between(block, pool.node(end).prev, end));
        pool
    }

    pub fn counts(&self) -> BlockCounts {
        let total = self.blocks.len() - 1;
        let (free, cached) = (self.num_free, self.num_cached);
        BlockCounts { free, cached, held: total - free - cached, total }
    }

    /// Blocks that [`BlockPool::take`] could still hand out.
    pub fn num_available(&self) -> usize {
        self.num_free + self.num_cached
    }

    pub fn refs(&self, block: BlockId) -> u32 {
        self.node(block).refs
    }

    /// A block for the caller alone, an empty one if there is any.
    pub fn take(&mut self) -> Option<Taken> {
        let end = self.end();
        let block = self.node(end).next;
        if block == end {
            return None;
        }
        self.unlink(block);
        let node = self.node_mut(block);
        let evicted = std::mem::replace(&mut node.findable, false);
        node.refs = 1;
        *(if evicted { &mut self.num_cached } else { &mut self.num_free }) -= 1;
        Some(Taken { block, evicted })
    }

    /// One more holder, of a held block or of a cached one that was found again.
    ///
    /// Panics when the block is free: its content is nobody's, and using it would mix two conversations.
    pub fn retain(&mut self, block: BlockId) {
        let node = *self.node(block);
        assert!(node.refs > 0 || node.findable, "block {block} is free and cannot be retained");
        if node.refs == 0 {
            self.unlink(block);
            self.num_cached -= 1;
        }
        self.node_mut(block).refs += 1;
    }

    /// One holder less. The last one leaves a findable block cached, any other free.
    ///
    /// Panics when nobody holds the block: a second release would hand one block to two sequences.
    pub fn release(&mut self, block: BlockId) {
        assert!(self.node(block).refs > 0, "block {block} is released but nobody holds it");
        self.node_mut(block).refs -= 1;
        if self.node(block).refs == 0 {
            self.link(block);
        }
    }

    /// From now on a held block's content can be looked up, also after its release.
    pub fn mark_findable(&mut self, block: BlockId) {
        assert!(self.node(block).refs > 0, "block {block} is not held and cannot become findable");
        self.node_mut(block).findable = true;
    }

    /// The content can no longer be looked up; a cached block becomes free.
    pub fn mark_forgotten(&mut self, block: BlockId) {
        let node = *self.node(block);
        if node.findable && node.refs == 0 {
            self.unlink(block);
            self.num_cached -= 1;
            self.node_mut(block).findable = false;
            self.link(block);
        }
        self.node_mut(block).findable = false;
    }

    /// Walks the whole list and compares it with the counters: O(blocks).
    pub fn check(&self) -> Result<(), String> {
        let end = self.end();
        let (mut free, mut cached, mut at) = (0, 0, self.node(end).next);
        while at != end {
            let node = self.node(at);
            if node.refs != 0 || self.node(node.next).prev != at || free + cached >= self.blocks.len() {
                return Err(format!("block {at} is listed as unheld but has {} holders or broken links", node.refs));
            }
            *(if node.findable { &mut cached } else { &mut free }) += 1;
            at = node.next;
        }
        let held = self.blocks[..end as usize].iter().filter(|b| b.refs > 0).count();
        let walked = BlockCounts { free, cached, held, total: end as usize };
        if walked != self.counts() || free + cached + held != walked.total {
            return Err(format!("blocks are {walked:?} but counted as {:?}", self.counts()));
        }
        Ok(())
    }

    fn link(&mut self, block: BlockId) {
        let end = self.end();
        if self.node(block).findable {
            self.link_between(block, self.node(end).prev, end);
            self.num_cached += 1;
        } else {
            self.link_between(block, end, self.node(end).next);
            self.num_free += 1;
        }
    }

    fn link_between(&mut self, block: BlockId, prev: u32, next: u32) {
        let node = self.node_mut(block);
        (node.prev, node.next) = (prev, next);
        self.node_mut(prev).next = block;
        self.node_mut(next).prev = block;
    }

    fn unlink(&mut self, block: BlockId) {
        let Block { prev, next, .. } = *self.node(block);
        self.node_mut(prev).next = next;
        self.node_mut(next).prev = prev;
    }

    fn end(&self) -> u32 {
        (self.blocks.len() - 1) as u32
    }

    fn node(&self, block: BlockId) -> &Block {
        &self.blocks[block as usize]
    }

    fn node_mut(&mut self, block: BlockId) -> &mut Block {
        &mut self.blocks[block as usize]
    }
}
