//! Matrix products: whether a library multiplies, or which kernel and in which tiles.
//!
//! Invariant: the choice between own kernels depends on the number of rows, and never changes a row's bits. A device that
//! has a library for products (`engine.batch_invariant: false`) gives no such promise: there the bits of a row may depend on
//! how many rows it has beside it, so nothing may compare rows of different steps bit for bit.

use super::device::{Address, Factors, Product};
use super::launch::Launch;
use super::quant::{Numbers, Packing, kernel_of};
use super::rows::{CudaRows, Element};
use super::weights::{CudaMatrix, CudaVector};
use super::{CudaOps, chunks};
use crate::model::ops::DeviceError;

/// What a block of a matrix product computes, and takes.
#[derive(Clone, Copy)]
pub struct Tile {
    pub rows: usize,
    pub cols: usize,
    pub threads: u32,
    pub shared_bytes: usize,
}

pub const FEW: Tile = Tile { rows: 16, cols: 32, threads: 64, shared_bytes: 91_392 };
pub const SOME: Tile = Tile { rows: 64, cols: 64, threads: 128, shared_bytes: 92_160 };
const MANY: Tile = Tile { rows: 128, cols: 128, threads: 128, shared_bytes: 92_160 };
/// Twice as many columns as [`SOME`], which fetch the rows half as often.
const WIDE: Tile = Tile { rows: 64, cols: 128, threads: 128, shared_bytes: 82_944 };
/// From as many columns on there are blocks of [`WIDE`] for every multiprocessor of the largest chips.
const WIDE_FROM: usize = 16_384;

/// The smallest tile that holds the rows, up to the largest, and its kernel.
fn product_tile(rows: usize, cols: usize, out: Element) -> (&'static str, Tile) {
    match (rows, out) {
        (..=16, Element::Bf16) => ("gemm_m16_bf16", FEW),
        (..=16, Element::F32) => ("gemm_m16_f32", FEW),
        (17..=64, Element::Bf16) if cols >= WIDE_FROM => ("gemm_m64_n128_bf16", WIDE),
        (17..=64, Element::F32) if cols >= WIDE_FROM => ("gemm_m64_n128_f32", WIDE),
        (..=64, Element::Bf16) => ("gemm_m64_bf16", SOME),
        (..=64, Element::F32) => ("gemm_m64_f32", SOME),
        (_, Element::Bf16) => ("gemm_m128_bf16", MANY),
        (_, Element::F32) => ("gemm_m128_f32", MANY),
    }
}

/// Where weights are quantised: the tile for few rows, for some, and for many, by the formulas of kernels/README.md.
pub const fn quant_tiles(numbers: Numbers) -> [Tile; 3] {
    /// `stages` of `depth` columns, and the records that they meet.
    const fn tile(numbers: Numbers, rows: usize, cols: usize, [depth, stages]: [usize; 2]) -> Tile {
        let x_bytes = rows * (depth + 8) * 2;
        let w_bytes = cols * (depth / 32 + 1) * numbers.group_bytes();
        // Where a row has one scale, none is copied.
        let records = (511 - depth + stages * depth) / 256;
        let shared_bytes = stages * (x_bytes + w_bytes) + records * cols * numbers.max_record_bytes();
        Tile { rows, cols, threads: if rows == 128 { 256 } else { 128 }, shared_bytes }
    }
    let few = if numbers.bits() == 4 { [256, 5] } else { [128, 6] };
    [tile(numbers, 16, 32, few), tile(numbers, 64, 64, [64, 4]), tile(numbers, 128, 64, [64, 3])]
}

fn quant_product_tile(numbers: Numbers, rows: usize, out: Element) -> (&'static str, Tile) {
    let [few, some, many] = quant_tiles(numbers);
    match (rows, out) {
        (..=16, Element::Bf16) => (kernel_of!("gemm_", numbers, "_m16_bf16"), few),
        (..=16, Element::F32) => (kernel_of!("gemm_", numbers, "_m16_f32"), few),
        (..=64, Element::Bf16) => (kernel_of!("gemm_", numbers, "_m64_bf16"), some),
        (..=64, Element::F32) => (kernel_of!("gemm_", numbers, "_m64_f32"), some),
        (_, Element::Bf16) => (kernel_of!("gemm_", numbers, "_m128_bf16"), many),
        (_, Element::F32) => (kernel_of!("gemm_", numbers, "_m128_f32"), many),
    }
}

impl CudaOps {
    /// `out = x · wᵀ (+ bias)`, see [`crate::model::ops::Ops::matmul`].
    pub fn multiply(
        &mut self,
        x: &CudaRows,
        w: &CudaMatrix,
        bias: Option<&CudaVector>,
        out: &mut CudaRows,
    ) -> Result<(), DeviceError> {
        assert_eq!(x.width(), w.cols, "width of activations and weights");
        out.reshape(&self.device, x.rows(), w.rows, w.product())?;
        let from = self.as_bf16(x)?;
        if self.multiply_by_library(from, w, bias, out)? {
            return Ok(());
        }
        let bias = bias.map_or(0, CudaVector::address);
        for section in w.sections() {
            let (kernel, tile) = match section.packing {
                None => product_tile(x.rows(), section.rows, out.element()),
                Some(packing) => quant_product_tile(packing.numbers, x.rows(), out.element()),
            };
            let first = section.first_row as u64;
            let launch = Launch::new(kernel, [x.rows().div_ceil(tile.rows), section.rows.div_ceil(tile.cols), 1])
                .threads(tile.threads)
                .shared(tile.shared_bytes)
                .address(out.address() + first * out.element().bytes() as u64)
                .address(from)
                .address(section.address())
                .address(if bias == 0 { 0 } else { bias + first * size_of::<f32>() as u64 })
                .int(x.rows())
                .int(section.rows)
                .int(w.cols);
            let launch = match section.packing {
                None => launch,
                Some(packing) => launch.int(packing.records as usize).int(w.rows),
            };
            // SAFETY: `[m, k]`, `[n, k]` and `[m, n]`, of which a section has some columns, as asserted and reserved; what
            // is not packed is one section.
            unsafe { self.start(launch)? };
        }
        Ok(())
    }

    /// Whether the device has something for the product, and has started it.
    fn multiply_by_library(
        &mut self,
        x: Address,
        w: &CudaMatrix,
        bias: Option<&CudaVector>,
        out: &CudaRows,
    ) -> Result<bool, DeviceError> {
        let (m, n, element) = (out.rows(), w.rows, out.element());
        let [section] = w.sections() else { return Ok(false) };
        if m * n * w.cols == 0 {
            return Ok(false);
        }
        let product = match section.packing {
            None => Product {
                out: out.address(),
                x,
                w: section.address(),
                m,
                n,
                k: w.cols,
                element,
                factors: Factors::Bf16,
            },
            // With few rows the memory decides, and they need not be rounded.
            Some(packing) if packing.numbers == Numbers::Fp8 && m > FEW.rows && self.device.multiplies_fp8() => {
                self.product_of_fp8(x, packing, section.address(), w.cols, out)?
            }
            Some(_) => return Ok(false),
        };
        // SAFETY: `[m, k]`, `[n, k]` and `[m, n]`, as asserted and reserved, and a scale for each row of FP8.
        match unsafe { self.device.multiply(&product) } {
            None => return Ok(false),
            Some(started) => started?,
        }
        let Some(bias) = bias else { return Ok(true) };
        let kernel = match element {
            Element::F32 => "add_bias_f32",
            Element::Bf16 => "add_bias_bf16",
        };
        let launch = Launch::new(kernel, [m, chunks(n), 1]).address(out.address()).address(bias.address()).int(n);
        // SAFETY: a bias for each column.
        unsafe { self.start(launch)? };
        Ok(true)
    }

    /// Rounds `x` as the weights are rounded, and says what is to be multiplied.
    fn product_of_fp8(
        &mut self,
        x: Address,
        packing: Packing,
        w: Address,
        cols: usize,
        out: &CudaRows,
    ) -> Result<Product, DeviceError> {
        let (m, n) = (out.rows(), out.width());
        // Whole groups, of weights as of activations.
        let (row_bytes, _) = packing.row_bytes(cols);
        let numbers = self.fp8.reserve(&self.device, m * row_bytes + m * size_of::<f32>())?.address();
        let x_scales = numbers + (m * row_bytes) as u64;
        let launch = Launch::new("to_fp8", [m, 1, 1]).address(numbers).address(x_scales).address(x).int(cols);
        // SAFETY: groups for each row, and a scale behind them.
        unsafe { self.start(launch)? };
        let factors = Factors::Fp8 { x_scales, w_scales: w + (n * row_bytes) as u64 };
        Ok(Product { out: out.address(), x: numbers, w, m, n, k: row_bytes, element: out.element(), factors })
    }
}
