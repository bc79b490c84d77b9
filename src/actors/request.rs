//! The request actor: one for each HTTP request, from admission to the last word.
//!
//! Owns the permit, the quota lease and the cancel flag, so that all of them are returned with it, whatever happens.
//! Never looks at tokens or text.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::fut::ActorFutureExt;
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, ResponseActFuture, WrapFuture};
use tokio::sync::oneshot;
use tracing::Instrument;

use super::admit::{Admitted, admit, submit};
use super::choice::Choice;
use super::ended::{Ended, Times};
use super::events::{EventQueue, Sink};
use super::messages::{Accepted, Begin, EventsReady, Generation, PromptsStarted, Shutdown, StreamEnded, Texts, Usage};
use super::outlet::OutletWriter;
use super::quota::Lease;
use super::services::{LiveId, Services};
use super::stream::{State, StreamActor, Tally};
use crate::base::error::Error;
use crate::base::metrics::metrics;
use crate::base::{clock, faults};
use crate::gate::admission::Permit;
use crate::gate::auth::Principal;
use crate::model::text::{Detokenizer, StopMatcher};
use crate::sched::job::{CancelFlag, Job, Progress, RequestId, StopRules};
use crate::sched::plan::Tokens;

pub struct RequestActor {
    id: LiveId,
    services: Arc<Services>,
    principal: Arc<Principal>,
    span: tracing::Span,
    /// One for each prompt, once there are any.
    cancels: Arc<[CancelFlag]>,
    began_us: u64,
    submitted_us: u64,
    /// Bound on each choice's output.
    max_tokens: u32,
    /// Until the stream takes it.
    outlet: Option<OutletWriter>,
    permit: Option<Permit>,
    lease: Option<Lease>,
    prompts: Vec<Tokens>,
    stream: Option<Addr<StreamActor>>,
    /// What the lanes say; read here only when the stream has died.
    queue: Option<Arc<EventQueue>>,
    is_ended: bool,
}

impl RequestActor {
    /// Starts one; a drain knows of it from now on.
    pub fn begin(
        services: Arc<Services>,
        principal: Arc<Principal>,
        outlet: OutletWriter,
        span: tracing::Span,
    ) -> Addr<Self> {
        let (id, shared) = (services.live.next_id(), services.clone());
        let address = Self::new(id, services, principal, outlet, span).start();
        shared.live.enter(id, address.clone());
        address
    }

    fn new(
        id: LiveId,
        services: Arc<Services>,
        principal: Arc<Principal>,
        outlet: OutletWriter,
        span: tracing::Span,
    ) -> Self {
        Self {
            id,
            services,
            principal,
            span,
            cancels: Arc::from([]),
            began_us: clock::now_us(),
            submitted_us: 0,
            max_tokens: 0,
            outlet: Some(outlet),
            permit: None,
            lease: None,
            prompts: Vec::new(),
            stream: None,
            queue: None,
            is_ended: false,
        }
    }

    /// Everything is reserved: on to the lanes, unless nobody waits for the answer any more or everybody is to go.
    fn go(&mut self, admitted: Admitted, ctx: &mut Context<Self>) -> Result<(), Error> {
        if self.outlet.as_ref().is_none_or(OutletWriter::is_reader_gone) {
            return Err(Error::cancelled());
        }
        if self.services.live.is_over() {
            return Err(Error::draining(1));
        }
        let jobs = self.launch(admitted, ctx);
        self.span.in_scope(|| submit(&self.services, jobs))
    }

    /// Builds the jobs and the stream that will hear from them.
    fn launch(&mut self, admitted: Admitted, ctx: &mut Context<Self>) -> Vec<Job<Sink>> {
        let Admitted { generation, permit, lease, deadline_us } = admitted;
        let queue = Arc::new(EventQueue::default());
        let sink = Sink::new(queue.clone());
        let first = RequestId(NEXT_REQUEST.fetch_add(generation.prompts.len() as u64, Ordering::Relaxed));
        self.cancels = generation.prompts.iter().map(|_| CancelFlag::default()).collect();
        self.submitted_us = clock::now_us();
        let jobs: Vec<_> = (0..generation.prompts.len())
            .map(|i| self.job(RequestId(first.0 + i as u64), i, &generation, deadline_us, sink.clone()))
            .collect();
        let choices = generation.prompts.iter().flat_map(|prompt| self.choices(prompt, &generation)).collect();
        let prompt_tokens = generation.num_prompt_tokens();
        metrics().prompt_tokens.increment(prompt_tokens);
        let (alive, gone) = oneshot::channel::<()>();
        ctx.spawn(gone.into_actor(self).map(|_, request, ctx| request.inherit(ctx)));
        self.queue = Some(queue.clone());
        metrics().hops.queue.increment(prompt_tokens);
        metrics().tenant(&self.principal.tenant).requests.increment(1);
        self.max_tokens = jobs.iter().map(|job| job.stop.max_tokens).max().unwrap_or(0);
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
            times: Times::new(self.began_us, self.submitted_us),
            tally: Tally::default(),
            texts: Texts::default(),
            state: State::Open,
            overflow: None,
            _open: self.services.live.open_stream(),
            _alive: alive,
            last_batch_us: 0,
            spare: Vec::new(),
        };
        self.stream = Some(stream.start());
        (self.permit, self.lease) = (Some(permit), Some(lease));
        self.prompts = generation.prompts;
        jobs
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
            arrived_at: self.submitted_us,
            deadline,
            cancel: self.cancels[index].clone(),
            branches: Job::<Sink>::new_branches(g.num_choices),
            progress: Progress::default(),
        }
    }
}

impl RequestActor {
    /// The stream is gone. If it died, its lanes are told to stop, and heard until they have let go of everything: so
    /// long the permit is held.
    fn inherit(&mut self, ctx: &mut Context<Self>) {
        if self.is_ended {
            return;
        }
        self.span.in_scope(|| tracing::error!("the stream of the request died"));
        self.abandon();
        if let Some(queue) = &self.queue {
            queue.bequeath(ctx.address().recipient());
        }
    }

    fn abandon(&self) {
        self.cancels.iter().for_each(CancelFlag::set);
        self.services.lanes.wake_all();
    }

    /// The lanes have let go: whatever the request held is returned, and its end is told.
    fn end(&mut self, ended: Ended) {
        if let Some(lease) = &self.lease {
            lease.use_tokens(ended.usage.completion_tokens);
        }
        ended.record(&self.principal.tenant, self.max_tokens);
        ended.trace(&self.span, &self.principal.tenant);
        (self.permit, self.lease) = (None, None);
        self.is_ended = true;
    }

    /// The stream died and took with it what it knew.
    fn end_unheard(&mut self) {
        let times = Times::new(self.began_us, self.submitted_us);
        let num_prompt_tokens = self.prompts.iter().map(|prompt| prompt.len() as u64).sum();
        self.end(Ended::unheard(num_prompt_tokens, times));
    }
}

/// Runs also when a handler panicked, which [`Actor::stopped`] need not.
impl Drop for RequestActor {
    fn drop(&mut self) {
        self.services.live.leave(self.id);
        if self.stream.is_some() && !self.is_ended {
            self.abandon();
            self.end_unheard();
        }
    }
}

/// Numbers are process-wide and never reused, so a late message cannot reach another request.
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1);

impl Actor for RequestActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // A client that leaves before there is a stream takes everything with it, also when `Begin` was dropped unread.
        let Some(outlet) = &self.outlet else { return };
        ctx.spawn(outlet.reader_gone().into_actor(self).map(|(), request, ctx| {
            if request.stream.is_none() {
                ctx.stop();
            }
        }));
    }
}

impl Handler<Begin> for RequestActor {
    type Result = ResponseActFuture<Self, Result<Accepted, Error>>;

    fn handle(&mut self, begin: Begin, _: &mut Self::Context) -> Self::Result {
        faults::hit("Request.Begin");
        let admit = admit(self.services.clone(), self.principal.clone(), begin).instrument(self.span.clone());
        Box::pin(admit.into_actor(self).map(|admitted, request, ctx| {
            let result = admitted.and_then(|admitted| request.go(admitted, ctx));
            if request.stream.is_none() {
                ctx.stop();
            }
            // Jobs that did get in are cancelled by flag; the stream, if there is one, ends by itself.
            result.inspect_err(|_| request.cancels.iter().for_each(CancelFlag::set))?;
            Ok(Accepted { prompts: request.prompts.clone() })
        }))
    }
}

impl Handler<PromptsStarted> for RequestActor {
    type Result = ();

    fn handle(&mut self, started: PromptsStarted, _: &mut Self::Context) {
        faults::hit("Request.PromptsStarted");
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

    fn handle(&mut self, StreamEnded(ended): StreamEnded, ctx: &mut Self::Context) {
        faults::hit("Request.StreamEnded");
        self.end(ended);
        ctx.stop();
    }
}

/// Only after its stream has died: what the lanes say is dropped, until they say no more.
impl Handler<EventsReady> for RequestActor {
    type Result = ();

    fn handle(&mut self, _: EventsReady, ctx: &mut Self::Context) {
        faults::hit("Request.EventsReady");
        let is_over = self.queue.as_ref().is_none_or(|queue| queue.take(Vec::new()).closed);
        if is_over && !self.is_ended {
            self.end_unheard();
            ctx.stop();
        }
    }
}

impl Handler<Shutdown> for RequestActor {
    type Result = ();

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) {
        faults::hit("Request.Shutdown");
        if let Some(stream) = &self.stream {
            let _ = stream.try_send(Shutdown);
        }
    }
}
