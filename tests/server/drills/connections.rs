//! Sockets, file descriptors and memory: clients that take too many, send too slowly or ask for too much; and a process
//! that is stopped for a while.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Connection, Launch, Request, Server, chat, completion, eventually};

const SLOW: &str = "fake:decode_us_per_step=2000";

fn endless() -> Value {
    chat(json!({"stream": true, "max_tokens": 8000}))
}

/// Asks within a second; none when the server does not even take the connection into its hands.
fn answers(server: &Server) -> bool {
    let mut connection = server.connect();
    connection.set_patience(Duration::from_secs(1));
    connection.send(&Request::get("/health/live"));
    connection.try_head().is_some_and(|head| head.status == 200)
}

#[test]
fn without_file_descriptors_streams_go_on_and_the_server_does_not_spin() {
    let server = Launch::fake(SLOW).set("server.workers=1").after("ulimit -n 80").start();
    let mut stream = server.stream(CHAT, &endless());
    stream.next().expect("it runs");
    let mut crowd = Vec::new();
    while crowd.len() < 80 {
        crowd.push(Connection::open(server.address));
    }
    assert!(eventually(|| server.log().contains("Too many open files")), "{}", server.log());
    assert!(!answers(&server), "no descriptor is left for it");
    for _ in 0..200 {
        stream.next().expect("it goes on");
    }
    drop(stream);
    let (began, before) = (Instant::now(), server.cpu_ticks());
    std::thread::sleep(Duration::from_secs(1));
    let busy = (server.cpu_ticks() - before) as f64 / 100.0 / began.elapsed().as_secs_f64();
    assert!(busy < 0.5, "the server used {busy:.2} of a core while it could accept nothing");
    crowd.into_iter().for_each(Connection::close);
    assert!(eventually(|| answers(&server)), "there is room again");
    server.post(CHAT, &chat(json!({}))).ok();
}

#[test]
fn connections_beyond_the_limit_wait_for_room() {
    let server = Launch::fake(SLOW).set("server.workers=1").set("server.max_connections=4").start();
    let mut crowd: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for connection in &mut crowd {
        connection.ask(&Request::get("/health/live")).ok();
    }
    let mut late = server.connect();
    late.send(&Request::get("/health/live"));
    late.set_patience(Duration::from_millis(500));
    assert!(late.try_head().is_none(), "the limit holds");
    drop(crowd);
    late.set_patience(crate::fixture::PATIENCE);
    assert_eq!(late.try_head().expect("now there is room").status, 200);
}

#[test]
fn who_sends_slowly_is_cut() {
    let server = Launch::fake("fake").set("server.read_timeout_s=1").keyed().start();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    // Nothing at all, half a head, a head without an end.
    for said in ["", "POST /v1/ch", head] {
        let mut connection = server.connect();
        connection.send_bytes(said.as_bytes());
        assert!(connection.ends(), "{said:?} may not wait for ever");
    }
    // Half a body, with a key and without: a stranger's body is not waited for at all.
    let key = server.launch.new_key("");
    for (key, status, code) in [(key.as_str(), 408, "request_timeout"), ("gk_stranger", 401, "invalid_api_key")] {
        let mut connection = server.connect();
        let request = format!("{head}authorization: Bearer {key}\r\ncontent-length: 1000\r\n\r\n{{\"model\"");
        connection.send_bytes(request.as_bytes());
        assert_eq!(connection.receive().error(status)["code"], code);
        assert!(connection.ends(), "it is closed after the {status}");
    }
    // A byte now and then does not help.
    let mut connection = server.connect();
    let request = format!("{head}authorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n");
    connection.send_bytes(request.as_bytes());
    let dripped = eventually(|| {
        !connection.try_send(b"1\r\n \r\n") || server.metric("garrick_requests_total{code=\"408\"}") > 1.0
    });
    assert!(dripped, "it is cut");
    server.get("/v1/models").ok();
}

#[test]
fn a_process_that_was_stopped_goes_on_where_it_was() {
    let server = Launch::fake(SLOW).set("engine.max_step_s=1").set("server.stall_timeout_s=1").start();
    let mut streams: Vec<_> =
        (0..3).map(|_| server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 700})))).collect();
    streams.iter_mut().for_each(|stream| drop(stream.next().expect("it runs")));
    server.signal("STOP");
    std::thread::sleep(Duration::from_secs(2));
    server.signal("CONT");
    for stream in &mut streams {
        let last = stream.rest().pop().expect("an event");
        assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
    }
    assert!(eventually(|| server.get("/health/ready").status == 200));
    assert_eq!(server.metric("garrick_actor_restarts_total"), 0.0);
}

#[test]
fn what_would_cost_too_much_memory_is_refused_before_it_costs_any() {
    let server = Launch::fake("fake").start();
    let huge = i64::from(u32::MAX);
    let many = |n: usize, value: Value| Value::Array(vec![value; n]);
    let refused = [
        (COMPLETIONS, completion(json!({"n": 128, "max_tokens": huge}))),
        (COMPLETIONS, completion(json!({"n": huge}))),
        (COMPLETIONS, completion(json!({"best_of": huge}))),
        (COMPLETIONS, completion(json!({"prompt": many(100_000, json!([1]))}))),
        (COMPLETIONS, completion(json!({"prompt": many(900_000, json!(1))}))),
        (COMPLETIONS, completion(json!({"prompt": "x".repeat(1_900_000)}))),
        (COMPLETIONS, completion(json!({"stop": many(100_000, json!("x"))}))),
        (COMPLETIONS, completion(json!({"logprobs": huge}))),
        (CHAT, chat(json!({"messages": many(30_000, json!({"role": "user", "content": "x"}))}))),
        (CHAT, chat(json!({"top_logprobs": huge, "logprobs": true}))),
        (CHAT, chat(json!({"n": 129, "max_tokens": 1}))),
    ];
    server.post(CHAT, &chat(json!({}))).ok();
    let before = server.peak_memory();
    for (path, body) in &refused {
        let answer = server.post(path, body);
        let shown: String = body.to_string().chars().take(200).collect();
        assert_eq!(answer.status, 400, "{shown}: {}", answer.text());
        answer.error(400);
    }
    let deep = format!("{{\"model\": \"default\", \"messages\": {}", "[".repeat(1_000_000));
    server.ask(&Request::new("POST", CHAT).header("content-type", "application/json").body(deep)).error(400);
    let cost = server.peak_memory().saturating_sub(before);
    // The largest body has 2 MiB; a value of JSON takes some tens of bytes for each of its own.
    assert!(cost < 256 << 20, "{} MiB for refusals", cost >> 20);
    server.wait_idle();
}
