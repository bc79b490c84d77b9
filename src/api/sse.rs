//! Server-sent events (WHATWG HTML, "Server-sent events"): numbered, with heartbeats, never buffered by a proxy.
//!
//! One event a token; events that are ready together leave in one piece.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use actix_web::{HttpResponse, web::Bytes};
use bytes::{BufMut, BytesMut};
use tokio::time::{Instant, Sleep, sleep};

use super::edge::RequestId;
use super::wire::error::ErrorBody;
use crate::actors::messages::{Item, Texts, Usage};
use crate::actors::outlet::OutletReader;
use crate::base::error::Error;
use crate::base::faults;
use crate::base::metrics::metrics;

/// Ends every stream, good or bad.
const DONE: &[u8] = b"[DONE]";
/// nginx forwards events as they come.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A piece is not made larger than this (and what one item brings).
const MAX_PIECE_BYTES: usize = 16 << 10;

/// How one API tells the items of a stream.
pub trait Shape {
    fn open(&mut self, events: &mut EventWriter);
    fn item(&mut self, item: Item, events: &mut EventWriter);
    fn end(&mut self, usage: Usage, events: &mut EventWriter);
}

/// Events on their way to the socket. Their data is JSON, which has no line ends.
#[derive(Default)]
pub struct EventWriter {
    bytes: BytesMut,
    next_id: u64,
}

impl EventWriter {
    /// Wire types serialise without fail: their maps have text keys and their numbers are finite.
    pub fn json(&mut self, value: &impl serde::Serialize) {
        self.data(|bytes| {
            let _ = serde_json::to_writer(bytes.writer(), value);
        });
    }

    /// An event whose text alone is new.
    pub fn text(&mut self, template: &Template, text: &str) {
        self.data(|bytes| {
            bytes.extend_from_slice(&template.before);
            let _ = serde_json::to_writer((&mut *bytes).writer(), text);
            bytes.extend_from_slice(&template.after);
        });
    }

    /// As many events as there are texts.
    pub fn texts(&mut self, template: &Template, texts: &Texts) {
        texts.iter().for_each(|text| self.text(template, text));
    }

    fn data(&mut self, write: impl FnOnce(&mut BytesMut)) {
        self.bytes.extend_from_slice(b"id: ");
        put_decimal(self.next_id, &mut self.bytes);
        self.bytes.extend_from_slice(b"\ndata: ");
        write(&mut self.bytes);
        self.bytes.extend_from_slice(b"\n\n");
        self.next_id += 1;
    }
}

fn put_decimal(mut number: u64, bytes: &mut BytesMut) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    bytes.extend_from_slice(&digits[start..]);
}

/// The JSON of a chunk around its text: made once for each choice of a stream, used for every token.
pub struct Template {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Template {
    /// `chunk` has an empty text in `field`. (Inside of strings quotes are escaped, so the field is found and nothing
    /// else.)
    pub fn new(chunk: &impl serde::Serialize, field: &str) -> Self {
        let json = serde_json::to_string(chunk).unwrap_or_default();
        let key = format!("\"{field}\":");
        let (before, after) = json.split_once(&format!("{key}\"\"")).unwrap_or_default();
        Self { before: [before, &key].concat().into(), after: after.into() }
    }
}

/// The events of one stream, as a response's body.
struct Events<T> {
    shape: T,
    request_id: RequestId,
    reader: OutletReader,
    ready: EventWriter,
    over: bool,
    heartbeat: Duration,
    last_event: Instant,
    timer: Pin<Box<Sleep>>,
}

pub fn respond<T: Shape + Unpin + 'static>(
    reader: OutletReader,
    mut shape: T,
    request_id: RequestId,
    heartbeat: Duration,
) -> HttpResponse {
    let mut ready = EventWriter::default();
    shape.open(&mut ready);
    let (last_event, timer) = (Instant::now(), Box::pin(sleep(heartbeat)));
    let events = Events { shape, request_id, reader, ready, over: false, heartbeat, last_event, timer };
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .insert_header((ACCEL_BUFFERING, HeaderValue::from_static("no")))
        .body(events)
}

impl<T: Shape> Events<T> {
    /// A comment once the stream has been silent for a heartbeat.
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.last_event + self.heartbeat;
            let silent = due <= Instant::now();
            if silent {
                self.last_event = Instant::now();
            }
            self.timer.as_mut().reset(self.last_event + self.heartbeat);
            if silent {
                return Poll::Ready(Bytes::from_static(b": ping\n\n"));
            }
        }
        Poll::Pending
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::End(usage) => {
                self.shape.end(usage, &mut self.ready);
                self.close();
            }
            Item::Error(error) => {
                metrics().error(error.code.as_str());
                self.ready.json(&ErrorBody::new(&error, &self.request_id.0));
                self.close();
            }
            item => self.write(item),
        }
    }

    fn close(&mut self) {
        self.ready.data(|bytes| bytes.extend_from_slice(DONE));
        self.over = true;
    }

    /// A panic may leave an event half made: it is taken back, and the stream ends in the typed way. Without this the
    /// connection would just break off.
    fn write(&mut self, item: Item) {
        let (whole, next_id) = (self.ready.bytes.len(), self.ready.next_id);
        let written = catch_unwind(AssertUnwindSafe(|| {
            faults::hit("http.body");
            self.shape.item(item, &mut self.ready);
        }));
        if written.is_err() {
            self.ready.bytes.truncate(whole);
            self.ready.next_id = next_id;
            self.take(Item::Error(Error::internal("a panic while an event was made")));
        }
    }
}

impl<T: Shape + Unpin> MessageBody for Events<T> {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        let events = self.get_mut();
        while !events.over && events.ready.bytes.len() < MAX_PIECE_BYTES {
            match events.reader.poll_next(cx) {
                Poll::Ready(Some(item)) => events.take(item),
                // The stream actor always ends with End or Error; it can only be missing if the actor died.
                Poll::Ready(None) => events.take(Item::Error(Error::internal("the stream ended without a last word"))),
                Poll::Pending => break,
            }
        }
        if !events.ready.bytes.is_empty() {
            events.last_event = Instant::now();
            return Poll::Ready(Some(Ok(events.ready.bytes.split().freeze())));
        }
        if events.over {
            return Poll::Ready(None);
        }
        events.poll_heartbeat(cx).map(|comment| Some(Ok(comment)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn written(write: impl FnOnce(&mut EventWriter)) -> String {
        let mut writer = EventWriter::default();
        write(&mut writer);
        String::from_utf8(writer.bytes.to_vec()).unwrap()
    }

    #[test]
    fn events_are_numbered_from_0() {
        let text = written(|events| (0..12).for_each(|n| events.json(&n)));
        let expected: String = (0..12).map(|n| format!("id: {n}\ndata: {n}\n\n")).collect();
        assert_eq!(text, expected);
        let mut bytes = BytesMut::new();
        put_decimal(u64::MAX, &mut bytes);
        assert_eq!(bytes, u64::MAX.to_string());
    }

    proptest! {
        #[test]
        fn a_template_writes_what_serialising_the_whole_writes(text in ".{0,20}", name in ".{0,20}|\"content\":\"\"") {
            let chunk = |text: &str| json!({ "model": name, "choices": [{ "delta": { "content": text }, "n": null }] });
            let template = Template::new(&chunk(""), "content");
            prop_assert_eq!(written(|events| events.text(&template, &text)), written(|events| events.json(&chunk(&text))));
        }
    }
}
