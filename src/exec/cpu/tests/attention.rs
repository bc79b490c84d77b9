use proptest::prelude::*;

use super::twins::Scores;
use super::*;
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::Span;
use crate::model::spec::{LayerSpec, MlpSpec, NormPlacement, QkNorm};

pub fn spec(attention: &Attention, num_layers: usize) -> Spec {
    let layer = LayerSpec { window: None, rope: None, mlp: MlpSpec::Dense { intermediate_size: 1 } };
    Spec {
        model_type: "test".into(),
        vocab_size: 1,
        hidden_size: 1,
        num_heads: attention.num_heads,
        num_kv_heads: attention.num_kv_heads,
        head_dim: attention.head_dim,
        max_positions: 1000,
        layers: vec![layer; num_layers],
        ropes: vec![],
        norm_eps: 1e-5,
        norm_unit_offset: false,
        norm_placement: NormPlacement::Pre,
        qk_norm: QkNorm::None,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        activation: Activation::Silu,
        attention_scale: attention.scale,
        attention_softcap: None,
        final_softcap: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logits_scale: 1.0,
        tied_head: false,
    }
}

/// One sequence: its block table and its q, k, v rows by position.
#[derive(Clone)]
pub struct Sequence {
    pub table: Vec<u32>,
    pub qkv: CpuRows,
}

impl Sequence {
    /// `len` random rows; blocks are taken from `free`.
    pub fn random(random: &mut Random, a: &Attention, len: usize, free: &mut Vec<u32>) -> Sequence {
        let num_blocks = len.div_ceil(BLOCK_TOKENS);
        let table = (0..num_blocks).map(|_| free.swap_remove(random.below(free.len()))).collect();
        Sequence { table, qkv: random.rows(len, (a.num_heads + 2 * a.num_kv_heads) * a.head_dim) }
    }
}

/// A step of `(sequence, rows)` parts.
pub fn step(parts: &[(&Sequence, std::ops::Range<usize>)]) -> (Batch, CpuRows) {
    let mut batch = Batch::default();
    let mut values = Vec::new();
    for (sequence, rows) in parts {
        let num_blocks = rows.end.div_ceil(BLOCK_TOKENS);
        batch.spans.push(Span {
            row_start: batch.positions.len() as u32,
            num_rows: rows.len() as u32,
            first_position: rows.start as u32,
            table_start: batch.tables.len() as u32,
            num_blocks: num_blocks as u32,
        });
        batch.tables.extend(&sequence.table[..num_blocks]);
        for position in rows.clone() {
            batch.tokens.push(0);
            batch.positions.push(position as u32);
            let block = sequence.table[position / BLOCK_TOKENS];
            batch.slots.push(block * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32);
            values.extend(sequence.qkv.row(position));
        }
    }
    let width = parts[0].0.qkv.width();
    (batch, CpuRows::from_values(values, width))
}

/// How q and k are treated before attention.
#[derive(Debug, Clone)]
pub struct Preparation {
    pub norm: QkNorm,
    pub q_weight: Vec<f32>,
    pub k_weight: Vec<f32>,
    pub rope: Option<RopeSpec>,
}

impl Preparation {
    pub fn random(random: &mut Random, a: &Attention, norm: QkNorm, rotary_dim: Option<usize>) -> Preparation {
        let (q, k) = match norm {
            QkNorm::None => (0, 0),
            QkNorm::PerHead => (a.head_dim, a.head_dim),
            QkNorm::WholeRow => (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim),
        };
        let rope = rotary_dim.map(|rotary_dim| RopeSpec {
            rotary_dim,
            inv_freq: (0..rotary_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect(),
            attention_factor: 1.1,
        });
        Preparation { norm, q_weight: random.values(q), k_weight: random.values(k), rope }
    }
}

const EPS: f32 = 1e-5;
const LAYER: usize = 1;

/// Runs `rotate_and_store` and `attend` on one step of the second of two layers.
pub fn run(ops: &mut CpuOps, a: &Attention, prepared: &Preparation, (batch, mut qkv): (Batch, CpuRows)) -> CpuRows {
    let (q, k) = (ops.load_vector(&prepared.q_weight), ops.load_vector(&prepared.k_weight));
    let norm = match prepared.norm {
        QkNorm::None => QkNormWeights::None,
        QkNorm::PerHead => QkNormWeights::PerHead { q: &q, k: &k, eps: EPS },
        QkNorm::WholeRow => QkNormWeights::WholeRow { q: &q, k: &k, eps: EPS },
    };
    // A table shorter than the sequences: positions beyond it are computed one by one.
    let rope = prepared.rope.as_ref().map(|rope| ops.load_rope(rope, 20));
    let mut step = ops.new_step();
    ops.prepare(&batch, &mut step);
    ops.rotate_and_store(&step, LAYER, a, norm, rope.as_ref(), &mut qkv);
    let mut out = ops.new_rows();
    ops.attend(&step, LAYER, a, &qkv, &mut out);
    out
}

/// The twin: all rows of one sequence.
fn exact(a: &Attention, prepared: &Preparation, dtype: KvDtype, sequence: &Sequence) -> Vec<f64> {
    let (q_width, kv_width) = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim);
    let stored = |x: &[f64]| -> Vec<f64> {
        let largest = x.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let step = if largest > 0.0 { largest / 127.0 } else { 1.0 };
        let round = |x: &f64| match dtype {
            KvDtype::F32 => *x,
            KvDtype::Bf16 => f64::from(half::bf16::from_f32(*x as f32).to_f32()),
            KvDtype::Int8 => (x / step).round_ties_even() * step,
            KvDtype::Fp8 => unreachable!("not on the CPU"),
        };
        x.iter().map(round).collect()
    };
    let group = a.num_heads / a.num_kv_heads;
    let (mut keys, mut values) = (vec![Vec::new(); a.num_kv_heads], vec![Vec::new(); a.num_kv_heads]);
    let mut out = Vec::new();
    for position in 0..sequence.qkv.rows() {
        let row: Vec<f64> = sequence.qkv.row(position).iter().map(|&x| f64::from(x)).collect();
        let (mut q, mut k) = (row[..q_width].to_vec(), row[q_width..q_width + kv_width].to_vec());
        if prepared.norm != QkNorm::None {
            q = twins::rms_norm(&q, &prepared.q_weight, EPS);
            k = twins::rms_norm(&k, &prepared.k_weight, EPS);
        }
        if let Some(rope) = &prepared.rope {
            for head in q.chunks_mut(a.head_dim).chain(k.chunks_mut(a.head_dim)) {
                twins::rotate(head, position as u32, &rope.inv_freq, rope.attention_factor);
            }
        }
        for (head, k) in k.chunks(a.head_dim).enumerate() {
            keys[head].push(stored(k));
            let v = &row[q_width + kv_width + head * a.head_dim..][..a.head_dim];
            values[head].push(stored(v));
        }
        let start = a.window.map_or(0, |w| (position + 1).saturating_sub(w));
        for (head, q) in q.chunks(a.head_dim).enumerate() {
            let kv = head / group;
            let scores = Scores { scale: a.scale, softcap: a.softcap };
            out.extend(twins::attend(q, &keys[kv][start..], &values[kv][start..], &scores));
        }
    }
    out
}

prop_compose! {
    pub fn attentions()(
        num_kv_heads in 1usize..4, group in prop::sample::select(&[1usize, 2, 3, 7, 20][..]),
        head_dim in prop::sample::select(&[4usize, 6, 16, 24, 64, 80, 96, 256][..]),
        softcap in prop::option::of(2f32..30.0), window in prop::option::of(1usize..40),
    ) -> Attention {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Attention { num_heads: num_kv_heads * group, num_kv_heads, head_dim, scale, softcap, window }
    }
}

pub const KV_DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8];

/// Levels of this machine, with the dot product where there is one and without.
pub fn levels() -> impl Iterator<Item = (Isa, Compute)> {
    let dots = |isa: &Isa| isa.has_dot().then_some((*isa, Compute::Bf16));
    Isa::available().flat_map(move |isa| [Some((isa, Compute::F32)), dots(&isa)]).flatten()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn attention_equals_its_twin(
        seed: u64, a in attentions(), len in 1usize..70, dtype in prop::sample::select(&KV_DTYPES[..]),
        norm in prop::sample::select(&[QkNorm::None, QkNorm::PerHead, QkNorm::WholeRow][..]),
        rotary in prop::option::of(1usize..20),
    ) {
        let mut random = Random(seed);
        let rotary_dim = rotary.map(|half| (2 * half).min(a.head_dim));
        let prepared = Preparation::random(&mut random, &a, norm, rotary_dim);
        let mut free: Vec<u32> = (0..8).collect();
        let sequence = Sequence::random(&mut random, &a, len, &mut free);
        let exact = exact(&a, &prepared, dtype, &sequence);
        for (isa, compute) in levels() {
            let mut ops = computing(isa, compute, 1);
            ops.allocate_kv(&spec(&a, 2), dtype, 8).unwrap();
            let out = run(&mut ops, &a, &prepared, step(&[(&sequence, 0..len)]));
            assert_close(out.values(), &exact, tolerance(dtype, compute), &format!("{isa} {compute} {dtype:?} {a:?}"));
        }
    }
}

/// A rounded value next to a border may fall on the other side than in the twin.
fn tolerance(dtype: KvDtype, compute: Compute) -> f64 {
    match (dtype, compute) {
        (KvDtype::F32, _) => 2e-5,
        (_, Compute::F32) => 1e-2,
        _ => 3e-2,
    }
}

/// Several splits, with more threads than tiles and with fewer, in a window and without.
#[test]
fn long_contexts_are_split_and_put_together() {
    let len = 1200;
    for window in [None, Some(700)] {
        let a = Attention { num_heads: 3, num_kv_heads: 1, head_dim: 24, scale: 0.2, softcap: None, window };
        let mut random = Random(11);
        let prepared = Preparation::random(&mut random, &a, QkNorm::None, None);
        let sequence = Sequence::random(&mut random, &a, len, &mut (0..75).collect());
        for ((isa, compute), dtype) in levels().flat_map(|level| KV_DTYPES.map(|dtype| (level, dtype))) {
            let exact = exact(&a, &prepared, dtype, &sequence);
            let of = |threads| {
                let mut ops = computing(isa, compute, threads);
                ops.allocate_kv(&spec(&a, 2), dtype, 75).unwrap();
                let prompt = run(&mut ops, &a, &prepared, step(&[(&sequence, 0..len - 1)]));
                (prompt, run(&mut ops, &a, &prepared, step(&[(&sequence, len - 1..len)])))
            };
            let what = format!("{isa} {compute} {dtype:?} {window:?}");
            let (prompt, last) = of(4);
            let values = [prompt.values(), last.values()].concat();
            assert_close(&values, &exact, tolerance(dtype, compute), &what);
            let (alone_prompt, alone_last) = of(1);
            assert_eq!(bits(prompt.values()), bits(alone_prompt.values()), "{what}");
            assert_eq!(bits(last.values()), bits(alone_last.values()), "{what}");
            // In the prompt the last position is one of many in its tile; alone its splits are tasks.
            let mut ops = computing(isa, compute, 2);
            ops.allocate_kv(&spec(&a, 2), dtype, 75).unwrap();
            let whole = run(&mut ops, &a, &prepared, step(&[(&sequence, 0..len)]));
            assert_eq!(bits(whole.row(len - 1)), bits(last.values()), "{what}");
        }
    }
}

#[test]
fn copied_blocks_hold_the_same_keys_and_values() {
    let a = Attention { num_heads: 4, num_kv_heads: 2, head_dim: 24, scale: 0.2, softcap: None, window: None };
    for dtype in KV_DTYPES {
        let mut random = Random(9);
        let mut ops = ops(Isa::detect(), 1);
        let bytes = ops.allocate_kv(&spec(&a, 2), dtype, 6).unwrap();
        assert_eq!(Some(bytes), kv_bytes_per_block(&spec(&a, 2), dtype).map(|b| b * 6));
        let prepared = Preparation::random(&mut random, &a, QkNorm::None, None);
        let sequence = Sequence::random(&mut random, &a, 20, &mut (0..6).collect());
        let before = run(&mut ops, &a, &prepared, step(&[(&sequence, 0..20)]));
        let free: Vec<u32> = (0..6).filter(|b| !sequence.table.contains(b)).collect();
        ops.copy_blocks(&[(sequence.table[0], free[0]), (sequence.table[1], free[1])]);
        let copy = Sequence { table: free[..2].to_vec(), qkv: sequence.qkv.clone() };
        // Only the last row is stored again; all others are found in the copies.
        let after = run(&mut ops, &a, &prepared, step(&[(&copy, 19..20)]));
        assert_eq!(bits(after.row(0)), bits(before.row(19)), "{dtype:?}");
    }
}

/// What a freed block held, NaN even, must not reach a sequence that has not yet filled it.
#[test]
fn stale_values_in_a_block_are_never_read() {
    let a = Attention { num_heads: 6, num_kv_heads: 2, head_dim: 24, scale: 0.2, softcap: None, window: Some(9) };
    for ((isa, compute), dtype) in levels().flat_map(|level| KV_DTYPES.map(|dtype| (level, dtype))) {
        let mut random = Random(3);
        let mut ops = computing(isa, compute, 1);
        ops.allocate_kv(&spec(&a, 2), dtype, 2).unwrap();
        let prepared = Preparation::random(&mut random, &a, QkNorm::None, None);
        let sequence = Sequence::random(&mut random, &a, 27, &mut (0..2).collect());
        let clean = run(&mut ops, &a, &prepared, step(&[(&sequence, 0..27)]));
        let poison = CpuRows::from_values(vec![f32::NAN; 32 * sequence.qkv.width()], sequence.qkv.width());
        let stale = Sequence { table: sequence.table.clone(), qkv: poison };
        run(&mut ops, &a, &prepared, step(&[(&stale, 0..32)]));
        // Whole, and a row at a time, when what follows is stale each time.
        let reused = run(&mut ops, &a, &prepared, step(&[(&sequence, 0..27)]));
        assert_eq!(bits(clean.values()), bits(reused.values()), "{isa} {compute} {dtype:?}");
        run(&mut ops, &a, &prepared, step(&[(&stale, 0..32)]));
        let decoded: Vec<u32> = (0..27)
            .flat_map(|row| bits(run(&mut ops, &a, &prepared, step(&[(&sequence, row..row + 1)])).values()))
            .collect();
        assert_eq!(bits(clean.values()), decoded, "{isa} {compute} {dtype:?}");
    }
}
