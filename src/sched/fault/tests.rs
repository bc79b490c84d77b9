use super::*;
use crate::sched::job::{Event, RequestId};
use crate::sched::tests::{Bench, CONFIG, answer, finishes, job};
use crate::sched::{LaneConfig, MAX_MOVES};

/// Retires the lane. Other lanes take everything if there are some.
fn retire(bench: &mut Bench, has_others: bool) -> (Vec<Job<u64>>, Vec<Delivery<u64>>) {
    let mut taken = Vec::new();
    let mut elsewhere = |job| {
        if !has_others {
            return Some(job);
        }
        taken.push(job);
        None
    };
    let deliveries = bench.lane.retire("gone", 0, &mut bench.window, &mut elsewhere);
    bench.lane.check().unwrap();
    let stats = bench.lane.stats();
    assert_eq!((stats.running, stats.waiting_jobs, stats.blocks.held + stats.blocks.cached), (0, 0, 0));
    assert!(!bench.lane.has_work() && bench.plan(0).0.is_none() && bench.lane.room(0, &mut bench.window) == 0);
    (taken, deliveries)
}

fn fail(bench: &mut Bench, now: Micros, others: Option<&mut Vec<Job<u64>>>) -> (Verdict, Vec<Delivery<u64>>) {
    let verdict = bench.lane.judge(Fault::Device, now);
    let deliveries = match others {
        Some(taken) => bench.lane.fail_on_device("bad", &mut |job| {
            taken.push(job);
            None
        }),
        None => bench.lane.fail_on_device("bad", &mut Some),
    };
    bench.lane.check().unwrap();
    (verdict, deliveries)
}

#[test]
fn what_ran_or_waited_on_a_lost_device_goes_on_elsewhere_with_its_tokens() {
    let mut bench = Bench::new(LaneConfig { max_running: 2, ..CONFIG });
    (1..=4).for_each(|id| bench.lane.submit(job(id, 20, 9)));
    bench.step(1);
    bench.step(2);
    bench.plan(0).0.unwrap();
    assert!(bench.window.len() == 2);
    assert_eq!(bench.lane.judge(Fault::Lost, 0), Verdict::Retire);
    let (taken, deliveries) = retire(&mut bench, true);
    assert!(deliveries.is_empty() && bench.lane.stats().moved_jobs == 4);
    let outputs: Vec<_> = taken.iter().map(|job| (job.request.0, job.branches[0].output.clone())).collect();
    assert_eq!(outputs, [(1, vec![1, 2]), (2, vec![1, 2]), (3, vec![]), (4, vec![])]);
    let suspects: Vec<_> = taken.iter().map(|job| (job.progress.suspect_until, job.progress.num_rescues)).collect();
    assert_eq!(suspects, [(Some(22), 1), (Some(22), 1), (None, 0), (None, 0)], "those in its last step run alone");

    let mut other = Bench::new(CONFIG);
    taken.into_iter().for_each(|job| other.lane.submit(job));
    let (plan, events) = other.step(3);
    assert_eq!((plan.rows.len(), plan.rows[0].start, plan.rows[0].tokens.len()), (1, 0, 22));
    assert_eq!(plan.rows[0].samples[0].index, 2, "the draws go on");
    assert!(matches!(&events[..], [Event::Token { sampled, .. }] if sampled.token == 3), "{events:?}");
}

#[test]
fn what_comes_to_a_lost_lane_is_passed_on_and_without_another_lane_it_fails() {
    let mut bench = Bench::new(CONFIG);
    bench.lane.judge(Fault::Lost, 0);
    bench.lane.submit(job(1, 20, 9));
    assert_eq!(retire(&mut bench, true).0.len(), 1);
    let left = job(2, 20, 9);
    left.cancel.set();
    bench.lane.submit(left);
    bench.lane.submit(job(3, 20, 9));
    let (_, deliveries) = retire(&mut bench, false);
    let told: Vec<_> = deliveries.iter().map(|d| (d.request.0, finishes(&d.events))).collect();
    assert_eq!(told, [(2, vec![(0, Finish::Cancelled)]), (3, vec![(0, Finish::Failed("gone".into()))])]);
}

#[test]
fn a_job_that_loses_every_device_is_ended_before_it_has_lost_them_all() {
    let mut killer = job(1, 20, 9);
    for num_rescues in 0..=MAX_RESCUES {
        let mut bench = Bench::new(CONFIG);
        bench.lane.submit(job(2, 20, 9));
        bench.lane.submit(killer.clone());
        let plan = bench.plan(0).0.unwrap();
        assert_eq!(plan.rows.len(), if num_rescues == 0 { 2 } else { 1 }, "once suspected it runs alone");
        bench.lane.judge(Fault::Lost, 0);
        let (taken, deliveries) = retire(&mut bench, true);
        let bystander = taken.iter().find(|job| job.request == RequestId(2)).expect("it goes on");
        assert_eq!(bystander.progress.num_rescues, u8::from(num_rescues == 0));
        match taken.into_iter().find(|job| job.request == RequestId(1)) {
            Some(job) => killer = job,
            None => {
                assert_eq!(num_rescues, MAX_RESCUES);
                assert!(matches!(&finishes(&deliveries[0].events)[..], [(0, Finish::Failed(_))]));
                return;
            }
        }
    }
    panic!("it was never ended");
}

#[test]
fn a_lane_whose_device_fails_rests_longer_each_time_and_retires_after_too_many() {
    let mut bench = Bench::new(CONFIG);
    let mut now = 0;
    for (id, rest) in (1..).zip([100, 200, 400, 800, 1600, 3200, 5000]) {
        bench.lane.submit(job(id, 20, 9));
        bench.plan(now).0.unwrap();
        let (verdict, _) = fail(&mut bench, now, Some(&mut Vec::new()));
        let until = now + rest * 1000;
        assert_eq!(verdict, Verdict::Rest { until });
        assert!(bench.plan(until - 1).0.is_none() && bench.lane.room(until - 1, &mut bench.window) == 0);
        now = until;
    }
    bench.plan(now).0.unwrap();
    assert_eq!(bench.lane.judge(Fault::Device, now), Verdict::Retire);
    retire(&mut bench, true);
}

#[test]
fn a_step_that_succeeds_forgives_and_a_fault_of_the_step_is_not_the_devices() {
    let mut bench = Bench::new(CONFIG);
    bench.lane.submit(job(1, 20, 200));
    for now in (0..u64::from(3 * MAX_FAULTS)).map(|i| i * 1_000_000) {
        bench.plan(now).0.unwrap();
        assert_eq!(fail(&mut bench, now, None).0, Verdict::Rest { until: now + FIRST_REST });
        let plan = bench.plan(now + FIRST_REST).0.expect("the rest is over");
        bench.lane.complete(answer(&plan, 1));
        bench.plan(now + FIRST_REST).0.unwrap();
        assert_eq!(bench.lane.judge(Fault::Step, now), Verdict::GoOn);
        bench.lane.fail("a panic");
        let plan = bench.plan(now + FIRST_REST).0.expect("at once");
        bench.lane.complete(answer(&plan, 1));
    }
}

#[test]
fn what_fails_alone_on_a_failing_device_moves_or_waits_and_ends_after_a_few() {
    for has_others in [true, false] {
        let mut bench = Bench::new(CONFIG);
        let mut moved = Job { branches: Job::<u64>::new_branches(2), ..job(1, 20, 9) };
        moved.progress.num_moves = MAX_MOVES;
        bench.lane.submit(moved);
        let mut now = 0;
        for num_rescues in [0, 1, 2] {
            bench.plan(now).0.unwrap();
            let mut taken = Vec::new();
            assert!(fail(&mut bench, now, has_others.then_some(&mut taken)).1.is_empty());
            now += 10_000_000;
            if has_others && num_rescues > 0 {
                let job = taken.pop().expect("it is moved");
                assert_eq!((job.progress.num_rescues, job.progress.num_moves, job.branches.len()), (num_rescues, 0, 2));
                assert_eq!(bench.lane.stats().blocks.held, 0);
                bench.lane.submit(job);
            }
        }
        bench.plan(now).0.unwrap();
        let (_, deliveries) = fail(&mut bench, now, None);
        let failed = Finish::Failed("bad".into());
        assert_eq!(finishes(&deliveries[0].events), [(0, failed.clone()), (1, failed)]);
        assert!(!bench.lane.has_work());
    }
}
