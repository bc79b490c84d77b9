//! One tile of attention: some query vectors over the blocks of one KV head, split by split.
//!
//! K and V of a part lie in the first-level cache while all queries pass by, as many at a time as fit the registers.
//! Whether a query is taken alone or with others does not change its sums.
//!
//! Loops stand where closures would be shorter: a closure does not inherit the level's instructions.
#![allow(unsafe_op_in_unsafe_fn, reason = "microkernels are pointer arithmetic; their contracts stand above them")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::isa::{Kernel, Simd};
use super::super::kv::{NO_FP8, padded};
use super::form::{Dot, Form, Pair, Single};
use super::part::{Group, PART_TOKENS, Part, Softmax};
use super::record::{HEADER, Record};
use super::{Attend, MAX_QUERIES, MAX_TILE_VALUES, SPLIT_TOKENS};
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::KvDtype;
use crate::model::spec::MAX_HEAD_DIM;

/// One query vector: `head_dim` values at `q` and at `out`; it sees the positions `start..end`.
#[derive(Clone, Copy)]
pub struct Query {
    pub q: *const f32,
    pub out: *mut f32,
    pub start: usize,
    pub end: usize,
}

impl Query {
    pub const NONE: Query = Query { q: std::ptr::null(), out: std::ptr::null_mut(), start: 0, end: 0 };
}

/// Queries in ascending order of position, [`MAX_QUERIES`] at most, and [`MAX_TILE_VALUES`] values.
pub struct Tile<'a> {
    pub attend: &'a Attend<'a>,
    pub queries: &'a [Query],
    pub table: &'a [u32],
    pub kv_head: usize,
    pub splits: Range<usize>,
    /// Where the records of a single split go; without, the queries' outputs are written.
    pub records: Option<*mut f32>,
}

const MAX_RECORD_VALUES: usize = MAX_TILE_VALUES + MAX_QUERIES * HEADER;
/// Bytes of K (or V) of a part, widened to bfloat16.
const MAX_WIDE_BYTES: usize = 2 * PART_TOKENS * MAX_HEAD_DIM;

#[repr(align(64))]
struct Memory {
    x: [f32; MAX_TILE_VALUES],
    first: [f32; MAX_RECORD_VALUES],
    next: [f32; MAX_RECORD_VALUES],
    /// K and V.
    wide: [[u8; MAX_WIDE_BYTES]; 2],
}

/// Blocks of a part.
pub const PART_BLOCKS: usize = PART_TOKENS / BLOCK_TOKENS;

impl Kernel for Tile<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.attend.kv.dtype() {
            KvDtype::F32 => self.attend_as::<S, Single>(),
            KvDtype::Bf16 | KvDtype::Int8 if self.attend.dots => self.attend_as::<S, Dot>(),
            KvDtype::Bf16 | KvDtype::Int8 => self.attend_as::<S, Pair>(),
            KvDtype::Fp8 => unreachable!("{NO_FP8}"),
        }
    }
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn attend_as<S: Simd, F: Form>(&self) {
        let head_dim = self.attend.attention.head_dim;
        let dims = padded(head_dim);
        let mut memory: MaybeUninit<Memory> = MaybeUninit::uninit();
        let memory = memory.as_mut_ptr();
        let x: *mut u8 = (&raw mut (*memory).x).cast();
        let first = self.records.unwrap_or((&raw mut (*memory).first).cast());
        let next: *mut f32 = (&raw mut (*memory).next).cast();
        let wide: [*mut u8; 2] = [(&raw mut (*memory).wide[0]).cast(), (&raw mut (*memory).wide[1]).cast()];
        let mut i = 0;
        while i < self.queries.len() {
            let n = group_len::<S>(self.queries.len() - i);
            interleave::<S, F>(&self.queries[i..i + n], head_dim, x.add(i * head_dim * F::X_BYTES));
            i += n;
        }
        let record = |records: *mut f32, i: usize| Record(records.add(i * (HEADER + dims)));
        for split in self.splits.clone() {
            let records = if split == self.splits.start { first } else { next };
            self.split::<S, F>(split, x, records, wide);
            if split != self.splits.start {
                for i in 0..self.queries.len() {
                    record(first, i).merge::<S>(record(next, i), dims);
                }
            }
        }
        if self.records.is_none() {
            for (i, query) in self.queries.iter().enumerate() {
                record(first, i).finish::<S>(query.out, head_dim);
            }
        }
    }

    /// Leaves in `records` what the queries have of a split.
    #[inline(always)]
    unsafe fn split<S: Simd, F: Form>(&self, split: usize, x: *const u8, records: *mut f32, wide: [*mut u8; 2]) {
        let head_dim = self.attend.attention.head_dim;
        let dims = padded(head_dim);
        let mut states = [Softmax::NOTHING; MAX_QUERIES];
        for i in 0..self.queries.len() {
            Record(records.add(i * (HEADER + dims))).clear::<S>(dims);
        }
        let (start, end) = (self.queries[0].start, self.queries[self.queries.len() - 1].end);
        let (start, end) = (start.max(split * SPLIT_TOKENS), end.min((split + 1) * SPLIT_TOKENS));
        for index in start / PART_TOKENS..end.div_ceil(PART_TOKENS) {
            let part = self.part::<S>(index, wide);
            let mut i = 0;
            while i < self.queries.len() {
                let n = group_len::<S>(self.queries.len() - i);
                let queries = &self.queries[i..i + n];
                let (x, values) = (x.add(i * head_dim * F::X_BYTES), records.add(i * (HEADER + dims) + HEADER));
                let group = Group { attention: self.attend.attention, queries, x, values };
                let states = &mut states[i..i + n];
                match n {
                    5.. if S::NUM_REGISTERS < 32 => unreachable!("a group of {n} for so few registers"),
                    8 => group.step::<S, F, 8>(states, &part),
                    7 => group.step::<S, F, 7>(states, &part),
                    6 => group.step::<S, F, 6>(states, &part),
                    5 => group.step::<S, F, 5>(states, &part),
                    4 => group.step::<S, F, 4>(states, &part),
                    3 => group.step::<S, F, 3>(states, &part),
                    2 => group.step::<S, F, 2>(states, &part),
                    _ => group.step::<S, F, 1>(states, &part),
                }
                i += n;
            }
        }
        for (i, state) in states[..self.queries.len()].iter().enumerate() {
            Record(records.add(i * (HEADER + dims))).set(state.base, state.sum::<S>());
        }
    }

    /// Where K and V of a part are, bytes widened; those of the next part are asked for.
    #[inline(always)]
    unsafe fn part<S: Simd>(&self, index: usize, wide: [*mut u8; 2]) -> Part {
        let kv = self.attend.kv;
        let first = index * PART_TOKENS;
        let end = self.queries[self.queries.len() - 1].end;
        let mut part = Part {
            first,
            seen: self.queries[0].start.max(first) - first..end.min(first + PART_TOKENS) - first,
            k: [std::ptr::null(); PART_BLOCKS],
            v: [std::ptr::null(); PART_BLOCKS],
            k_scales: None,
            v_scales: None,
        };
        for i in 0..PART_BLOCKS {
            let block = index * PART_BLOCKS + i;
            // A block behind the last one is hidden, so any will do.
            let block = if block * BLOCK_TOKENS < end { block } else { index * PART_BLOCKS };
            (part.k[i], part.v[i]) = kv.tiles(self.attend.layer, self.table[block], self.kv_head);
            if (block + PART_BLOCKS) * BLOCK_TOKENS < end {
                self.prefetch::<S>(self.table[block + PART_BLOCKS]);
            }
        }
        if kv.dtype() == KvDtype::Int8 {
            let values = padded(self.attend.attention.head_dim) * BLOCK_TOKENS;
            part.k_scales = Some(part.k.map(|tile| tile.add(values).cast()));
            part.v_scales = Some(part.v.map(|tile| tile.add(values).cast()));
            for i in 0..PART_BLOCKS {
                part.k[i] = widen::<S>(part.k[i], values, wide[0].add(2 * i * values));
                part.v[i] = widen::<S>(part.v[i], values, wide[1].add(2 * i * values));
            }
        }
        part
    }

    /// Asks for the tiles of a block that is needed soon: no hardware guesses where the next block lies.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, block: u32) {
        let (k, v) = self.attend.kv.tiles(self.attend.layer, block, self.kv_head);
        for tile in [k, v] {
            for i in (0..self.attend.kv.tile_bytes()).step_by(64) {
                S::prefetch(tile.wrapping_add(i));
            }
        }
    }
}

/// Of so many queries left, how many are taken together: as many as fit the registers, shared out evenly.
#[inline(always)]
fn group_len<S: Simd>(left: usize) -> usize {
    let most = if S::NUM_REGISTERS >= 32 { 8 } else { 4 };
    left.div_ceil(left.div_ceil(most))
}

/// Queries as [`Form::add`] wants them: word after word, each of all queries. `head_dim` is a multiple of the word.
#[inline(always)]
unsafe fn interleave<S: Simd, F: Form>(queries: &[Query], head_dim: usize, to: *mut u8) {
    let word = F::WORD * F::X_BYTES;
    let mut row = MaybeUninit::<[f32; MAX_HEAD_DIM]>::uninit();
    let row: *mut u8 = row.as_mut_ptr().cast();
    for (r, query) in queries.iter().enumerate() {
        for d in (0..head_dim).step_by(S::WIDTH) {
            let left = head_dim - d;
            let x = if left < S::WIDTH { S::load_first(query.q.add(d), left) } else { S::load(query.q.add(d)) };
            F::store_x::<S>(row.add(d * F::X_BYTES), x);
        }
        for i in 0..head_dim / F::WORD {
            std::ptr::copy_nonoverlapping(row.add(i * word), to.add((i * queries.len() + r) * word), word);
        }
    }
}

/// `n` signed bytes as bfloat16, exactly.
#[inline(always)]
unsafe fn widen<S: Simd>(from: *const u8, n: usize, to: *mut u8) -> *const u8 {
    for i in (0..n).step_by(S::WIDTH) {
        S::store_bf16(to.add(2 * i), S::load_i8(from.add(i)));
    }
    to
}
