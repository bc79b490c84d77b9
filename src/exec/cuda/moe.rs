//! Mixture of experts: rows sorted by expert, one launch for all experts' products.
//!
//! Invariant: an expert's product of a row has the same bits whatever other rows chose it, and a row's sum is taken in the
//! order of its choice.

use std::ops::Index;
use std::sync::Arc;

use super::device::{Address, Device};
use super::launch::Launch;
use super::memory::{Buffer, Scratch};
use super::product::{FEW, SOME};
use super::rows::{CudaRows, Element};
use super::weights::CudaMatrix;
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
    /// Addresses; `None` where loading failed.
    table: Option<Buffer>,
}

impl CudaExperts {
    pub fn table(device: &Arc<dyn Device>, matrices: &[CudaMatrix]) -> Result<Buffer, DeviceError> {
        if matrices.len() > MAX_EXPERTS {
            let message = format!("{} experts in a layer; on CUDA at most {MAX_EXPERTS} are possible", matrices.len());
            return Err(DeviceError::Failed(message));
        }
        let addresses: Vec<Address> = matrices.iter().map(CudaMatrix::address).collect();
        Buffer::of(device, &addresses)
    }

    pub fn new(matrices: Vec<CudaMatrix>, table: Option<Buffer>) -> CudaExperts {
        CudaExperts { matrices, table }
    }

    fn address(&self) -> Address {
        self.table.as_ref().map_or(0, Buffer::address)
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

/// One product of all experts, by a kernel for few rows or one for more.
struct Product<'a> {
    kernels: [&'static str; 2],
    out: Address,
    x: Address,
    experts: &'a CudaExperts,
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
        let up = Product {
            kernels: ["moe_gather_gemm_m16", "moe_gather_gemm_m64"],
            out: room.gate_up.address(),
            x: from,
            experts: &self.weights.gate_up,
        };
        self.multiply(ops, up, room, rows)?;
        ops.gated_activation(&room.gate_up, self.activation, &mut room.gated);
        room.outputs.reshape(&ops.device, entries, hidden, Element::Bf16)?;
        let down = Product {
            kernels: ["moe_scatter_gemm_m16", "moe_scatter_gemm_m64"],
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
    fn multiply(
        &self,
        ops: &CudaOps,
        Product { kernels: [few, some], out, x, experts }: Product,
        room: &MoeBuffers,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let CudaMatrix { rows: n, cols: k, .. } = experts.matrices[0];
        let (kernel, tile) = if rows <= FEW.rows { (few, FEW) } else { (some, SOME) };
        let launch = Launch::new(kernel, [rows.div_ceil(tile.rows), n.div_ceil(tile.cols), experts.matrices.len()])
            .threads(tile.threads)
            .shared(tile.shared_bytes)
            .address(out)
            .address(x)
            .address(experts.address())
            .address(room.order.address())
            .address(room.offsets.address())
            .int(self.moe.experts_per_token)
            .int(n)
            .int(k);
        // SAFETY: matrices of one shape, entries below `rows * per_row`, room for each.
        unsafe { ops.start(launch) }
    }
}
