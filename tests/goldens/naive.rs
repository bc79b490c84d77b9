//! The plainest device there is: one loop per operation over `Vec<f32>`, written from the contract of `Ops` alone.
//! What the real devices are compared with when a golden fails.

use garrick::kv::BLOCK_TOKENS;
use garrick::model::ops::{Attention, Batch, DeviceError, KvDtype, MoeWeights, Ops, QkNormWeights, Role};
use garrick::model::spec::{Activation, MoeSpec, RopeSpec, Spec};
use garrick::model::weights::Tensor;

pub struct Matrix {
    width: usize,
    values: Vec<f32>,
}

#[derive(Default)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Rows {
    fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.width.max(1))
    }
}

pub struct Naive {
    dtype: KvDtype,
    kv_width: usize,
    /// Per layer, by slot.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Naive {
    pub fn new() -> Self {
        Self { dtype: KvDtype::F32, kv_width: 0, keys: Vec::new(), values: Vec::new() }
    }

    /// One head's numbers as the cache gives them back.
    fn stored(&self, head: &[f32]) -> Vec<f32> {
        let largest = head.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let (step, scale) = (largest / 127.0, largest / 448.0);
        let stored = |x: &f32| match self.dtype {
            KvDtype::F32 => *x,
            KvDtype::Bf16 => half::bf16::from_f32(*x).to_f32(),
            KvDtype::Int8 if step == 0.0 => 0.0,
            KvDtype::Int8 => (x / step).round_ties_even() * step,
            KvDtype::Fp8 if scale == 0.0 => 0.0,
            KvDtype::Fp8 => nearest_e4m3(x / scale) * scale,
        };
        head.iter().map(stored).collect()
    }
}

/// To the nearest number of FP8 E4M3, ties to even: three bits behind the first one, 2^-6 the smallest with all of them.
fn nearest_e4m3(x: f32) -> f32 {
    let exponent = x.abs().max(2f32.powi(-6)).log2().floor() as i32;
    let step = 2f32.powi(exponent - 3);
    (x / step).round_ties_even() * step
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn normalise(row: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt();
    row.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * w);
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

fn multiply(x: &[f32], w: &Matrix) -> Vec<f32> {
    w.values.chunks(w.width).map(|row| dot(x, row)).collect()
}

fn gated(row: &[f32], activation: Activation) -> Vec<f32> {
    let (gate, up) = row.split_at(row.len() / 2);
    gate.iter().zip(up).map(|(g, u)| activate(activation, *g) * u).collect()
}

impl Ops for Naive {
    type Matrix = Matrix;
    type Experts = Vec<Matrix>;
    type Vector = Vec<f32>;
    type Rows = Rows;
    type Rope = RopeSpec;
    type Step = Batch;

    fn load_matrix(&mut self, _role: Role, parts: &[Tensor]) -> Matrix {
        Matrix { width: parts[0].shape[1], values: parts.iter().flat_map(Tensor::to_f32).collect() }
    }

    fn load_experts(&mut self, matrices: Vec<Matrix>) -> Vec<Matrix> {
        matrices
    }

    fn load_vector(&mut self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn load_rope(&mut self, rope: &RopeSpec, _max_positions: usize) -> RopeSpec {
        rope.clone()
    }

    fn new_rows(&mut self) -> Rows {
        Rows::default()
    }

    fn allocate_kv(&mut self, spec: &Spec, dtype: KvDtype, num_blocks: usize) -> Result<usize, DeviceError> {
        self.dtype = dtype;
        self.kv_width = spec.kv_width();
        self.keys = vec![vec![f32::NAN; num_blocks * BLOCK_TOKENS * self.kv_width]; spec.layers.len()];
        self.values = self.keys.clone();
        Ok(2 * self.keys.iter().map(|keys| size_of_val(&keys[..])).sum::<usize>())
    }

    fn new_step(&mut self) -> Batch {
        Batch::default()
    }

    fn prepare(&mut self, batch: &Batch, step: &mut Batch) {
        step.clone_from(batch);
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        let block = BLOCK_TOKENS * self.kv_width;
        for cache in self.keys.iter_mut().chain(&mut self.values) {
            for (from, to) in pairs {
                let from = *from as usize * block;
                cache.copy_within(from..from + block, *to as usize * block);
            }
        }
    }

    fn embed(&mut self, batch: &Batch, table: &Matrix, scale: f32, out: &mut Rows) {
        let row = |token: &u32| &table.values[*token as usize * table.width..][..table.width];
        *out = Rows { width: table.width, values: batch.tokens.iter().flat_map(row).map(|x| x * scale).collect() };
    }

    fn rms_norm(&mut self, x: &Rows, weight: &Vec<f32>, eps: f32, out: &mut Rows) {
        *out = Rows { width: x.width, values: x.values.clone() };
        self.rms_norm_in_place(out, weight, eps);
    }

    fn rms_norm_in_place(&mut self, x: &mut Rows, weight: &Vec<f32>, eps: f32) {
        x.values.chunks_mut(x.width).for_each(|row| normalise(row, weight, eps));
    }

    fn add_scaled(&mut self, x: &mut Rows, delta: &Rows, scale: f32) {
        x.values.iter_mut().zip(&delta.values).for_each(|(x, d)| *x += d * scale);
    }

    fn matmul(&mut self, x: &Rows, w: &Matrix, bias: Option<&Vec<f32>>, out: &mut Rows) {
        *out = Rows { width: w.values.len() / w.width, values: x.iter().flat_map(|row| multiply(row, w)).collect() };
        if let Some(bias) = bias {
            out.values.chunks_mut(out.width).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
        }
    }

    fn rotate_and_store(
        &mut self,
        batch: &Batch,
        layer: usize,
        attention: &Attention,
        norm: QkNormWeights<'_, Vec<f32>>,
        rope: Option<&RopeSpec>,
        qkv: &mut Rows,
    ) {
        let dim = attention.head_dim;
        let (q_width, kv_width) = (attention.num_heads * dim, attention.num_kv_heads * dim);
        for (r, row) in qkv.values.chunks_mut(qkv.width).enumerate() {
            let (q, rest) = row.split_at_mut(q_width);
            let (k, v) = rest.split_at_mut(kv_width);
            match norm {
                QkNormWeights::None => {}
                QkNormWeights::PerHead { q: q_weight, k: k_weight, eps } => {
                    q.chunks_mut(dim).for_each(|head| normalise(head, q_weight, eps));
                    k.chunks_mut(dim).for_each(|head| normalise(head, k_weight, eps));
                }
                QkNormWeights::WholeRow { q: q_weight, k: k_weight, eps } => {
                    normalise(q, q_weight, eps);
                    normalise(k, k_weight, eps);
                }
            }
            if let Some(rope) = rope {
                let position = batch.positions[r] as f32;
                q.chunks_mut(dim).chain(k.chunks_mut(dim)).for_each(|head| rotate(head, rope, position));
            }
            let slot = batch.slots[r] as usize * kv_width;
            for head in (0..kv_width).step_by(dim) {
                let (k, v) = (self.stored(&k[head..head + dim]), self.stored(&v[head..head + dim]));
                self.keys[layer][slot + head..][..dim].copy_from_slice(&k);
                self.values[layer][slot + head..][..dim].copy_from_slice(&v);
            }
        }
    }

    fn attend(&mut self, batch: &Batch, layer: usize, attention: &Attention, qkv: &Rows, out: &mut Rows) {
        let dim = attention.head_dim;
        let (width, kv_width) = (attention.num_heads * dim, attention.num_kv_heads * dim);
        *out = Rows { width, values: vec![0.0; batch.tokens.len() * width] };
        for span in &batch.spans {
            let table = &batch.tables[span.table_start as usize..][..span.num_blocks as usize];
            for r in span.row_start..span.row_start + span.num_rows {
                let r = r as usize;
                let position = batch.positions[r] as usize;
                let first = attention.window.map_or(0, |window| (position + 1).saturating_sub(window));
                for h in 0..attention.num_heads {
                    let kv = h / (attention.num_heads / attention.num_kv_heads) * dim;
                    let at =
                        |t: usize| (table[t / BLOCK_TOKENS] as usize * BLOCK_TOKENS + t % BLOCK_TOKENS) * kv_width + kv;
                    let q = &qkv.values[r * qkv.width + h * dim..][..dim];
                    let score = |t: usize| {
                        let score = dot(q, &self.keys[layer][at(t)..][..dim]) * attention.scale;
                        attention.softcap.map_or(score, |cap| cap * (score / cap).tanh())
                    };
                    let mut weights: Vec<f32> = (first..=position).map(score).collect();
                    softmax(&mut weights);
                    let out = &mut out.values[r * width + h * dim..][..dim];
                    for (t, weight) in (first..=position).zip(weights) {
                        let v = &self.values[layer][at(t)..][..dim];
                        out.iter_mut().zip(v).for_each(|(o, v)| *o += weight * v);
                    }
                }
            }
        }
    }

    fn gated_activation(&mut self, gate_up: &Rows, activation: Activation, out: &mut Rows) {
        *out =
            Rows { width: gate_up.width / 2, values: gate_up.iter().flat_map(|row| gated(row, activation)).collect() };
    }

    fn moe(&mut self, x: &Rows, weights: &MoeWeights<Matrix>, moe: &MoeSpec, activation: Activation, out: &mut Rows) {
        *out = Rows { width: x.width, values: vec![0.0; x.values.len()] };
        for (row, out) in x.iter().zip(out.values.chunks_mut(x.width)) {
            let mut scores = multiply(row, &weights.router);
            softmax(&mut scores);
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            order.truncate(moe.experts_per_token);
            let sum: f32 = if moe.renormalise { order.iter().map(|e| scores[*e]).sum() } else { 1.0 };
            for expert in order {
                let hidden = gated(&multiply(row, &weights.gate_up[expert]), activation);
                let y = multiply(&hidden, &weights.down[expert]);
                out.iter_mut().zip(y).for_each(|(o, y)| *o += scores[expert] / sum * y);
            }
        }
    }

    fn gather_logit_rows(&mut self, batch: &Batch, x: &Rows, out: &mut Rows) {
        let row = |r: &u32| &x.values[*r as usize * x.width..][..x.width];
        *out = Rows { width: x.width, values: batch.logit_rows.iter().flat_map(row).copied().collect() };
    }

    fn finish_logits(&mut self, logits: &mut Rows, scale: f32, softcap: Option<f32>) {
        for x in &mut logits.values {
            *x *= scale;
            if let Some(cap) = softcap {
                *x = cap * (*x / cap).tanh();
            }
        }
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read<'a>(&'a mut self, rows: &'a Rows) -> Result<&'a [f32], DeviceError> {
        Ok(&rows.values)
    }
}

fn rotate(head: &mut [f32], rope: &RopeSpec, position: f32) {
    let half = rope.rotary_dim / 2;
    for i in 0..half {
        let (sin, cos) = (position * rope.inv_freq[i]).sin_cos();
        let (sin, cos) = (sin * rope.attention_factor, cos * rope.attention_factor);
        let (a, b) = (head[i], head[i + half]);
        (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
    }
}
