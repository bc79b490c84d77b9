//! Tests against naive models.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::model::TokenId;

/// The pool as one would write it without caring for speed.
struct NaivePool {
    refs: Vec<u32>,
    findable: Vec<bool>,
    /// Unheld blocks in the order in which they will be taken.
    unheld: VecDeque<BlockId>,
}

impl NaivePool {
    fn release(&mut self, block: BlockId) {
        self.refs[block as usize] -= 1;
        if self.refs[block as usize] == 0 {
            self.put_back(block);
        }
    }

    fn put_back(&mut self, block: BlockId) {
        if self.findable[block as usize] { self.unheld.push_back(block) } else { self.unheld.push_front(block) }
    }

    fn take_out(&mut self, block: BlockId) -> bool {
        let place = self.unheld.iter().position(|&b| b == block);
        place.map(|place| self.unheld.remove(place)).is_some()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_pool_does_what_the_naive_one_does(num_blocks in 1usize..8, ops in prop::collection::vec((0u8..5, 0u32..8), 0..120)) {
        let mut pool = BlockPool::new(num_blocks);
        let mut naive = NaivePool {
            refs: vec![0; num_blocks],
            findable: vec![false; num_blocks],
            unheld: (0..num_blocks as u32).collect(),
        };
        for (op, block) in ops {
            let (block, index) = (block % num_blocks as u32, block as usize % num_blocks);
            let (held, findable) = (naive.refs[index] > 0, naive.findable[index]);
            match op {
                0 => {
                    let expected = naive.unheld.pop_front().map(|block| {
                        naive.refs[block as usize] = 1;
                        Taken { block, evicted: std::mem::take(&mut naive.findable[block as usize]) }
                    });
                    prop_assert_eq!(pool.take(), expected);
                }
                1 if held || findable => {
                    naive.take_out(block);
                    naive.refs[index] += 1;
                    pool.retain(block);
                }
                2 if held => {
                    naive.release(block);
                    pool.release(block);
                }
                3 if held => {
                    naive.findable[index] = true;
                    pool.mark_findable(block);
                }
                4 => {
                    naive.findable[index] = false;
                    if findable && naive.take_out(block) {
                        naive.put_back(block);
                    }
                    pool.mark_forgotten(block);
                }
                _ => {}
            }
            pool.check().map_err(TestCaseError::fail)?;
            prop_assert_eq!(pool.counts().held, naive.refs.iter().filter(|&&refs| refs > 0).count());
            prop_assert_eq!(pool.num_available(), naive.unheld.len());
        }
    }
}

/// One sequence of the model below.
struct Live {
    table: BlockTable,
    tokens: Vec<TokenId>,
}

/// Blocks with a memory in which every slot holds the whole past of its token.
struct World {
    kv: KvBlocks,
    memory: Vec<Vec<TokenId>>,
    live: Vec<Live>,
}

const SALT: u64 = 7;

impl World {
    fn parts(tokens: &[TokenId]) -> TokenParts<'_> {
        // The border between prompt and output lies inside a block as often as not.
        let (prompt, output) = tokens.split_at(tokens.len() / 2);
        TokenParts { prompt, output }
    }

    fn open(&mut self, tokens: Vec<TokenId>) {
        let found = self.kv.lookup(Self::parts(&tokens), SALT);
        assert!(found.num_tokens() < tokens.len());
        let cost = self.kv.cost(&found, tokens.len());
        if cost > self.kv.num_available() {
            return;
        }
        let available = self.kv.num_available();
        let mut table = self.kv.open(found);
        let (mut copies, first) = (Vec::new(), table.num_tokens());
        self.kv.reserve(&mut table, tokens.len(), &mut copies).expect("the cost said so");
        assert_eq!((available - self.kv.num_available(), copies.len()), (cost, 0));
        self.write(&mut table, &tokens, first);
        self.live.push(Live { table, tokens });
    }

    fn write(&mut self, table: &mut BlockTable, tokens: &[TokenId], first: usize) {
        for position in first..tokens.len() {
            let slot = table.blocks()[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS;
            self.memory[slot] = tokens[..=position].to_vec();
        }
        self.kv.advance(table, tokens.len(), Self::parts(tokens));
    }

    fn grow(&mut self, index: usize, token: TokenId) {
        let mut live = self.live.swap_remove(index);
        let mut copies = Vec::new();
        let first = live.tokens.len();
        if self.kv.reserve(&mut live.table, first + 1, &mut copies).is_ok() {
            for (from, to) in copies.into_iter().map(|(from, to)| (from as usize, to as usize)) {
                for offset in 0..BLOCK_TOKENS {
                    self.memory[to * BLOCK_TOKENS + offset] = self.memory[from * BLOCK_TOKENS + offset].clone();
                }
            }
            live.tokens.push(token);
            self.write(&mut live.table, &live.tokens, first);
        }
        self.live.push(live);
    }

    fn check(&self) -> Result<(), String> {
        self.kv.check(self.live.iter().flat_map(|live| live.table.blocks().iter().copied()))?;
        for Live { table, tokens } in &self.live {
            for position in 0..tokens.len() {
                let slot = table.blocks()[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS;
                if self.memory[slot] != tokens[..=position] {
                    return Err(format!("position {position} of {tokens:?} holds {:?}", self.memory[slot]));
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_sequence_always_finds_its_own_past(
        num_blocks in 1usize..12,
        prefix_cache in any::<bool>(),
        ops in prop::collection::vec((0u8..6, 0usize..64, 0u32..2), 0..150),
    ) {
        let kv = KvBlocks::new(num_blocks, prefix_cache);
        let mut world = World { kv, memory: vec![Vec::new(); num_blocks * BLOCK_TOKENS], live: Vec::new() };
        for (op, number, token) in ops {
            let index = number % world.live.len().max(1);
            match op {
                // Few different texts: the beginnings are shared.
                0 => world.open((0..=number as u32).map(|i| (i / 20) * token).collect()),
                1 | 2 if !world.live.is_empty() => world.grow(index, token),
                3 if !world.live.is_empty() => {
                    let live = &world.live[index];
                    let (table, tokens) = (world.kv.fork(&live.table), live.tokens.clone());
                    world.live.push(Live { table, tokens });
                }
                4 if !world.live.is_empty() => {
                    let live = world.live.swap_remove(index);
                    world.kv.release(live.table);
                }
                5 if number == 0 => world.kv.forget_all(),
                _ => {}
            }
            world.check().map_err(TestCaseError::fail)?;
        }
        world.live.drain(..).for_each(|live| world.kv.release(live.table));
        prop_assert_eq!(world.kv.counts().held, 0);
    }
}

fn filled(kv: &mut KvBlocks, tokens: &[TokenId], salt: u64) -> BlockTable {
    let parts = TokenParts { prompt: tokens, output: &[] };
    let mut table = kv.open(kv.lookup(parts, salt));
    kv.reserve(&mut table, tokens.len(), &mut Vec::new()).unwrap();
    kv.advance(&mut table, tokens.len(), parts);
    table
}

#[test]
fn a_prefix_is_found_after_release_but_never_the_whole_prompt_nor_by_another_tenant() {
    let mut kv = KvBlocks::new(8, true);
    let tokens: Vec<TokenId> = (0..48).collect();
    let parts = TokenParts { prompt: &tokens, output: &[] };
    let table = filled(&mut kv, &tokens, 1);
    let blocks = table.blocks().to_vec();
    kv.release(table);
    assert_eq!((kv.counts().cached, kv.counts().free), (3, 5));
    assert_eq!(kv.lookup(parts, 1).blocks, blocks[..2], "the third block holds the last token");
    assert!(kv.lookup(parts, 2).blocks.is_empty());
}

#[test]
fn the_end_of_the_longest_unused_chain_is_lost_first() {
    let mut kv = KvBlocks::new(4, true);
    let (old, new): (Vec<TokenId>, Vec<TokenId>) = ((0..32).collect(), (100..132).collect());
    for tokens in [&old, &new] {
        let table = filled(&mut kv, tokens, 0);
        kv.release(table);
    }
    let longer = |tokens: &[TokenId]| [tokens, &[1]].concat();
    let third = filled(&mut kv, &[9; 5], 0);
    let found = |kv: &KvBlocks, tokens: &[TokenId]| {
        kv.lookup(TokenParts { prompt: &longer(tokens), output: &[] }, 0).blocks.len()
    };
    assert_eq!((found(&kv, &old), found(&kv, &new)), (1, 2));
    kv.release(third);
}

#[test]
fn a_fork_copies_only_the_partly_filled_block_and_only_once() {
    let mut kv = KvBlocks::new(8, true);
    let tokens: Vec<TokenId> = (0..20).collect();
    let mut first = filled(&mut kv, &tokens, 0);
    let mut second = kv.fork(&first);
    assert_eq!(kv.counts().held, 2);
    let mut copies = Vec::new();
    kv.reserve(&mut second, 21, &mut copies).unwrap();
    assert_eq!(copies, [(first.blocks()[1], second.blocks()[1])]);
    kv.reserve(&mut first, 21, &mut copies).unwrap();
    assert_eq!(copies.len(), 1, "the first is alone with its block by now");
    assert_eq!(first.blocks()[0], second.blocks()[0]);
    kv.release(first);
    kv.release(second);
}

#[test]
fn without_enough_blocks_nothing_changes() {
    let mut kv = KvBlocks::new(2, false);
    let mut table = filled(&mut kv, &[1; 20], 0);
    assert_eq!(kv.reserve(&mut table, 49, &mut Vec::new()), Err(OutOfBlocks { needed: 2, available: 0 }));
    assert_eq!((table.blocks().len(), table.num_tokens()), (2, 20));
    kv.release(table);
    assert_eq!(kv.counts(), BlockCounts { free: 2, cached: 0, held: 0, total: 2 });
}
