//! What actix-web alone can stream: the yardstick of `scripts/bench-frontend`. It validates nothing, bounds nothing but
//! its queues, and knows no cancel, no key and no limit.
//!
//! A thread of its own makes a token for every stream in turn, as a lane's step does, and puts it into the stream's
//! queue; the response writes it as an event of the same bytes that Garrick sends. `--step-us N` spaces the turns.
//!
//! Usage: bare_actix PORT [--step-us N]

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use actix_web::web::{self, Bytes};
use actix_web::{App, HttpResponse, HttpServer};
use futures_util::stream::poll_fn;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Tokens that one stream's queue holds.
const QUEUE: usize = 64;
const HEAD: &str = "{\"id\":\"chatcmpl-01a1fde1b90d775992d2c8569b2fa7ca\",\"object\":\"chat.completion.chunk\",\
    \"created\":1795260791,\"model\":\"fake\",\"system_fingerprint\":\"garrick-0.1.0-fake\",\
    \"choices\":[{\"index\":0,\"delta\":{";

struct Stream {
    left: u64,
    queue: Sender<u64>,
}

#[derive(Default)]
struct Feed {
    fresh: Mutex<Vec<Stream>>,
    arrived: Condvar,
}

impl Feed {
    fn run(&self, step: Duration) {
        let (mut streams, mut token) = (Vec::new(), 0);
        loop {
            let mut fresh = self.fresh.lock().unwrap();
            while streams.is_empty() && fresh.is_empty() {
                fresh = self.arrived.wait(fresh).unwrap();
            }
            streams.append(&mut fresh);
            drop(fresh);
            let began = Instant::now();
            streams.retain_mut(|stream: &mut Stream| {
                token = (token * 7919 + 11) % 767;
                stream.left -= 1;
                stream.queue.blocking_send(256 + token).is_ok() && stream.left > 0
            });
            let rest = step.saturating_sub(began.elapsed());
            if !rest.is_zero() {
                std::thread::sleep(rest);
            }
        }
    }
}

fn event(id: u64, delta: &str, finish: &str) -> Bytes {
    let mut text = String::with_capacity(320);
    let _ = write!(text, "id: {id}\ndata: {HEAD}{delta}}},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n");
    text.into()
}

async fn chat(feed: web::Data<Feed>, body: web::Json<serde_json::Value>) -> HttpResponse {
    let max_tokens = body["max_tokens"].as_u64().unwrap_or(16);
    let (queue, mut tokens): (_, Receiver<u64>) = channel(QUEUE);
    feed.fresh.lock().unwrap().push(Stream { left: max_tokens, queue });
    feed.arrived.notify_one();
    let mut next_id = 0;
    let events = poll_fn(move |cx| {
        let id = next_id;
        let bytes = match id {
            0 => event(0, "\"role\":\"assistant\",\"content\":\"\"", "null"),
            _ if id <= max_tokens => match tokens.poll_recv(cx) {
                Poll::Ready(Some(token)) => event(id, &format!("\"content\":\" w{token}\""), "null"),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            },
            _ if id == max_tokens + 1 => event(id, "", "\"length\""),
            _ if id == max_tokens + 2 => format!("id: {id}\ndata: [DONE]\n\n").into(),
            _ => return Poll::Ready(None),
        };
        next_id += 1;
        Poll::Ready(Some(Ok::<_, Infallible>(bytes)))
    });
    HttpResponse::Ok().content_type("text/event-stream").streaming(events)
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    // `cargo bench` adds an argument of its own.
    let arguments: Vec<String> = std::env::args().filter(|a| a != "--bench").collect();
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<u64>().ok());
    let Some(port) = number(arguments.get(1)) else {
        eprintln!("usage: bare_actix PORT [--step-us N]");
        return Ok(());
    };
    let step = Duration::from_micros(number(arguments.get(3)).unwrap_or(0));
    let feed = Arc::new(Feed::default());
    let feeder = feed.clone();
    std::thread::spawn(move || feeder.run(step));
    let feed = web::Data::from(feed);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, 2);
    HttpServer::new(move || App::new().app_data(feed.clone()).route("/v1/chat/completions", web::post().to(chat)))
        .workers(workers)
        .tcp_nodelay(true)
        .bind(("127.0.0.1", port as u16))?
        .run()
        .await
}
