//! What a request needs from the rest of the process, in one place: made by `app`, shared by every HTTP worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use actix::Addr;
use dashmap::DashMap;
use tokio::sync::Semaphore;

use super::auth::AuthActor;
use super::lanes::Lanes;
use super::messages::Shutdown;
use super::quota::QuotaActor;
use super::request::RequestActor;
use super::seat::Seat;
use super::stream::StreamLimits;
use super::supervisor::SupervisorActor;
use crate::base::metrics::metrics;
use crate::gate::admission::Admission;
use crate::route::ServedModel;

pub struct Services {
    pub model: Arc<ServedModel>,
    pub lanes: Arc<Lanes>,
    pub admission: Arc<Admission>,
    pub auth: Arc<Seat<AuthActor>>,
    pub quota: Arc<Seat<QuotaActor>>,
    pub supervisor: Arc<Seat<SupervisorActor>>,
    /// As many preparations at once as there are tokenizer threads.
    pub prepare_turns: Arc<Semaphore>,
    pub stream_limits: StreamLimits,
    pub timeouts: Timeouts,
    pub live: LiveRequests,
}

#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    pub default_deadline: Option<Duration>,
    pub max_deadline: Duration,
    pub heartbeat: Duration,
    /// A step that takes longer makes the server not ready.
    pub max_step: Duration,
}

/// Names a live request within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LiveId(u64);

/// Every request actor alive and every answer being sent, so that a drain can wait for them and then end them.
#[derive(Default)]
pub struct LiveRequests {
    next: AtomicU64,
    requests: DashMap<LiveId, Addr<RequestActor>>,
    /// An answer that is finished may still be on its way to a slow reader.
    streams: Arc<AtomicUsize>,
    draining: AtomicBool,
    /// The drain's limit has passed.
    over: AtomicBool,
}

/// Counts an answer from its beginning until its reader has it, or is gone.
pub struct OpenStream(Arc<AtomicUsize>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        metrics().streams_open.decrement(1.0);
    }
}

impl LiveRequests {
    pub fn next_id(&self) -> LiveId {
        LiveId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub fn enter(&self, id: LiveId, address: Addr<RequestActor>) {
        self.requests.insert(id, address);
    }

    pub fn leave(&self, id: LiveId) {
        self.requests.remove(&id);
    }

    pub fn open_stream(&self) -> OpenStream {
        self.streams.fetch_add(1, Ordering::SeqCst);
        metrics().streams_open.increment(1.0);
        OpenStream(self.streams.clone())
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether every request has ended and every answer has been taken.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.streams.load(Ordering::SeqCst) == 0
    }

    /// From now on new requests are refused.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Whether what has not begun yet must not begin any more.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Ends every live request with an error event.
    pub fn shut_down(&self) {
        self.over.store(true, Ordering::SeqCst);
        for request in &self.requests {
            let _ = request.value().try_send(Shutdown);
        }
    }
}
