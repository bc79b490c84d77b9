//! Every chunk once, whoever takes it; and what threads without work do.

use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn a_thread_that_is_done_takes_over_what_another_has_left() {
    let mut pool = Pool::new(2).unwrap();
    let caller = thread::current().id();
    let of_worker = AtomicUsize::new(0);
    pool.run(8, &|i| {
        if thread::current().id() != caller {
            of_worker.fetch_add(1, SeqCst);
        } else if i == 0 {
            // Held up in its first chunk; the other takes its own four and the three behind this one.
            assert!(eventually(|| of_worker.load(SeqCst) == 7), "{of_worker:?} taken");
        }
    });
    assert_eq!(of_worker.load(SeqCst), 7);
}

#[test]
fn every_chunk_runs_once_whatever_the_number_of_threads() {
    for threads in 1..=4 {
        let mut pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        for chunks in [0, 1, 2, 3, 100] {
            let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(chunks, &|i| {
                counts[i].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{threads} threads, {chunks} chunks");
        }
    }
}

#[test]
fn results_are_visible_after_run_over_many_jobs() {
    let mut pool = Pool::new(3).unwrap();
    let total = AtomicUsize::new(0);
    for job in 0..2000 {
        if job % 500 == 0 {
            // Long enough for the workers to fall asleep.
            thread::sleep(std::time::Duration::from_millis(5));
        }
        pool.run(7, &|i| {
            total.fetch_add(i, Relaxed);
        });
        assert_eq!(total.load(Relaxed), (job + 1) * 21);
    }
}

#[test]
fn a_panic_in_a_chunk_reaches_the_caller_and_the_pool_lives_on() {
    let mut pool = Pool::new(3).unwrap();
    for bad in 0..8 {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, &|i| {
                thread::sleep(std::time::Duration::from_micros(50));
                assert_ne!(i, bad, "wanted by the test");
            })
        }));
        assert!(outcome.is_err());
    }
    let sum = AtomicUsize::new(0);
    pool.run(10, &|i| {
        sum.fetch_add(i, Relaxed);
    });
    assert_eq!(sum.load(Relaxed), 45);
}

/// Waits for something that another thread does, two seconds at most.
fn eventually(what: impl Fn() -> bool) -> bool {
    (0..2000).any(|_| {
        thread::sleep(std::time::Duration::from_millis(1));
        what()
    })
}

#[test]
fn a_caller_sleeps_while_another_thread_is_held_up() {
    let mut pool = Pool::new(2).unwrap();
    let shared = pool.shared.clone();
    let caller = thread::current().id();
    for _ in 0..3 {
        let joined = AtomicBool::new(false);
        let slept = AtomicBool::new(false);
        pool.run(2, &|_| {
            if thread::current().id() == caller {
                assert!(eventually(|| joined.load(SeqCst)), "the other thread did not come");
            } else {
                joined.store(true, SeqCst);
                slept.store(eventually(|| shared.is_awaited.load(SeqCst)), SeqCst);
            }
        });
        assert!(slept.load(SeqCst), "the caller span all the time");
        assert!(!shared.is_awaited.load(SeqCst));
    }
}

#[test]
fn idle_threads_sleep() {
    let mut pool = Pool::new(3).unwrap();
    pool.run(8, &|_| {});
    let asleep = || pool.shared.sleeping.iter().all(|s| s.load(SeqCst));
    assert!(eventually(asleep), "workers were still spinning after two seconds");
}
