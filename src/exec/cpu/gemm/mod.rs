//! Matrix products: activations `[rows, k]` times weights `[out, k]` transposed.
//!
//! Owns the order of computation. Invariant: every output is one lane of one accumulator, to which the products are added
//! from the first `k` to the last; a block of `k` that ends early is stored and taken up again, without rounding. So
//! which registers, row block, chunk or thread does it changes nothing.
//!
//! A chunk is some panels of weights for a block of rows that fits the second-level cache. Of a panel a block of `k` at a
//! time lies in the first-level cache while all rows of the block pass by, a few at a time in registers. So decode reads
//! each weight once a step.

mod bf16;
mod float;
mod groups;
mod int8;
mod tile;

use std::fmt;
use std::ops::Range;

use self::tile::Tile;
use super::isa::Isa;
use super::matrix::{CpuMatrix, Format, Layout, Section};
use super::memory::{Scratch, Shared};
use super::pool::Pool;

/// Bytes of activations that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 512 << 10;
/// Rows of a block at least, whatever their length: below it weights are read too often.
const MIN_BLOCK_ROWS: usize = 24;
/// Most rows that are in registers at once.
const MAX_TILE_ROWS: usize = 6;
/// Multiplications under which waking threads costs more than it gains.
const MIN_PARALLEL_WORK: usize = 128 << 10;
/// Multiplications that one chunk should have at least.
const MIN_CHUNK_WORK: usize = 64 << 10;

/// What the activations are rounded to before they are multiplied; sums are float32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compute {
    #[default]
    F32,
    /// bfloat16 where the weights are bfloat16 and the level has its dot instruction, else float32.
    Bf16,
    /// Eight bits in groups where the weights are quantised, else float32.
    Int8,
}

impl Compute {
    /// What becomes of the activations before weights of this format.
    pub fn rounding(self, isa: Isa, format: Format) -> Compute {
        match (self, format) {
            (Compute::Bf16, Format::Bf16) if isa.has_dot() => Compute::Bf16,
            (Compute::Int8, format) if format.kind().is_some() => Compute::Int8,
            _ => Compute::F32,
        }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
            Compute::Int8 => "int8",
        })
    }
}

/// One product's operands.
pub struct Product<'a> {
    /// `[rows, k]`.
    pub x: &'a [f32],
    pub weights: &'a CpuMatrix,
    pub bias: Option<&'a [f32]>,
    /// `[rows, out]`.
    pub out: &'a mut [f32],
}

/// How an executor multiplies.
pub struct Multiplier {
    pub isa: Isa,
    pub compute: Compute,
    /// Rounded activations.
    scratch: Scratch,
}

impl Multiplier {
    pub fn new(isa: Isa, compute: Compute) -> Multiplier {
        Multiplier { isa, compute, scratch: Scratch::default() }
    }

    /// `out = x · wᵀ (+ bias)`.
    pub fn multiply(&mut self, pool: &mut Pool, product: Product<'_>) {
        let Product { x, weights, bias, out } = product;
        let (outputs, k, isa) = (weights.rows(), weights.cols(), self.isa);
        let rows = x.len().checked_div(k).unwrap_or(0);
        assert_eq!(x.len(), rows * k, "activations and weights differ in width");
        assert_eq!(out.len(), rows * outputs, "room for the product");
        assert!(bias.is_none_or(|b| b.len() == outputs), "one bias for each output");
        if rows == 0 || outputs == 0 {
            return;
        }
        let plain = Activations { x: bytemuck::cast_slice(x), stride: 4 * k, rounding: Compute::F32 };
        let rounds = |section: &Section| self.compute.rounding(isa, section.layout.format) != Compute::F32;
        let rounded = if weights.sections().iter().any(rounds) {
            let (x, stride) = match self.compute {
                Compute::Int8 => int8::quantise(isa, pool, x, k, &mut self.scratch),
                _ => bf16::round(isa, pool, x, k, &mut self.scratch),
            };
            Activations { x, stride, rounding: self.compute }
        } else {
            plain
        };
        let is_small = rows.saturating_mul(outputs).saturating_mul(k) < MIN_PARALLEL_WORK;
        let threads = if is_small { 1 } else { pool.threads() };
        let mut num_chunks = 0;
        let cuts: Vec<(usize, Cut, &Section, &Activations)> = weights
            .sections()
            .iter()
            .map(|section| {
                let x = if rounds(section) { &rounded } else { &plain };
                let cut = Cut::new(&section.layout, rows, x.stride, threads);
                num_chunks += cut.num_chunks();
                (num_chunks - cut.num_chunks(), cut, section, x)
            })
            .collect();
        let out = Shared::new(out);
        let task = |chunk: usize| {
            let (first_chunk, cut, section, x) = &cuts[cuts.partition_point(|(first, ..)| *first <= chunk) - 1];
            let (rows, panels) = cut.chunk(chunk - first_chunk);
            let tile = Tile {
                layout: section.layout,
                weights: section.as_ptr(),
                rounding: x.rounding,
                x: x.x[rows.start * x.stride..].as_ptr(),
                stride: x.stride,
                bias: bias.map(|bias| &bias[section.first_row..][..section.layout.rows]),
                rows: rows.len(),
                panels,
                outputs,
                out: out.ptr().wrapping_add(rows.start * outputs + section.first_row),
            };
            // SAFETY: an executor's level is available; chunks write disjoint elements of `out`, whose size is checked
            // above, and `x` holds `rows` rows from this block's start.
            unsafe { tile.run(isa) };
        };
        if is_small { (0..num_chunks).for_each(task) } else { pool.run(num_chunks, &task) }
    }
}

/// Rows of `stride` bytes, as a method wants them.
#[derive(Clone, Copy)]
struct Activations<'a> {
    x: &'a [u8],
    stride: usize,
    rounding: Compute,
}

/// Calls `task` for each row of activations, on several threads where there are many.
fn each_row(pool: &mut Pool, rows: usize, task: &(dyn Fn(usize) + Sync)) {
    /// Rows of a chunk.
    const ROWS: usize = 8;
    let chunk = |chunk: usize| (chunk * ROWS..rows.min((chunk + 1) * ROWS)).for_each(task);
    let chunks = rows.div_ceil(ROWS);
    if chunks < 4 { (0..chunks).for_each(chunk) } else { pool.run(chunks, &chunk) }
}

/// How a product is cut into chunks.
struct Cut {
    rows: usize,
    row_block: usize,
    panels: usize,
    panel_block: usize,
}

impl Cut {
    /// `stride`: bytes of a row of activations.
    fn new(layout: &Layout, rows: usize, stride: usize, threads: usize) -> Cut {
        let most = (ROW_BLOCK_BYTES / stride.max(1)).max(MIN_BLOCK_ROWS);
        // Rows are shared out evenly: 130 rows make two blocks of 66 and 64, not of 128 and 2.
        let row_block = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(MAX_TILE_ROWS).min(rows);
        let depth = layout.depth().max(1);
        let panels = layout.num_panels();
        let panel_block = if threads == 1 {
            panels
        } else {
            let least = MIN_CHUNK_WORK.div_ceil(depth * row_block * layout.panel_rows());
            panels.div_ceil(threads * 16).max(least).min(panels)
        };
        Cut { rows, row_block, panels, panel_block }
    }

    fn num_chunks(&self) -> usize {
        self.rows.div_ceil(self.row_block) * self.panels.div_ceil(self.panel_block)
    }

    /// Rows and panels.
    fn chunk(&self, chunk: usize) -> (Range<usize>, Range<usize>) {
        let per_row_block = self.panels.div_ceil(self.panel_block);
        let (row, panel) = (chunk / per_row_block * self.row_block, chunk % per_row_block * self.panel_block);
        (row..self.rows.min(row + self.row_block), panel..self.panels.min(panel + self.panel_block))
    }
}
