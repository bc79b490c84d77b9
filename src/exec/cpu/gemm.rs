//! Matrix products: activations `[rows, k]` times weights `[out, k]` transposed.
//!
//! Owns the order of computation. Invariant: every output element is one vector accumulator, summed over k from
//! first to last in steps of two vectors, folded to a number once at the end; which register block, chunk or thread
//! does it changes nothing.
//!
//! Decode (few rows) reads each weight once per step. Prefill goes over the weights once per block of rows that
//! fits the second-level cache.
#![allow(unsafe_op_in_unsafe_fn, reason = "microkernels are pointer arithmetic; their contracts stand above them")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers")]

use std::ops::Range;

use super::isa::element::{Bf16, Element, F16, F32};
use super::isa::{Isa, Kernel, MAX_WIDTH, Simd};
use super::matrix::CpuMatrix;
use super::memory::{Scratch, Shared};
use super::pool::Pool;
use crate::model::weights::Dtype;

/// Bytes of activations that stay in the second-level cache while all weights pass by.
const ROW_BLOCK_BYTES: usize = 384 << 10;
/// Multiplications under which waking threads costs more than it gains.
const MIN_PARALLEL_WORK: usize = 128 << 10;
/// Multiplications that one chunk should have at least.
const MIN_CHUNK_WORK: usize = 32 << 10;
/// Output columns of a chunk are a multiple of this, so that only a matrix' end needs the narrow kernels.
const COLUMN_STEP: usize = 8;

/// Activation rows in the order in which the kernels meet the weights of one dtype, padded with zeros.
pub struct PackedRows<'a> {
    data: &'a [f32],
    rows: usize,
    stride: usize,
}

/// One product's operands.
pub struct Product<'a> {
    pub x: PackedRows<'a>,
    pub weights: &'a CpuMatrix,
    pub bias: Option<&'a [f32]>,
    /// `[rows, out]`.
    pub out: &'a mut [f32],
}

/// Where row `i` of the packed activations comes from.
pub enum RowsToPack<'a> {
    All(&'a [f32]),
    /// Rows of the first, by number.
    Some(&'a [f32], &'a [u32]),
}

/// Copies activation rows of `k` values into `scratch`, ordered for weights of `dtype` at level `isa`.
pub fn pack<'a>(isa: Isa, dtype: Dtype, k: usize, rows: RowsToPack<'_>, scratch: &'a mut Scratch) -> PackedRows<'a> {
    let stride = k.next_multiple_of(2 * MAX_WIDTH);
    let num_rows = match rows {
        RowsToPack::All(x) => x.len() / k.max(1),
        RowsToPack::Some(_, numbers) => numbers.len(),
    };
    let data = scratch.get(num_rows * stride);
    for i in 0..num_rows {
        let from = match rows {
            RowsToPack::All(x) => &x[i * k..][..k],
            RowsToPack::Some(x, numbers) => &x[numbers[i] as usize * k..][..k],
        };
        let to = &mut data[i * stride..][..stride];
        let kernel = PackRow { from, to, interleaved: dtype == Dtype::Bf16 && Bf16::PAIRS_INTERLEAVED };
        // SAFETY: an executor's level is available; `to` is at least as long as `from`, rounded up.
        unsafe { isa.run(kernel) };
    }
    PackedRows { data, rows: num_rows, stride }
}

/// `to` has `from`'s length rounded up to `2 * MAX_WIDTH`.
struct PackRow<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
    interleaved: bool,
}

impl Kernel for PackRow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let PackRow { from, to, interleaved } = self;
        if !interleaved {
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(0.0);
            return;
        }
        // Evens of each double vector first, then its odds: as `Element::load_pair` delivers the weights.
        let mut pairs = from.chunks_exact(2 * S::WIDTH);
        let mut blocks = to.chunks_exact_mut(2 * S::WIDTH);
        for (block, pair) in blocks.by_ref().zip(pairs.by_ref()) {
            let (even, odd) = block.split_at_mut(S::WIDTH);
            for i in 0..S::WIDTH {
                even[i] = pair[2 * i];
                odd[i] = pair[2 * i + 1];
            }
        }
        let done = from.len() - pairs.remainder().len();
        to[done..].fill(0.0);
        for (i, &x) in from[done..].iter().enumerate() {
            to[done + (i % 2) * S::WIDTH + i / 2] = x;
        }
    }
}

/// `out = x · wᵀ (+ bias)`.
pub fn multiply(isa: Isa, pool: &mut Pool, product: Product<'_>) {
    let Product { x, weights, bias, out } = product;
    let (rows, outputs, k) = (x.rows, weights.rows(), weights.cols());
    assert_eq!(x.stride, k.next_multiple_of(2 * MAX_WIDTH), "activations and weights differ in width");
    assert_eq!(out.len(), rows * outputs, "room for the product");
    assert!(bias.is_none_or(|b| b.len() == outputs), "one bias for each output");
    if rows == 0 || outputs == 0 {
        return;
    }
    let row_block = (ROW_BLOCK_BYTES / (x.stride * 4).max(1)).next_multiple_of(4).clamp(8, 256);
    let row_blocks = rows.div_ceil(row_block);
    // Rows are shared out evenly: 130 rows make two blocks of 68 and 62, not of 128 and 2.
    let row_block = rows.div_ceil(row_blocks).next_multiple_of(4);
    let work = rows.saturating_mul(outputs).saturating_mul(k.max(1));
    let columns = if work < MIN_PARALLEL_WORK || pool.threads() == 1 {
        outputs
    } else {
        let wanted = outputs.div_ceil(pool.threads() * 8);
        let least = MIN_CHUNK_WORK.div_ceil(k.max(1) * row_block.min(rows));
        wanted.max(least)
    };
    let columns = columns.next_multiple_of(COLUMN_STEP);
    let column_chunks = outputs.div_ceil(columns);
    let shared = Shared::new(out);
    let x = &x;
    let task = |chunk: usize| {
        let (block, chunk) = (chunk / column_chunks, chunk % column_chunks);
        let kernel = Tile {
            x: &x.data[block * row_block * x.stride..],
            stride: x.stride,
            weights,
            bias,
            rows: row_block.min(rows - block * row_block),
            columns: chunk * columns..outputs.min((chunk + 1) * columns),
            out: shared.ptr().wrapping_add(block * row_block * outputs),
        };
        // SAFETY: an executor's level is available; chunks write disjoint elements of `out`, whose size is checked
        // above, and `x` holds `rows` rows from this block's start.
        unsafe { isa.run(kernel) };
    };
    let chunks = row_blocks * column_chunks;
    if work < MIN_PARALLEL_WORK { (0..chunks).for_each(task) } else { pool.run(chunks, &task) }
}

/// A block of rows times a range of outputs. `x` holds `rows` rows of `stride` values, `out` points to the block's
/// first row of `weights.rows()` values, and nobody else touches `columns` of these rows.
struct Tile<'a> {
    x: &'a [f32],
    stride: usize,
    weights: &'a CpuMatrix,
    bias: Option<&'a [f32]>,
    rows: usize,
    columns: Range<usize>,
    out: *mut f32,
}

impl Kernel for Tile<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.weights.dtype() {
            Dtype::Bf16 => self.sweep::<S, Bf16>(),
            Dtype::F16 => self.sweep::<S, F16>(),
            Dtype::F32 => self.sweep::<S, F32>(),
        }
    }
}

impl Tile<'_> {
    /// Goes over the columns; a few weight rows stay in the first-level cache while all activation rows pass by.
    #[inline(always)]
    unsafe fn sweep<S: Simd, E: Element>(&self) {
        let mut column = self.columns.start;
        let end = self.columns.end;
        if self.rows == 1 {
            while column + 8 <= end {
                self.block::<S, E, 1, 8>(0, column);
                column += 8;
            }
        }
        while column + 4 <= end {
            self.all_rows::<S, E, 4>(column);
            column += 4;
        }
        while column < end {
            self.all_rows::<S, E, 1>(column);
            column += 1;
        }
    }

    #[inline(always)]
    unsafe fn all_rows<S: Simd, E: Element, const C: usize>(&self, column: usize) {
        let mut row = 0;
        if S::NUM_REGISTERS >= 32 {
            while row + 4 <= self.rows {
                self.block::<S, E, 4, C>(row, column);
                row += 4;
            }
        }
        while row + 2 <= self.rows {
            self.block::<S, E, 2, C>(row, column);
            row += 2;
        }
        if row < self.rows {
            self.block::<S, E, 1, C>(row, column);
        }
    }

    /// `R` rows times `C` outputs in registers.
    #[inline(always)]
    unsafe fn block<S: Simd, E: Element, const R: usize, const C: usize>(&self, row: usize, column: usize) {
        let k = self.weights.cols();
        let mut w = [std::ptr::null::<u8>(); C];
        for c in 0..C {
            w[c] = self.weights.row(column + c);
        }
        let x = self.x.as_ptr().add(row * self.stride);
        let step = 2 * S::WIDTH;
        let ahead = Ahead::<C>::new(&w, k * E::BYTES, step * E::BYTES);
        let mut acc = [[S::splat(0.0); C]; R];
        let mut i = 0;
        while i + step <= k {
            for c in 0..C {
                ahead.prefetch::<S>(c, i * E::BYTES, step * E::BYTES);
                let (first, second) = E::load_pair::<S>(w[c].add(i * E::BYTES));
                for r in 0..R {
                    acc[r][c] = S::fma(S::load(x.add(r * self.stride + i)), first, acc[r][c]);
                }
                for r in 0..R {
                    acc[r][c] = S::fma(S::load(x.add(r * self.stride + i + S::WIDTH)), second, acc[r][c]);
                }
            }
            i += step;
        }
        if i < k {
            for c in 0..C {
                let (first, second) = E::load_pair_first::<S>(w[c].add(i * E::BYTES), k - i);
                for r in 0..R {
                    acc[r][c] = S::fma(S::load(x.add(r * self.stride + i)), first, acc[r][c]);
                    acc[r][c] = S::fma(S::load(x.add(r * self.stride + i + S::WIDTH)), second, acc[r][c]);
                }
            }
        }
        for c in 0..C {
            let bias = self.bias.map_or(0.0, |b| b[column + c]);
            for r in 0..R {
                *self.out.add((row + r) * self.weights.rows() + column + c) = S::sum(acc[r][c]) + bias;
            }
        }
    }
}

/// Weights to ask for while a block of `C` rows is computed.
///
/// Short rows: the next `C` rows, in the order of memory; the hardware's prefetchers, used to longer runs, lose
/// the trail from block to block. Long rows: a little further along the same rows.
struct Ahead<const C: usize> {
    from: [*const u8; C],
    /// Bytes by which all pointers move for each byte of a row.
    pace: usize,
}

/// Rows up to this length are short: a block of them leaves room in the first-level cache for the next one.
const MAX_SHORT_ROW_BYTES: usize = 2 << 10;
/// How far ahead in long rows.
const ROW_AHEAD_BYTES: usize = 1024;

impl<const C: usize> Ahead<C> {
    #[inline(always)]
    fn new(w: &[*const u8; C], row_bytes: usize, step_bytes: usize) -> Self {
        let short = row_bytes <= MAX_SHORT_ROW_BYTES;
        let mut from = *w;
        for c in 0..C {
            let next = w[0].wrapping_add(C * row_bytes + c * step_bytes);
            from[c] = if short { next } else { w[c].wrapping_add(ROW_AHEAD_BYTES) };
        }
        Ahead { from, pace: if short { C } else { 1 } }
    }

    /// # Safety
    /// The level's instructions; any address may be prefetched.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, c: usize, offset: usize, step_bytes: usize) {
        let mut line = 0;
        while line < step_bytes {
            S::prefetch(self.from[c].wrapping_add(offset * self.pace + line));
            line += 64;
        }
    }
}
