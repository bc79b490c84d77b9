//! The executor actor: one device, one thread of its own, one step at a time.
//!
//! Owns the [`Executor`]. Never knows what a request is. A panic in a step is caught here and becomes an error of that
//! step: the thread, the weights and the mailbox survive it. A device that is lost stops the actor, which the lane and
//! readiness see.

use std::panic::{AssertUnwindSafe, catch_unwind};

use actix::{Actor, ActorContext, Context, Handler};

use super::messages::RunStep;
use crate::exec::{ExecError, Executor};
use crate::sched::plan::StepOutput;

pub struct ExecutorActor {
    executor: Box<dyn Executor>,
}

impl ExecutorActor {
    pub fn new(executor: Box<dyn Executor>) -> Self {
        Self { executor }
    }
}

impl Actor for ExecutorActor {
    type Context = Context<Self>;
}

impl Handler<RunStep> for ExecutorActor {
    type Result = Result<StepOutput, ExecError>;

    fn handle(&mut self, RunStep(plan): RunStep, ctx: &mut Context<Self>) -> Self::Result {
        // The executor may be left with half-written KV and scratch; both are rewritten before they are read again,
        // because the lane recomputes every sequence of a failed step.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.executor.step(&plan))).unwrap_or_else(|panic| {
            let text = panic_text(&*panic);
            tracing::error!(step = plan.step, rows = plan.rows.len(), panic = text, "a step panicked");
            Err(ExecError::Failed(format!("panic: {text}")))
        });
        if let Err(ExecError::Lost(why)) = &outcome {
            tracing::error!(step = plan.step, why, "the device is lost: its lane runs no more steps");
            ctx.stop();
        }
        outcome
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
