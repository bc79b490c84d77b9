//! One part of the context for some queries: scores, the online softmax (Milakov & Gimelshein 2018), the mix of values.
//!
//! Weights are powers of two: log₂ e is in the factor of the scores.
#![allow(unsafe_op_in_unsafe_fn, reason = "microkernels are pointer arithmetic; their contracts stand above them")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::isa::{MAX_WIDTH, Simd, math};
use super::super::kv::padded;
use super::form::{Form, Rows, multiply};
use super::record::HEADER;
use super::tile::{PART_BLOCKS, Query};
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::Attention;

/// Positions that a query meets at once, from a multiple of their number on.
pub const PART_TOKENS: usize = 32;

/// How far, to base 2, a score may lie above the base of the weights before they are brought to a new one. Weights lose no
/// digits by being large, and most queries need no second base.
const MAX_RISE: f32 = 8.0;

/// Vectors of a part where they are shortest.
const MAX_VECTORS: usize = PART_TOKENS / 8;

/// K and V of a part.
pub struct Part {
    /// Its first position.
    pub first: usize,
    /// What of it any of the tile's queries sees. Outside of it V may be anything.
    pub seen: Range<usize>,
    pub k: [*const u8; PART_BLOCKS],
    pub v: [*const u8; PART_BLOCKS],
    /// What a key and a value stand for multiples of.
    pub k_scales: Option<[*const f32; PART_BLOCKS]>,
    pub v_scales: Option<[*const f32; PART_BLOCKS]>,
}

/// Softmax so far: the base of the weights, a score among the largest, and the sum of `2^(score - base)` by place in a
/// vector.
#[derive(Clone, Copy)]
pub struct Softmax {
    pub base: f32,
    sums: [f32; MAX_WIDTH],
}

impl Softmax {
    pub const NOTHING: Softmax = Softmax { base: f32::NEG_INFINITY, sums: [0.0; MAX_WIDTH] };

    #[inline(always)]
    pub unsafe fn sum<S: Simd>(&self) -> f32 {
        S::sum(S::load(self.sums.as_ptr()))
    }
}

/// Queries that are taken together.
pub struct Group<'a> {
    pub attention: &'a Attention,
    pub queries: &'a [Query],
    /// The queries' values, word after word, each of all queries.
    pub x: *const u8,
    /// The first query's values so far; the next one's are a record further.
    pub values: *mut f32,
}

/// A row of scores or weights for each of `R` queries.
#[repr(align(64))]
struct PerQuery<const R: usize>(#[allow(dead_code, reason = "written through pointers")] [[f32; PART_TOKENS]; R]);

impl Group<'_> {
    /// The part's share of `R` queries. `states` are theirs.
    #[inline(always)]
    pub unsafe fn step<S: Simd, F: Form, const R: usize>(&self, states: &mut [Softmax], part: &Part) {
        let mut scores: MaybeUninit<PerQuery<R>> = MaybeUninit::uninit();
        let scores: *mut f32 = scores.as_mut_ptr().cast();
        // As `Form::store_x` writes them.
        let mut weights: MaybeUninit<PerQuery<R>> = MaybeUninit::uninit();
        let weights: *mut u8 = weights.as_mut_ptr().cast();
        self.scores::<S, F, R>(part, scores);
        for r in 0..R {
            let (scores, weights) = (scores.add(r * PART_TOKENS), weights.add(r * PART_TOKENS * F::X_BYTES));
            self.update::<S, F>(r, &mut states[r], part, scores, weights);
        }
        self.mix::<S, F, R>(part, weights);
    }

    /// `scores[r][t] = Σ_d q[r][d] * k[d][t]`.
    #[inline(always)]
    unsafe fn scores<S: Simd, F: Form, const R: usize>(&self, part: &Part, scores: *mut f32) {
        let word = F::WORD * F::X_BYTES;
        let x = Rows { base: self.x, row: word, step_bytes: word * R };
        let k = |token: usize| part.k[token / BLOCK_TOKENS].add(token % BLOCK_TOKENS * 4);
        for token in (0..PART_TOKENS).step_by(2 * S::WIDTH) {
            let mut acc = [[S::splat(0.0); 2]; R];
            let steps = 0..self.attention.head_dim / F::WORD;
            multiply::<S, F, R, 2>(&mut acc, x, [k(token), k(token + S::WIDTH)], BLOCK_TOKENS * 4, steps);
            for r in 0..R {
                for n in 0..2 {
                    S::store(scores.add(r * PART_TOKENS + token + n * S::WIDTH), acc[r][n]);
                }
            }
        }
    }

    /// Turns the scores of one query into weights, zero where it sees nothing; where they would become too large, to a new
    /// base, to which what was summed before is brought as well.
    #[inline(always)]
    unsafe fn update<S: Simd, F: Form>(
        &self,
        r: usize,
        state: &mut Softmax,
        part: &Part,
        scores: *const f32,
        weights: *mut u8,
    ) {
        let mut s = [S::splat(f32::NEG_INFINITY); MAX_VECTORS];
        let largest = self.visible::<S>(r, part, scores, &mut s);
        if S::any_less(S::splat(state.base + MAX_RISE), largest) {
            let base = S::max_lane(largest);
            let shrink = math::exp2::<S>(S::splat(state.base - base));
            let dims = padded(self.attention.head_dim);
            rescale::<S>(self.values.add(r * (HEADER + dims)), dims, shrink);
            rescale::<S>(state.sums.as_mut_ptr(), S::WIDTH, shrink);
            state.base = base;
        }
        // Where nothing was seen yet, all scores are -∞, and any base gives weights of zero.
        let base = S::splat(if state.base == f32::NEG_INFINITY { 0.0 } else { state.base });
        let mut sums = S::load(state.sums.as_ptr());
        for i in 0..PART_TOKENS / S::WIDTH {
            let token = i * S::WIDTH;
            let mut p = math::exp2::<S>(S::sub(s[i], base));
            sums = S::add(sums, p);
            if let Some(scales) = part.v_scales {
                // Scales of hidden places may be anything.
                let scale = S::load(scales[token / BLOCK_TOKENS].add(token % BLOCK_TOKENS));
                p = S::select_less(S::splat(f32::NEG_INFINITY), s[i], S::mul(p, scale), p);
            }
            F::store_x::<S>(weights.add(token * F::X_BYTES), p);
        }
        S::store(state.sums.as_mut_ptr(), sums);
    }

    /// Scores to base 2 of what query `r` sees, -∞ elsewhere; the largest in each lane.
    #[inline(always)]
    unsafe fn visible<S: Simd>(&self, r: usize, part: &Part, scores: *const f32, s: &mut [S::F; MAX_VECTORS]) -> S::F {
        let Attention { scale, softcap, .. } = *self.attention;
        let query = &self.queries[r];
        let hidden = S::splat(f32::NEG_INFINITY);
        let place = |position: usize| position.clamp(part.first, part.first + PART_TOKENS) - part.first;
        let (start, end) = (place(query.start), place(query.end));
        let sees_all = (start, end) == (0, PART_TOKENS);
        let factor = S::splat(if softcap.is_some() { scale } else { scale * std::f32::consts::LOG2_E });
        let mut largest = hidden;
        for i in 0..PART_TOKENS / S::WIDTH {
            let token = i * S::WIDTH;
            let mut x = S::mul(S::load(scores.add(token)), factor);
            if let Some(scales) = part.k_scales {
                x = S::mul(x, S::load(scales[token / BLOCK_TOKENS].add(token % BLOCK_TOKENS)));
            }
            if let Some(cap) = softcap {
                x = S::mul(math::soft_cap::<S>(x, cap), S::splat(std::f32::consts::LOG2_E));
            }
            if !sees_all {
                let place = S::add(S::load(PLACES.as_ptr().add(token)), S::splat(0.5));
                x = S::select_less(place, S::splat(start as f32), hidden, x);
                x = S::select_less(place, S::splat(end as f32), x, hidden);
            }
            s[i] = x;
            largest = S::max(largest, x);
        }
        largest
    }

    /// `values[r] += Σ_t weights[r][t] * v[t]`.
    #[inline(always)]
    unsafe fn mix<S: Simd, F: Form, const R: usize>(&self, part: &Part, weights: *const u8) {
        let dims = padded(self.attention.head_dim);
        let mut d = 0;
        while d + 2 * S::WIDTH <= dims {
            self.mix_at::<S, F, R, 2>(part, weights, d);
            d += 2 * S::WIDTH;
        }
        if d < dims {
            self.mix_at::<S, F, R, 1>(part, weights, d);
        }
    }

    /// [`Group::mix`] for `N` vectors of dimensions from `d` on.
    #[inline(always)]
    unsafe fn mix_at<S: Simd, F: Form, const R: usize, const N: usize>(
        &self,
        part: &Part,
        weights: *const u8,
        d: usize,
    ) {
        let dims = padded(self.attention.head_dim);
        let at = |r: usize, n: usize| self.values.add(r * (HEADER + dims) + d + n * S::WIDTH);
        let mut acc = [[S::splat(0.0); N]; R];
        for r in 0..R {
            for n in 0..N {
                acc[r][n] = S::load(at(r, n));
            }
        }
        let block_words = BLOCK_TOKENS / F::WORD;
        let (start, end) = (part.seen.start / F::WORD, part.seen.end.div_ceil(F::WORD));
        for block in 0..PART_BLOCKS {
            let first = block * block_words;
            let steps = start.clamp(first, first + block_words) - first..end.clamp(first, first + block_words) - first;
            let mut v = [part.v[block].add(d * 4); N];
            for n in 1..N {
                v[n] = v[n].add(n * S::WIDTH * 4);
            }
            let base = weights.add(block * BLOCK_TOKENS * F::X_BYTES);
            let x = Rows { base, row: PART_TOKENS * F::X_BYTES, step_bytes: F::WORD * F::X_BYTES };
            multiply::<S, F, R, N>(&mut acc, x, v, dims * 4, steps);
        }
        for r in 0..R {
            for n in 0..N {
                S::store(at(r, n), acc[r][n]);
            }
        }
    }
}

static PLACES: [f32; PART_TOKENS] = {
    let mut places = [0.0; PART_TOKENS];
    let mut i = 0;
    while i < PART_TOKENS {
        places[i] = i as f32;
        i += 1;
    }
    places
};

/// `x *= factor` over `n` values, a multiple of a vector.
#[inline(always)]
unsafe fn rescale<S: Simd>(x: *mut f32, n: usize, factor: S::F) {
    let mut i = 0;
    while i < n {
        S::store(x.add(i), S::mul(S::load(x.add(i)), factor));
        i += S::WIDTH;
    }
}
