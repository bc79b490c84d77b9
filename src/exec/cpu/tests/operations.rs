use proptest::prelude::*;

use super::*;

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Activations as groups of eight-bit numbers, by the definition.
fn rounded(x: &CpuRows) -> Vec<f32> {
    let mut rounded = x.values().to_vec();
    for group in rounded.chunks_mut(x.width()).flat_map(|row| row.chunks_mut(32)) {
        let largest = group.iter().fold(0f32, |max, x| max.max(x.abs()));
        let (scale, inverse) = (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 });
        group.iter_mut().for_each(|x| *x = (*x * inverse).round_ties_even() * scale);
    }
    rounded
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn matmul_equals_its_twin(
        seed: u64, rows in 0usize..14, k in 1usize..300, parts in prop::collection::vec(1usize..60, 1..4),
        dtype in prop::sample::select(&DTYPES[..]), with_bias: bool,
    ) {
        let mut random = Random(seed);
        let (mut tensors, mut w) = (Vec::new(), Vec::new());
        for part in &parts {
            let (tensor, values) = random.tensor(dtype, *part, k);
            tensors.push(tensor);
            w.extend(values);
        }
        let outputs = parts.iter().sum();
        let mut x = CpuRows::default();
        x.reshape(rows, k);
        x.values_mut().iter_mut().for_each(|x| *x = random.value());
        let bias = with_bias.then(|| random.values(outputs));
        let exact = twins::matmul(x.values(), &w, k, bias.as_deref());
        // What a bfloat16 product may differ by is what rounding its activations makes.
        let rounded: Vec<f32> = x.values().iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        let exact_rounded = twins::matmul(&rounded, &w, k, bias.as_deref());
        for (isa, compute) in ways() {
            let mut ops = computing(isa, compute, 1);
            let w = ops.load_matrix(Role::Projection, &tensors);
            let bias = bias.as_deref().map(|b| ops.load_vector(b));
            let mut out = CpuRows::default();
            ops.matmul(&x, &w, bias.as_ref(), &mut out);
            prop_assert_eq!((out.rows(), out.width()), (rows, outputs));
            let rounds = compute == Compute::Bf16 && dtype == Dtype::Bf16 && isa.has_dot();
            let exact = if rounds { &exact_rounded } else { &exact };
            assert_close(ops.read(&out).unwrap(), exact, 2e-5, &format!("{isa} {compute} {dtype:?}"));
        }
    }

    #[test]
    fn quantised_products_equal_their_twin(
        seed: u64, rows in 1usize..14, k in 1usize..330, outputs in 1usize..90, four_bits: bool,
    ) {
        let mut random = Random(seed);
        let (tensor, values) = random.tensor(Dtype::F32, outputs, k);
        let x = random.rows(rows, k);
        let rounded = rounded(&x);
        for isa in Isa::available() {
            for compute in [Compute::F32, Compute::Int8] {
                let weights = Some(if four_bits { Format::Int4Min(2) } else { Format::Int8 });
                let mut ops = CpuOps::new(CpuOptions { threads: 1, isa: Some(isa), compute, weights }).unwrap();
                let w = ops.load_matrix(Role::Projection, std::slice::from_ref(&tensor));
                let step = step_of(Batch { tokens: (0..outputs as u32).collect(), ..Batch::default() });
                let (mut stored, mut out) = (ops.new_rows(), ops.new_rows());
                ops.embed(&step, &w, 1.0, &mut stored);
                for (stored, value) in stored.values().iter().zip(&values) {
                    let bound = if four_bits { 0.2 } else { 0.5 / 127.0 + 1e-3 };
                    prop_assert!((stored - value).abs() <= bound, "{} was {}", stored, value);
                }
                ops.matmul(&x, &w, None, &mut out);
                let x = if compute == Compute::Int8 { &rounded } else { x.values() };
                assert_close(out.values(), &twins::matmul(x, stored.values(), k, None), 5e-5, &format!("{isa} {compute}"));
            }
        }
    }

    #[test]
    fn norms_sums_gathers_and_activations_equal_their_twins(
        seed: u64, rows in 1usize..6, width in 1usize..80, eps in 1e-6f32..1e-2,
        activation in prop::sample::select(&[Activation::Silu, Activation::GeluTanh][..]),
    ) {
        let mut random = Random(seed);
        let (x, delta, weight) = (random.rows(rows, width), random.rows(rows, width), random.values(width));
        let gate_up = random.rows(rows, 2 * width);
        let step = step_of(Batch { logit_rows: vec![rows as u32 - 1, 0], ..Batch::default() });
        for isa in Isa::available() {
            let mut ops = ops(isa, 1);
            let weight_vector = ops.load_vector(&weight);
            let (mut out, mut in_place) = (ops.new_rows(), x.clone());
            ops.rms_norm(&x, &weight_vector, eps, &mut out);
            assert_close(out.values(), &twins::rms_norm(&widen(x.values()), &weight, eps), 1e-5, "norm");
            ops.rms_norm_in_place(&mut in_place, &weight_vector, eps);
            prop_assert_eq!(bits(in_place.values()), bits(out.values()));

            let mut sum = x.clone();
            ops.add_scaled(&mut sum, &delta, 0.3);
            let exact: Vec<f64> =
                x.values().iter().zip(delta.values()).map(|(&x, &d)| f64::from(x) + f64::from(d) * f64::from(0.3f32)).collect();
            assert_close(sum.values(), &exact, 2e-7, "sum");

            ops.gather_logit_rows(&step, &x, &mut out);
            prop_assert_eq!(out.row(0), x.row(rows - 1));
            prop_assert_eq!(out.row(1), x.row(0));

            ops.gated_activation(&gate_up, activation, &mut out);
            assert_close(out.values(), &twins::gated(&widen(gate_up.values()), width, activation), 1e-6, "gated");
        }
    }

    #[test]
    fn embed_and_logits_equal_their_twins(
        seed: u64, rows in 1usize..6, width in 1usize..70, scale in 0.1f32..40.0,
        dtype in prop::sample::select(&DTYPES[..]), softcap in prop::option::of(1f32..50.0),
    ) {
        let mut random = Random(seed);
        let (tensor, values) = random.tensor(dtype, 11, width);
        let tokens: Vec<u32> = (0..rows).map(|_| random.below(11) as u32).collect();
        let exact: Vec<f64> = tokens.iter().flat_map(|&t| &values[t as usize * width..][..width])
            .map(|&x| f64::from(x) * f64::from(scale)).collect();
        let capped: Vec<f64> = exact.iter().map(|&x| {
            let x = x * f64::from(scale);
            softcap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
        }).collect();
        let step = step_of(Batch { tokens, ..Batch::default() });
        for isa in Isa::available() {
            let mut ops = ops(isa, 1);
            let table = ops.load_matrix(Role::Projection, std::slice::from_ref(&tensor));
            let mut out = ops.new_rows();
            ops.embed(&step, &table, scale, &mut out);
            assert_close(out.values(), &exact, 1e-6, "embed");
            ops.finish_logits(&mut out, scale, softcap);
            assert_close(out.values(), &capped, 1e-6, "logits");
        }
    }

    #[test]
    fn experts_equal_their_twin(
        seed: u64, rows in 1usize..9, hidden in 1usize..40, intermediate in 1usize..40, num_experts in 1usize..9,
        renormalise: bool, dtype in prop::sample::select(&DTYPES[..]),
    ) {
        let mut random = Random(seed);
        let experts_per_token = 1 + random.below(num_experts);
        let x = random.rows(rows, hidden);
        let (router, router_values) = random.tensor(dtype, num_experts, hidden);
        let experts: Vec<_> = (0..num_experts).map(|_| {
            [intermediate, intermediate].map(|rows| random.tensor(dtype, rows, hidden))
        }).collect();
        let downs: Vec<_> = (0..num_experts).map(|_| random.tensor(dtype, hidden, intermediate)).collect();

        let mut exact = Vec::new();
        for row in 0..rows {
            let x = x.row(row);
            let mut sum = vec![0.0; hidden];
            let logits = twins::matmul(x, &router_values, hidden, None);
            for (expert, weight) in twins::route(&logits, experts_per_token, renormalise) {
                let [(_, gate), (_, up)] = &experts[expert];
                let mut gate_up = twins::matmul(x, gate, hidden, None);
                gate_up.extend(twins::matmul(x, up, hidden, None));
                let inner = twins::gated(&gate_up, intermediate, Activation::Silu);
                for (o, down) in sum.iter_mut().zip(downs[expert].1.chunks(intermediate)) {
                    *o += weight * inner.iter().zip(down).map(|(x, &w)| x * f64::from(w)).sum::<f64>();
                }
            }
            exact.extend(sum);
        }
        let moe = MoeSpec { num_experts, experts_per_token, intermediate_size: intermediate, renormalise };
        for isa in Isa::available() {
            let mut ops = ops(isa, 1);
            let weights = MoeWeights {
                router: ops.load_matrix(Role::Router, std::slice::from_ref(&router)),
                gate_up: experts.iter().map(|[(gate, _), (up, _)]| ops.load_matrix(Role::Projection, &[gate.clone(), up.clone()])).collect(),
                down: downs.iter().map(|(down, _)| ops.load_matrix(Role::Projection, std::slice::from_ref(down))).collect(),
            };
            let mut out = ops.new_rows();
            ops.moe(&x, &weights, &moe, Activation::Silu, &mut out);
            assert_close(out.values(), &exact, 2e-5, &format!("{isa}"));
        }
    }
}

#[test]
fn equal_router_logits_choose_the_lower_experts() {
    let mut random = Random(5);
    let hidden = 8;
    let (zeros, _) = (CpuRows::from_values(vec![0.0; hidden], hidden), ());
    let mut x = random.rows(1, hidden);
    let mut ops = ops(Isa::detect(), 1);
    // All router rows are the same row, so all experts tie.
    let (row, _) = random.tensor(Dtype::F32, 1, hidden);
    let mut load = |random: &mut Random, rows: usize, cols: usize| {
        let (tensor, _) = random.tensor(Dtype::F32, rows, cols);
        ops.load_matrix(Role::Projection, &[tensor])
    };
    let gate_up: Vec<_> = (0..4).map(|_| load(&mut random, 6, hidden)).collect();
    let down: Vec<_> = (0..4).map(|_| load(&mut random, hidden, 3)).collect();
    let router = ops.load_matrix(Role::Router, &vec![row.clone(); 4]);
    let four = MoeWeights { router, gate_up: gate_up.clone(), down: down.clone() };
    let router = ops.load_matrix(Role::Router, &vec![row; 2]);
    let two = MoeWeights { router, gate_up: gate_up[..2].to_vec(), down: down[..2].to_vec() };
    let moe = |num_experts| MoeSpec { num_experts, experts_per_token: 2, intermediate_size: 3, renormalise: true };
    let (mut a, mut b) = (ops.new_rows(), ops.new_rows());
    ops.moe(&x, &four, &moe(4), Activation::Silu, &mut a);
    ops.moe(&x, &two, &moe(2), Activation::Silu, &mut b);
    assert_eq!(bits(a.values()), bits(b.values()));
    assert_ne!(a.values(), zeros.values());
    // Not by accident: another input gives another output.
    x.values_mut()[0] += 1.0;
    ops.moe(&x, &four, &moe(4), Activation::Silu, &mut b);
    assert_ne!(bits(a.values()), bits(b.values()));
}

/// Every kind of block: the embedding shows each number exactly, products come near.
#[test]
fn blocks_of_a_file_are_computed_as_they_are() {
    let rows = 85;
    for (dtype, k) in BLOCK_DTYPES.into_iter().flat_map(|dtype| [1, 3].map(|n| (dtype, n * dtype.block_len()))) {
        let mut random = Random(11);
        let tensor = random.blocks(dtype, rows, k);
        for num_rows in [1, 7] {
            let x = random.rows(num_rows, k);
            let exact = |x: &[f32]| twins::matmul(x, &tensor.to_f32(), k, None);
            let (plain, rounded) = (exact(x.values()), exact(&rounded(&x)));
            for (isa, compute) in Isa::available().flat_map(|isa| [(isa, Compute::F32), (isa, Compute::Int8)]) {
                let mut ops = computing(isa, compute, 1);
                let w = ops.load_matrix(Role::Projection, std::slice::from_ref(&tensor));
                let step = step_of(Batch { tokens: (0..rows as u32).collect(), ..Batch::default() });
                let (mut stored, mut out) = (ops.new_rows(), ops.new_rows());
                ops.embed(&step, &w, 1.0, &mut stored);
                assert_eq!(bits(stored.values()), bits(&tensor.to_f32()), "{isa} {dtype}");
                ops.matmul(&x, &w, None, &mut out);
                let exact = if compute == Compute::Int8 { &rounded } else { &plain };
                assert_close(out.values(), exact, 1e-4, &format!("{isa} {compute} {dtype}"));
            }
        }
    }
}

/// What the kernels make of a weight is the file's number to the bit: each is multiplied with one, and added to nothing.
#[test]
fn kernels_widen_blocks_exactly() {
    let (rows, k) = (85, 512);
    for dtype in BLOCK_DTYPES {
        let tensor = Random(12).blocks(dtype, rows, k);
        let values = tensor.to_f32();
        for (isa, num_rows) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let mut ops = ops(isa, 1);
            let w = ops.load_matrix(Role::Projection, std::slice::from_ref(&tensor));
            let mut out = ops.new_rows();
            for first in (0..k).step_by(num_rows).filter(|first| first + num_rows <= k) {
                let mut units = vec![0.0; num_rows * k];
                (0..num_rows).for_each(|row| units[row * k + first + row] = 1.0);
                ops.matmul(&CpuRows::from_values(units, k), &w, None, &mut out);
                for (row, got) in out.values().chunks(rows).enumerate() {
                    for (output, got) in got.iter().enumerate() {
                        let value = values[output * k + first + row];
                        assert!(*got == value, "{isa} {dtype}: {got}, not {value}");
                    }
                }
            }
        }
    }
}

/// As a GGUF file may store q and v.
#[test]
fn parts_of_several_dtypes_are_one_matrix() {
    let (mut random, k) = (Random(5), 256);
    let (plain, mut w) = random.tensor(Dtype::Bf16, 3, k);
    let parts = BLOCK_DTYPES.map(|dtype| random.blocks(dtype, 21, k));
    parts.iter().for_each(|part| w.extend(part.to_f32()));
    let parts = [&[plain], &parts[..]].concat();
    let bias = random.values(w.len() / k);
    for (rows, threads) in [(2, 1), (3, 2), (40, 2)] {
        let x = random.rows(rows, k);
        // The first part is no blocks, so its activations stay as they are.
        let mut rounded = twins::matmul(&rounded(&x), &w, k, Some(&bias));
        let plain = twins::matmul(x.values(), &w, k, Some(&bias));
        for (rounded, plain) in rounded.chunks_mut(bias.len()).zip(plain.chunks(bias.len())) {
            rounded[..3].copy_from_slice(&plain[..3]);
        }
        for (isa, compute) in Isa::available().flat_map(|isa| [(isa, Compute::F32), (isa, Compute::Int8)]) {
            let exact = if compute == Compute::Int8 { &rounded } else { &plain };
            let mut ops = computing(isa, compute, threads);
            let (matrix, bias) = (ops.load_matrix(Role::Projection, &parts), ops.load_vector(&bias));
            let mut out = CpuRows::default();
            ops.matmul(&x, &matrix, Some(&bias), &mut out);
            assert_close(ops.read(&out).unwrap(), exact, 1e-4, &format!("{isa} {compute}"));
            let mut row = vec![0.0; k];
            for output in [0, 2, 3, 23, 24, 24 + 7 * 21 - 1, 24 + 7 * 21 - 22] {
                matrix.read_row(output, 1.0, &mut row);
                assert_eq!(row, w[output * k..][..k], "{isa}: row {output}");
            }
        }
    }
}
