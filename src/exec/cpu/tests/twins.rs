//! The operations as their definitions read, in float64, one number after the other.

use crate::model::spec::Activation;

pub fn matmul(x: &[f32], w: &[f32], k: usize, bias: Option<&[f32]>) -> Vec<f64> {
    let outputs = w.len() / k;
    let mut out = Vec::new();
    for x in x.chunks(k) {
        for (o, w) in w.chunks(k).enumerate() {
            let dot: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            out.push(dot + bias.map_or(0.0, |b| f64::from(b[o])));
        }
    }
    assert_eq!(out.len(), x.len() / k * outputs);
    out
}

pub fn rms_norm(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let n = weight.len();
    let mut out = Vec::new();
    for x in x.chunks(n) {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(x.iter().zip(weight).map(|(x, &w)| x * scale * f64::from(w)));
    }
    out
}

pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
    }
}

pub fn gated(gate_up: &[f64], intermediate: usize, activation: Activation) -> Vec<f64> {
    let gate = |row: &[f64]| (0..intermediate).map(|i| activate(activation, row[i]) * row[intermediate + i]).collect();
    gate_up.chunks(2 * intermediate).flat_map(|row| -> Vec<f64> { gate(row) }).collect()
}

pub fn rotate(head: &mut [f64], position: u32, inv_freq: &[f32], factor: f32) {
    let half = inv_freq.len();
    for i in 0..half {
        let angle = f64::from(position as f32 * inv_freq[i]);
        let (cos, sin) = (angle.cos() * f64::from(factor), angle.sin() * f64::from(factor));
        let (a, b) = (head[i], head[half + i]);
        head[i] = a * cos - b * sin;
        head[half + i] = b * cos + a * sin;
    }
}

pub struct Scores {
    pub scale: f32,
    pub softcap: Option<f32>,
}

/// One query over the keys and values that it sees, `[positions][head_dim]` each.
pub fn attend(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], scores: &Scores) -> Vec<f64> {
    let score = |k: &Vec<f64>| {
        let s = q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * f64::from(scores.scale);
        scores.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
    };
    let scores: Vec<f64> = keys.iter().map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..q.len()).map(|d| weights.iter().zip(values).map(|(w, v)| w * v[d]).sum::<f64>() / sum).collect()
}

/// Experts of one row and their weights, best first.
pub fn route(logits: &[f64], experts_per_token: usize, renormalise: bool) -> Vec<(usize, f64)> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    let mut chosen: Vec<(usize, f64)> = logits.iter().map(|l| (l - max).exp() / sum).enumerate().collect();
    chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    chosen.truncate(experts_per_token);
    let total: f64 = chosen.iter().map(|(_, p)| p).sum();
    if renormalise {
        chosen.iter_mut().for_each(|(_, p)| *p /= total);
    }
    chosen
}
