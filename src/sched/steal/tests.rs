use std::sync::Arc;

use crate::sched::job::{Job, RequestId};
use crate::sched::tests::job;
use crate::sched::{
    FifoWindow, IdleLanes, Inbox, Lane, LaneConfig, MAX_MOVES, StealWindow, Stock, Take, VictimOrder, Window, search,
};

const CONFIG: LaneConfig = LaneConfig {
    num_blocks: 16,
    max_batch_tokens: 64,
    max_chunk_tokens: 32,
    max_slowdown: 2.0,
    max_running: 1,
    max_model_len: 200,
    prefix_cache: true,
    speculation: None,
};

fn fill(window: &mut StealWindow<u64>, ids: std::ops::Range<u64>) {
    ids.for_each(|id| drop(window.push(job(id, 1, 1))));
}

fn ids(jobs: Vec<Job<u64>>) -> Vec<u64> {
    jobs.into_iter().map(|job| job.request.0).collect()
}

#[test]
fn thieves_take_the_oldest_half_up_to_the_limit() {
    let mut windows = [StealWindow::new(40), StealWindow::new(40)];
    let stealers: Vec<_> = windows.iter().map(StealWindow::stealer).collect();
    fill(&mut windows[0], 0..5);
    assert_eq!(ids(stealers[0].take_half(8)), [0, 1, 2]);
    fill(&mut windows[0], 5..99);
    let mut order = VictimOrder::new(1);
    assert_eq!(ids(search(1, 99, &stealers, &mut order)), (3..11).collect::<Vec<_>>());
    assert_eq!(ids(search(1, 2, &stealers, &mut order)), [11, 12]);
    assert!(search(1, 0, &stealers, &mut order).is_empty(), "no room");
    assert!(search(0, 8, &stealers, &mut order).is_empty(), "nobody steals from itself");
    assert_eq!(windows[0].len(), 30, "40 is its bound");
}

#[test]
fn what_came_in_during_a_step_is_taken_after_the_window() {
    let mut window = StealWindow::new(4);
    let inbox = Arc::new(Inbox::default());
    let stock = Stock { window: window.stealer(), inbox: inbox.clone() };
    assert!(inbox.push(job(2, 1, 1)), "it is the first");
    assert!(!inbox.push(job(3, 1, 1)));
    fill(&mut window, 0..2);
    assert_eq!((stock.len(), inbox.len()), (4, 2));
    assert_eq!(ids(stock.take_half(3)), [0, 1]);
    assert_eq!(ids(stock.take_half(8)), [2]);
    assert_eq!(ids(inbox.take_all().into()), [3]);
    assert!(stock.is_empty() && inbox.take_all().is_empty());

    let mut tired = job(4, 1, 1);
    tired.progress.num_moves = MAX_MOVES;
    assert!(inbox.push(tired), "it is empty again");
    assert!(stock.take_half(8).is_empty(), "it has moved so often that it stays");
    assert_eq!(ids(inbox.take_all().into()), [4]);
}

#[test]
fn nothing_is_lost_between_those_who_submit_and_those_who_take() {
    let inbox = Arc::new(Inbox::default());
    let stock = Stock { window: StealWindow::new(1).stealer(), inbox: inbox.clone() };
    let mut seen: Vec<u64> = std::thread::scope(|scope| {
        let submitters = [0, 1].map(|first| {
            let inbox = &inbox;
            scope.spawn(move || {
                for i in 0..1000 {
                    inbox.push(job(2 * i + first, 1, 1));
                }
            })
        });
        let mut taken = Vec::new();
        while taken.len() < 2000 {
            taken.extend(ids(stock.take_half(3)));
            taken.extend(ids(inbox.take_all().into()));
        }
        submitters.into_iter().for_each(|submitter| submitter.join().expect("it does not panic"));
        taken
    });
    seen.sort_unstable();
    assert_eq!(seen, (0..2000).collect::<Vec<_>>());
}

#[test]
fn sleepers_are_woken_one_at_a_time_while_there_is_something_to_take() {
    let mut windows = [StealWindow::new(40), StealWindow::new(40), StealWindow::new(40)];
    let stealers: Vec<_> = windows.iter().map(StealWindow::stealer).collect();
    let (idle, mut order) = (<IdleLanes>::default(), VictimOrder::new(1));
    assert!(idle.go_idle(1, 8, &stealers, &mut order).is_empty());
    assert!(idle.go_idle(2, 8, &stealers, &mut order).is_empty());
    assert_eq!(idle.next_to_wake(&stealers), None, "nothing to take");
    fill(&mut windows[0], 0..3);
    assert_eq!(idle.next_to_wake(&stealers), Some(1));
    assert!(!idle.is_idle(1) && idle.is_idle(2));
    assert_eq!(ids(idle.go_idle(1, 8, &stealers, &mut order)), [0, 1]);
    assert!(!idle.is_idle(1), "it has something to do");
    assert_eq!(idle.next_to_wake(&stealers), Some(2));
    assert_eq!(idle.next_to_wake(&stealers), None, "all are awake");
}

fn offered(lane: &mut Lane<u64>, window: &mut FifoWindow<u64>) -> Vec<Job<u64>> {
    lane.waiting.offer(window);
    std::iter::from_fn(|| window.pop()).collect()
}

#[test]
fn a_job_moves_so_often_and_then_stays() {
    let mut window = FifoWindow::new(16);
    let mut travelling = job(0, 4, 9);
    for _ in 1..MAX_MOVES {
        let mut lane = Lane::new(CONFIG).unwrap();
        lane.submit_stolen(travelling);
        lane.submit(job(1, 4, 9));
        assert_eq!(lane.room(0, &mut window), 0, "jobs wait");
        travelling = offered(&mut lane, &mut window).remove(0);
        assert_eq!(travelling.request.0, 0);
    }
    let mut lane = Lane::new(CONFIG).unwrap();
    lane.submit_stolen(travelling);
    (1..4).for_each(|id| lane.submit(job(id, 4, 9)));
    assert_eq!(ids(offered(&mut lane, &mut window)), [1, 2, 3], "one that has moved so often is not offered");
    lane.submit(job(1, 4, 9));
    let plan = lane.plan(0, &mut window).plan.expect("a step");
    assert_eq!(plan.rows[0].tokens[0], 0, "and is still the first to run");
    assert_eq!((lane.room(0, &mut window), lane.stats().waiting_jobs), (0, 1));
}

#[test]
fn concurrent_thieves_lose_and_double_nothing() {
    let mut window = StealWindow::new(64);
    let stealer = window.stealer();
    let mut seen: Vec<u64> = std::thread::scope(|scope| {
        let thief = || {
            let mut stolen = Vec::new();
            while stolen.last() != Some(&u64::MAX) {
                stolen.extend(stealer.take_half(1).into_iter().map(|job| job.request.0));
            }
            stolen
        };
        let thieves = [scope.spawn(thief), scope.spawn(thief)];
        let mut own = Vec::new();
        for id in 0..2000 {
            let mut next = window.push(job(id, 1, 1));
            while let Err(job) = next {
                next = window.push(job);
            }
            if id % 3 == 0 {
                own.extend(window.pop().map(|job| job.request.0));
            }
        }
        for _ in 0..2 {
            let mut next = window.push(Job { request: RequestId(u64::MAX), ..job(0, 1, 1) });
            while let Err(job) = next {
                next = window.push(job);
            }
        }
        own.extend(thieves.into_iter().flat_map(|thief| thief.join().expect("a thief does not panic")));
        own
    });
    seen.sort_unstable();
    assert_eq!(seen, (0..2000).chain([u64::MAX; 2]).collect::<Vec<_>>());
}
