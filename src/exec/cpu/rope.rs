//! Rotary position embeddings: cos and sin, and what becomes of a fused qkv row before attention.
//!
//! Angles are float32 products, as in PyTorch, where `position * inv_freq` is rounded before cos and sin are taken.

use std::sync::{Arc, OnceLock};

use super::isa::Isa;
use super::kv::KvCache;
use super::pool::Pool;
use super::rows::{CpuRows, RmsNorm, for_each_row};
use super::step::CpuStep;
use crate::model::ops::{Attention, QkNormWeights};
use crate::model::spec::RopeSpec;

/// Positions whose cos and sin are computed together when the first of them is met.
const PAGE_POSITIONS: usize = 256;

/// Cos and sin per position, `[cos; sin]` of `rotary_dim / 2` each. Pages are filled as sequences reach them, so a
/// model made for a million positions costs nothing at start. Clones share the pages.
#[derive(Clone)]
pub struct CpuRope(Arc<Tables>);

struct Tables {
    spec: RopeSpec,
    pages: Vec<OnceLock<Box<[f32]>>>,
}

impl CpuRope {
    pub fn new(spec: &RopeSpec, max_positions: usize) -> CpuRope {
        assert_eq!(spec.inv_freq.len() * 2, spec.rotary_dim, "one frequency for each pair of dimensions");
        let pages = (0..max_positions.div_ceil(PAGE_POSITIONS)).map(|_| OnceLock::new()).collect();
        CpuRope(Arc::new(Tables { spec: spec.clone(), pages }))
    }

    /// Calls `f(cos, sin)` for one position.
    fn with<R>(&self, position: u32, f: impl FnOnce(&[f32], &[f32]) -> R) -> R {
        let half = self.0.spec.inv_freq.len();
        let position = position as usize;
        match self.0.pages.get(position / PAGE_POSITIONS) {
            Some(page) => {
                let page =
                    page.get_or_init(|| self.compute(position / PAGE_POSITIONS * PAGE_POSITIONS, PAGE_POSITIONS));
                let (cos, sin) = page[position % PAGE_POSITIONS * 2 * half..][..2 * half].split_at(half);
                f(cos, sin)
            }
            None => {
                let values = self.compute(position, 1);
                let (cos, sin) = values.split_at(half);
                f(cos, sin)
            }
        }
    }

    fn compute(&self, first: usize, count: usize) -> Box<[f32]> {
        let RopeSpec { inv_freq, attention_factor, .. } = &self.0.spec;
        let mut values = Vec::with_capacity(count * 2 * inv_freq.len());
        for position in first..first + count {
            let angle = |f: &f32| f64::from(position as f32 * f);
            values.extend(inv_freq.iter().map(|f| angle(f).cos() as f32 * attention_factor));
            values.extend(inv_freq.iter().map(|f| angle(f).sin() as f32 * attention_factor));
        }
        values.into()
    }
}

/// Rotates the pairs `(x[i], x[i + cos.len()])` of one head; dimensions beyond them stay.
fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, rest) = x.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// See [`crate::model::ops::Ops::rotate_and_store`]. `rope` is applied where there is one.
pub struct RotateAndStore<'a> {
    pub isa: Isa,
    pub step: &'a CpuStep,
    pub layer: usize,
    pub attention: &'a Attention,
    pub norm: QkNormWeights<'a, Arc<[f32]>>,
    pub rope: Option<&'a CpuRope>,
}

impl RotateAndStore<'_> {
    pub fn apply(&self, pool: &mut Pool, qkv: &mut CpuRows, kv: &mut KvCache) {
        let Attention { num_heads, num_kv_heads, head_dim, .. } = *self.attention;
        assert_eq!(qkv.width(), (num_heads + 2 * num_kv_heads) * head_dim, "width of a fused q, k, v row");
        assert!(kv.has_shape(num_kv_heads, head_dim), "KV was allocated for other heads");
        let CpuStep { batch, ends, .. } = self.step;
        assert!(qkv.rows() == batch.slots.len() && qkv.rows() == batch.positions.len(), "rows of the batch");
        let rotary_dim = self.rope.map_or(0, |rope| rope.0.spec.rotary_dim);
        assert!(rotary_dim <= head_dim, "{rotary_dim} rotary dimensions in heads of {head_dim}");
        let q_and_k = (num_heads + num_kv_heads) * head_dim;
        let writer = kv.writer(self.layer);
        for_each_row(pool, qkv, 2, &|row, values| {
            self.normalise(&mut values[..q_and_k]);
            if let Some(rope) = self.rope {
                rope.with(batch.positions[row], |cos, sin| {
                    for head in values[..q_and_k].chunks_exact_mut(head_dim) {
                        rotate(head, cos, sin);
                    }
                });
            }
            let (k, v) = values[num_heads * head_dim..].split_at(num_kv_heads * head_dim);
            for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                // SAFETY: an executor's level is available. A step's slots are distinct, a row belongs to one thread, and
                // the slot after a sequence's last one is nobody's.
                unsafe { writer.store(self.isa, batch.slots[row], head, ends[row], k, v) };
            }
        });
    }

    fn normalise(&self, q_and_k: &mut [f32]) {
        let head_dim = self.attention.head_dim;
        let (q, k) = q_and_k.split_at_mut(self.attention.num_heads * head_dim);
        match self.norm {
            QkNormWeights::None => {}
            QkNormWeights::PerHead { q: q_weight, k: k_weight, eps } => {
                q.chunks_exact_mut(head_dim).for_each(|h| RmsNorm::apply_in_place(self.isa, h, q_weight, eps));
                k.chunks_exact_mut(head_dim).for_each(|h| RmsNorm::apply_in_place(self.isa, h, k_weight, eps));
            }
            QkNormWeights::WholeRow { q: q_weight, k: k_weight, eps } => {
                RmsNorm::apply_in_place(self.isa, q, q_weight, eps);
                RmsNorm::apply_in_place(self.isa, k, k_weight, eps);
            }
        }
    }
}
