//! Causal attention over the paged KV cache (flash-style: Dao et al. 2022; the split of decode: flash-decoding).
//!
//! Owns the order of computation. Invariant: a query at position p meets its context in ascending order, in parts of
//! [`part::PART_TOKENS`] positions that begin at multiples of their size, one online-softmax update each. What belongs to a
//! split of [`SPLIT_TOKENS`] positions, likewise aligned, is summed up on its own and then added to the splits before. So
//! which rows share a tile, which thread takes which split, or how a prompt was cut into chunks, changes nothing.
//!
//! A tile is some query vectors that read the same K and V: the heads of a group, times consecutive rows of a span.

mod form;
mod part;
mod record;
mod tile;

use std::ops::Range;

use self::record::{HEADER, Merge};
use self::tile::{Query, Tile};
use super::isa::Isa;
use super::kv::{KvCache, padded};
use super::memory::{Scratch, Shared};
use super::pool::Pool;
use super::rows::CpuRows;
use crate::model::ops::{Attention, Batch, Span};

/// Queries of a tile.
const MAX_QUERIES: usize = 32;
/// Values of a tile's queries, padded: they share the first-level cache with a part of K and V.
const MAX_TILE_VALUES: usize = 2048;
/// Positions that one thread goes through when there are more threads than tiles.
const SPLIT_TOKENS: usize = 512;
/// Multiplications under which waking threads costs more than it gains.
const MIN_PARALLEL_WORK: usize = 128 << 10;

/// Where attention reads and what it computes.
#[derive(Clone, Copy)]
pub struct Attend<'a> {
    pub isa: Isa,
    /// Whether queries and weights may be rounded to bfloat16 for the dot product, where K and V are no wider.
    pub dots: bool,
    /// Of a step, which has checked it.
    pub batch: &'a Batch,
    pub kv: &'a KvCache,
    pub layer: usize,
    pub attention: &'a Attention,
    pub qkv: &'a CpuRows,
}

/// Rows and heads of one tile.
struct Work {
    span: Span,
    /// Row within the span.
    row: usize,
    num_rows: usize,
    kv_head: usize,
    head: usize,
    num_heads: usize,
    splits: Range<usize>,
    /// Of its first record among all tiles' splits, in records.
    first_record: usize,
}

impl Work {
    fn num_queries(&self) -> usize {
        self.num_rows * self.num_heads
    }
}

impl Attend<'_> {
    /// `out` is `[rows, num_heads * head_dim]`.
    pub fn run(&self, pool: &mut Pool, scratch: &mut Scratch, out: &mut CpuRows) {
        let Attention { num_heads, num_kv_heads, head_dim, .. } = *self.attention;
        assert!(num_kv_heads > 0 && num_heads.is_multiple_of(num_kv_heads), "{num_heads} heads on {num_kv_heads}");
        assert!(self.kv.has_shape(num_kv_heads, head_dim), "KV was allocated for other heads");
        assert_eq!(self.qkv.rows(), self.batch.tokens.len(), "rows of the batch");
        assert_eq!(self.qkv.width(), (num_heads + 2 * num_kv_heads) * head_dim, "width of a fused q, k, v row");
        out.reshape(self.qkv.rows(), num_heads * head_dim);
        let (tiles, work) = self.tiles();
        let out = Shared::new(out.values_mut());
        if work < MIN_PARALLEL_WORK {
            // SAFETY: one thread does it all.
            return tiles.iter().for_each(|tile| unsafe { self.tile(tile, tile.splits.clone(), None, out) });
        }
        let num_splits: usize = tiles.iter().map(|tile| tile.splits.len()).sum();
        if tiles.len() >= 2 * pool.threads() || num_splits == tiles.len() {
            return pool.run(tiles.len(), &|i| {
                // SAFETY: every (row, head) belongs to one tile, every tile to one thread.
                unsafe { self.tile(&tiles[i], tiles[i].splits.clone(), None, out) };
            });
        }
        self.run_split(pool, scratch, &tiles, out);
    }

    /// Every split of every tile is a task of its own; then the splits of each tile are put together.
    fn run_split(&self, pool: &mut Pool, scratch: &mut Scratch, tiles: &[Work], out: Shared<'_, f32>) {
        let record_len = HEADER + padded(self.attention.head_dim);
        let tasks: Vec<(&Work, usize)> =
            tiles.iter().flat_map(|tile| tile.splits.clone().map(move |split| (tile, split))).collect();
        let num_records: usize = tiles.iter().map(|tile| tile.num_queries() * tile.splits.len()).sum();
        let records = Shared::new(scratch.get(num_records * record_len));
        // SAFETY: in bounds, as `first_record` counts the records of all tiles before.
        let records_of = |tile: &Work, split: usize| unsafe {
            let index = tile.first_record + (split - tile.splits.start) * tile.num_queries();
            records.slice(index * record_len, tile.num_queries() * record_len).as_mut_ptr()
        };
        pool.run(tasks.len(), &|i| {
            let (tile, split) = tasks[i];
            // SAFETY: every (row, head) belongs to one tile; every split of it has records of its own.
            unsafe { self.tile(tile, split..split + 1, Some(records_of(tile, split)), out) };
        });
        pool.run(tiles.len(), &|i| {
            let tile = &tiles[i];
            let mut queries = [Query::NONE; MAX_QUERIES];
            let merge = Merge {
                // SAFETY: as above.
                queries: unsafe { self.queries(tile, &mut queries, out) },
                records: records_of(tile, tile.splits.start),
                num_splits: tile.splits.len(),
                head_dim: self.attention.head_dim,
                dims: padded(self.attention.head_dim),
            };
            // SAFETY: an executor's level is available; the tile's records follow each other.
            unsafe { self.isa.run(merge) };
        });
    }

    /// All tiles, those with the longest contexts of a span first, and the multiplications in them.
    fn tiles(&self) -> (Vec<Work>, usize) {
        let Attention { num_heads, num_kv_heads, head_dim, .. } = *self.attention;
        let group = num_heads / num_kv_heads;
        let max_queries = (MAX_TILE_VALUES / padded(head_dim)).clamp(1, MAX_QUERIES);
        let heads_per_tile = group.min(max_queries);
        let rows_per_tile = (max_queries / group).max(1);
        let mut tiles = Vec::new();
        let (mut work, mut first_record) = (0usize, 0);
        for span in &self.batch.spans {
            let rows = span.num_rows as usize;
            let context = span.first_position as usize + rows;
            let reach = self.attention.window.map_or(context, |w| context.min(w.saturating_add(rows)));
            work = work.saturating_add(reach.saturating_mul(2 * head_dim * num_heads).saturating_mul(rows));
            for row in (0..rows).step_by(rows_per_tile).rev() {
                let num_rows = rows_per_tile.min(rows - row);
                let (first, end) =
                    (self.start_of(span.first_position as usize + row), span.first_position as usize + row + num_rows);
                for kv_head in 0..num_kv_heads {
                    for head in (0..group).step_by(heads_per_tile) {
                        let num_heads = heads_per_tile.min(group - head);
                        let splits = first / SPLIT_TOKENS..end.div_ceil(SPLIT_TOKENS);
                        let head = kv_head * group + head;
                        let tile = Work { span: *span, row, num_rows, kv_head, head, num_heads, splits, first_record };
                        first_record += tile.num_queries() * tile.splits.len();
                        tiles.push(tile);
                    }
                }
            }
        }
        (tiles, work)
    }

    /// The first position that the query at `position` sees.
    fn start_of(&self, position: usize) -> usize {
        self.attention.window.map_or(0, |w| (position + 1).saturating_sub(w.max(1)))
    }

    /// # Safety
    /// No other thread touches the tile's rows and heads of `out`, which is `[rows, num_heads * head_dim]`, nor the
    /// records, one for each query; with them there is but one split.
    unsafe fn tile(&self, work: &Work, splits: Range<usize>, records: Option<*mut f32>, out: Shared<'_, f32>) {
        let mut queries = [Query::NONE; MAX_QUERIES];
        // SAFETY: the caller's promise.
        let queries = unsafe { self.queries(work, &mut queries, out) };
        let table = &self.batch.tables[work.span.table_start as usize..][..work.span.num_blocks as usize];
        let kernel = Tile { attend: self, queries, table, kv_head: work.kv_head, splits, records };
        // SAFETY: an executor's level is available; `queries` point to `head_dim` values each, outputs are ours.
        unsafe { self.isa.run(kernel) };
    }

    /// A tile's queries, row after row.
    ///
    /// # Safety
    /// As for [`Attend::tile`].
    unsafe fn queries<'q>(
        &self,
        work: &Work,
        queries: &'q mut [Query; MAX_QUERIES],
        out: Shared<'_, f32>,
    ) -> &'q [Query] {
        let head_dim = self.attention.head_dim;
        let out_width = self.attention.num_heads * head_dim;
        for (i, query) in queries[..work.num_queries()].iter_mut().enumerate() {
            let (row, head) = (work.row + i / work.num_heads, work.head + i % work.num_heads);
            let position = work.span.first_position as usize + row;
            let row = work.span.row_start as usize + row;
            let q = &self.qkv.row(row)[head * head_dim..][..head_dim];
            // SAFETY: this tile's own elements.
            let out = unsafe { out.slice(row * out_width + head * head_dim, head_dim) };
            *query = Query { q: q.as_ptr(), out: out.as_mut_ptr(), start: self.start_of(position), end: position + 1 };
        }
        &queries[..work.num_queries()]
    }
}
