//! One tile of attention: up to [`MAX_QUERIES`] query vectors over the blocks of one KV head.
//!
//! Query vectors are taken four at a time (two where registers are few), so that a loaded K or V vector is used as
//! often. Whether a query is taken alone or with others does not change its sums.
#![allow(unsafe_op_in_unsafe_fn, reason = "microkernels are pointer arithmetic; their contracts stand above them")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use super::super::isa::element::{Bf16, Element, F32};
use super::super::isa::{Kernel, Simd, math};
use super::{Attend, MAX_QUERIES};
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::KvDtype;

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
pub struct Tile<'a> {
    pub attend: &'a Attend<'a>,
    pub queries: &'a [Query],
    pub table: &'a [u32],
    pub kv_head: usize,
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
        let first_block = queries[0].start / BLOCK_TOKENS;
        let last_block = (queries[queries.len() - 1].end - 1) / BLOCK_TOKENS;
        for block in first_block..=last_block {
            let (k, v) = self.attend.kv.tiles(self.attend.layer, self.table[block], self.kv_head);
            if let Some(&next) = self.table.get(block + 1).filter(|_| block < last_block) {
                self.prefetch_tiles::<S, E>(next);
            }
            let mut i = 0;
            while i < queries.len() {
                let n = (queries.len() - i).min(if S::NUM_REGISTERS >= 32 { 4 } else { 2 });
                let (queries, states) = (&queries[i..i + n], &mut states[i..i + n]);
                match n {
                    4 => self.step::<S, E, 4>(queries, states, block, k, v),
                    3 => self.step::<S, E, 3>(queries, states, block, k, v),
                    2 => self.step::<S, E, 2>(queries, states, block, k, v),
                    _ => self.step::<S, E, 1>(queries, states, block, k, v),
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

    /// Asks for the tiles of a block that is needed soon: no hardware guesses where the next block lies.
    #[inline(always)]
    unsafe fn prefetch_tiles<S: Simd, E: Element>(&self, block: u32) {
        let (k, v) = self.attend.kv.tiles(self.attend.layer, block, self.kv_head);
        let bytes = self.attend.attention.head_dim * BLOCK_TOKENS * E::BYTES;
        for tile in [k, v] {
            let mut i = 0;
            while i < bytes {
                S::prefetch(tile.wrapping_add(i));
                i += 64;
            }
        }
    }

    /// One block for `Q` query vectors.
    #[inline(always)]
    unsafe fn step<S: Simd, E: Element, const Q: usize>(
        &self,
        queries: &[Query],
        states: &mut [Softmax],
        block: usize,
        k: *const u8,
        v: *const u8,
    ) {
        let head_dim = self.attend.attention.head_dim;
        let mut q = [std::ptr::null(); Q];
        let mut out = [std::ptr::null_mut(); Q];
        let mut whole = true;
        for i in 0..Q {
            (q[i], out[i]) = (queries[i].q, queries[i].out);
            whole &= queries[i].part_of(block) == (0, BLOCK_TOKENS);
        }
        let mut weights = [[0f32; BLOCK_TOKENS]; Q];
        scores::<S, E, Q>(q, k, head_dim, &mut weights);
        for i in 0..Q {
            let (start, end) = queries[i].part_of(block);
            if start < end {
                self.update::<S>(&queries[i], &mut states[i], &mut weights[i], start, end);
            }
        }
        if whole {
            mix::<S, E, Q>(out, &weights, v, head_dim, (0, BLOCK_TOKENS));
        } else {
            for i in 0..Q {
                mix::<S, E, 1>([out[i]], &[weights[i]], v, head_dim, queries[i].part_of(block));
            }
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
        let sums = state.sums.as_mut_ptr();
        if block_max > state.max {
            // The difference goes through the vector code, as all others do.
            let shrink = S::max_lane(math::exp::<S>(S::splat(state.max - block_max)));
            scale::<S>(query.out, attention.head_dim, shrink);
            scale::<S>(sums, BLOCK_TOKENS, shrink);
            state.max = block_max;
        }
        let mut i = 0;
        while i < BLOCK_TOKENS {
            let p = math::exp::<S>(S::sub(S::load(w.add(i)), S::splat(state.max)));
            S::store(w.add(i), p);
            S::store(sums.add(i), S::add(S::load(sums.add(i)), p));
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

/// `out[q][t] = Σ_d q[d] * k[d][t]` for `Q` queries and all tokens of a block, in four sums by `d % 4`.
///
/// # Safety
/// `k` holds `head_dim * BLOCK_TOKENS` elements, each query `head_dim` values.
#[inline(always)]
unsafe fn scores<S: Simd, E: Element, const Q: usize>(
    q: [*const f32; Q],
    k: *const u8,
    head_dim: usize,
    out: &mut [[f32; BLOCK_TOKENS]; Q],
) {
    let mut token = 0;
    while token < BLOCK_TOKENS {
        let k = k.add(token * E::BYTES);
        let mut sums = [[S::splat(0.0); Q]; 4];
        let mut d = 0;
        while d + 4 <= head_dim {
            for j in 0..4 {
                let keys = E::load::<S>(k.add((d + j) * BLOCK_TOKENS * E::BYTES));
                for i in 0..Q {
                    sums[j][i] = S::fma(S::splat(*q[i].add(d + j)), keys, sums[j][i]);
                }
            }
            d += 4;
        }
        while d < head_dim {
            let keys = E::load::<S>(k.add(d * BLOCK_TOKENS * E::BYTES));
            for i in 0..Q {
                sums[0][i] = S::fma(S::splat(*q[i].add(d)), keys, sums[0][i]);
            }
            d += 1;
        }
        for i in 0..Q {
            let sum = S::add(S::add(sums[0][i], sums[1][i]), S::add(sums[2][i], sums[3][i]));
            S::store(out[i].as_mut_ptr().add(token), sum);
        }
        token += S::WIDTH;
    }
}

/// `out[q] += Σ_t weights[q][t] * v[t]` for `Q` queries over the tokens `part` of a block, in ascending order.
///
/// # Safety
/// `v` holds `BLOCK_TOKENS * head_dim` elements, each output `head_dim` values that are the caller's.
#[inline(always)]
unsafe fn mix<S: Simd, E: Element, const Q: usize>(
    out: [*mut f32; Q],
    weights: &[[f32; BLOCK_TOKENS]; Q],
    v: *const u8,
    head_dim: usize,
    part: (usize, usize),
) {
    let mut d = 0;
    while d + 4 * S::WIDTH <= head_dim {
        mix_at::<S, E, Q, 4>(out, weights, v, head_dim, part, d);
        d += 4 * S::WIDTH;
    }
    while d + S::WIDTH <= head_dim {
        mix_at::<S, E, Q, 1>(out, weights, v, head_dim, part, d);
        d += S::WIDTH;
    }
    let tail = head_dim - d;
    if tail > 0 {
        for i in 0..Q {
            let out = out[i].add(d);
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
    out: [*mut f32; Q],
    weights: &[[f32; BLOCK_TOKENS]; Q],
    v: *const u8,
    head_dim: usize,
    part: (usize, usize),
    d: usize,
) {
    let mut acc = [[S::splat(0.0); D]; Q];
    for i in 0..Q {
        for j in 0..D {
            acc[i][j] = S::load(out[i].add(d + j * S::WIDTH));
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
            S::store(out[i].add(d + j * S::WIDTH), acc[i][j]);
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
