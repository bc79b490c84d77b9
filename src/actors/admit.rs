//! The way in: permit, preparation, checks against the model, quota; and the way on to the lanes.
//!
//! Owns nothing: each step gives what it took to its caller, and an early return gives it back. Never sees tokens leave.

use std::sync::Arc;

use tracing::Instrument;
use tracing::field::Empty;

use super::events::Sink;
use super::messages::{Begin, Generation, Prepare};
use super::quota::{Lease, Reserve};
use super::services::Services;
use crate::base::error::Error;
use crate::base::metrics::metrics;
use crate::base::{clock, panics};
use crate::gate::admission::Permit;
use crate::gate::auth::Principal;
use crate::gate::quota::tokens_to_reserve;
use crate::sched::job::Job;
use crate::sched::plan::Tokens;

/// Texts up to this size are prepared on the HTTP worker: about the time that a hop to the pool and back takes.
const PREPARE_INLINE_BYTES: usize = 512;

/// What a request holds once it is inside.
pub struct Admitted {
    pub generation: Generation,
    pub permit: Permit,
    pub lease: Lease,
    pub deadline_us: Option<u64>,
}

/// The way in: permit, preparation, checks against the model, quota. Holds what it has; an early return gives it back.
pub async fn admit(services: Arc<Services>, principal: Arc<Principal>, begin: Begin) -> Result<Admitted, Error> {
    let deadline_us = begin.timeout.map(|t| clock::now_us() + t.as_micros() as u64);
    let mut permit = services.admission.try_admit()?;
    let generation = prepare(&services, begin.prepare, begin.input_bytes)
        .instrument(tracing::info_span!("prepare", bytes = begin.input_bytes as i64, prompt_tokens = Empty))
        .await?;
    check(&services, &generation)?;
    // Before the quota: a request that is refused for want of room is charged for nothing.
    permit.queue_tokens(generation.num_prompt_tokens() as usize)?;
    let tokens = reservation(&services, &principal, &generation);
    let reserve = services.quota.ask(Reserve { principal, tokens });
    let lease = reserve.instrument(tracing::info_span!("quota", tokens = tokens as i64)).await??;
    Ok(Admitted { generation, permit, lease, deadline_us })
}

/// Refuses what could never run, before it costs anything.
fn check(services: &Services, generation: &Generation) -> Result<(), Error> {
    generation
        .prompts
        .iter()
        .try_for_each(|prompt| services.model.fits(prompt.len(), generation.max_tokens, generation.num_choices))
}

fn reservation(services: &Services, principal: &Principal, generation: &Generation) -> u64 {
    let room = |prompt: &Tokens| u64::from(services.model.max_new_tokens(prompt.len()));
    let prompts = generation.prompts.iter().map(|prompt| (prompt.len() as u64, room(prompt)));
    let max_tokens = generation.max_tokens.map(u64::from);
    tokens_to_reserve(prompts, u64::from(generation.num_choices), max_tokens, &principal.limits)
}

async fn prepare(services: &Services, prepare: Prepare, input_bytes: usize) -> Result<Generation, Error> {
    let generation =
        if input_bytes <= PREPARE_INLINE_BYTES { caught(prepare)? } else { in_turn(services, prepare).await? };
    tracing::Span::current().record("prompt_tokens", generation.num_prompt_tokens() as i64);
    metrics().hops.prepare.increment(generation.num_prompt_tokens());
    Ok(generation)
}

fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    panics::caught(work).map_err(Error::internal).flatten()
}

/// Runs text work on the preparation pool, as much of it at once as there are tokenizer threads.
pub async fn in_turn<T: Send + 'static>(
    services: &Services,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let turn = services.prepare_turns.clone().acquire_owned().await.map_err(Error::internal)?;
    // The turn goes along: work that has begun is not stopped when its client leaves.
    let work = move || {
        let _turn = turn;
        caught(work)
    };
    actix_web::rt::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// Places each job and hands it over. A failure leaves those that are in to whoever holds their cancel flags.
pub fn submit(services: &Services, jobs: Vec<Job<Sink>>) -> Result<(), Error> {
    for job in jobs {
        let lane = services.lanes.place(&job).ok_or_else(|| Error::unavailable("no lane is running", 1))?;
        // Signed, here and in the other spans: the bridge to OpenTelemetry makes texts of unsigned numbers.
        let (request, prompt_tokens) = (job.request.0 as i64, job.prompt.len() as i64);
        let span = tracing::info_span!("submit", lane = lane as i64, request, prompt_tokens);
        span.in_scope(|| services.lanes.submit(lane, job));
    }
    Ok(())
}
