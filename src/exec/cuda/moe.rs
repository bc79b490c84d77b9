//! Mixture of experts: rows sorted by expert, one launch for all experts' products.
//!
//! Invariant: an expert's product of a row has the same bits whatever other rows chose it, and a row's sum is taken in the
//! order of its choice.

use std::ops::Index;
use std::sync::Arc;

use super::device::{Address, Device};
use super::launch::Launch;
use super::memory::{Buffer, Scratch};
use super::product::{FEW, SOME, Tile, quant_tiles};
use super::quant::{Numbers, kernel_of};
use super::rows::{CudaRows, Element};
use super::weights::{CudaMatrix, Section};
use super::{CudaOps, chunks};
use crate::model::ops::{DeviceError, MoeWeights, Ops};
use crate::model::spec::{Activation, MoeSpec};

/// Experts of a layer at most: what one warp of the router holds.
const MAX_EXPERTS: usize = 512;
/// Rows that one block of the router goes through.
const ROUTER_ROWS: usize = 8;

/// One matrix of each expert of a layer, and where they are.
pub struct CudaExperts {
    matrices: Vec<CudaMatrix>,
    /// Addresses, for each section of a matrix; none where loading failed.
    tables: Vec<Buffer>,
}

impl CudaExperts {
    pub fn tables(device: &Arc<dyn Device>, matrices: &[CudaMatrix]) -> Result<Vec<Buffer>, DeviceError> {
        if matrices.len() > MAX_EXPERTS {
            let message = format!("{} experts in a layer; on CUDA at most {MAX_EXPERTS} are possible", matrices.len());
            return Err(DeviceError::Failed(message));
        }
        let sections = matrices.first().map_or(&[][..], CudaMatrix::sections);
        let is_like = |matrix: &CudaMatrix| {
            let own = matrix.sections();
            own.len() == sections.len() && own.iter().zip(sections).all(|(a, b)| a.is_like(b))
        };
        if !matrices.iter().all(is_like) {
            let message = "a layer's experts are quantised differently, which CUDA cannot multiply: set engine.weights";
            return Err(DeviceError::Failed(message.into()));
        }
        let table = |section: usize| {
            let addresses: Vec<Address> = matrices.iter().map(|m| m.sections()[section].address()).collect();
            Buffer::of(device, &addresses)
        };
        (0..sections.len()).map(table).collect()
    }

    pub fn new(matrices: Vec<CudaMatrix>, tables: Vec<Buffer>) -> CudaExperts {
        CudaExperts { matrices, tables }
    }
}

impl Index<usize> for CudaExperts {
    type Output = CudaMatrix;

    fn index(&self, expert: usize) -> &CudaMatrix {
        &self.matrices[expert]
    }
}

/// Room for what lies between router and sum. An entry is one of a row's choices.
#[derive(Default)]
pub struct MoeBuffers {
    logits: CudaRows,
    /// `[entries]` the expert, and its share of the sum.
    experts: Scratch,
    shares: Scratch,
    /// Entries by expert, and where each expert's begin.
    order: Scratch,
    offsets: Scratch,
    gate_up: CudaRows,
    gated: CudaRows,
    outputs: CudaRows,
}

/// One product of all experts: of gathered rows, or scattered to entries.
struct Product<'a> {
    gathers: bool,
    out: Address,
    x: Address,
    experts: &'a CudaExperts,
}

impl Product<'_> {
    /// The kernel for few rows, or for more.
    fn kernel(&self, section: &Section, rows: usize) -> (&'static str, Tile) {
        let is_few = rows <= FEW.rows;
        let Some(packing) = section.packing else {
            return match (self.gathers, is_few) {
                (true, true) => ("moe_gather_gemm_m16", FEW),
                (true, false) => ("moe_gather_gemm_m64", SOME),
                (false, true) => ("moe_scatter_gemm_m16", FEW),
                (false, false) => ("moe_scatter_gemm_m64", SOME),
            };
        };
        let numbers = packing.numbers;
        let [few, some, _] = quant_tiles(numbers);
        match (self.gathers, is_few) {
            (true, true) => (kernel_of!("moe_gather_gemm_", numbers, "_m16"), few),
            (true, false) => (kernel_of!("moe_gather_gemm_", numbers, "_m64"), some),
            (false, true) => (kernel_of!("moe_scatter_gemm_", numbers, "_m16"), few),
            (false, false) => (kernel_of!("moe_scatter_gemm_", numbers, "_m64"), some),
        }
    }
}

/// The experts of one layer.
pub struct Experts<'a> {
    pub weights: &'a MoeWeights<CudaMatrix, CudaExperts>,
    pub moe: &'a MoeSpec,
    pub activation: Activation,
}

impl Experts<'_> {
    /// See [`Ops::moe`]. `out` becomes `[rows, hidden]` of bfloat16.
    pub fn apply(
        &self,
        ops: &mut CudaOps,
        room: &mut MoeBuffers,
        x: &CudaRows,
        out: &mut CudaRows,
    ) -> Result<(), DeviceError> {
        let (rows, per_row) = (x.rows(), self.moe.experts_per_token);
        let (entries, hidden) = (rows * per_row, x.width());
        ops.matmul(x, &self.weights.router, None, &mut room.logits);
        self.route(ops, room, rows)?;
        let from = ops.as_bf16(x)?;
        room.gate_up.reshape(&ops.device, entries, 2 * self.moe.intermediate_size, Element::Bf16)?;
        let up = Product { gathers: true, out: room.gate_up.address(), x: from, experts: &self.weights.gate_up };
        self.multiply(ops, up, room, rows)?;
        ops.gated_activation(&room.gate_up, self.activation, &mut room.gated);
        room.outputs.reshape(&ops.device, entries, hidden, Element::Bf16)?;
        let down = Product {
            gathers: false,
            out: room.outputs.address(),
            x: room.gated.address(),
            experts: &self.weights.down,
        };
        self.multiply(ops, down, room, rows)?;
        out.reshape(&ops.device, rows, hidden, Element::Bf16)?;
        let sum = Launch::new("moe_sum", [rows, chunks(hidden), 1])
            .address(out.address())
            .address(room.outputs.address())
            .address(room.shares.address())
            .int(per_row)
            .int(hidden);
        // SAFETY: one output and one share for each entry.
        unsafe { ops.start(sum) }
    }

    fn route(&self, ops: &CudaOps, room: &mut MoeBuffers, rows: usize) -> Result<(), DeviceError> {
        let MoeSpec { num_experts, experts_per_token: per_row, renormalise, .. } = *self.moe;
        let entries = rows * per_row;
        let route = Launch::new("moe_route", [rows.div_ceil(ROUTER_ROWS), 1, 1])
            .buffer(room.experts.reserve(&ops.device, 4 * entries)?)
            .buffer(room.shares.reserve(&ops.device, 4 * entries)?)
            .address(room.logits.address())
            .int(rows)
            .int(num_experts)
            .int(per_row)
            .int(renormalise.into());
        // SAFETY: a logit for each expert, room for each entry.
        unsafe { ops.start(route)? };
        let group = Launch::new("moe_group", [if rows > 0 { num_experts } else { 0 }, 1, 1])
            .buffer(room.order.reserve(&ops.device, 4 * entries)?)
            .buffer(room.offsets.reserve(&ops.device, 4 * (num_experts + 1))?)
            .address(room.experts.address())
            .int(entries);
        // SAFETY: as above.
        unsafe { ops.start(group) }
    }

    /// The products of all experts' entries.
    fn multiply(&self, ops: &CudaOps, product: Product, room: &MoeBuffers, rows: usize) -> Result<(), DeviceError> {
        let experts = product.experts;
        let CudaMatrix { rows: n, cols: k, .. } = experts.matrices[0];
        for (section, table) in experts.matrices[0].sections().iter().zip(&experts.tables) {
            let (kernel, tile) = product.kernel(section, rows);
            let tiles = [rows.div_ceil(tile.rows), section.rows.div_ceil(tile.cols), experts.matrices.len()];
            let launch = Launch::new(kernel, tiles)
                .threads(tile.threads)
                .shared(tile.shared_bytes)
                .address(product.out + (section.first_row * Element::Bf16.bytes()) as u64)
                .address(product.x)
                .buffer(table)
                .address(room.order.address())
                .address(room.offsets.address())
                .int(self.moe.experts_per_token)
                .int(section.rows)
                .int(k);
            let launch = match section.packing {
                None => launch,
                Some(packing) => launch.int(packing.records as usize).int(n),
            };
            // SAFETY: matrices of one shape and in like sections, entries below `rows * per_row`, room for each.
            unsafe { ops.start(launch)? };
        }
        Ok(())
    }
}
