//! Causal attention over the paged KV cache.
//!
//! Owns the order of computation. Invariant: a query at position p meets the blocks of its context in ascending
//! order, one online-softmax update per block, starting at the block that holds its window's first position; which
//! rows share a tile, or how a prompt was cut into chunks, changes nothing.
//!
//! A tile is up to [`MAX_QUERIES`] query vectors that read the same K and V: the heads of a group, times consecutive
//! rows of a span. Query vectors are taken four at a time, so that a loaded K or V vector is used four times.
#![allow(unsafe_op_in_unsafe_fn, reason = "microkernels are pointer arithmetic; their contracts stand above them")]

use super::isa::element::{Bf16, Element, F32};
use super::isa::{Isa, Kernel, Simd, math};
use super::kv::KvCache;
use super::memory::Shared;
use super::pool::Pool;
use super::rows::CpuRows;
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::{Attention, Batch, KvDtype, Span};

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
        let mut work = 0usize;
        for span in &self.batch.spans {
            let rows = span.num_rows as usize;
            let end = span.row_start as usize + rows;
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

/// One query vector: `head_dim` values at `q` and at `out`; it sees the positions `start..end`.
#[derive(Clone, Copy)]
struct Query {
    q: *const f32,
    out: *mut f32,
    start: usize,
    end: usize,
}

impl Query {
    const NONE: Query = Query { q: std::ptr::null(), out: std::ptr::null_mut(), start: 0, end: 0 };

    /// Its part of block `block`, as offsets in it; empty where it sees none of it.
    #[inline(always)]
    fn part_of(&self, block: usize) -> (usize, usize) {
        let first = block * BLOCK_TOKENS;
        (self.start.clamp(first, first + BLOCK_TOKENS) - first, self.end.clamp(first, first + BLOCK_TOKENS) - first)
    }
}

/// Softmax so far: largest score, and the sum of `exp(score - max)` by place in the block.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sums: [f32; BLOCK_TOKENS],
}

/// Queries in ascending order of position, with outputs zeroed.
struct Tile<'a> {
    attend: &'a Attend<'a>,
    queries: &'a [Query],
    table: &'a [u32],
    kv_head: usize,
}

impl Kernel for Tile<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.attend.kv.dtype() {
            KvDtype::F32 => self.attend_to::<S, F32>(),
            KvDtype::Bf16 => self.attend_to::<S, Bf16>(),
        }
    }
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn attend_to<S: Simd, E: Element>(&self) {
        let head_dim = self.attend.attention.head_dim;
        let queries = self.queries;
        let mut states = [Softmax { max: f32::NEG_INFINITY, sums: [0.0; BLOCK_TOKENS] }; MAX_QUERIES];
        let mut weights = [[0f32; BLOCK_TOKENS]; MAX_QUERIES];
        let first_block = queries[0].start / BLOCK_TOKENS;
        let last_block = (queries[queries.len() - 1].end - 1) / BLOCK_TOKENS;
        for block in first_block..=last_block {
            let (k, v) = self.attend.kv.tiles(self.attend.layer, self.table[block], self.kv_head);
            let mut i = 0;
            while i < queries.len() {
                let four = queries.len() - i >= 4;
                let n = if four { 4 } else { 1 };
                if four {
                    scores::<S, E, 4>(&queries[i..], k, head_dim, &mut weights[i..]);
                } else {
                    scores::<S, E, 1>(&queries[i..], k, head_dim, &mut weights[i..]);
                }
                let mut whole = true;
                for j in i..i + n {
                    let (start, end) = queries[j].part_of(block);
                    whole &= start == 0 && end == BLOCK_TOKENS;
                    if start < end {
                        self.update::<S>(&queries[j], &mut states[j], &mut weights[j], start, end);
                    }
                }
                if whole && four {
                    mix::<S, E, 4>(&queries[i..], &weights[i..], v, head_dim, (0, BLOCK_TOKENS));
                } else {
                    for j in i..i + n {
                        mix::<S, E, 1>(&queries[j..], &weights[j..], v, head_dim, queries[j].part_of(block));
                    }
                }
                i += n;
            }
        }
        for (query, state) in queries.iter().zip(&states) {
            let mut sum = S::load(state.sums.as_ptr());
            let mut i = S::WIDTH;
            while i < BLOCK_TOKENS {
                sum = S::add(sum, S::load(state.sums.as_ptr().add(i)));
                i += S::WIDTH;
            }
            scale::<S>(query.out, head_dim, 1.0 / S::sum(sum));
        }
    }

    /// Turns the scores of positions `start..end` of a block into softmax weights relative to the new maximum, zero
    /// elsewhere, and rescales what was summed before.
    #[inline(always)]
    unsafe fn update<S: Simd>(
        &self,
        query: &Query,
        state: &mut Softmax,
        weights: &mut [f32; BLOCK_TOKENS],
        start: usize,
        end: usize,
    ) {
        let attention = self.attend.attention;
        let w = weights.as_mut_ptr();
        let mut largest = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i < BLOCK_TOKENS {
            let mut s = S::mul(S::load(w.add(i)), S::splat(attention.scale));
            if let Some(cap) = attention.softcap {
                s = math::soft_cap::<S>(s, cap);
            }
            let place = S::add(S::load(PLACES.as_ptr().add(i)), S::splat(0.5));
            let hidden = S::splat(f32::NEG_INFINITY);
            s = S::select_less(place, S::splat(start as f32), hidden, s);
            s = S::select_less(place, S::splat(end as f32), s, hidden);
            S::store(w.add(i), s);
            largest = S::max(largest, s);
            i += S::WIDTH;
        }
        let block_max = S::max_lane(largest);
        let max = if block_max > state.max { block_max } else { state.max };
        // The same scalar through the same vector code, so that it rounds alike on every path.
        let shrink = S::max_lane(math::exp::<S>(S::splat(state.max - max)));
        if shrink != 1.0 {
            scale::<S>(query.out, attention.head_dim, shrink);
        }
        state.max = max;
        let mut i = 0;
        while i < BLOCK_TOKENS {
            let p = math::exp::<S>(S::sub(S::load(w.add(i)), S::splat(max)));
            S::store(w.add(i), p);
            let sums = state.sums.as_mut_ptr().add(i);
            S::store(sums, S::fma(S::load(sums), S::splat(shrink), p));
            i += S::WIDTH;
        }
    }
}

static PLACES: [f32; BLOCK_TOKENS] = {
    let mut places = [0.0; BLOCK_TOKENS];
    let mut i = 0;
    while i < BLOCK_TOKENS {
        places[i] = i as f32;
        i += 1;
    }
    places
};

/// `out[q][t] = Σ_d q[d] * k[d][t]` for `Q` queries and all tokens of a block; even and odd d are summed apart.
///
/// # Safety
/// `k` holds `head_dim * BLOCK_TOKENS` elements, each query `head_dim` values.
#[inline(always)]
unsafe fn scores<S: Simd, E: Element, const Q: usize>(
    queries: &[Query],
    k: *const u8,
    head_dim: usize,
    out: &mut [[f32; BLOCK_TOKENS]],
) {
    let mut token = 0;
    while token < BLOCK_TOKENS {
        let k = k.add(token * E::BYTES);
        let mut even = [S::splat(0.0); Q];
        let mut odd = [S::splat(0.0); Q];
        let mut d = 0;
        while d + 2 <= head_dim {
            let first = E::load::<S>(k.add(d * BLOCK_TOKENS * E::BYTES));
            let second = E::load::<S>(k.add((d + 1) * BLOCK_TOKENS * E::BYTES));
            for i in 0..Q {
                even[i] = S::fma(S::splat(*queries[i].q.add(d)), first, even[i]);
                odd[i] = S::fma(S::splat(*queries[i].q.add(d + 1)), second, odd[i]);
            }
            d += 2;
        }
        if d < head_dim {
            let first = E::load::<S>(k.add(d * BLOCK_TOKENS * E::BYTES));
            for i in 0..Q {
                even[i] = S::fma(S::splat(*queries[i].q.add(d)), first, even[i]);
            }
        }
        for i in 0..Q {
            S::store(out[i].as_mut_ptr().add(token), S::add(even[i], odd[i]));
        }
        token += S::WIDTH;
    }
}

/// `out[q] += Σ_t weights[q][t] * v[t]` for `Q` queries over the tokens `part` of a block, in ascending order.
///
/// # Safety
/// `v` holds `BLOCK_TOKENS * head_dim` elements, each query's output `head_dim` values that are the caller's.
#[inline(always)]
unsafe fn mix<S: Simd, E: Element, const Q: usize>(
    queries: &[Query],
    weights: &[[f32; BLOCK_TOKENS]],
    v: *const u8,
    head_dim: usize,
    part: (usize, usize),
) {
    let mut d = 0;
    while d + 4 * S::WIDTH <= head_dim {
        mix_at::<S, E, Q, 4>(queries, weights, v, head_dim, part, d);
        d += 4 * S::WIDTH;
    }
    while d + S::WIDTH <= head_dim {
        mix_at::<S, E, Q, 1>(queries, weights, v, head_dim, part, d);
        d += S::WIDTH;
    }
    let tail = head_dim - d;
    if tail > 0 {
        for i in 0..Q {
            let out = queries[i].out.add(d);
            let mut acc = S::load_first(out, tail);
            for t in part.0..part.1 {
                let value = E::load_first::<S>(v.add((t * head_dim + d) * E::BYTES), tail);
                acc = S::fma(S::splat(weights[i][t]), value, acc);
            }
            S::store_first(out, acc, tail);
        }
    }
}

/// [`mix`] for `D` vectors of dimensions from `d` on.
#[inline(always)]
unsafe fn mix_at<S: Simd, E: Element, const Q: usize, const D: usize>(
    queries: &[Query],
    weights: &[[f32; BLOCK_TOKENS]],
    v: *const u8,
    head_dim: usize,
    part: (usize, usize),
    d: usize,
) {
    let mut acc = [[S::splat(0.0); D]; Q];
    for i in 0..Q {
        for j in 0..D {
            acc[i][j] = S::load(queries[i].out.add(d + j * S::WIDTH));
        }
    }
    for t in part.0..part.1 {
        for j in 0..D {
            let value = E::load::<S>(v.add((t * head_dim + d + j * S::WIDTH) * E::BYTES));
            for i in 0..Q {
                acc[i][j] = S::fma(S::splat(weights[i][t]), value, acc[i][j]);
            }
        }
    }
    for i in 0..Q {
        for j in 0..D {
            S::store(queries[i].out.add(d + j * S::WIDTH), acc[i][j]);
        }
    }
}

/// `x *= factor` over `n` values.
#[inline(always)]
unsafe fn scale<S: Simd>(x: *mut f32, n: usize, factor: f32) {
    let factor = S::splat(factor);
    let mut i = 0;
    while i + S::WIDTH <= n {
        S::store(x.add(i), S::mul(S::load(x.add(i)), factor));
        i += S::WIDTH;
    }
    if i < n {
        S::store_first(x.add(i), S::mul(S::load_first(x.add(i), n - i), factor), n - i);
    }
}
