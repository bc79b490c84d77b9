//! Bit equality: whatever else is in the step, however it is cut, however many threads run it.

use proptest::prelude::*;

use super::attention::{KV_DTYPES, Preparation, Sequence, attentions, levels, run, spec, step};
use super::*;
use crate::model::spec::QkNorm;

const BATCH: usize = 33;
/// Three of them a row: the order of a sum of two would not show.
const NUM_EXPERTS: usize = 5;

/// All row-wise operations of a layer on `x`, one after the other, ending in logits.
fn row_wise(ops: &mut CpuOps, x: &CpuRows, w: &Weights) -> Vec<f32> {
    let norm = ops.load_vector(&w.norm);
    let bias = ops.load_vector(&w.bias);
    let gate_up = ops.load_matrix(Role::Projection, &w.gate_up);
    let down = ops.load_matrix(Role::Projection, std::slice::from_ref(&w.down));
    let experts = MoeWeights {
        router: ops.load_matrix(Role::Router, std::slice::from_ref(&w.router)),
        gate_up: vec![gate_up.clone(); NUM_EXPERTS],
        down: w.expert_downs.iter().map(|d| ops.load_matrix(Role::Projection, std::slice::from_ref(d))).collect(),
    };
    let moe = MoeSpec {
        num_experts: NUM_EXPERTS,
        experts_per_token: 3,
        intermediate_size: w.down.shape[1],
        renormalise: true,
    };
    let (mut normed, mut inner, mut gated, mut out, mut routed) =
        (ops.new_rows(), ops.new_rows(), ops.new_rows(), ops.new_rows(), ops.new_rows());
    ops.rms_norm(x, &norm, 1e-5, &mut normed);
    ops.matmul(&normed, &gate_up, Some(&bias), &mut inner);
    ops.gated_activation(&inner, Activation::GeluTanh, &mut gated);
    ops.matmul(&gated, &down, None, &mut out);
    ops.moe(&normed, &experts, &moe, Activation::Silu, &mut routed);
    ops.add_scaled(&mut out, &routed, 0.5);
    ops.rms_norm_in_place(&mut out, &norm, 1e-5);
    ops.finish_logits(&mut out, 2.0, Some(3.0));
    ops.read(&out).unwrap().to_vec()
}

struct Weights {
    norm: Vec<f32>,
    bias: Vec<f32>,
    gate_up: Vec<Tensor>,
    down: Tensor,
    router: Tensor,
    expert_downs: Vec<Tensor>,
}

impl Weights {
    fn random(random: &mut Random, dtype: Dtype, hidden: usize, intermediate: usize) -> Weights {
        Weights {
            norm: random.values(hidden),
            bias: random.values(2 * intermediate),
            gate_up: (0..2).map(|_| random.tensor(dtype, intermediate, hidden).0).collect(),
            down: random.tensor(dtype, hidden, intermediate).0,
            router: random.tensor(dtype, NUM_EXPERTS, hidden).0,
            expert_downs: (0..NUM_EXPERTS).map(|_| random.tensor(dtype, hidden, intermediate).0).collect(),
        }
    }
}

/// The sizes pass the threshold for threads in a batch and stay under it for a single row; neither is a multiple of
/// a vector.
#[test]
fn a_row_is_the_same_alone_in_a_batch_and_on_any_number_of_threads() {
    let (hidden, intermediate) = (107, 150);
    for (isa, compute) in ways() {
        for dtype in DTYPES {
            let mut random = Random(7);
            let weights = Weights::random(&mut random, dtype, hidden, intermediate);
            let x = random.rows(BATCH, hidden);
            let together = row_wise(&mut computing(isa, compute, 1), &x, &weights);
            for threads in [2, 3] {
                let parallel = row_wise(&mut computing(isa, compute, threads), &x, &weights);
                assert_eq!(bits(&parallel), bits(&together), "{isa} {compute} {dtype:?}, {threads} threads");
            }
            let mut ops = computing(isa, compute, 1);
            for rows in [0..1, 1..2, 32..33, 3..8, 5..11, 10..29] {
                let part = CpuRows::from_values(x.values()[rows.start * hidden..rows.end * hidden].to_vec(), hidden);
                let alone = row_wise(&mut ops, &part, &weights);
                let same = &together[rows.start * hidden..rows.end * hidden];
                assert_eq!(bits(&alone), bits(same), "{isa} {compute} {dtype:?}, rows {rows:?}");
            }
        }
    }
}

#[test]
fn quantised_weights_change_nothing_about_that() {
    let (hidden, intermediate) = (107, 150);
    for options in quantised_ways() {
        let mut random = Random(9);
        let weights = Weights::random(&mut random, Dtype::F32, hidden, intermediate);
        let x = random.rows(BATCH, hidden);
        let together = row_wise(&mut CpuOps::new(options).unwrap(), &x, &weights);
        for rows in [0..1, 32..33, 3..8, 10..29] {
            let part = CpuRows::from_values(x.values()[rows.start * hidden..rows.end * hidden].to_vec(), hidden);
            let alone = row_wise(&mut CpuOps::new(CpuOptions { threads: 2, ..options }).unwrap(), &part, &weights);
            let same = &together[rows.start * hidden..rows.end * hidden];
            assert_eq!(bits(&alone), bits(same), "{options:?}, rows {rows:?}");
        }
    }
}

/// As they stand in a GGUF file, q and v in different ones.
#[test]
fn blocks_of_a_file_change_nothing_about_that() {
    let (outputs, k) = (90, 768);
    for (i, dtype) in BLOCK_DTYPES.into_iter().enumerate() {
        for (isa, compute) in Isa::available().flat_map(|isa| [(isa, Compute::F32), (isa, Compute::Int8)]) {
            let mut random = Random(10);
            let other = random.blocks(BLOCK_DTYPES[(i + 1) % BLOCK_DTYPES.len()], 35, k);
            let parts = [random.blocks(dtype, outputs, k), other];
            let x = random.rows(BATCH, k);
            let (mut one, mut two) = (computing(isa, compute, 1), computing(isa, compute, 2));
            let w = one.load_matrix(Role::Projection, &parts);
            let (mut together, mut alone) = (CpuRows::default(), CpuRows::default());
            two.matmul(&x, &w, None, &mut together);
            for rows in [0..1, 1..3, 32..33, 3..8, 10..29] {
                let part = CpuRows::from_values(x.values()[rows.start * k..rows.end * k].to_vec(), k);
                one.matmul(&part, &w, None, &mut alone);
                let same = &together.values()[rows.start * (outputs + 35)..rows.end * (outputs + 35)];
                assert_eq!(bits(alone.values()), bits(same), "{isa} {compute} {dtype}, rows {rows:?}");
            }
        }
    }
}

/// Long enough for several row blocks of the matrix kernel and several column chunks.
#[test]
fn row_blocks_and_column_chunks_change_nothing() {
    let (rows, k, outputs) = (150, 1500, 90);
    for (isa, compute) in ways() {
        let mut random = Random(8);
        let (tensor, _) = random.tensor(Dtype::Bf16, outputs, k);
        let x = random.rows(rows, k);
        let mut whole = CpuRows::default();
        let mut parallel = computing(isa, compute, 3);
        let w = parallel.load_matrix(Role::Projection, &[tensor]);
        parallel.matmul(&x, &w, None, &mut whole);
        let mut ops = computing(isa, compute, 1);
        for row in [0, 1, 63, 64, 68, 127, 149] {
            let mut alone = CpuRows::default();
            ops.matmul(&CpuRows::from_values(x.row(row).to_vec(), k), &w, None, &mut alone);
            assert_eq!(bits(alone.row(0)), bits(whole.row(row)), "{isa} {compute}, row {row}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn attention_is_the_same_whole_chunked_decoded_and_in_company(
        seed: u64, a in attentions(), len in 2usize..70, dtype in prop::sample::select(&KV_DTYPES[..]),
        norm in prop::sample::select(&[QkNorm::None, QkNorm::PerHead, QkNorm::WholeRow][..]),
    ) {
        let mut random = Random(seed);
        let prepared = Preparation::random(&mut random, &a, norm, Some(a.head_dim / 2 / 2 * 2));
        let mut free: Vec<u32> = (0..20).collect();
        let sequence = Sequence::random(&mut random, &a, len, &mut free);
        let others: Vec<Sequence> = (0..3).map(|_| {
            let len = 1 + random.below(50);
            Sequence::random(&mut random, &a, len, &mut free)
        }).collect();
        let cut = 1 + random.below(len - 1);
        for (isa, compute) in levels() {
            let fresh = |threads| {
                let mut ops = computing(isa, compute, threads);
                ops.allocate_kv(&spec(&a, 2), dtype, 20).unwrap();
                ops
            };
            let whole = run(&mut fresh(1), &a, &prepared, step(&[(&sequence, 0..len)]));

            let mut chunked = Vec::new();
            let mut ops = fresh(2);
            for rows in [0..cut, cut..len] {
                chunked.extend(bits(run(&mut ops, &a, &prepared, step(&[(&sequence, rows)])).values()));
            }
            prop_assert_eq!(&chunked, &bits(whole.values()), "{} cut at {}", isa, cut);

            let mut decoded = Vec::new();
            let mut ops = fresh(1);
            for position in 0..len {
                decoded.extend(bits(run(&mut ops, &a, &prepared, step(&[(&sequence, position..position + 1)])).values()));
            }
            prop_assert_eq!(&decoded, &bits(whole.values()), "{} one by one", isa);

            let mut ops = fresh(3);
            let parts = |o: usize| (&others[o], 0..others[o].qkv.rows());
            let first = run(&mut ops, &a, &prepared, step(&[parts(0), (&sequence, 0..cut), parts(1)]));
            let start = others[0].qkv.rows();
            let mut company: Vec<u32> = (start..start + cut).flat_map(|row| bits(first.row(row))).collect();
            let second = run(&mut ops, &a, &prepared, step(&[(&sequence, cut..len), parts(2)]));
            company.extend((0..len - cut).flat_map(|row| bits(second.row(row))));
            prop_assert_eq!(&company, &bits(whole.values()), "{} in company", isa);
        }
    }
}
