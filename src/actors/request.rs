//! The request actor: one for each HTTP request, from admission to the last word.
//!
//! Owns the permit, the quota lease and the cancel flag, so that all of them are returned with it, whatever happens.
//! Never looks at tokens or text.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::fut::ActorFutureExt;
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, ResponseActFuture, WrapFuture};
use tracing::Instrument;

use super::choice::Choice;
use super::events::{EventQueue, Sink};
use super::messages::{Accepted, Begin, Generation, Prepare, PromptsStarted, Shutdown, StreamEnded, Submit, Usage};
use super::outlet::OutletWriter;
use super::quota::{Lease, Reserve};
use super::services::{LiveId, Services};
use super::stream::{State, StreamActor};
use crate::base::clock;
use crate::base::error::Error;
use crate::base::metrics::metrics;
use crate::gate::admission::Permit;
use crate::gate::auth::Principal;
use crate::gate::quota::tokens_to_reserve;
use crate::model::text::{Detokenizer, StopMatcher};
use crate::sched::job::{CancelFlag, Job, Progress, RequestId, StopRules};
use crate::sched::plan::Tokens;

/// Texts up to this size are prepared on the HTTP worker: about the time that a hop to the pool and back takes.
const PREPARE_INLINE_BYTES: usize = 512;

pub struct RequestActor {
    id: LiveId,
    services: Arc<Services>,
    principal: Arc<Principal>,
    span: tracing::Span,
    /// One for each prompt, once there are any.
    cancels: Arc<[CancelFlag]>,
    began_us: u64,
    /// Until the stream takes it.
    outlet: Option<OutletWriter>,
    permit: Option<Permit>,
    lease: Option<Lease>,
    prompts: Vec<Tokens>,
    stream: Option<Addr<StreamActor>>,
    /// From submission to the first sight of a device, and from there to the end: for traces only.
    queue_span: Option<tracing::Span>,
    generate_span: Option<tracing::Span>,
    /// actix drops a message whose sender has stopped waiting: a client that leaves at once may never have asked.
    is_asked: bool,
    /// A short answer may end before the lane's word on its last job is read: the actor stops after both.
    is_begun: bool,
    is_ended: bool,
}

impl RequestActor {
    pub fn new(services: Arc<Services>, principal: Arc<Principal>, outlet: OutletWriter, span: tracing::Span) -> Self {
        Self {
            id: services.live.next_id(),
            services,
            principal,
            span,
            cancels: Arc::from([]),
            began_us: clock::now_us(),
            outlet: Some(outlet),
            permit: None,
            lease: None,
            prompts: Vec::new(),
            stream: None,
            queue_span: None,
            generate_span: None,
            is_asked: false,
            is_begun: false,
            is_ended: false,
        }
    }

    /// Everything is reserved: build the jobs and the stream that will hear from them.
    fn launch(&mut self, admitted: Admitted, ctx: &mut Context<Self>) -> Launch {
        let Admitted { generation, permit, lease, deadline_us } = admitted;
        let queue = Arc::new(EventQueue::default());
        let sink = Sink::new(queue.clone());
        let first = RequestId(NEXT_REQUEST.fetch_add(generation.prompts.len() as u64, Ordering::Relaxed));
        self.cancels = generation.prompts.iter().map(|_| CancelFlag::default()).collect();
        let jobs = (0..generation.prompts.len())
            .map(|i| self.job(RequestId(first.0 + i as u64), i, &generation, deadline_us, sink.clone()))
            .collect();
        let choices = generation.prompts.iter().flat_map(|prompt| self.choices(prompt, &generation)).collect();
        let prompt_tokens = generation.prompts.iter().map(|p| p.len() as u64).sum();
        metrics().prompt_tokens.increment(prompt_tokens);
        let stream = StreamActor {
            queue,
            outlet: self.outlet.take().expect("a request begins once"),
            owner: ctx.address(),
            lanes: self.services.lanes.clone(),
            cancels: self.cancels.clone(),
            limits: self.services.stream_limits,
            first_request: first,
            num_choices: generation.num_choices,
            choices,
            usage: Usage { prompt_tokens, ..Usage::default() },
            started: Vec::new(),
            began_us: self.began_us,
            state: State::Open,
        };
        self.stream = Some(stream.start());
        self.queue_span = Some(self.span.in_scope(|| tracing::info_span!("queue", request = first.0)));
        (self.permit, self.lease) = (Some(permit), Some(lease));
        self.prompts = generation.prompts;
        Launch { jobs }
    }

    fn choices(&self, prompt: &Tokens, generation: &Generation) -> Vec<Choice> {
        let choice = |_| {
            let stops = StopMatcher::new(&generation.stop_strings, generation.include_stop);
            Choice::new(Detokenizer::after(&self.services.model.tokenizer, prompt, true), stops)
        };
        (0..generation.num_choices).map(choice).collect()
    }

    fn job(&self, id: RequestId, index: usize, g: &Generation, deadline: Option<u64>, sink: Sink) -> Job<Sink> {
        let prompt = &g.prompts[index];
        let room = self.services.model.max_new_tokens(prompt.len());
        Job {
            request: id,
            sink,
            prompt: prompt.clone(),
            params: g.params.clone(),
            stop: StopRules {
                stop_tokens: g.stop_tokens.clone(),
                min_tokens: g.min_tokens,
                max_tokens: g.max_tokens.unwrap_or(room).min(room),
            },
            prompt_logprobs: g.prompt_logprobs,
            salt: self.principal.salt,
            arrived_at: clock::now_us(),
            deadline,
            cancel: self.cancels[index].clone(),
            branches: Job::<Sink>::new_branches(g.num_choices),
            progress: Progress::default(),
        }
    }
}

/// Numbers are process-wide and never reused, so a late message cannot reach another request.
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1);

struct Admitted {
    generation: Generation,
    permit: Permit,
    lease: Lease,
    deadline_us: Option<u64>,
}

struct Launch {
    jobs: Vec<Job<Sink>>,
}

/// The way in: permit, preparation, checks against the model, quota. Holds what it has; an early return gives it back.
async fn admit(services: Arc<Services>, principal: Arc<Principal>, begin: Begin) -> Result<Admitted, Error> {
    let deadline_us = begin.timeout.map(|t| clock::now_us() + t.as_micros() as u64);
    let mut permit = services.admission.try_admit()?;
    let generation = prepare(&services, begin.prepare, begin.input_bytes)
        .instrument(tracing::info_span!("prepare", bytes = begin.input_bytes))
        .await?;
    check(&services, &generation)?;
    let prompt_tokens: usize = generation.prompts.iter().map(|p| p.len()).sum();
    let tokens = reservation(&services, &principal, &generation);
    let lease = services
        .quota
        .send(Reserve { principal, tokens })
        .instrument(tracing::info_span!("reserve", tokens))
        .await
        .map_err(Error::internal)??;
    permit.queue_tokens(prompt_tokens)?;
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
    let one = |prompt: &Tokens| {
        let (len, max) = (prompt.len() as u64, generation.max_tokens.map(u64::from));
        let room = u64::from(services.model.max_new_tokens(prompt.len()));
        tokens_to_reserve(len, u64::from(generation.num_choices), max, room, &principal.limits)
    };
    generation.prompts.iter().map(one).sum()
}

async fn prepare(services: &Services, prepare: Prepare, input_bytes: usize) -> Result<Generation, Error> {
    if input_bytes <= PREPARE_INLINE_BYTES {
        return prepare();
    }
    let _turn = services.prepare_turns.acquire().await.map_err(Error::internal)?;
    actix_web::rt::task::spawn_blocking(prepare).await.map_err(Error::internal)?
}

async fn submit(services: Arc<Services>, jobs: Vec<Job<Sink>>) -> Result<(), Error> {
    for job in jobs {
        let placed = services.lanes.place(&job);
        let (lane, address) = placed.ok_or_else(|| Error::unavailable("no lane is running", 1))?;
        let span = tracing::info_span!("submit", lane, request = job.request.0);
        address.send(Submit(job)).instrument(span).await.map_err(Error::internal)?;
    }
    Ok(())
}

impl Actor for RequestActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.services.live.enter(self.id, ctx.address());
        // Runs once the mailbox was read, and `Begin` was sent before this actor first ran: without it nobody else would
        // ever end the actor, and a drain would wait for it.
        ctx.spawn(ready(()).into_actor(self).map(|(), request, ctx| {
            if !request.is_asked {
                ctx.stop();
            }
        }));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.cancels.iter().for_each(CancelFlag::set);
        self.services.live.leave(self.id);
    }
}

impl Handler<Begin> for RequestActor {
    type Result = ResponseActFuture<Self, Result<Accepted, Error>>;

    fn handle(&mut self, begin: Begin, _: &mut Self::Context) -> Self::Result {
        self.is_asked = true;
        let admit = admit(self.services.clone(), self.principal.clone(), begin).instrument(self.span.clone());
        let launched = admit.into_actor(self).map(|admitted, request, ctx| {
            if request.outlet.as_ref().is_none_or(OutletWriter::is_reader_gone) {
                return Err(Error::cancelled());
            }
            Ok(request.launch(admitted?, ctx))
        });
        Box::pin(launched.then(|launched, request, _| {
            let services = request.services.clone();
            let span = request.span.clone();
            async move { submit(services, launched?.jobs).await }.instrument(span).into_actor(request).map(
                |result, request, ctx| {
                    request.is_begun = true;
                    if request.is_ended || request.stream.is_none() {
                        ctx.stop();
                    }
                    // Jobs that did get in are cancelled by flag; the stream, if there is one, ends by itself.
                    result.inspect_err(|_| request.cancels.iter().for_each(CancelFlag::set))?;
                    Ok(Accepted { prompts: request.prompts.clone() })
                },
            )
        }))
    }
}

impl Handler<PromptsStarted> for RequestActor {
    type Result = ();

    fn handle(&mut self, started: PromptsStarted, _: &mut Self::Context) {
        self.queue_span = None;
        self.generate_span.get_or_insert_with(|| self.span.in_scope(|| tracing::info_span!("generate")));
        if let (Some(permit), Some(lease)) = (&mut self.permit, &self.lease) {
            for prompt in started.prompts.iter().filter_map(|&index| self.prompts.get(index)) {
                permit.dequeue_tokens(prompt.len());
                lease.use_tokens(prompt.len() as u64);
            }
        }
    }
}

impl Handler<StreamEnded> for RequestActor {
    type Result = ();

    fn handle(&mut self, ended: StreamEnded, ctx: &mut Self::Context) {
        self.generate_span = None;
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = ended.usage;
        if let Some(lease) = &self.lease {
            lease.use_tokens(completion_tokens);
        }
        metrics().generated_tokens.increment(completion_tokens);
        metrics().cached_prompt_tokens.increment(cached_tokens);
        metrics().finished(ended.outcome.as_str());
        let elapsed = Duration::from_micros(clock::now_us() - self.began_us);
        self.span.in_scope(|| {
            tracing::info!(
                tenant = &*self.principal.tenant,
                outcome = ended.outcome.as_str(),
                prompt_tokens,
                cached_tokens,
                completion_tokens,
                elapsed_ms = elapsed.as_millis() as u64,
                "request ended"
            );
        });
        (self.permit, self.lease) = (None, None);
        self.is_ended = true;
        if self.is_begun {
            ctx.stop();
        }
    }
}

impl Handler<Shutdown> for RequestActor {
    type Result = ();

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) {
        if let Some(stream) = &self.stream {
            let _ = stream.try_send(Shutdown);
        }
    }
}
