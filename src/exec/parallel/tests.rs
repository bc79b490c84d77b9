//! What becomes of a group when a rank fails. That what ranks compute is right is shown by the golden models on the emulator.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::exec::BLOCK_TOKENS;
use crate::exec::cuda::CudaOps;
use crate::exec::cuda::device::{Communicator, Threads};
use crate::exec::cuda::tests::{Fault, Faulty};
use crate::model::shard::Shard;
use crate::model::source;
use crate::sample::{SampleSpec, SamplingParams};
use crate::sched::plan::{SeqId, SeqRows};

const NUM_BLOCKS: usize = 8;
/// A step that has not ended by then hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// A group over kernels that do nothing, and its devices.
fn group(num_ranks: usize) -> (TensorParallel<CudaOps>, Vec<Arc<Faulty>>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
    let source = source::open(&folder, None, &mut |_, _| ()).unwrap();
    let communicators = Threads::connect(num_ranks);
    let devices: Vec<Arc<Faulty>> = communicators.iter().map(|_| Arc::new(Faulty::new())).collect();
    let rank = |(i, communicator): (usize, &Arc<dyn Communicator>)| {
        let mut ops = CudaOps::of_group(devices[i].clone(), communicator.clone());
        let shard = Shard::new(i, num_ranks);
        let decoder = Decoder::load_shard(&mut ops, &source.spec, &source.tensors, shard, &mut |_, _| ()).unwrap();
        (ops, decoder)
    };
    let ranks = communicators.iter().enumerate().map(rank).collect();
    let release = Box::new(move || communicators.iter().for_each(|communicator| communicator.abort()));
    (TensorParallel::new(ranks, "faulty".into(), KvDtype::Bf16, NUM_BLOCKS, release).unwrap(), devices)
}

/// A prompt whose next token is drawn.
fn plan(token: u32) -> StepPlan {
    let params = Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    let sample = SampleSpec { params, choice: 0, index: 0, history: None, banned: Arc::new([]) };
    let rows = SeqRows {
        seq: SeqId(1),
        tokens: vec![1, 2, token],
        blocks: vec![3],
        samples: vec![sample],
        ..SeqRows::default()
    };
    StepPlan { step: 1, copies: vec![(0, 1)], rows: vec![rows] }
}

/// A step that goes well, as far as it can: kernels that do nothing leave no number to draw from, which loses no group.
fn step(group: &mut TensorParallel<CudaOps>) {
    let error = group.step(&plan(5)).unwrap_err();
    assert!(matches!(&error, ExecError::Failed(message) if message.contains("not a number")), "{error}");
}

/// Runs this on a thread that has to end in time.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::sync_channel(1);
    thread::spawn(move || tell.send(work()));
    told.recv_timeout(LIMIT).expect("an end in time")
}

fn failed() -> DeviceError {
    DeviceError::Failed("out of memory".into())
}

fn lost() -> DeviceError {
    DeviceError::Lost("fell off the bus".into())
}

fn panics() -> DeviceError {
    panic!("a wrong shape")
}

#[test]
fn every_rank_starts_the_same_operations_and_the_first_draws() {
    let (mut group, devices) = group(2);
    for _ in 0..3 {
        step(&mut group);
        let [first, second] = [&devices[0], &devices[1]].map(|d| std::mem::take(&mut *d.launched.lock().unwrap()));
        assert_eq!(first[..second.len()], second[..]);
        assert_eq!(first[second.len()], "gemm_m16_f32", "the first has the head");
        // Two sums in each of four layers.
        assert_eq!(second.iter().filter(|kernel| **kernel == "add_parts").count(), 8);
    }
}

#[test]
fn a_rank_that_fails_or_panics_ends_the_step_for_all_and_the_group_is_lost() {
    let faults: [(Fault, &str); 3] =
        [(failed, "out of memory"), (lost, "fell off the bus"), (panics, "a panic: a wrong shape")];
    for (rank, at) in [(0, 0), (1, 0), (3, 17), (0, 17), (2, 30)] {
        for (fault, text) in faults {
            let (errors, left) = in_time(move || {
                let (mut group, devices) = group(4);
                step(&mut group);
                *devices[rank].later.lock().unwrap() = Some((at, fault));
                let errors = [group.step(&plan(5)), group.step(&plan(5))].map(|step| step.unwrap_err().to_string());
                drop(group);
                (errors, devices.iter().map(|device| device.memory.num_allocations()).sum::<usize>())
            });
            assert_eq!(errors[0], format!("the device is lost: rank {rank} of the group: {text}"));
            assert_eq!(errors[0], errors[1]);
            assert_eq!(left, 0, "memory that nobody gave back");
        }
    }
}

#[test]
fn a_rank_that_fails_behind_the_last_sum_loses_the_group_too() {
    let error = in_time(|| {
        let (mut group, devices) = group(2);
        step(&mut group);
        let launches = devices[1].launched.lock().unwrap().len();
        *devices[1].later.lock().unwrap() = Some((launches - 1, failed as fn() -> DeviceError));
        group.step(&plan(5)).unwrap_err()
    });
    assert!(matches!(&error, ExecError::Lost(cause) if cause.contains("rank 1")), "{error}");
}

#[test]
fn a_plan_that_cannot_be_run_is_refused_before_any_rank_hears_of_it() {
    let (mut group, devices) = group(2);
    let error = group.step(&plan(320)).unwrap_err();
    assert!(matches!(&error, ExecError::Failed(message) if message.contains("token 320")), "{error}");
    assert!(devices.iter().all(|device| device.launched.lock().unwrap().is_empty()));
    step(&mut group);
}

#[test]
fn kv_memory_is_divided() {
    let (group, _) = group(2);
    // Four layers, K and V, two bytes for each of 16 dimensions of both heads.
    assert_eq!(group.info().kv_bytes, NUM_BLOCKS * BLOCK_TOKENS * 4 * 2 * 2 * 16 * 2);
    assert_eq!((group.info().num_blocks, group.info().device.as_str()), (NUM_BLOCKS, "faulty"));
}
