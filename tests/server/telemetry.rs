//! Logs and traces of a real server: what is in them, and what never is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Request, Server, chat, completion, eventually};
use crate::protobuf::{Field, fields};

/// An OTLP/HTTP collector: takes what it is sent until told that it was all, and returns the spans.
struct Collector {
    address: SocketAddr,
    spans: JoinHandle<Vec<Span>>,
}

#[derive(Debug, Clone, Default)]
struct Span {
    name: String,
    id: Vec<u8>,
    parent: Vec<u8>,
    trace: Vec<u8>,
    start_ns: u64,
    end_ns: u64,
    numbers: BTreeMap<String, u64>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let spans = thread::spawn(move || {
            let mut spans = Vec::new();
            for connection in listener.incoming() {
                if !serve(connection.expect("a connection"), &mut spans) {
                    break;
                }
            }
            spans
        });
        Self { address, spans }
    }

    fn finish(self) -> Vec<Span> {
        let mut last = TcpStream::connect(self.address).expect("it listens");
        last.write_all(b"POST /end HTTP/1.1\r\ncontent-length: 0\r\n\r\n").expect("it reads");
        self.spans.join().expect("no panic")
    }
}

/// Answers the requests of one connection; false when it is the one that ends the collector.
fn serve(stream: TcpStream, spans: &mut Vec<Span>) -> bool {
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return true;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_lowercase());
        }
        if head[0].starts_with("post /end ") {
            return false;
        }
        assert!(head[0].starts_with("post /v1/traces "), "{head:?}");
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.parse().expect("a number")];
        reader.read_exact(&mut body).expect("a body");
        spans.extend(read_spans(&body));
        (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("it reads");
    }
}

/// `ExportTraceServiceRequest`: resource spans, scope spans, spans (opentelemetry-proto, trace/v1).
fn read_spans(body: &[u8]) -> Vec<Span> {
    let inner = |message: &[u8], number| -> Vec<Vec<u8>> {
        fields(message).into_iter().filter(|(n, _)| *n == number).map(|(_, field)| field.bytes()).collect()
    };
    let scopes = inner(body, 1).into_iter().flat_map(|resource| inner(&resource, 2));
    scopes.flat_map(|scope| inner(&scope, 2)).map(|span| read_span(&span)).collect()
}

fn read_span(message: &[u8]) -> Span {
    let mut span = Span::default();
    for (number, field) in fields(message) {
        match number {
            1 => span.trace = field.bytes(),
            2 => span.id = field.bytes(),
            4 => span.parent = field.bytes(),
            5 => span.name = field.text(),
            7 => span.start_ns = field.number(),
            8 => span.end_ns = field.number(),
            9 => {
                let pair = fields(&field.bytes());
                let [(1, key), (2, value)] = &pair[..] else { panic!("{pair:?}") };
                // An integer is field 3 of a value.
                if let [(3, Field::Number(number))] = fields(&value.bytes())[..] {
                    span.numbers.insert(key.text(), number);
                }
            }
            _ => {}
        }
    }
    span
}

#[test]
fn a_request_is_a_trace_with_a_span_for_every_hop() {
    let collector = Collector::start();
    let mut server = Launch::fake("fake:decode_us_per_step=2000")
        .set(&format!("telemetry.otlp_endpoint=http://{}", collector.address))
        .start();
    let body = chat(json!({"stream": true, "max_tokens": 10, "stream_options": {"include_usage": true}}));
    let events = server.stream(CHAT, &body).rest();
    let usage = &events.last().expect("usage comes last")["usage"];
    let prompt_tokens = usage["prompt_tokens"].as_u64().expect("a number");
    server.get("/health/ready").ok();
    server.wait_idle();
    server.terminate();
    assert_eq!(server.finish().code, Some(0));
    let spans = collector.finish();

    let named = |name: &str| -> &Span {
        let mut found = spans.iter().filter(|span| span.name == name);
        let span = found.next().unwrap_or_else(|| panic!("no span {name} in {spans:#?}"));
        assert!(found.next().is_none(), "{name} twice in {spans:#?}");
        span
    };
    let request = named("request");
    assert!(request.parent.is_empty());
    let hops = ["auth", "prepare", "quota", "submit", "queue", "prefill", "decode", "stream"];
    for hop in hops.map(named) {
        assert_eq!((&hop.trace, &hop.parent), (&request.trace, &request.id), "{hop:#?}");
        assert!(hop.start_ns <= hop.end_ns && hop.start_ns + 1_000_000 >= request.start_ns, "{hop:#?} {request:#?}");
    }
    let tokens = |hop: &str, what: &str| named(hop).numbers.get(what).copied();
    assert_eq!(tokens("prepare", "prompt_tokens"), Some(prompt_tokens));
    assert_eq!(tokens("quota", "tokens"), Some(prompt_tokens + 10));
    assert_eq!(tokens("submit", "prompt_tokens"), Some(prompt_tokens));
    assert_eq!(tokens("queue", "prompt_tokens"), Some(prompt_tokens));
    assert_eq!(tokens("prefill", "prompt_tokens"), Some(prompt_tokens));
    assert_eq!(tokens("prefill", "cached_tokens"), Some(0));
    assert_eq!(tokens("decode", "completion_tokens"), Some(10));
    assert_eq!(tokens("stream", "completion_tokens"), Some(10));
    // One after the other; nine gaps of two milliseconds each.
    assert!(named("queue").end_ns <= named("prefill").end_ns && named("prefill").end_ns <= named("decode").end_ns);
    assert!(named("decode").end_ns - named("decode").start_ns >= 9 * 2_000_000);
    assert_eq!(spans.len(), hops.len() + 1, "health checks are not traced: {spans:#?}");
}

/// A word that stands nowhere but in prompts.
const CANARY: &str = "zwölfboxkämpfer";

/// Prompts with the canary down every path: answered, streamed, refused, failed, left.
fn tell_secrets(server: &Server) {
    let said = |extra: Value| {
        let mut body = chat(json!({"messages": [{"role": "user", "content": format!("say {CANARY}, {CANARY}")}]}));
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        body
    };
    server.post(CHAT, &said(json!({"stop": [CANARY], "user": CANARY}))).ok();
    server.stream(CHAT, &said(json!({"stream": true, "n": 2, "logprobs": true}))).rest();
    server.post(CHAT, &said(json!({"temperature": CANARY}))).error(400);
    server.post(CHAT, &said(json!({"messages": [{"role": CANARY, "content": CANARY}]}))).error(400);
    server.post(CHAT, &said(json!({"max_tokens": 1_000_000}))).error(400);
    server.ask(&Request::post(CHAT, &json!(null)).body(format!("{{\"messages\": [\"{CANARY}"))).error(400);
    server.post(COMPLETIONS, &completion(json!({"prompt": CANARY, "echo": true, "logprobs": 1}))).ok();
    server.post("/tokenize", &json!({"prompt": CANARY})).ok();
    server.post("/v1/chat/completions/render", &said(json!({}))).ok();
    let mut left = server.stream(CHAT, &said(json!({"stream": true, "max_tokens": 8000})));
    left.next().expect("it runs");
    drop(left);
    server.wait_idle();
}

#[test]
fn no_text_of_a_prompt_is_logged() {
    for level in ["info", "debug"] {
        for format in ["pretty", "json"] {
            // The drill makes two steps fail in a row, so that a request fails for an internal reason.
            let server = Launch::fake("fake:decode_us_per_step=500,fail_at_step=40,panic_at_step=41")
                .set(&format!("telemetry.log_level={level}"))
                .set(&format!("telemetry.log_format={format}"))
                .start();
            tell_secrets(&server);
            assert!(eventually(|| server.log().contains("request ended")), "{}", server.log());
            let log = server.log();
            let told = log.lines().find(|line| line.to_lowercase().contains(CANARY) || line.contains("boxk"));
            assert!(told.is_none(), "{level}, {format}: {told:?}");
        }
    }
}

#[test]
fn a_json_log_has_one_object_a_line_with_the_tokens_of_a_request() {
    let server = Launch::fake("fake").set("telemetry.log_format=json").start();
    let request = Request::post(CHAT, &chat(json!({"max_tokens": 7}))).header("x-request-id", "the-id");
    server.ask(&request).ok();
    assert!(eventually(|| server.log().contains("request ended")));
    let log = server.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let ended = lines.iter().find(|line| line["message"] == "request ended").expect("a line");
    assert_eq!((&ended["outcome"], &ended["reason"]), (&json!("done"), &json!("length")), "{ended}");
    assert_eq!((&ended["completion_tokens"], &ended["tenant"]), (&json!(7), &json!("local")), "{ended}");
    assert_eq!(ended["span"]["id"], "the-id", "{ended}");
    for field in ["prompt_tokens", "cached_tokens", "queue_ms", "prefill_ms", "decode_ms", "elapsed_ms"] {
        assert!(ended[field].is_u64(), "{field}: {ended}");
    }
}
