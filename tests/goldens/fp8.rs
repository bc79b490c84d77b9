//! Weights in FP8 on the CUDA device, against the CPU's float32 with the weights that were stored.

use garrick::exec::cpu::Format;
use garrick::exec::cuda::device::Order;
use garrick::model::ops::Role;
use garrick::model::shard::Shard;
use garrick::model::source;
use garrick::model::weights::{Dtype, Tensor};

use super::cuda::{NewOps, cuda, stand_in, with_cublaslt};
use super::quantised::{Random, STORED_TIMES, assert_near, check_against, cpu, product, stored, tensor};
use super::*;

/// Rows up to which activations are never rounded.
const FEW_ROWS: usize = 16;

/// The matrix as the device keeps it.
fn rounded(device: &NewOps, w: &Tensor) -> Tensor {
    let values = stored(device().with_weights(Some(Format::Fp8)), Role::Projection, w);
    let bytes = values.iter().flat_map(|value| (value / STORED_TIMES).to_le_bytes()).collect();
    tensor(Dtype::F32, w.shape.clone(), bytes)
}

#[test]
fn weights_become_the_nearest_numbers_and_what_every_token_passes_is_spared() {
    let Some(device) = cuda(Order::Random(3)) else { return };
    let w = Random(1).floats(21, 256);
    let (values, found) = (w.to_f32(), rounded(&device, &w).to_f32());
    for (row, (values, found)) in values.chunks(256).zip(found.chunks(256)).enumerate() {
        let step = values.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 448.0;
        for (x, y) in values.iter().zip(found) {
            // Half a step of four bits, or of the smallest numbers.
            let allowed = (x.abs() / 16.0).max(step / 1024.0) * 1.0001;
            assert!((x - y).abs() <= allowed, "row {row}: {x} became {y}");
        }
    }
    assert!(values.iter().zip(&found).any(|(x, y)| (x - y).abs() > x.abs() / 64.0), "of four bits, not more");
    for (role, bits) in [(Role::Projection, 8.125), (Role::Router, 16.0), (Role::Embedding, 16.0), (Role::Head, 16.0)] {
        let mut ops = device().with_weights(Some(Format::Fp8));
        ops.load_matrix(role, std::slice::from_ref(&w));
        assert_eq!(ops.stored()[0].bytes as f32 * 8.0 / w.num_elements() as f32, bits, "{role:?}");
    }
}

#[test]
fn own_kernels_round_no_activation() {
    let Some(device) = cuda(Order::Reverse) else { return };
    let w = Random(2).floats(37, 200);
    let kept = [rounded(&device, &w)];
    for rows in [1, FEW_ROWS, 20, 70, 130] {
        let x = Random(rows as u64).activations(rows, 200);
        let expected = product(cpu(None), &x, Role::Projection, &kept);
        let ops = device().with_weights(Some(Format::Fp8));
        let found = product(ops, &x, Role::Projection, std::slice::from_ref(&w));
        assert_near(&found, &expected, 1.0 / 256.0, 2e-5, &format!("{rows} rows"));
    }
}

/// Activations are rounded as weights are, but for few rows.
#[test]
fn the_library_multiplies_rounded_rows_by_rounded_rows() {
    let Some((by_library, true)) = with_cublaslt() else { return };
    let Some(device) = cuda(Order::Forward) else { return };
    let w = Random(3).floats(48, 200);
    let kept = [rounded(&device, &w)];
    for rows in [FEW_ROWS, FEW_ROWS + 1, 40, 130] {
        let x = Random(rows as u64).activations(rows, 200);
        let is_few = rows <= FEW_ROWS;
        let own = product(cpu(None), &x, Role::Projection, &kept);
        let by_rounded = product(cpu(None), &rounded(&device, &x), Role::Projection, &kept);
        let before = stand_in().0;
        let ops = by_library().with_weights(Some(Format::Fp8));
        let found = product(ops, &x, Role::Projection, std::slice::from_ref(&w));
        assert_eq!(stand_in(), (before + i32::from(!is_few), String::new()), "{rows} rows");
        // The product is rounded to bfloat16, and once more with its bias.
        let expected = if is_few { &own } else { &by_rounded };
        assert_near(&found, expected, 1.0 / 128.0, 1e-2, &format!("{rows} rows"));
        let distance = |other: &[f32]| rms(&found, other);
        let (near, far) = if is_few { (&own, &by_rounded) } else { (&by_rounded, &own) };
        assert!(4.0 * distance(near) < distance(far), "{rows} rows: which of both it is can be told");
    }
}

/// A golden model whose projections are replaced by what FP8 keeps of them.
fn check(name: &str, is_moe: bool) {
    let Some(device) = cuda(Order::Reverse) else { return };
    let mut source = source::open(&folder(name), None, &mut |_, _| ()).unwrap();
    let is_projection = |name: &str| name.contains("_proj.weight") || name.contains(".experts.");
    let mut replaced = 0;
    for (_, tensor) in source.tensors.iter_mut().filter(|(name, _)| is_projection(name)) {
        *tensor = rounded(&device, tensor);
        replaced += 1;
    }
    assert!(replaced > 20, "{name}: only {replaced} projections");
    let reference = Model::of_source(cpu(None), &source, KvDtype::F32, Shard::WHOLE);
    check_against(reference, &device, name, Format::Fp8, is_moe);
}

#[test]
fn llama_in_fp8() {
    check("llama", false);
}

#[test]
fn experts_in_fp8() {
    check("mixtral", true);
}
