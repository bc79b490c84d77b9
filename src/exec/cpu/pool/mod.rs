//! The threads of one CPU executor: fork-join over numbered chunks.
//!
//! Owns its threads and nothing else. Never knows what a chunk is. Invariants: `run` returns only when no thread
//! is inside its closure any more; threads without work sleep (they look for the next job for some tens of
//! microseconds, the gap between two operations of a step, before they do), so an idle server uses no CPU. The thread that
//! waits for the others' last chunks sleeps too when one of them has lost its core to another process: on the core that
//! falls free the system lets it go on.
//!
//! Each thread begins with a run of neighbouring chunks of its own, so that it reads weights as they lie in memory, and takes
//! over half of what another has left when it is done. Who takes which chunk varies from run to run; kernels must not care
//! (batch invariance).

mod run;
#[cfg(test)]
mod tests;

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crossbeam::utils::CachePadded;

use self::run::Run;

/// More threads than any machine's cores; a bound on what a configuration can ask for.
pub const MAX_THREADS: usize = 512;

/// How often a thread without work looks for some before it sleeps; a look costs about 15 to 40 ns.
const SPINS_BEFORE_SLEEP: u32 = 1500;
/// How often the caller looks whether the others have left before it sleeps: for longer than a chunk takes, and much less
/// than the milliseconds for which the system gives a core away.
const LOOKS_BEFORE_SLEEP: u32 = 6000;

pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Number of the job (high 32 bits), whether it may be joined (bit 31), how many threads are inside (rest).
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// The caller's, then each worker's.
    runs: Vec<CachePadded<Run>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleeping: Vec<AtomicBool>,
    /// Whether the caller sleeps until all have left, and who it is.
    is_awaited: AtomicBool,
    caller: Mutex<Option<Thread>>,
}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
}

// SAFETY: `job` is written by `Pool::run` (which has `&mut self`) while the job is closed and nobody is inside, and
// read only by threads that have joined an open job; the closure behind the pointer is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in it is only followed inside a job.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` (1 to [`MAX_THREADS`]), the calling thread counted.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let num_workers = threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            runs: (0..=num_workers).map(|_| CachePadded::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleeping: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            is_awaited: AtomicBool::new(false),
            caller: Mutex::new(None),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(num_workers) };
        for index in 0..num_workers {
            let shared = pool.shared.clone();
            let worker = thread::Builder::new().name(format!("cpu-{}", index + 1));
            pool.workers.push(worker.spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once for every number below `chunks`, on this thread and those workers that are quick enough.
    /// A panic in a chunk is passed on after all threads have left.
    pub fn run(&mut self, chunks: usize, task: &(dyn Fn(usize) + Sync)) {
        debug_assert!(u32::try_from(chunks).is_ok(), "{chunks} chunks do not fit a run");
        if chunks <= 1 || self.workers.is_empty() {
            (0..chunks).for_each(task);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; `close` below waits until no thread can follow the pointer.
        let task_ptr = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(task)
        };
        // SAFETY: the last job is closed and left, and `&mut self` keeps others from opening one.
        unsafe { *shared.job.get() = Some(Job { task: task_ptr }) };
        shared.share_out(chunks);
        let number = (shared.state.load(Relaxed) >> 32).wrapping_add(1) & u64::from(u32::MAX);
        shared.state.store(number << 32 | OPEN, SeqCst);
        for (sleeping, worker) in shared.sleeping.iter().zip(&self.workers) {
            if sleeping.load(SeqCst) {
                worker.thread().unpark();
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| shared.take_chunks(0, task)));
        shared.close();
        let worker_panicked = shared.panicked.swap(false, Relaxed);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        if worker_panicked {
            panic!("a compute thread panicked; its message is above");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its panics; there is nothing to learn from the result.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Before a job is opened.
    fn share_out(&self, chunks: usize) {
        let threads = self.runs.len();
        for (thread, run) in self.runs.iter().enumerate() {
            run.set(thread * chunks / threads..(thread + 1) * chunks / threads);
        }
    }

    fn take_chunks(&self, thread: usize, task: &(dyn Fn(usize) + Sync)) {
        let own = &self.runs[thread];
        loop {
            while let Some(chunk) = own.take() {
                task(chunk);
            }
            let others = (1..self.runs.len()).map(|i| &self.runs[(thread + i) % self.runs.len()]);
            let Some(half) = others.into_iter().find_map(|run| run.take_half()) else { return };
            own.set(half);
        }
    }

    /// Lets nobody in any more and waits for those inside: each has at most one chunk left to finish.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, SeqCst);
        let mut looks = 0u32;
        while state & INSIDE != 0 {
            looks += 1;
            if looks > LOOKS_BEFORE_SLEEP {
                return self.sleep_until_left();
            }
            if looks.is_multiple_of(256) {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            state = self.state.load(Acquire);
        }
    }

    fn sleep_until_left(&self) {
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.is_awaited.store(true, SeqCst);
        // Whoever leaves last after the first look sees the flag and unparks.
        while self.state.load(SeqCst) & INSIDE != 0 {
            thread::park();
        }
        self.is_awaited.store(false, SeqCst);
    }

    /// Wakes the caller, should it sleep, when the last one has left a closed job.
    fn leave(&self) {
        let before = self.state.fetch_sub(1, SeqCst);
        if before & (OPEN | INSIDE) == 1 && self.is_awaited.load(SeqCst) {
            let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(caller) = &*caller {
                caller.unpark();
            }
        }
    }

    /// A worker's life.
    fn work(&self, index: usize) {
        let mut last_job = 0;
        let mut looks = 0;
        while !self.stop.load(Relaxed) {
            let state = self.state.load(Acquire);
            if state & OPEN != 0 && state >> 32 != last_job {
                if self.state.compare_exchange(state, state + 1, AcqRel, Relaxed).is_ok() {
                    last_job = state >> 32;
                    looks = 0;
                    self.help(index + 1);
                }
                continue;
            }
            looks += 1;
            if looks < SPINS_BEFORE_SLEEP {
                std::hint::spin_loop();
                continue;
            }
            looks = 0;
            self.sleeping[index].store(true, SeqCst);
            let state = self.state.load(SeqCst);
            if !self.stop.load(SeqCst) && (state & OPEN == 0 || state >> 32 == last_job) {
                // Whoever opens a job after the load above sees `sleeping` and unparks.
                thread::park();
            }
            self.sleeping[index].store(false, SeqCst);
        }
    }

    fn help(&self, thread: usize) {
        // SAFETY: this thread is counted inside an open job, so the job stands and its closure lives.
        let job = unsafe { *self.job.get() };
        if let Some(Job { task }) = job {
            // SAFETY: as above.
            let task = unsafe { &*task };
            if catch_unwind(AssertUnwindSafe(|| self.take_chunks(thread, task))).is_err() {
                self.panicked.store(true, Relaxed);
            }
        }
        self.leave();
    }
}
