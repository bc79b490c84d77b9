//! The executor actor: one device, one step at a time, on its lane's thread.
//!
//! Never knows what a request is. A panic in a step is caught here and becomes an error of that step. The device itself
//! belongs to the actor's owner and outlives the actor. A device that is lost is the scheduler's to notice.

use std::sync::{Arc, Mutex, PoisonError};

use actix::{Actor, Context, Handler};

use super::messages::RunStep;
use crate::base::{faults, panics};
use crate::exec::{ExecError, Executor};
use crate::sched::plan::StepOutput;

/// A device with its weights and KV memory. Only one executor actor has it at a time: the lock is never waited for.
#[derive(Clone)]
pub struct Device(Arc<Mutex<Box<dyn Executor>>>);

impl Device {
    pub fn new(executor: Box<dyn Executor>) -> Self {
        Self(Arc::new(Mutex::new(executor)))
    }
}

pub struct ExecutorActor {
    device: Device,
}

impl ExecutorActor {
    pub fn new(device: Device) -> Self {
        Self { device }
    }
}

impl Actor for ExecutorActor {
    type Context = Context<Self>;
}

impl Handler<RunStep> for ExecutorActor {
    type Result = Result<StepOutput, ExecError>;

    fn handle(&mut self, RunStep(plan): RunStep, _: &mut Context<Self>) -> Self::Result {
        faults::hit("Executor.RunStep");
        // The executor may be left with half-written KV and scratch; both are rewritten before they are read again,
        // because the lane recomputes every sequence of a failed step. So a poisoned lock says nothing either.
        let mut executor = self.device.0.lock().unwrap_or_else(PoisonError::into_inner);
        panics::caught(|| executor.step(&plan)).unwrap_or_else(|panic| {
            tracing::error!(step = plan.step, rows = plan.rows.len(), "a step panicked");
            Err(ExecError::Failed(panic.to_string()))
        })
    }
}
