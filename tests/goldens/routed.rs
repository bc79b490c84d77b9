//! A device that remembers which experts a run chose, or makes another run choose the same.
//!
//! One expert chosen differently moves the logits by far more than rounding does, at that position and, through
//! attention, at every later one. Forcing the choice leaves only the rounding to be measured. Works on one row a step.

use garrick::model::ops::{Attention, Batch, DeviceError, KvDtype, MoeWeights, Ops, QkNormWeights, Role};
use garrick::model::spec::{Activation, MoeSpec, RopeSpec, Spec};
use garrick::model::weights::Tensor;

/// The choice of one layer at one position.
#[derive(Clone, PartialEq, Debug)]
pub struct Route {
    pub experts: Vec<usize>,
    /// Router logit of the last expert chosen minus that of the first one left out.
    pub margin: f32,
}

pub struct Routed<O: Ops> {
    inner: O,
    /// What this run chose by itself, in order of (position, layer).
    pub chosen: Vec<Route>,
    forced: Option<Vec<Route>>,
    router: O::Rows,
    gate_up: O::Rows,
    gated: O::Rows,
    down: O::Rows,
}

impl<O: Ops> Routed<O> {
    pub fn new(mut inner: O, forced: Option<Vec<Route>>) -> Self {
        let [router, gate_up, gated, down] = std::array::from_fn(|_| inner.new_rows());
        Self { inner, chosen: Vec::new(), forced, router, gate_up, gated, down }
    }

    /// The routes of the next run start here.
    pub fn restart(&mut self, forced: Option<Vec<Route>>) {
        self.chosen.clear();
        self.forced = forced;
    }
}

fn route(logits: &[f32], count: usize) -> Route {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let margin = logits[order[count - 1]] - logits[order[count]];
    order.truncate(count);
    order.sort();
    Route { experts: order, margin }
}

impl<O: Ops> Ops for Routed<O> {
    type Matrix = O::Matrix;
    type Experts = O::Experts;
    type Vector = O::Vector;
    type Rows = O::Rows;
    type Rope = O::Rope;
    type Step = O::Step;

    fn moe(
        &mut self,
        x: &O::Rows,
        weights: &MoeWeights<O::Matrix, O::Experts>,
        moe: &MoeSpec,
        act: Activation,
        out: &mut O::Rows,
    ) {
        self.inner.matmul(x, &weights.router, None, &mut self.router);
        let logits = self.inner.read(&self.router).unwrap().to_vec();
        assert_eq!(logits.len(), moe.num_experts, "one row a step");
        let index = self.chosen.len();
        self.chosen.push(route(&logits, moe.experts_per_token));
        let Some(forced) = &self.forced else { return self.inner.moe(x, weights, moe, act, out) };
        let experts = forced[index].experts.clone();
        let total: f32 = match moe.renormalise {
            true => experts.iter().map(|e| logits[*e].exp()).sum(),
            false => logits.iter().map(|x| x.exp()).sum(),
        };
        for (i, expert) in experts.iter().enumerate() {
            let weight = logits[*expert].exp() / total;
            self.inner.matmul(x, &weights.gate_up[*expert], None, &mut self.gate_up);
            self.inner.gated_activation(&self.gate_up, act, &mut self.gated);
            if i == 0 {
                self.inner.matmul(&self.gated, &weights.down[*expert], None, out);
                self.inner.finish_logits(out, weight, None);
            } else {
                self.inner.matmul(&self.gated, &weights.down[*expert], None, &mut self.down);
                self.inner.add_scaled(out, &self.down, weight);
            }
        }
    }

    fn load_matrix(&mut self, role: Role, parts: &[Tensor]) -> O::Matrix {
        self.inner.load_matrix(role, parts)
    }
    fn load_experts(&mut self, matrices: Vec<O::Matrix>) -> O::Experts {
        self.inner.load_experts(matrices)
    }
    fn load_vector(&mut self, values: &[f32]) -> O::Vector {
        self.inner.load_vector(values)
    }
    fn load_rope(&mut self, rope: &RopeSpec, max_positions: usize) -> O::Rope {
        self.inner.load_rope(rope, max_positions)
    }
    fn new_rows(&mut self) -> O::Rows {
        self.inner.new_rows()
    }
    fn allocate_kv(&mut self, spec: &Spec, dtype: KvDtype, num_blocks: usize) -> Result<usize, DeviceError> {
        self.inner.allocate_kv(spec, dtype, num_blocks)
    }
    fn new_step(&mut self) -> O::Step {
        self.inner.new_step()
    }
    fn prepare(&mut self, batch: &Batch, step: &mut O::Step) {
        self.inner.prepare(batch, step)
    }
    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        self.inner.copy_blocks(pairs)
    }
    fn embed(&mut self, step: &O::Step, table: &O::Matrix, scale: f32, out: &mut O::Rows) {
        self.inner.embed(step, table, scale, out)
    }
    fn rms_norm(&mut self, x: &O::Rows, weight: &O::Vector, eps: f32, out: &mut O::Rows) {
        self.inner.rms_norm(x, weight, eps, out)
    }
    fn rms_norm_in_place(&mut self, x: &mut O::Rows, weight: &O::Vector, eps: f32) {
        self.inner.rms_norm_in_place(x, weight, eps)
    }
    fn add_scaled(&mut self, x: &mut O::Rows, delta: &O::Rows, scale: f32) {
        self.inner.add_scaled(x, delta, scale)
    }
    fn matmul(&mut self, x: &O::Rows, w: &O::Matrix, bias: Option<&O::Vector>, out: &mut O::Rows) {
        self.inner.matmul(x, w, bias, out)
    }
    fn rotate_and_store(
        &mut self,
        step: &O::Step,
        layer: usize,
        attention: &Attention,
        norm: QkNormWeights<'_, O::Vector>,
        rope: Option<&O::Rope>,
        qkv: &mut O::Rows,
    ) {
        self.inner.rotate_and_store(step, layer, attention, norm, rope, qkv)
    }
    fn attend(&mut self, step: &O::Step, layer: usize, attention: &Attention, qkv: &O::Rows, out: &mut O::Rows) {
        self.inner.attend(step, layer, attention, qkv, out)
    }
    fn gated_activation(&mut self, gate_up: &O::Rows, activation: Activation, out: &mut O::Rows) {
        self.inner.gated_activation(gate_up, activation, out)
    }
    fn gather_logit_rows(&mut self, step: &O::Step, x: &O::Rows, out: &mut O::Rows) {
        self.inner.gather_logit_rows(step, x, out)
    }
    fn finish_logits(&mut self, logits: &mut O::Rows, scale: f32, softcap: Option<f32>) {
        self.inner.finish_logits(logits, scale, softcap)
    }
    fn finish(&mut self) -> Result<(), DeviceError> {
        self.inner.finish()
    }
    fn read<'a>(&'a mut self, rows: &'a O::Rows) -> Result<&'a [f32], DeviceError> {
        self.inner.read(rows)
    }
}
