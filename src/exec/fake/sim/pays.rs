//! Work stealing pays: everything sent to one lane is done nearly as soon as if it had been shared out evenly.

use std::sync::Arc;

use super::Rng;
use super::lanes::{Lanes, Sink, device};
use crate::sched::LaneConfig;
use crate::sched::job::{CancelFlag, Job, Micros, Progress, RequestId, StopRules};

const CONFIG: LaneConfig = LaneConfig {
    num_blocks: 400,
    max_batch_tokens: 256,
    max_chunk_tokens: 128,
    max_slowdown: 2.0,
    max_running: 16,
    max_model_len: 400,
    prefix_cache: true,
    speculation: None,
};

fn job(id: u64, rng: &mut Rng) -> Job<Sink> {
    Job {
        request: RequestId(id),
        sink: Sink::new(id),
        prompt: (0..rng.range(16, 160)).map(|_| rng.range(0, 60) as u32).collect(),
        params: Arc::default(),
        stop: StopRules { stop_tokens: Arc::from([]), min_tokens: 0, max_tokens: rng.range(16, 160) as u32 },
        prompt_logprobs: None,
        salt: 0,
        arrived_at: 0,
        deadline: None,
        cancel: CancelFlag::default(),
        branches: Job::<Sink>::new_branches(1),
        progress: Progress::default(),
    }
}

/// Time until all is done.
fn makespan(num_lanes: usize, num_jobs: usize, seed: u64, lane_of: impl Fn(usize) -> usize) -> Micros {
    let mut lanes = Lanes::new(num_lanes, &CONFIG, &device(), seed);
    let mut rng = Rng(seed);
    for i in 0..num_jobs {
        lanes.submit(lane_of(i), job(i as u64, &mut rng));
    }
    let mut now = 0;
    loop {
        for index in 0..num_lanes {
            if let Some(step) = lanes.take_step(index, now) {
                let output = lanes.compute(index, &step.plan).unwrap();
                lanes.sites[index].lane.complete(output);
            }
        }
        while let Some(index) = lanes.next_to_act(0) {
            lanes.act(index, now).unwrap();
        }
        match lanes.next_step_end() {
            Some(next) => now = next,
            None => break,
        }
    }
    assert!(!lanes.has_work());
    assert!(lanes.sites.iter().all(|site| site.lane.stats().steps > 0), "every lane worked");
    now
}

#[test]
fn one_lanes_backlog_is_everybodys() {
    for (num_lanes, seed) in [(2, 1), (4, 2), (8, 3)] {
        // Six batches' worth a lane: running sequences do not move, so the last batch of a lane is its own.
        let num_jobs = num_lanes * CONFIG.max_running * 6;
        let even = makespan(num_lanes, num_jobs, seed, |i| i % num_lanes);
        let skewed = makespan(num_lanes, num_jobs, seed, |_| 0);
        let alone = makespan(1, num_jobs, seed, |_| 0);
        let share = even as f64 / skewed as f64;
        println!("{num_lanes} lanes: {share:.3} of an even split, {:.2} x one lane", alone as f64 / skewed as f64);
        assert!(share >= 0.95, "{num_lanes} lanes: {skewed} µs against {even} µs");
    }
}
