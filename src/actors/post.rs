//! A lane's two posts: what it takes to start its scheduler and its executor, and to start them again.
//!
//! Owns the device. They share the lane's thread. Never decides when: that is the supervisor's.
//!
//! Invariant: the device outlives every actor that runs steps on it; weights are loaded once.

use std::sync::Arc;

use actix::{Actor, ArbiterHandle, Context};

use super::events::Sink;
use super::executor::{Device, ExecutorActor};
use super::lanes::Lanes;
use super::scheduler::SchedulerActor;
use super::supervisor::Ward;
use crate::base::metrics::metrics;
use crate::exec::Executor;
use crate::sched::job::Job;
use crate::sched::{Lane, LaneConfig, LaneConfigError, StealWindow};

/// Bounds the mailbox of a scheduler: wake-ups, of which one is as good as many.
const SCHEDULER_MAILBOX: usize = 256;

pub struct SchedulerPost {
    index: usize,
    config: LaneConfig,
    steal_window: usize,
    thread: ArbiterHandle,
    lanes: Arc<Lanes>,
}

impl SchedulerPost {
    /// Starts a lane's scheduler on the lane's thread. `window`, for `steal_window` jobs, is known to `lanes` already.
    pub fn start(
        index: usize,
        config: LaneConfig,
        (window, steal_window): (StealWindow<Sink>, usize),
        thread: ArbiterHandle,
        lanes: &Arc<Lanes>,
    ) -> Result<Self, LaneConfigError> {
        let lane = Lane::new(config.clone())?;
        let post = Self { index, config, steal_window, thread, lanes: lanes.clone() };
        post.install(lane, window);
        Ok(post)
    }

    fn install(&self, lane: Lane<Sink>, window: StealWindow<Sink>) {
        let (index, lanes) = (self.index, self.lanes.clone());
        let address = Actor::start_in_arbiter(&self.thread, move |ctx: &mut Context<_>| {
            ctx.set_mailbox_capacity(SCHEDULER_MAILBOX);
            SchedulerActor::new(index, lane, window, lanes)
        });
        self.lanes.scheduler(self.index).install(address);
    }

    /// Jobs that stood in the dead scheduler's window go to whatever lane lives; where none does they drop, and their
    /// sinks tell.
    fn rehouse(&self, orphans: impl IntoIterator<Item = Job<Sink>>) {
        for job in orphans {
            if let Some(lane) = self.lanes.place(&job) {
                self.lanes.submit(lane, job);
            }
        }
    }
}

impl Ward for SchedulerPost {
    fn actor(&self) -> &'static str {
        "Scheduler"
    }

    fn lane(&self) -> Option<usize> {
        Some(self.index)
    }

    fn is_alive(&self) -> bool {
        self.lanes.scheduler(self.index).is_alive()
    }

    fn start_again(&mut self) {
        let window = StealWindow::new(self.steal_window);
        let orphans = self.lanes.replace_window(self.index, window.stealer());
        match Lane::new(self.config.clone()) {
            Ok(lane) => self.install(lane, window),
            // It was built from the same limits before.
            Err(e) => tracing::error!(lane = self.index, error = %e, "the lane cannot be built again"),
        }
        metrics().lane_health(self.index).restarts.increment(1);
        self.rehouse(orphans);
    }

    fn give_up(&mut self) {
        self.lanes.give_up(self.index);
        metrics().lane_health(self.index).given_up.set(1.0);
        let empty = StealWindow::new(0);
        self.rehouse(self.lanes.replace_window(self.index, empty.stealer()));
        self.rehouse(self.lanes.take_inbox(self.index));
    }
}

pub struct ExecutorPost {
    index: usize,
    device: Device,
    thread: ArbiterHandle,
    lanes: Arc<Lanes>,
}

impl ExecutorPost {
    /// Starts a lane's executor on the lane's thread.
    pub fn start(index: usize, executor: Box<dyn Executor>, thread: ArbiterHandle, lanes: &Arc<Lanes>) -> Self {
        let post = Self { index, device: Device::new(executor), thread, lanes: lanes.clone() };
        post.install();
        post
    }

    fn install(&self) {
        let device = self.device.clone();
        let address = Actor::start_in_arbiter(&self.thread, |_| ExecutorActor::new(device));
        self.lanes.executor(self.index).install(address);
    }
}

impl Ward for ExecutorPost {
    fn actor(&self) -> &'static str {
        "Executor"
    }

    fn lane(&self) -> Option<usize> {
        Some(self.index)
    }

    fn is_alive(&self) -> bool {
        self.lanes.executor(self.index).is_alive()
    }

    fn start_again(&mut self) {
        self.install();
    }
}

#[cfg(test)]
mod tests {
    use actix::Arbiter;

    use super::*;
    use crate::actors::events::EventQueue;
    use crate::sample::SamplingParams;
    use crate::sched::job::{CancelFlag, Progress, RequestId, StopRules};
    use crate::sched::{VictimOrder, Window};

    fn job(sink: Sink) -> Job<Sink> {
        Job {
            request: RequestId(1),
            sink,
            prompt: vec![1, 2, 3].into(),
            params: SamplingParams::default().into(),
            stop: StopRules { stop_tokens: [].into(), min_tokens: 0, max_tokens: 1 },
            prompt_logprobs: None,
            salt: 0,
            arrived_at: 0,
            deadline: None,
            cancel: CancelFlag::default(),
            branches: Job::<Sink>::new_branches(1),
            progress: Progress::default(),
        }
    }

    #[test]
    fn a_job_for_a_lane_in_a_step_is_whose_turn_comes_first() {
        let window = StealWindow::new(4);
        let lanes = Lanes::new(vec![window.stealer(), StealWindow::new(4).stealer()]);
        let (queue, mut order) = (Arc::new(EventQueue::default()), VictimOrder::new(1));
        lanes.begin_step(0);
        (0..2).for_each(|_| lanes.submit(0, job(Sink::new(queue.clone()))));
        assert_eq!(lanes.steal(1, 1, true, &mut order).len(), 1, "the other has room");
        lanes.end_step(0);
        assert_eq!(lanes.take_inbox(0).len(), 1, "and this one takes the rest when the step is over");
        assert!(lanes.steal(1, 1, true, &mut order).is_empty());
    }

    #[test]
    fn a_lane_that_is_given_up_keeps_nobody_waiting() {
        actix::System::new().block_on(async {
            let mut window = StealWindow::new(4);
            let lanes = Lanes::new(vec![window.stealer()]);
            let config = LaneConfig {
                num_blocks: 8,
                max_batch_tokens: 64,
                max_chunk_tokens: 64,
                max_slowdown: 2.0,
                max_running: 4,
                max_model_len: 64,
                prefix_cache: true,
                speculation: None,
            };
            let thread = Arbiter::new();
            let mut post = SchedulerPost { index: 0, config, steal_window: 4, thread: thread.handle(), lanes };
            let queue = Arc::new(EventQueue::default());
            let sink = Sink::new(queue.clone());
            assert!(window.push(job(sink.clone())).is_ok());
            post.lanes.submit(0, job(sink));
            // Its scheduler dies: the window stands, and nobody looks into it any more.
            drop(window);
            assert!(!queue.take(Vec::new()).closed && !post.is_alive());
            post.give_up();
            assert!(queue.take(Vec::new()).closed, "the request is told");
            thread.stop();
        });
    }
}
