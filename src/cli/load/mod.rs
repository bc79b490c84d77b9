//! `garrick load`: what a running server gives over HTTP, and what it costs.
//!
//! Owns the connections and what they count. Knows a server by OpenAI's API only. One thread, one read a wake-up, no
//! JSON, so that the client is seldom what is measured; its own processor time is reported to show it.

mod cpu;
mod histogram;
mod response;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::ready;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use reqwest::Url;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::args::LoadArgs;
use super::{Exit, Failure, address};
use histogram::Histogram;
use response::ResponseReader;

/// Of one read.
const READ_BYTES: usize = 64 << 10;
/// Before a stream that failed tries again.
const RETRY: Duration = Duration::from_millis(100);
/// Of an error's body in a message.
const MAX_REASON_CHARS: usize = 300;

/// What the streams counted together.
#[derive(Default)]
struct Tally {
    requests: u64,
    failures: u64,
    events: u64,
    bytes: u64,
    /// From the request to its first text.
    ttft: Histogram,
    /// Between two arrivals on one stream; an arrival may bring several events.
    gap: Histogram,
    last_failure: Option<String>,
}

/// What all streams share.
struct Shared {
    host: String,
    port: u16,
    request: Vec<u8>,
    tally: RefCell<Tally>,
    buffer: RefCell<Vec<u8>>,
}

/// A measurement.
struct Figures {
    tally: Tally,
    seconds: f64,
    client_cpu_s: f64,
    server_cpu_s: Option<f64>,
}

pub fn run(args: LoadArgs) -> Result<(), Failure> {
    let endpoint = address::chat_endpoint(&args.url)?;
    let shared = Rc::new(Shared {
        host: endpoint.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
        port: endpoint.port_or_known_default().unwrap_or(80),
        request: request(&endpoint, &args),
        tally: RefCell::default(),
        buffer: RefCell::new(vec![0; READ_BYTES]),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Internal, format!("no runtime: {e}")))?;
    let figures = tokio::task::LocalSet::new().block_on(&runtime, measure(&shared, &args))?;
    if figures.tally.events == 0 {
        let why = figures.tally.last_failure.unwrap_or_else(|| "nothing was answered".into());
        return Err(Failure::new(Exit::Unavailable, format!("no event came from {endpoint}: {why}")));
    }
    report(&args, &figures);
    Ok(())
}

/// The bytes of the request; every stream sends the same.
fn request(endpoint: &Url, args: &LoadArgs) -> Vec<u8> {
    let mut body = json!({
        "model": args.model, "messages": [{ "role": "user", "content": args.prompt }],
        "max_tokens": args.tokens, "stream": true,
    });
    if args.ignore_eos {
        body["ignore_eos"] = true.into();
    }
    let (body, host) = (body.to_string(), endpoint.authority());
    let key = address::key(args.key.as_ref());
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let (path, length) = (endpoint.path(), body.len());
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n\
         {key}Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

async fn measure(shared: &Rc<Shared>, args: &LoadArgs) -> Result<Figures, Failure> {
    let streams: Vec<_> = (0..args.streams).map(|_| tokio::task::spawn_local(keep_streaming(shared.clone()))).collect();
    let no_times = |e: std::io::Error| Failure::new(Exit::Unavailable, format!("no processor times: {e}"));
    let times = || Ok((cpu::own_s()?, args.pid.map(cpu::tree_s).transpose()?));
    tokio::time::sleep(Duration::from_secs_f64(args.warm_up)).await;
    let (client_before, server_before) = times().map_err(no_times)?;
    let warm_up = shared.tally.take();
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs_f64(args.duration)).await;
    let mut tally = shared.tally.take();
    let seconds = began.elapsed().as_secs_f64();
    let (client_after, server_after) = times().map_err(no_times)?;
    streams.iter().for_each(tokio::task::JoinHandle::abort);
    tally.last_failure = tally.last_failure.or(warm_up.last_failure);
    Ok(Figures {
        tally,
        seconds,
        client_cpu_s: client_after - client_before,
        server_cpu_s: server_after.zip(server_before).map(|(after, before)| after - before),
    })
}

/// One request after the other, on one connection as long as that holds.
async fn keep_streaming(shared: Rc<Shared>) {
    let mut connection = None;
    let mut reader = ResponseReader::new();
    loop {
        match stream_once(&shared, &mut connection, &mut reader).await {
            Ok(()) => shared.tally.borrow_mut().requests += 1,
            Err(why) => {
                connection = None;
                {
                    let mut tally = shared.tally.borrow_mut();
                    tally.failures += 1;
                    tally.last_failure = Some(why);
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn stream_once(
    shared: &Shared,
    connection: &mut Option<TcpStream>,
    reader: &mut ResponseReader,
) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    if connection.is_none() {
        let fresh = TcpStream::connect((shared.host.as_str(), shared.port)).await.map_err(text)?;
        fresh.set_nodelay(true).map_err(text)?;
        *connection = Some(fresh);
    }
    let Some(socket) = connection else { return Ok(()) };
    reader.reset();
    let began = Instant::now();
    let mut last_arrival = None;
    socket.write_all(&shared.request).await.map_err(text)?;
    while !reader.is_done() {
        let (before, had_text) = (reader.num_events(), reader.has_text());
        let num_bytes = receive(shared, socket, reader).await?;
        let now = Instant::now();
        let mut tally = shared.tally.borrow_mut();
        tally.bytes += num_bytes as u64;
        tally.events += reader.num_events() - before;
        if reader.has_text() && !had_text {
            tally.ttft.record(now - began);
        }
        if reader.num_events() > before
            && let Some(last) = last_arrival.replace(now)
        {
            tally.gap.record(now - last);
        }
    }
    if reader.status() != 200 {
        let reason: String = String::from_utf8_lossy(reader.opening()).chars().take(MAX_REASON_CHARS).collect();
        return Err(format!("status {}: {reason}", reader.status()));
    }
    Ok(())
}

/// One read into the buffer that all streams share, and on into the reader.
async fn receive(shared: &Shared, socket: &mut TcpStream, reader: &mut ResponseReader) -> Result<usize, String> {
    poll_fn(|cx| {
        let mut bytes = shared.buffer.borrow_mut();
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut *socket).poll_read(cx, &mut buffer)).map_err(|e| e.to_string())?;
        if buffer.filled().is_empty() {
            return Err("the server closed the connection before the answer was complete".to_owned()).into();
        }
        reader.push(buffer.filled()).map_err(|e| e.to_string())?;
        Ok(buffer.filled().len()).into()
    })
    .await
}

fn report(args: &LoadArgs, figures: &Figures) {
    let Figures { tally, seconds, client_cpu_s, server_cpu_s } = figures;
    let rate = |count: u64| count as f64 / seconds;
    let us_per_event = |cpu_s: f64| cpu_s * 1e6 / tally.events as f64;
    if args.json {
        let quantiles = |of: &Histogram| json!({ "p50": of.quantile_ms(0.5), "p99": of.quantile_ms(0.99) });
        let report = json!({
            "url": args.url, "streams": args.streams, "tokens": args.tokens, "seconds": seconds,
            "requests": tally.requests, "events": tally.events, "failures": tally.failures, "last_failure": tally.last_failure,
            "requests_per_s": rate(tally.requests), "events_per_s": rate(tally.events),
            "bytes_per_s": rate(tally.bytes), "ttft_ms": quantiles(&tally.ttft), "gap_ms": quantiles(&tally.gap),
            "client_cores": client_cpu_s / seconds, "server_cores": server_cpu_s.map(|s| s / seconds),
            "server_cpu_us_per_event": server_cpu_s.map(us_per_event),
        });
        println!("{report:#}");
        return;
    }
    let quantiles = |of: &Histogram| {
        let [p50, p99] = [0.5, 0.99].map(|q| of.quantile_ms(q).map_or("–".into(), |ms| format!("{ms:.2}")));
        format!("{p50} ms p50, {p99} ms p99")
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_row(["events", &format!("{:.0} /s", rate(tally.events))]);
    table.add_row(["requests", &format!("{:.1} /s, {} failed", rate(tally.requests), tally.failures)]);
    table.add_row(["first text", &quantiles(&tally.ttft)]);
    table.add_row(["between arrivals", &quantiles(&tally.gap)]);
    table.add_row(["client", &format!("{:.2} cores", client_cpu_s / seconds)]);
    if let Some(cpu_s) = server_cpu_s {
        table.add_row(["server", &format!("{:.2} cores, {:.2} µs an event", cpu_s / seconds, us_per_event(*cpu_s))]);
    }
    println!("{} streams of up to {} tokens, {seconds:.1} s\n\n{table}", args.streams, args.tokens);
    if let Some(why) = &tally.last_failure {
        eprintln!("the last failure: {why}");
    }
}
