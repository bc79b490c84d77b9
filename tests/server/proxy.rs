//! Behind nginx, with the project's own `deploy/nginx.conf`: nothing is held back, hidden, changed or done twice.

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::fixture::{
    CHAT, Connection, Frame, Goodbye, Launch, Proxy, Request, Response, Server, chat, leave, nginx, with,
};

/// Slow enough that nothing ends by itself: a full answer would take minutes.
const SLOW: &str = "fake:decode_us_per_step=20000";

fn endless(extra: Value) -> Value {
    with(chat(json!({"max_tokens": 8000, "n": 2})), extra)
}

/// A request with an id, so that two answers to it may be equal.
fn named(request: Request) -> Request {
    request.header("x-request-id", "a-b.c_d:e/f+g=h")
}

/// What a client is told, without what says when and over which connection.
fn told(mut answer: Response) -> Response {
    answer.headers.retain(|(name, _)| !["date", "server", "connection"].contains(&name.as_str()));
    answer.headers.sort();
    answer
}

#[test]
fn tokens_arrive_one_by_one() {
    let Some(nginx) = nginx() else { return };
    // What is read while the second step runs cannot have waited for it; and it is less than any buffer holds.
    let server = Launch::fake("fake:wedge_at_step=2,wedge_ms=5000").start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    let mut stream = proxy.connect().stream(&Request::post(CHAT, &chat(json!({"stream": true, "max_tokens": 12}))));
    // The opening, and the first step's token.
    for _ in 0..2 {
        stream.next().expect("it goes on");
    }
    // Steps count when they begin.
    assert_eq!(server.metric("garrick_steps_total"), 2.0, "the second step still runs");
    assert_eq!(stream.rest().len(), 12, "eleven tokens and the end");
    assert_eq!(stream.head.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.head.header("cache-control"), Some("no-store"));
}

#[test]
fn a_client_that_leaves_is_gone_for_the_server_too() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake(SLOW).set("scheduler.max_running=4").start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    let mut num_left = 0.0;
    for (how, streamed) in Goodbye::ALL.into_iter().flat_map(|how| [(how, true), (how, false)]) {
        let mut connection = proxy.connect();
        connection.send(&Request::post(CHAT, &endless(json!({"stream": streamed}))));
        server.wait_for("garrick_requests_running", |running| running == 2.0);
        let _still_open = leave(connection, how);
        server.wait_idle();
        num_left += 1.0;
        server.wait_for("garrick_finished_total{reason=\"cancelled\"}", |n| n == num_left);
    }
}

#[test]
fn a_client_that_leaves_a_silent_stream_is_noticed() {
    let Some(nginx) = nginx() else { return };
    for how in Goodbye::ALL {
        let server = Launch::fake("fake:wedge_at_step=2,wedge_ms=3000").start();
        let proxy = Proxy::start(nginx, &[server.address], &[]);
        let stream = proxy.connect().stream(&Request::post(CHAT, &endless(json!({"stream": true}))));
        let _still_open = leave(stream.into_connection(), how);
        server.wait_idle();
    }
}

#[test]
fn a_client_that_leaves_while_it_sends_never_reaches_a_server() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake(SLOW).start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    for how in Goodbye::ALL {
        let mut connection = proxy.connect();
        let head = Request::new("POST", CHAT).header("expect", "100-continue").body(vec![b' '; 99]).bytes();
        connection.send_bytes(&head[..head.len() - 99]);
        // Says that the head was read, after which an impatient proxy would have asked a server.
        let mut interim = [0; 256];
        let read = connection.socket().read(&mut interim).expect("an interim answer");
        assert!(interim[..read].starts_with(b"HTTP/1.1 100"));
        connection.send_bytes(b"{\"model\"");
        let _still_open = leave(connection, how);
    }
    let num_ended = || proxy.access_log().lines().count();
    assert!(crate::fixture::eventually(|| num_ended() == Goodbye::ALL.len()), "{}", proxy.access_log());
    assert_eq!(num_connections(server.address), 0);
}

#[test]
fn answers_pass_unchanged() {
    let Some(nginx) = nginx() else { return };
    let launch = Launch::fake(SLOW).keyed().set("admission.max_requests=1").set("server.max_body_bytes=1024");
    let (key, limited) = (launch.new_key(""), launch.new_key("--rpm 1"));
    let server = launch.start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    assert_eq!(server.ask(&Request::post(CHAT, &chat(json!({"max_tokens": 1}))).key(&limited)).status, 200);
    let cases = [
        (200, Request::get("/v1/models").key(&key)),
        (400, Request::post(CHAT, &chat(json!({"n": 0}))).key(&key)),
        (401, Request::post(CHAT, &chat(json!({})))),
        (404, Request::get("/v1/models/other").key(&key)),
        (413, Request::post(CHAT, &chat(json!({"user": "x".repeat(1024)}))).key(&key)),
        (429, Request::post(CHAT, &chat(json!({}))).key(&limited)),
        (504, Request::post(CHAT, &endless(json!({}))).key(&key).header("x-request-timeout-ms", "50")),
        (503, Request::post(CHAT, &chat(json!({}))).key(&key)),
    ];
    let mut holder = None;
    for (status, request) in cases {
        if status == 503 {
            holder = Some(server.stream(CHAT, &endless(json!({"stream": true}))));
        }
        let request = named(request);
        let answers = [server.ask(&request), proxy.ask(&request)];
        let [direct, proxied] = answers.map(|answer| comparable(told(answer)));
        assert_eq!(direct.status, status, "{}", direct.text());
        assert_eq!(direct.text(), proxied.text());
        assert_eq!(direct.headers, proxied.headers);
        assert_eq!(proxied.header("x-request-id"), Some("a-b.c_d:e/f+g=h"));
        assert_eq!(proxied.header("retry-after").is_some(), [429, 503].contains(&status));
    }
    drop(holder);
}

/// `Retry-After` counts down, so two answers may differ by a second.
fn comparable(mut answer: Response) -> Response {
    if answer.header("retry-after").is_some() {
        assert!((1..=61).contains(&answer.retry_after()));
        answer.headers.iter_mut().filter(|(name, _)| name == "retry-after").for_each(|(_, value)| value.clear());
        let text = answer.text();
        // The message names the seconds too.
        answer.body = text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>().into_bytes();
        answer.headers.retain(|(name, _)| name != "content-length");
    }
    answer
}

#[test]
fn a_body_that_is_too_large_is_refused_before_a_server_is_asked() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake("fake").start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    let padded = |len: usize| {
        let empty = chat(json!({"metadata": {}})).to_string().len();
        Request::new("POST", CHAT).body(chat(json!({"metadata": {}})).to_string() + &" ".repeat(len - empty))
    };
    // The limits are the same: what one lets through, the other takes.
    let max = 2_097_152;
    proxy.ask(&padded(max)).ok();
    let asked = || server.metric("garrick_requests_total{route=\"/v1/chat/completions\"}");
    let before = asked();
    assert_eq!(proxy.ask(&padded(max + 1)).error(413)["code"], "too_large");
    assert_eq!(asked(), before);
    assert_eq!(server.ask(&padded(max + 1)).error(413)["code"], "too_large");
}

#[test]
fn heartbeats_keep_a_silent_stream() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake("fake:wedge_at_step=3,wedge_ms=6000").set("server.heartbeat_s=1").start();
    let proxy = Proxy::start(nginx, &[server.address], &[("read_timeout", "proxy_read_timeout 3s;")]);
    let mut stream = proxy.connect().stream(&Request::post(CHAT, &chat(json!({"stream": true}))));
    let (mut comments, mut events) = (0, 0);
    while let Some(frame) = stream.frame() {
        match frame {
            Frame::Comment(_) => comments += 1,
            Frame::Event { .. } => events += 1,
        }
    }
    assert!(comments >= 3 && events == 15, "{comments} comments, {events} events");
}

#[test]
fn a_reader_that_stalls_is_noticed() {
    let Some(nginx) = nginx() else { return };
    let unbounded = "server.max_stream_buffer_bytes=1073741824";
    let server = Launch::fake("fake").set("server.stall_timeout_s=1").set(unbounded).start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    // Megabytes: nginx must not take them into its own buffers and files, or the server would know nothing.
    let flood = chat(json!({"n": 16, "max_tokens": 2000, "stream": true, "logprobs": true, "top_logprobs": 20}));
    let mut connection = Connection::open_narrow(proxy.address);
    connection.send(&Request::post(CHAT, &flood));
    server.wait_for("garrick_stream_stalls_total", |stalls| stalls == 1.0);
    server.wait_idle();
    assert!(connection.ends(), "the connection is closed, not left hanging");
}

#[test]
fn an_answer_that_takes_longer_than_the_proxy_waits_is_a_504_and_its_work_ends() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake(SLOW).start();
    let proxy = Proxy::start(nginx, &[server.address], &[("read_timeout", "proxy_read_timeout 1s;")]);
    let answer = proxy.ask(&named(Request::post(CHAT, &endless(json!({})))));
    assert_eq!(answer.error(504)["code"], "deadline_exceeded");
    server.wait_idle();
    server.wait_for("garrick_finished_total{reason=\"cancelled\"}", |n| n == 1.0);
}

#[test]
fn connections_are_used_again() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake("fake").start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    // One connection stays with one worker of nginx, which has its own idle ones.
    let mut connection = proxy.connect();
    for i in 0..20 {
        if i % 2 == 0 {
            connection.ask(&Request::post(CHAT, &chat(json!({})))).ok();
        } else {
            connection = {
                let mut stream = connection.stream(&Request::post(CHAT, &chat(json!({"stream": true}))));
                assert_eq!(stream.rest().len(), 14);
                stream.into_connection()
            };
        }
    }
    assert_eq!(num_connections(server.address), 1, "nobody else has connected to the server");
}

/// Connections to a local port that the kernel remembers, ended ones (for a minute) included.
fn num_connections(to: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let port = format!(":{:04X}", to.port());
    let mut clients = std::collections::BTreeSet::new();
    for line in table.lines().skip(1) {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (local, remote) = (fields[1], fields[2]);
        if remote.ends_with(&port) {
            clients.insert(local.to_owned());
        } else if local.ends_with(&port) && !remote.ends_with(":0000") {
            clients.insert(remote.to_owned());
        }
    }
    clients.len()
}

#[test]
fn a_server_that_is_not_there_is_passed_over() {
    let Some(nginx) = nginx() else { return };
    let (mut gone, server) = (Launch::fake("fake").start(), Launch::fake("fake").start());
    gone.terminate();
    gone.finish();
    let proxy = Proxy::start(nginx, &[gone.address, server.address], &[]);
    // Nothing was sent to the first one, so even a POST may go to the second.
    for _ in 0..6 {
        proxy.ask(&Request::post(CHAT, &chat(json!({})))).ok();
    }
}

#[test]
fn without_any_server_the_error_has_our_shape() {
    let Some(nginx) = nginx() else { return };
    let mut gone = Launch::fake("fake").start();
    gone.terminate();
    gone.finish();
    let proxy = Proxy::start(nginx, &[gone.address], &[]);
    let answer = proxy.ask(&named(Request::post(CHAT, &chat(json!({})))));
    assert_eq!(answer.error(503)["code"], "unavailable");
    assert_eq!(answer.retry_after(), 1);
}

#[test]
fn a_post_is_never_sent_twice() {
    let Some(nginx) = nginx() else { return };
    let servers = [Launch::fake(SLOW).start(), Launch::fake(SLOW).start()];
    let proxy = Proxy::start(nginx, &servers.each_ref().map(|server| server.address), &[]);
    let mut connection = proxy.connect();
    connection.send(&Request::post(CHAT, &endless(json!({}))));
    let running = |server: &Server| server.metric("garrick_requests_running") > 0.0;
    assert!(crate::fixture::eventually(|| servers.iter().any(running)), "one of them has it");
    let [mut first, mut second] = servers;
    if !running(&first) {
        (first, second) = (second, first);
    }
    first.kill();
    let answer = connection.receive();
    assert_eq!(answer.error(502)["code"], "internal");
    assert_eq!(answer.header("retry-after"), None, "nobody is invited to have the work done again");
    assert_eq!(second.metric("garrick_requests_total{route=\"/v1/chat/completions\"}"), 0.0);
    assert_eq!(second.metric("garrick_finished_total"), 0.0);
    proxy.ask(&Request::post(CHAT, &chat(json!({"max_tokens": 1})))).ok();
}

#[test]
fn metrics_are_not_public() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake("fake").set("auth.metrics_open=true").start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    assert_eq!(server.get("/metrics").status, 200);
    for path in ["/metrics", "/metrics/", "//metrics", "/v1/../metrics", "/%6detrics", "/metrics?a", "/./metrics"] {
        let answer = proxy.ask(&named(Request::get(path)));
        assert_eq!(answer.error(404)["code"], "not_found", "{path}");
        assert_eq!(answer.header("server"), Some("nginx"), "no version: {path}");
    }
}

#[test]
fn one_id_in_every_log() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake("fake").set("telemetry.log_level=debug").start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    let id = |request: Request| {
        let answer = proxy.ask(&request);
        answer.header("x-request-id").expect("an id").to_owned()
    };
    let request = || Request::post(CHAT, &chat(json!({})));
    assert_eq!(id(request().header("x-request-id", "mine-1")), "mine-1");
    let made = id(request().header("x-request-id", "not \"well\" formed"));
    assert!(made.len() == 32 && made.bytes().all(|b| b.is_ascii_hexdigit()), "{made}");
    let logged = crate::fixture::eventually(|| {
        let lines: Vec<Value> =
            proxy.access_log().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        ["mine-1", &made].iter().all(|id| lines.iter().any(|line| line["request_id"] == **id))
    });
    assert!(logged, "{}", proxy.access_log());
    assert!(crate::fixture::eventually(|| server.log().contains(&made)), "{}", server.log());
}

#[test]
fn one_address_does_not_take_every_connection() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake(SLOW).start();
    let proxy = Proxy::start(nginx, &[server.address], &[("connections_per_client", "limit_conn clients 2;")]);
    let stream = || proxy.connect().stream(&Request::post(CHAT, &endless(json!({"stream": true}))));
    let held = [stream(), stream()];
    let answer = proxy.ask(&named(Request::post(CHAT, &chat(json!({})))));
    assert_eq!(answer.error(429)["code"], "rate_limit_exceeded");
    assert_eq!(answer.retry_after(), 1);
    drop(held);
}

#[test]
fn over_tls_and_http_2_too() {
    let Some(nginx) = nginx() else { return };
    let server = Launch::fake("fake:wedge_at_step=20,wedge_ms=3000").start();
    let proxy = Proxy::start_tls(nginx, &[server.address]);
    let url = format!("https://{}{CHAT}", proxy.address);
    let ask = |body: Value| {
        let mut curl = Command::new("curl");
        curl.args(["-skN", "--http2", "--max-time", "60", "-w", "\n%{http_version} %{http_code}", "-d"]);
        curl.arg(body.to_string()).arg(&url).stdout(Stdio::piped());
        curl.spawn().expect("curl runs")
    };
    let out = ask(chat(json!({"stream": true}))).wait_with_output().expect("it ends");
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.contains("data: [DONE]") && out.ends_with("2 200"), "{out}");
    // One that leaves while its stream is silent.
    let mut leaver = ask(endless(json!({"stream": true})));
    server.wait_for("garrick_requests_running", |running| running == 2.0);
    leaver.kill().and_then(|()| leaver.wait()).expect("it ends");
    server.wait_idle();
    server.wait_for("garrick_finished_total{reason=\"cancelled\"}", |n| n == 1.0);
}
