//! A block of rows times some panels: which rows and which `k` are near at a time.
#![allow(unsafe_op_in_unsafe_fn, reason = "microkernels are pointer arithmetic; their contracts stand above them")]

use std::marker::PhantomData;
use std::ops::Range;

use super::super::isa::element::{Bf16, F16, F32};
use super::super::isa::{Isa, Kernel, Simd};
use super::super::matrix::{
    Format, Int4, Int4Min, Int4Super, Int5, Int5Min, Int5Super, Int6Super, Int8, Layout, Panel, Quantised,
};
use super::bf16::Bf16Dot;
use super::float::Float;
use super::int8::Int8Dot;
use super::{Compute, MAX_TILE_ROWS};

/// Values of a block of weights that is widened before it is used.
pub const MAX_BLOCK_VALUES: usize = 8 << 10;

/// A block of rows times some panels. `x` holds `rows` rows of `stride` bytes, as the method wants them, `weights` the
/// layout's bytes; `out` points to where the layout's outputs begin in the block's first row of `outputs` values, and nobody
/// else touches the panels' outputs in these rows.
pub struct Tile<'a> {
    pub layout: Layout,
    pub weights: *const u8,
    pub rounding: Compute,
    pub x: *const u8,
    pub stride: usize,
    pub bias: Option<&'a [f32]>,
    pub rows: usize,
    pub panels: Range<usize>,
    pub outputs: usize,
    pub out: *mut f32,
}

/// One way to multiply a block of a panel.
pub trait Method {
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
pub struct Stored {
    pub panel: *const u8,
    pub k: usize,
    pub depth: usize,
    /// Of a record, where the format is quantised: not in the method's type, so that one serves all.
    pub groups: usize,
}

/// A block of weights, widened where [`Method::widens`] says so (else null), and what to ask for meanwhile.
pub struct Ready {
    pub stored: Stored,
    pub widened: *const f32,
    pub ahead: *const u8,
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
    pub unsafe fn run(self, isa: Isa) {
        match (self.rounding, self.layout.format) {
            (Compute::Bf16, _) => self.by::<Bf16Dot>(isa),
            (_, Format::Bf16) => self.by::<Float<Bf16>>(isa),
            (_, Format::F16) => self.by::<Float<F16>>(isa),
            (_, Format::F32) => self.by::<Float<F32>>(isa),
            (_, Format::Fp8) => unreachable!("the CPU keeps no weights in fp8"),
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
