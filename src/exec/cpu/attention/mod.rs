//! Causal attention over the paged KV cache.
//!
//! Owns the order of computation. Invariant: a query at position p meets the blocks of its context in ascending
//! order, one online-softmax update per block, starting at the block that holds its window's first position; which
//! rows share a tile, or how a prompt was cut into chunks, changes nothing.
//!
//! A tile is up to [`MAX_QUERIES`] query vectors that read the same K and V: the heads of a group, times consecutive
//! rows of a span.

mod tile;

use self::tile::{Query, Tile};
use super::isa::Isa;
use super::kv::KvCache;
use super::memory::Shared;
use super::pool::Pool;
use super::rows::CpuRows;
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::{Attention, Batch, Span};

const MAX_QUERIES: usize = 16;
/// Multiplications under which waking threads costs more than it gains.
const MIN_PARALLEL_WORK: usize = 128 << 10;

/// Where attention reads and what it computes.
#[derive(Clone, Copy)]
pub struct Attend<'a> {
    pub isa: Isa,
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
}

impl Attend<'_> {
    /// `out` is `[rows, num_heads * head_dim]`.
    pub fn run(&self, pool: &mut Pool, out: &mut CpuRows) {
        let Attention { num_heads, num_kv_heads, head_dim, .. } = *self.attention;
        assert!(num_kv_heads > 0 && num_heads.is_multiple_of(num_kv_heads), "{num_heads} heads on {num_kv_heads}");
        assert!(self.kv.has_shape(num_kv_heads, head_dim), "KV was allocated for other heads");
        assert_eq!(self.qkv.width(), (num_heads + 2 * num_kv_heads) * head_dim, "width of a fused q, k, v row");
        out.reshape(self.qkv.rows(), num_heads * head_dim);
        let (tiles, work) = self.tiles();
        let shared = Shared::new(out.values_mut());
        let task = |i: usize| {
            // SAFETY: every (row, head) belongs to one tile, every tile to one thread.
            unsafe { self.tile(&tiles[i], shared) };
        };
        if work < MIN_PARALLEL_WORK { (0..tiles.len()).for_each(task) } else { pool.run(tiles.len(), &task) }
    }

    /// All tiles, those with the longest contexts of a span first, and the multiplications in them.
    fn tiles(&self) -> (Vec<Work>, usize) {
        let Attention { num_heads, num_kv_heads, head_dim, .. } = *self.attention;
        let group = num_heads / num_kv_heads;
        let heads_per_tile = group.min(MAX_QUERIES);
        let rows_per_tile = (MAX_QUERIES / group).max(1);
        let mut tiles = Vec::new();
        let (mut work, mut rows_seen) = (0usize, 0);
        for span in &self.batch.spans {
            let rows = span.num_rows as usize;
            let end = span.row_start as usize + rows;
            assert!(span.row_start as usize >= rows_seen, "spans overlap at row {}", span.row_start);
            rows_seen = end;
            assert!(end <= self.qkv.rows(), "span of rows to {end} in a step of {}", self.qkv.rows());
            let context = span.first_position as usize + rows;
            let table_end = span.table_start as usize + span.num_blocks as usize;
            assert!(table_end <= self.batch.tables.len(), "block table to {table_end}");
            assert!(span.num_blocks as usize * BLOCK_TOKENS >= context, "block table shorter than its sequence");
            let reach = self.attention.window.map_or(context, |w| context.min(w.saturating_add(rows)));
            work = work.saturating_add(reach.saturating_mul(2 * head_dim * num_heads).saturating_mul(rows));
            for row in (0..rows).step_by(rows_per_tile).rev() {
                for kv_head in 0..num_kv_heads {
                    for first in (0..group).step_by(heads_per_tile) {
                        tiles.push(Work {
                            span: *span,
                            row,
                            num_rows: rows_per_tile.min(rows - row),
                            kv_head,
                            head: kv_head * group + first,
                            num_heads: heads_per_tile.min(group - first),
                        });
                    }
                }
            }
        }
        (tiles, work)
    }

    /// # Safety
    /// No other thread touches the tile's rows and heads of `out`, which is `[rows, num_heads * head_dim]`.
    unsafe fn tile(&self, work: &Work, out: Shared<'_, f32>) {
        let head_dim = self.attention.head_dim;
        let out_width = self.attention.num_heads * head_dim;
        let mut queries = [Query::NONE; MAX_QUERIES];
        let mut count = 0;
        for row in work.row..work.row + work.num_rows {
            let position = work.span.first_position as usize + row;
            let start = self.attention.window.map_or(0, |w| (position + 1).saturating_sub(w.max(1)));
            let row = work.span.row_start as usize + row;
            for head in work.head..work.head + work.num_heads {
                let q = &self.qkv.row(row)[head * head_dim..][..head_dim];
                // SAFETY: this tile's own elements.
                let out = unsafe { out.slice(row * out_width + head * head_dim, head_dim) };
                out.fill(0.0);
                queries[count] = Query { q: q.as_ptr(), out: out.as_mut_ptr(), start, end: position + 1 };
                count += 1;
            }
        }
        let table = &self.batch.tables[work.span.table_start as usize..][..work.span.num_blocks as usize];
        let kernel = Tile { attend: self, queries: &queries[..count], table, kv_head: work.kv_head };
        // SAFETY: an executor's level is available; `queries` point to `head_dim` values each, outputs are ours.
        unsafe { self.isa.run(kernel) };
    }
}
