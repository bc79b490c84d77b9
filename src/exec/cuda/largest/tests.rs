//! What a lane is promised: no step asks for memory once the largest ones have run.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::exec::cuda::device::{Device, Emulator, Order, Threads};
use crate::exec::cuda::tests::emulator;
use crate::model::shard::Shard;
use crate::model::source;

const LIMITS: Limits = Limits { batch_tokens: 70, sequences: 9, drafts: 3 };

type Model = (Arc<Emulator>, CudaOps, Decoder<CudaOps>);

/// A model of 512 positions on the emulator, if its library is there; CI insists.
fn load(name: &str, bytes: usize) -> Option<Model> {
    let device = Arc::new(emulator(Order::Forward)?.with_bytes(bytes));
    Some(load_shard(device.clone(), CudaOps::new(device), name, Shard::WHOLE))
}

fn load_shard(device: Arc<Emulator>, mut ops: CudaOps, name: &str, shard: Shard) -> Model {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = source::open(&project.join("tests/fixtures/models").join(name), None, &mut |_, _| ()).unwrap();
    let decoder = Decoder::load_shard(&mut ops, &source.spec, &source.tensors, shard, &mut |_, _| ()).unwrap();
    (device, ops, decoder)
}

/// Shards on two emulators of so many bytes.
fn load_ranks(name: &str, bytes: [usize; 2]) -> Option<Vec<Model>> {
    let mut ranks = Vec::new();
    for (rank, (end, bytes)) in Threads::connect(2).into_iter().zip(bytes).enumerate() {
        let device = Arc::new(emulator(Order::Forward)?.with_bytes(bytes));
        ranks.push(load_shard(device.clone(), CudaOps::of_group(device, end), name, Shard::new(rank, 2)));
    }
    Some(ranks)
}

/// Spans, and rows whose logits are wanted.
fn steps() -> [(Vec<usize>, u32); 7] {
    [
        (vec![70], 70),
        (vec![70], 1),
        (vec![4; 9], 36),
        (vec![4, 4, 1, 1, 1, 1, 1, 1, 56], 3),
        (vec![1; 9], 9),
        (vec![1; 5], 5),
        (vec![8; 8], 0),
    ]
}

fn run_steps(device: &Emulator, ops: &mut CudaOps, decoder: &mut Decoder<CudaOps>, name: &str) {
    let (before, max_positions) = (device.allocations(), decoder.spec().max_positions);
    for (spans, num_logits) in steps() {
        let mut batch = at_the_end(max_positions, &spans, 70);
        let num_rows = batch.tokens.len() as u32;
        batch.logit_rows = (num_rows - num_logits..num_rows).collect();
        for _ in 0..3 {
            decoder.forward(ops, &batch).unwrap();
        }
        assert_eq!(device.allocations(), before, "{name}: {spans:?} with {num_logits} logits");
    }
}

fn check(name: &str) {
    let Some((device, mut ops, mut decoder)) = load(name, 1 << 30) else { return };
    ops.reserve_activations(&mut decoder, KvDtype::Bf16, LIMITS).unwrap();
    let free = device.free_bytes().unwrap();
    let kv = ops.allocate_kv(&decoder.spec().clone(), KvDtype::Bf16, 70).unwrap();
    // Scratch for addresses of the regions, and nothing else.
    assert!((kv..kv + (64 << 10)).contains(&(free - device.free_bytes().unwrap())), "the trial's cache was given back");
    run_steps(&device, &mut ops, &mut decoder, name);
}

#[test]
fn no_step_asks_for_memory_afterwards() {
    check("llama-yarn-head64");
    check("mixtral");
}

#[test]
fn no_step_of_a_group_asks_for_memory_afterwards() {
    for name in ["llama-yarn-head64", "mixtral"] {
        let Some(ranks) = load_ranks(name, [1 << 30; 2]) else { return };
        let (devices, mut ranks): (Vec<_>, Vec<_>) =
            ranks.into_iter().map(|(device, ops, decoder)| (device, (ops, decoder))).unzip();
        reserve_on_ranks(&mut ranks, KvDtype::Bf16, LIMITS).unwrap();
        thread::scope(|scope| {
            for (device, (ops, decoder)) in devices.iter().zip(&mut ranks) {
                scope.spawn(move || {
                    ops.allocate_kv(&decoder.spec().clone(), KvDtype::Bf16, 70).unwrap();
                    run_steps(device, ops, decoder, name);
                });
            }
        });
    }
}

#[test]
fn a_rank_without_room_releases_the_others_and_is_named() {
    let limits = Limits { batch_tokens: 4096, ..LIMITS };
    let Some(ranks) = load_ranks("llama", [1 << 30, 2 << 20]) else { return };
    let mut ranks: Vec<_> = ranks.into_iter().map(|(_, ops, decoder)| (ops, decoder)).collect();
    let (rank, error) = reserve_on_ranks(&mut ranks, KvDtype::Bf16, limits).unwrap_err();
    assert!(rank == 1 && error.to_string().contains("MiB left"), "{rank}: {error}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some((_, mut ops, mut decoder)) = load("llama", 2 << 20) else { return };
    let limits = Limits { batch_tokens: 4096, ..LIMITS };
    let message = ops.reserve_activations(&mut decoder, KvDtype::Bf16, limits).unwrap_err().to_string();
    assert!(message.contains("MiB left"), "{message}");
}
