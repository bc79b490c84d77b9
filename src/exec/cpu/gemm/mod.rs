//! Matrix products: activations `[rows, k]` times weights `[out, k]` transposed.
//!
//! Owns the order of computation. Invariant: every output is one lane of one accumulator, to which the products are added
//! from the first `k` to the last; a block of `k` that ends early is stored and taken up again, without rounding. So
//! which registers, row block, chunk or thread does it changes nothing.
//!
//! A chunk is some panels of weights for a block of rows that fits the second-level cache. Of a panel a block of `k` at a
//! time lies in the first-level cache while all rows of the block pass by, a few at a time in registers. So decode reads
//! each weight once a step.
#![allow(unsafe_op_in_unsafe_fn, reason = "microkernels are pointer arithmetic; their contracts stand above them")]

mod bf16;
mod float;
mod groups;
mod int8;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use self::bf16::Bf16Dot;
use self::float::Float;
use self::int8::Int8Dot;
use super::isa::element::{Bf16, F16, F32};
use super::isa::{Isa, Kernel, Simd};
use super::matrix::{
    CpuMatrix, Format, Int4, Int4Min, Int4Super, Int5, Int5Min, Int5Super, Int6Super, Int8, Layout, Panel, Quantised,
    Section,
};
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
/// Values of a block of weights that is widened before it is used.
const MAX_BLOCK_VALUES: usize = 8 << 10;

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

/// A block of rows times some panels. `x` holds `rows` rows of `stride` bytes, as the method wants them, `weights` the
/// layout's bytes; `out` points to where the layout's outputs begin in the block's first row of `outputs` values, and nobody
/// else touches the panels' outputs in these rows.
struct Tile<'a> {
    layout: Layout,
    weights: *const u8,
    rounding: Compute,
    x: *const u8,
    stride: usize,
    bias: Option<&'a [f32]>,
    rows: usize,
    panels: Range<usize>,
    outputs: usize,
    out: *mut f32,
}

/// One way to multiply a block of a panel.
trait Method {
    /// Whether it asks a level for more where that has dot products.
    const DOTS: bool;

    /// `k` of a block for vectors of `width` lanes, `vectors` of them; a multiple of what the format keeps together, but for
    /// records, which a block may cut between groups.
    fn depth(width: usize, vectors: usize) -> usize;
    /// Whether a block of `depth` is widened before `rows` rows use it.
    fn widens(rows: usize, depth: usize) -> bool;
    /// Bytes of the activations up to `k`.
    fn x_bytes(k: usize) -> usize;
    /// Widens a block into `scratch`, in the method's own order.
    unsafe fn widen<S: Simd, const N: usize>(block: &Stored, scratch: *mut f32);
    /// `acc[r][n] += x[r] · w[n]` over a block, from the first `k` to the last. Rows of `x` are `stride` bytes apart.
    /// Meanwhile asks for some cache lines from `ahead` on; says how many bytes of them.
    unsafe fn add<S: Simd, const R: usize, const N: usize>(
        acc: &mut [[S::F; N]; R],
        x: *const u8,
        stride: usize,
        block: &Ready,
    ) -> usize;
}

/// `depth` values of `k` from this one on of a panel, padding not counted.
#[derive(Clone, Copy)]
struct Stored {
    panel: *const u8,
    k: usize,
    depth: usize,
    /// Of a record, where the format is quantised: not in the method's type, so that one serves all.
    groups: usize,
}

/// A block of weights, widened where [`Method::widens`] says so (else null), and what to ask for meanwhile.
struct Ready {
    stored: Stored,
    widened: *const f32,
    ahead: *const u8,
}

#[repr(align(64))]
struct BlockValues([std::mem::MaybeUninit<f32>; MAX_BLOCK_VALUES]);

/// One [`Tile`] by one method: each pair of a level and a method is a function of its own.
struct By<'a, M>(Tile<'a>, PhantomData<M>);

impl<M: Method> Kernel for By<'_, M> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut scratch = BlockValues([std::mem::MaybeUninit::uninit(); MAX_BLOCK_VALUES]);
        let scratch = scratch.0.as_mut_ptr().cast();
        for index in self.0.panels.clone() {
            let panel = self.0.layout.panel(index);
            // What is constant stands alone, so that nothing is compiled for the levels that it leaves out.
            if panel.vectors == 1 {
                self.0.panel::<S, M, 1>(panel, scratch);
            } else if const { S::PANEL_VECTORS == 2 } {
                self.0.panel::<S, M, 2>(panel, scratch);
            } else {
                self.0.panel::<S, M, 4>(panel, scratch);
            }
        }
    }
}

impl Tile<'_> {
    /// Asks for `isa` to be available, and for what stands above the type.
    unsafe fn run(self, isa: Isa) {
        match (self.rounding, self.layout.format) {
            (Compute::Bf16, _) => self.by::<Bf16Dot>(isa),
            (_, Format::Bf16) => self.by::<Float<Bf16>>(isa),
            (_, Format::F16) => self.by::<Float<F16>>(isa),
            (_, Format::F32) => self.by::<Float<F32>>(isa),
            (_, Format::Int8) => self.groups::<Int8>(isa),
            (_, Format::Int4) => self.groups::<Int4>(isa),
            (_, Format::Int4Min(_)) => self.groups::<Int4Min>(isa),
            (_, Format::Int5) => self.groups::<Int5>(isa),
            (_, Format::Int5Min) => self.groups::<Int5Min>(isa),
            (_, Format::Int4Super) => self.groups::<Int4Super>(isa),
            (_, Format::Int5Super) => self.groups::<Int5Super>(isa),
            (_, Format::Int6Super) => self.groups::<Int6Super>(isa),
        }
    }

    unsafe fn groups<Q: Quantised>(self, isa: Isa) {
        if self.rounding == Compute::Int8 { self.by::<Int8Dot<Q>>(isa) } else { self.by::<Float<Q>>(isa) }
    }

    unsafe fn by<M: Method>(self, isa: Isa) {
        let isa = if M::DOTS { isa } else { isa.without_dot() };
        isa.run(By::<M>(self, PhantomData));
    }

    #[inline(always)]
    unsafe fn panel<S: Simd, M: Method, const N: usize>(&self, panel: Panel, scratch: *mut f32) {
        let (cols, depth, most) = (self.layout.cols, self.layout.depth(), M::depth(S::WIDTH, N));
        let weights = self.weights.add(panel.offset);
        let groups = self.layout.format.kind().map_or(1, |kind| kind.groups);
        let mut k = 0;
        while k < cols {
            let n = most.min(depth - k);
            let stored = Stored { panel: weights, k, depth: n.min(cols - k), groups };
            let mut widened = std::ptr::null();
            if M::widens(self.rows, stored.depth) {
                M::widen::<S, N>(&stored, scratch);
                widened = scratch.cast_const();
            }
            // The next block follows in memory, in this panel or the next one. Whoever reads a block but once, as it
            // comes, is foreseen by the processor; else nobody fetches the next one while rows use what is near.
            let is_stream = widened.is_null() && self.rows <= MAX_TILE_ROWS;
            let own = weights.wrapping_add(self.layout.lane_bytes(k) * N * S::WIDTH);
            let next = self.layout.lane_bytes(k + n) * N * S::WIDTH..self.layout.lane_bytes(k + 2 * n) * N * S::WIDTH;
            let mut asked = if is_stream { next.end } else { next.start };
            let mut block = Block { panel, k, ready: Ready { stored, widened, ahead: own }, is_last: k + n >= cols };
            let mut row = 0;
            while row < self.rows {
                block.ready.ahead = if asked < next.end { weights.wrapping_add(asked) } else { own };
                let (num_rows, bytes) = if const { !S::TILES } {
                    (1, self.rows::<S, M, 1, N>(row, &block))
                } else {
                    match self.rows - row {
                        MAX_TILE_ROWS.. => (MAX_TILE_ROWS, self.rows::<S, M, MAX_TILE_ROWS, N>(row, &block)),
                        4.. => (4, self.rows::<S, M, 4, N>(row, &block)),
                        2.. => (2, self.rows::<S, M, 2, N>(row, &block)),
                        _ => (1, self.rows::<S, M, 1, N>(row, &block)),
                    }
                };
                asked += bytes;
                row += num_rows;
            }
            k += n;
        }
    }

    /// `R` rows from `row` on; says how many bytes ahead were asked for.
    #[inline(always)]
    unsafe fn rows<S: Simd, M: Method, const R: usize, const N: usize>(&self, row: usize, block: &Block) -> usize {
        let outputs = self.outputs;
        let out = self.out.add(row * outputs + block.panel.first_row);
        // Only the last vector may be cut short.
        let last = block.panel.num_rows - (N - 1) * S::WIDTH;
        let mut acc = [[S::splat(0.0); N]; R];
        if block.k > 0 {
            for r in 0..R {
                for n in 0..N {
                    let from = out.add(r * outputs + n * S::WIDTH);
                    let whole = n + 1 < N || last == S::WIDTH;
                    acc[r][n] = if whole { S::load(from) } else { S::load_first(from, last) };
                }
            }
        }
        let x = self.x.add(row * self.stride + M::x_bytes(block.k));
        let asked = M::add::<S, R, N>(&mut acc, x, self.stride, &block.ready);
        for n in 0..N {
            let whole = n + 1 < N || last == S::WIDTH;
            let first_row = block.panel.first_row + n * S::WIDTH;
            let bias = match self.bias {
                Some(bias) if block.is_last && whole => S::load(bias.as_ptr().add(first_row)),
                Some(bias) if block.is_last => S::load_first(bias.as_ptr().add(first_row), last),
                _ => S::splat(0.0),
            };
            for r in 0..R {
                let to = out.add(r * outputs + n * S::WIDTH);
                let sum = if block.is_last { S::add(acc[r][n], bias) } else { acc[r][n] };
                if whole { S::store(to, sum) } else { S::store_first(to, sum, last) }
            }
        }
        asked
    }
}

/// Part of a panel, ready to be multiplied.
struct Block {
    panel: Panel,
    k: usize,
    ready: Ready,
    is_last: bool,
}
