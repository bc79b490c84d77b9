//! The road from a lane to a request: an [`EventQueue`] that never refuses and wakes its reader once per batch.
//!
//! A mailbox would be the wrong thing here: actix bounds it, so a busy HTTP worker would lose tokens, and one message
//! per token costs a wake-up each. The queue is bounded by what was admitted: `n × max_tokens` events a job.
//!
//! Invariant: every choice submitted ends in exactly one [`Event::Finished`], or, when a lane dies with it, in the
//! queue being [closed](Batch::closed): the last [`Sink`] has been dropped.

use std::sync::{Arc, Mutex, OnceLock};

use actix::Recipient;

use super::messages::EventsReady;
use crate::sched::job::{Event, RequestId};

/// Events of one HTTP request (one or more jobs), in order.
#[derive(Default)]
pub struct EventQueue {
    state: Mutex<State>,
    reader: OnceLock<Recipient<EventsReady>>,
}

#[derive(Default)]
struct State {
    events: Vec<(RequestId, Event)>,
    closed: bool,
    /// A wake-up is on its way; more would only fill the mailbox.
    woken: bool,
    /// Reads in place of a reader that died.
    heir: Option<Recipient<EventsReady>>,
}

/// What [`EventQueue::take`] hands over.
#[derive(Default)]
pub struct Batch {
    pub events: Vec<(RequestId, Event)>,
    /// No sink is left: nothing will follow.
    pub closed: bool,
}

impl EventQueue {
    /// Names the actor to wake. Events pushed before this wake it now.
    pub fn attach(&self, reader: Recipient<EventsReady>) {
        let _ = self.reader.set(reader);
        self.wake(self.lock());
    }

    /// The reader died, maybe with a wake-up in its mailbox: from now on `heir` is woken.
    pub fn bequeath(&self, heir: Recipient<EventsReady>) {
        let mut state = self.lock();
        state.heir = Some(heir);
        state.woken = false;
        self.wake(state);
    }

    /// Everything pushed since the last call. `spare` is an empty buffer, taken in exchange.
    pub fn take(&self, spare: Vec<(RequestId, Event)>) -> Batch {
        let mut state = self.lock();
        state.woken = false;
        Batch { events: std::mem::replace(&mut state.events, spare), closed: state.closed }
    }

    fn push(&self, request: RequestId, events: impl IntoIterator<Item = Event>) {
        let mut state = self.lock();
        state.events.extend(events.into_iter().map(|e| (request, e)));
        self.wake(state);
    }

    fn wake(&self, mut state: std::sync::MutexGuard<'_, State>) {
        let Some(reader) = self.reader.get() else { return };
        if state.woken || (state.events.is_empty() && !state.closed) {
            return;
        }
        state.woken = true;
        let heir = state.heir.clone();
        drop(state);
        // At most one is under way, so the mailbox has room; a stopped reader needs none.
        let _ = heir.as_ref().unwrap_or(reader).try_send(EventsReady);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while the lock is held can only come from the allocator; the state is still whole.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The lane's end. Clones travel with jobs and sequences; the queue closes when the last one is dropped.
#[derive(Clone)]
pub struct Sink(Arc<SinkInner>);

struct SinkInner(Arc<EventQueue>);

impl Sink {
    pub fn new(queue: Arc<EventQueue>) -> Self {
        Self(Arc::new(SinkInner(queue)))
    }

    pub fn push(&self, request: RequestId, events: impl IntoIterator<Item = Event>) {
        self.0.0.push(request, events);
    }
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl Drop for SinkInner {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        self.0.wake(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::job::Finish;

    #[test]
    fn events_arrive_in_order_and_the_last_sink_closes() {
        let queue = Arc::new(EventQueue::default());
        let sink = Sink::new(queue.clone());
        let other = sink.clone();
        sink.push(RequestId(1), vec![Event::Started { queued_us: 3, cached_tokens: 0 }]);
        other.push(RequestId(1), vec![Event::Finished { choice: 0, finish: Finish::Length }]);
        drop(sink);
        let batch = queue.take(Vec::new());
        assert_eq!(batch.events.len(), 2);
        assert!(matches!(batch.events[1].1, Event::Finished { .. }));
        assert!(!batch.closed);
        drop(other);
        assert!(queue.take(Vec::new()).closed);
    }
}
