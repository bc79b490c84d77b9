//! The stream actor: tokens of one request in, text of its choices out.
//!
//! Owns detokenisers, stop-string matchers and the outlet to the response. Never knows JSON, SSE or money.
//!
//! Invariant: it lives until every choice has finished in its lane, also when the client is long gone, because the
//! permit that bounds the lanes' queues is returned only after it; and until the reader is gone, also when the lanes are
//! long done, because somebody must cut a reader that stalls before the end of a finished answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::fut::ActorFutureExt;
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::oneshot;

use super::choice::Choice;
use super::ended::{Ended, Times};
use super::events::EventQueue;
use super::lanes::Lanes;
use super::messages::{EventsReady, FinishReason, Item, Outcome, PromptsStarted, Shutdown, StreamEnded, Texts, Usage};
use super::outlet::OutletWriter;
use super::request::RequestActor;
use super::services::OpenStream;
use crate::base::error::Error;
use crate::base::metrics::metrics;
use crate::base::{clock, faults};
use crate::sched::job::{CancelFlag, Event, Finish, RequestId};

/// A stream that brings more than one token in this time hands them over together: each is an event of its own, but
/// they share a wake-up and a write. No answer that people or programs wait for is slower by as much as they can tell.
const MIN_BATCH_GAP_US: u64 = 1000;

/// What a slow reader may cost.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    pub stall_timeout: Duration,
    pub max_buffer_bytes: usize,
}

pub struct StreamActor {
    pub(super) queue: Arc<EventQueue>,
    pub(super) outlet: OutletWriter,
    pub(super) owner: Addr<RequestActor>,
    pub(super) lanes: Arc<Lanes>,
    /// One for each prompt.
    pub(super) cancels: Arc<[CancelFlag]>,
    pub(super) limits: StreamLimits,
    /// Prompt `i` runs as request `first_request + i`.
    pub(super) first_request: RequestId,
    pub(super) num_choices: u32,
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Usage,
    pub(super) times: Times,
    pub(super) tally: Tally,
    /// Not handed over yet; empty between batches.
    pub(super) texts: Texts,
    pub(super) state: State,
    /// Bytes of a backlog beyond the bound, until it is looked at again.
    pub(super) overflow: Option<usize>,
    /// When the last batch was taken.
    pub(super) last_batch_us: u64,
    /// Its buffer, empty.
    pub(super) spare: Vec<(RequestId, Event)>,
    pub(super) _open: OpenStream,
    /// Its owner sees it drop, however the stream ends.
    pub(super) _alive: oneshot::Sender<()>,
}

/// Tokens that the metrics have not been told of: one addition a batch, not one a token.
#[derive(Debug, Default)]
pub(super) struct Tally {
    generated: u64,
    streamed: u64,
    /// Those that came together with the one before.
    together: u64,
    has_length: bool,
}

/// Where the stream is with its client.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    Open,
    /// Nobody reads any more; the lanes are letting go.
    Left,
    /// This error ends the stream once the lanes have let go.
    Failing(Error),
    /// The reader has been told that the server goes down; the lanes are letting go.
    Failed,
    /// The owner is being told of the end.
    Ending,
    /// The owner was told and the last item was put; the reader may not have taken it yet.
    Ended,
}

/// How long a backlog beyond the bound may take to shrink: much longer than a reader that reads waits for its turn on the
/// HTTP worker.
const OVERFLOW_GRACE: Duration = Duration::from_millis(250);

impl StreamActor {
    fn unfinished(&self) -> bool {
        self.choices.iter().any(|c| !c.released)
    }

    /// Stops the work behind the stream; the actor itself stays until the lanes confirm.
    fn abandon(&mut self, state: State) {
        self.hand_over();
        if self.state == State::Open {
            self.state = state;
            self.cancels.iter().for_each(CancelFlag::set);
            self.lanes.wake_all();
        }
    }

    fn on_event(&mut self, request: RequestId, event: Event, next: Option<&Event>, now: u64) {
        let prompt = (request.0 - self.first_request.0) as usize;
        match event {
            Event::Started { queued_us, cached_tokens } => {
                metrics().queue_wait_s.record(queued_us as f64 / 1e6);
                self.times.started(queued_us);
                self.usage.cached_tokens += u64::from(cached_tokens);
            }
            Event::Prompt(logprobs) => self.put(Item::Prompt { prompt, logprobs }),
            Event::Token { choice, sampled } => {
                let ends = matches!(next, Some(Event::Finished { choice: c, finish: Finish::Stop }) if *c == choice);
                let index = prompt as u32 * self.num_choices + choice;
                faults::hit("Stream.detokenise");
                let entry = &mut self.choices[index as usize];
                if entry.is_done() {
                    // Whether the lane computed one more before it heard of the stop string is chance: it counts nowhere.
                    return;
                }
                self.usage.completion_tokens += 1;
                self.tally.together += u64::from(!entry.clock_token(now, self.times.began_us));
                self.times.token(now);
                self.tally.generated += 1;
                self.tally.streamed += u64::from(self.state == State::Open);
                if self.texts.index != index || self.texts.num_texts() >= Texts::MAX {
                    self.hand_over();
                    self.texts.index = index;
                }
                let entry = &mut self.choices[index as usize];
                if let Some(delta) = entry.push(index, sampled, ends, &mut self.texts) {
                    if delta.finish.is_some() {
                        // A stop string: the lane drops the choice without a word, before its next step.
                        entry.released = true;
                        self.cancels[prompt].finish_choice(choice);
                    }
                    self.put(Item::Delta(delta));
                }
            }
            Event::Finished { choice, finish } => self.on_finished(prompt as u32 * self.num_choices + choice, finish),
        }
    }

    fn on_finished(&mut self, index: u32, finish: Finish) {
        let choice = &mut self.choices[index as usize];
        choice.released = true;
        let reason = match finish {
            Finish::Stop => FinishReason::Stop,
            Finish::Length => {
                // A stop string before it, in the same step's tokens, was the end.
                self.tally.has_length |= !choice.is_done();
                FinishReason::Length
            }
            // The text side is ending the request; or, if it knows nothing of an end, the owner died and set the flags.
            Finish::Cancelled => return self.abandon(State::Failing(Error::internal("the request's actor died"))),
            Finish::DeadlineExceeded => {
                let error = Error::deadline_exceeded("the request's deadline passed before it was finished");
                return self.abandon(State::Failing(error));
            }
            Finish::Failed(reason) => return self.abandon(State::Failing(Error::internal(reason))),
        };
        if let Some(delta) = choice.finish(index, reason) {
            self.put(Item::Delta(delta));
        }
    }

    fn put(&mut self, item: Item) {
        self.hand_over();
        self.put_next(item);
    }

    /// The texts that have gathered.
    fn hand_over(&mut self) {
        if !self.texts.is_empty() {
            let texts = std::mem::take(&mut self.texts);
            self.texts.index = texts.index;
            self.put_next(Item::Texts(texts));
        }
    }

    fn put_next(&mut self, item: Item) {
        if self.state != State::Open {
            return;
        }
        if !self.outlet.put(item) {
            self.abandon(State::Left);
        }
    }

    /// A backlog beyond the bound that does not shrink is a reader's fault; one that does came in one piece (the
    /// log-probabilities of a long prompt) or stood before a reader that had no turn yet. Before the first item is
    /// taken the response has not begun.
    fn bound_backlog(&mut self, ctx: &mut Context<Self>) {
        let (bytes, taken) = self.outlet.backlog();
        if bytes <= self.limits.max_buffer_bytes || taken == 0 || self.overflow.is_some() {
            return;
        }
        self.overflow = Some(bytes);
        ctx.run_later(OVERFLOW_GRACE, |stream, ctx| {
            let before = stream.overflow.take();
            if before.is_some_and(|before| stream.outlet.backlog().0 >= before) {
                return stream.cut("the buffer is full", ctx);
            }
            stream.bound_backlog(ctx);
        });
    }

    /// A fast lane sends the next batch before this one is handled, and a mailbox is drained without a pause: the reader
    /// on the same thread would have no turn, and be cut for it. So it gets one before the buffer is full.
    fn let_read(&self, ctx: &mut Context<Self>) {
        if self.state == State::Open && self.outlet.backlog().0 > self.limits.max_buffer_bytes / 4 {
            ctx.wait(tokio::task::yield_now().into_actor(self));
        }
    }

    /// Before a token of theirs is told: whoever has read it may count on the place that its prompt has left. One
    /// message for all prompts of a batch: one for each could fill the owner's mailbox.
    fn tell_started(&mut self, events: &[(RequestId, Event)], ctx: &mut Context<Self>) {
        let started = events.iter().filter(|(_, event)| matches!(event, Event::Started { .. }));
        let prompts: Vec<_> = started.map(|(request, _)| (request.0 - self.first_request.0) as usize).collect();
        if !prompts.is_empty() {
            ctx.spawn(self.owner.send(PromptsStarted { prompts }).into_actor(self).map(|_, _, _| ()));
        }
    }

    /// Gives up on a reader that does not read.
    fn cut(&mut self, why: &'static str, ctx: &mut Context<Self>) {
        tracing::info!(request = self.first_request.0, why, "cut a stalled reader");
        metrics().stream_stalls.increment(1);
        self.outlet.cut();
        self.abandon(State::Left);
        if self.state == State::Ended {
            ctx.stop();
        }
    }

    /// A reader that had something to take and took nothing from one look to the next is cut. After the last item there
    /// is always something to take: the end. A look that comes late finds out nothing: the process itself stood still,
    /// and the response has not had its turn yet.
    fn watch_reader(&self, taken_before: Option<u64>, ctx: &mut Context<Self>) {
        let interval = self.limits.stall_timeout;
        let due = Instant::now() + interval;
        ctx.run_later(interval, move |stream, ctx| {
            let (bytes, taken) = stream.outlet.backlog();
            let is_ended = matches!(stream.state, State::Ending | State::Ended);
            let has_more = bytes > 0 || is_ended;
            let is_late = Instant::now() > due + interval / 2;
            if has_more && !is_late && taken_before == Some(taken) {
                stream.cut("nothing was read for server.stall_timeout_s", ctx);
            }
            stream.watch_reader(has_more.then_some(taken), ctx);
        });
    }

    /// Tells the metrics what the batch brought.
    fn report_tokens(&mut self) {
        let Tally { generated, streamed, together, .. } = self.tally;
        if generated > 0 {
            metrics().generated_tokens.increment(generated);
            metrics().hops.stream.increment(streamed);
            metrics().itl_s.record_many(0.0, together);
            self.tally = Tally { has_length: self.tally.has_length, ..Tally::default() };
        }
    }

    fn ended(&self, outcome: Outcome) -> Ended {
        Ended {
            usage: self.usage,
            outcome,
            is_cut_by_length: self.tally.has_length,
            num_choices: self.choices.len() as u64,
            longest_choice: self.choices.iter().map(Choice::num_tokens).max().unwrap_or(0),
            times: self.times,
        }
    }

    fn end(&mut self, ctx: &mut Context<Self>) {
        let (last, outcome) = match std::mem::replace(&mut self.state, State::Ending) {
            state @ (State::Ending | State::Ended) => return self.state = state,
            State::Failed => (None, Outcome::Failed),
            State::Open => (Some(Item::End(self.usage)), Outcome::Done),
            State::Left => (None, Outcome::Cancelled),
            State::Failing(error) => {
                if let Some(internal) = &error.internal {
                    tracing::error!(request = self.first_request.0, internal, "the request failed");
                }
                (Some(Item::Error(error)), Outcome::Failed)
            }
        };
        // The last item waits until the owner has returned permit and lease: whoever has read it may ask again at once.
        // Until then this actor must not stop: actix skips a message whose sender does not wait for the answer.
        let told = self.owner.send(StreamEnded(self.ended(outcome))).into_actor(self);
        ctx.spawn(told.map(|_, stream, ctx| {
            stream.state = State::Ended;
            if let Some(item) = last {
                stream.outlet.put(item);
            }
            if stream.outlet.is_reader_gone() {
                ctx.stop();
            }
        }));
    }
}

impl Actor for StreamActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let gone = self.outlet.reader_gone();
        ctx.spawn(gone.into_actor(self).map(|(), stream, ctx| match stream.state {
            State::Ended => ctx.stop(),
            State::Ending => {}
            _ => stream.abandon(State::Left),
        }));
        self.watch_reader(None, ctx);
        self.queue.attach(ctx.address().recipient());
    }
}

impl Handler<EventsReady> for StreamActor {
    type Result = ();

    fn handle(&mut self, _: EventsReady, ctx: &mut Self::Context) {
        faults::hit("Stream.EventsReady");
        let now = clock::now_us();
        let due = self.last_batch_us + MIN_BATCH_GAP_US;
        if now < due {
            // Until this is delivered the queue asks for no other.
            ctx.notify_later(EventsReady, Duration::from_micros(due - now));
            return;
        }
        self.last_batch_us = now;
        let mut batch = self.queue.take(std::mem::take(&mut self.spare));
        self.tell_started(&batch.events, ctx);
        let mut events = batch.events.drain(..);
        while let Some((request, event)) = events.next() {
            let next = events.as_slice().first().filter(|(r, _)| *r == request).map(|(_, e)| e);
            self.on_event(request, event, next, now);
        }
        drop(events);
        self.hand_over();
        self.spare = batch.events;
        self.report_tokens();
        self.bound_backlog(ctx);
        if batch.closed && self.unfinished() {
            self.abandon(State::Failing(Error::internal("the lane died with the request")));
            self.choices.iter_mut().for_each(|c| c.released = true);
        }
        if !self.unfinished() {
            self.end(ctx);
        } else {
            self.let_read(ctx);
        }
    }
}

impl Handler<Shutdown> for StreamActor {
    type Result = ();

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) {
        faults::hit("Stream.Shutdown");
        // Said at once: a lane may be in a long step, and the process will not wait for it.
        if self.state == State::Open {
            self.outlet.put(Item::Error(Error::draining(1)));
            self.abandon(State::Failed);
        }
    }
}
