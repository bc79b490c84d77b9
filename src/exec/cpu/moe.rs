//! Mixture of experts: who goes where, and the experts' work grouped so that each one's weights are read once.
//!
//! Invariant: a row's experts are ranked by weight (ties: lower number first) and summed in that order, whatever
//! other rows are in the step.

use super::gemm::{Multiplier, Product};
use super::matrix::CpuMatrix;
use super::pool::Pool;
use super::rows::{CpuRows, Gated, for_each_row};
use crate::model::ops::MoeWeights;
use crate::model::spec::{Activation, MoeSpec};

/// Which experts each row goes to, best first: `[rows, experts_per_token]`.
struct Routes {
    experts: Vec<u32>,
    weights: Vec<f32>,
    per_row: usize,
}

impl Routes {
    /// Softmax over all logits, then the best `experts_per_token`, rescaled to sum to one where the model wants it.
    fn choose(logits: &CpuRows, moe: &MoeSpec) -> Routes {
        let per_row = moe.experts_per_token;
        let mut routes = Routes { experts: Vec::new(), weights: Vec::new(), per_row };
        let mut order: Vec<u32> = Vec::new();
        let mut probabilities = vec![0f32; logits.width()];
        for row in 0..logits.rows() {
            let logits = logits.row(row);
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (p, &logit) in probabilities.iter_mut().zip(logits) {
                *p = (logit - max).exp();
                sum += *p;
            }
            probabilities.iter_mut().for_each(|p| *p /= sum);
            order.clear();
            order.extend(0..logits.len() as u32);
            // Stable, so that equal ones stay in ascending order.
            order.sort_by(|&a, &b| probabilities[b as usize].total_cmp(&probabilities[a as usize]));
            order.truncate(per_row);
            let chosen: f32 = order.iter().map(|&e| probabilities[e as usize]).sum();
            let divisor = if moe.renormalise { chosen } else { 1.0 };
            routes.weights.extend(order.iter().map(|&e| probabilities[e as usize] / divisor));
            routes.experts.extend_from_slice(&order);
        }
        routes
    }

    /// Calls `f` for each expert that is wanted, with its entries (`row * per_row + rank`) in ascending order.
    fn for_each_expert(&self, num_experts: usize, mut f: impl FnMut(usize, &[u32])) {
        let mut entries = vec![Vec::new(); num_experts];
        for (entry, &expert) in self.experts.iter().enumerate() {
            entries[expert as usize].push(entry as u32);
        }
        for (expert, entries) in entries.iter().enumerate().filter(|(_, entries)| !entries.is_empty()) {
            f(expert, entries);
        }
    }
}

/// Buffers kept between layers and steps.
#[derive(Default)]
pub struct MoeBuffers {
    router_logits: CpuRows,
    /// One expert's inputs.
    gathered: CpuRows,
    gate_up: CpuRows,
    hidden: CpuRows,
    /// One expert's outputs.
    expert_out: CpuRows,
    /// All experts' outputs, `[rows * experts_per_token, width]`.
    contributions: CpuRows,
}

/// The routed experts of one layer.
pub struct Experts<'a> {
    pub weights: &'a MoeWeights<CpuMatrix>,
    pub moe: &'a MoeSpec,
    pub activation: Activation,
}

impl Experts<'_> {
    pub fn apply(&self, pool: &mut Pool, m: &mut Multiplier, b: &mut MoeBuffers, x: &CpuRows, out: &mut CpuRows) {
        let (moe, isa) = (self.moe, m.isa);
        assert_eq!(self.weights.router.rows(), moe.num_experts, "one router output for each expert");
        assert!(moe.experts_per_token <= moe.num_experts, "{} experts per token", moe.experts_per_token);
        let router = &self.weights.router;
        b.router_logits.reshape(x.rows(), moe.num_experts);
        multiply(m, pool, x, router, &mut b.router_logits);
        let routes = Routes::choose(&b.router_logits, moe);
        let (per_row, width) = (routes.per_row, x.width());
        b.contributions.reshape(x.rows() * per_row, width);
        let mut rows = Vec::new();
        routes.for_each_expert(moe.num_experts, |expert, entries| {
            rows.clear();
            rows.extend(entries.iter().map(|entry| entry / per_row as u32));
            let (gate_up, down) = (&self.weights.gate_up[expert], &self.weights.down[expert]);
            b.gathered.reshape(rows.len(), width);
            for (i, &row) in rows.iter().enumerate() {
                b.gathered.values_mut()[i * width..][..width].copy_from_slice(x.row(row as usize));
            }
            b.gate_up.reshape(rows.len(), gate_up.rows());
            multiply(m, pool, &b.gathered, gate_up, &mut b.gate_up);
            b.hidden.reshape(rows.len(), gate_up.rows() / 2);
            let from = &b.gate_up;
            for_each_row(pool, &mut b.hidden, 8, &|row, hidden| {
                Gated::apply(isa, from.row(row), self.activation, hidden);
            });
            b.expert_out.reshape(rows.len(), width);
            multiply(m, pool, &b.hidden, down, &mut b.expert_out);
            for (i, &entry) in entries.iter().enumerate() {
                let to = &mut b.contributions.values_mut()[entry as usize * width..][..width];
                to.copy_from_slice(b.expert_out.row(i));
            }
        });
        out.reshape(x.rows(), width);
        let contributions = &b.contributions;
        for_each_row(pool, out, per_row, &|row, out| {
            out.fill(0.0);
            for entry in row * per_row..(row + 1) * per_row {
                let weight = routes.weights[entry];
                out.iter_mut().zip(contributions.row(entry)).for_each(|(o, c)| *o += weight * c);
            }
        });
    }
}

fn multiply(m: &mut Multiplier, pool: &mut Pool, x: &CpuRows, weights: &CpuMatrix, out: &mut CpuRows) {
    m.multiply(pool, Product { x: x.values(), weights, bias: None, out: out.values_mut() });
}
