//! Server-sent events (WHATWG HTML, "Server-sent events"): numbered, with heartbeats, never buffered by a proxy.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_ENCODING, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, Responder};
use actix_web_lab::sse;
use futures_util::Stream;
use tokio::time::{Instant, Sleep, sleep};

use super::edge::RequestId;
use super::wire::error::ErrorBody;
use crate::actors::messages::{Item, Usage};
use crate::actors::outlet::OutletReader;
use crate::base::error::Error;
use crate::base::faults;
use crate::base::metrics::metrics;

/// Ends every stream, good or bad.
const DONE: &str = "[DONE]";
/// nginx forwards events as they come.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How one API tells the items of a stream: each call adds JSON texts, one an event.
pub trait Shape {
    fn open(&mut self, events: &mut Vec<String>);
    fn item(&mut self, item: Item, events: &mut Vec<String>);
    fn end(&mut self, usage: Usage, events: &mut Vec<String>);
}

/// Wire types serialise without fail: their maps have text keys and their numbers are finite.
pub fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The events of one stream.
struct Events<T> {
    shape: T,
    request_id: RequestId,
    reader: OutletReader,
    ready: VecDeque<String>,
    scratch: Vec<String>,
    next_id: u64,
    over: bool,
    heartbeat: Duration,
    last_event: Instant,
    timer: Pin<Box<Sleep>>,
}

pub fn respond<T: Shape + Unpin + 'static>(
    request: &HttpRequest,
    reader: OutletReader,
    mut shape: T,
    request_id: RequestId,
    heartbeat: Duration,
) -> HttpResponse {
    let mut scratch = Vec::new();
    shape.open(&mut scratch);
    let ready = scratch.drain(..).collect();
    let (last_event, timer) = (Instant::now(), Box::pin(sleep(heartbeat)));
    let events =
        Events { shape, request_id, reader, ready, scratch, next_id: 0, over: false, heartbeat, last_event, timer };
    let mut response = sse::Sse::from_stream(events).respond_to(request).map_into_boxed_body();
    let headers = response.headers_mut();
    headers.remove(CONTENT_ENCODING);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

impl<T: Shape> Events<T> {
    /// A comment once the stream has been silent for a heartbeat. (actix-web-lab's own keep-alive speaks at once and
    /// whether or not there is silence.)
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Poll<sse::Event> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.last_event + self.heartbeat;
            let silent = due <= Instant::now();
            if silent {
                self.last_event = Instant::now();
            }
            self.timer.as_mut().reset(self.last_event + self.heartbeat);
            if silent {
                return Poll::Ready(sse::Event::Comment("ping".into()));
            }
        }
        Poll::Pending
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::End(usage) => {
                self.shape.end(usage, &mut self.scratch);
                self.scratch.push(DONE.into());
                self.over = true;
            }
            Item::Error(error) => {
                metrics().error(error.code.as_str());
                self.scratch.push(json(&ErrorBody::new(&error, &self.request_id.0)));
                self.scratch.push(DONE.into());
                self.over = true;
            }
            item => {
                faults::hit("http.body");
                self.shape.item(item, &mut self.scratch);
            }
        }
        self.ready.extend(self.scratch.drain(..));
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<sse::Event>> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                let id = self.next_id;
                self.next_id += 1;
                self.last_event = Instant::now();
                return Poll::Ready(Some(sse::Data::new(data).id(id.to_string()).into()));
            }
            if self.over {
                return Poll::Ready(None);
            }
            match self.reader.poll_next(cx) {
                Poll::Ready(Some(item)) => self.take(item),
                // The stream actor always ends with End or Error; it can only be missing if the actor died.
                Poll::Ready(None) => self.take(Item::Error(Error::internal("the stream ended without a last word"))),
                Poll::Pending => return self.poll_heartbeat(cx).map(Some),
            }
        }
    }

    /// A panic may have left events half made: they are dropped, and the stream ends in the typed way. Without this
    /// the connection would just break off.
    fn fail(&mut self) {
        self.ready.clear();
        self.scratch.clear();
        self.take(Item::Error(Error::internal("a panic while an event was made")));
    }
}

impl<T: Shape + Unpin> Stream for Events<T> {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let events = self.get_mut();
        let polled = catch_unwind(AssertUnwindSafe(|| events.poll_event(cx)));
        let event = polled.unwrap_or_else(|_| {
            events.fail();
            events.poll_event(cx)
        });
        event.map(|event| event.map(Ok))
    }
}
