//! What a query has of one split of its context: the softmax so far and the sum of values under it.
//!
//! A record is [`HEADER`] float32, of which the base of the weights and their sum are used, and
//! then the weighted sum of values, [`padded`](super::super::kv::padded) dimensions long.
#![allow(unsafe_op_in_unsafe_fn, reason = "kernels are pointer arithmetic; their contracts stand above them")]

use super::super::isa::{Kernel, MAX_WIDTH, Simd, math};
use super::tile::Query;

/// A cache line, so that values start at one.
pub const HEADER: usize = MAX_WIDTH;

/// A record of `dims` values.
#[derive(Clone, Copy)]
pub struct Record(pub *mut f32);

impl Record {
    /// Nothing seen yet.
    #[inline(always)]
    pub unsafe fn clear<S: Simd>(self, dims: usize) {
        self.set(f32::NEG_INFINITY, 0.0);
        let mut d = 0;
        while d < dims {
            S::store(self.values().add(d), S::splat(0.0));
            d += S::WIDTH;
        }
    }

    #[inline(always)]
    pub unsafe fn set(self, base: f32, sum: f32) {
        *self.0 = base;
        *self.0.add(1) = sum;
    }

    #[inline(always)]
    pub unsafe fn values(self) -> *mut f32 {
        self.0.add(HEADER)
    }

    /// Adds what a later split has.
    #[inline(always)]
    pub unsafe fn merge<S: Simd>(self, part: Record, dims: usize) {
        let (base, its_base) = (*self.0, *part.0);
        if its_base == f32::NEG_INFINITY && *part.0.add(1) == 0.0 {
            return;
        }
        let new = if its_base > base { its_base } else { base };
        let (mine, its) = (math::exp2::<S>(S::splat(base - new)), math::exp2::<S>(S::splat(its_base - new)));
        let sum = S::fma(S::splat(*part.0.add(1)), its, S::mul(S::splat(*self.0.add(1)), mine));
        self.set(new, S::max_lane(sum));
        let mut d = 0;
        while d < dims {
            let (a, b) = (S::load(self.values().add(d)), S::load(part.values().add(d)));
            S::store(self.values().add(d), S::fma(b, its, S::mul(a, mine)));
            d += S::WIDTH;
        }
    }

    /// The weighted mean of the values: the first `head_dim` of them.
    #[inline(always)]
    pub unsafe fn finish<S: Simd>(self, out: *mut f32, head_dim: usize) {
        let factor = S::splat(1.0 / *self.0.add(1));
        let mut d = 0;
        while d + S::WIDTH <= head_dim {
            S::store(out.add(d), S::mul(S::load(self.values().add(d)), factor));
            d += S::WIDTH;
        }
        if d < head_dim {
            S::store_first(out.add(d), S::mul(S::load(self.values().add(d)), factor), head_dim - d);
        }
    }
}

/// The records of all splits of a tile, `[splits][queries]`, merged in order into the first and written out.
pub struct Merge<'a> {
    pub queries: &'a [Query],
    pub records: *mut f32,
    pub num_splits: usize,
    pub head_dim: usize,
    pub dims: usize,
}

impl Kernel for Merge<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let record = |split: usize, query: usize| {
            Record(self.records.add((split * self.queries.len() + query) * (HEADER + self.dims)))
        };
        for (i, query) in self.queries.iter().enumerate() {
            for split in 1..self.num_splits {
                record(0, i).merge::<S>(record(split, i), self.dims);
            }
            record(0, i).finish::<S>(query.out, self.head_dim);
        }
    }
}
