//! The door: what does not fit is refused at once, honestly, and comes in when there is room.

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Request, Response, chat, completion, eventually};

const SLOW: &str = "fake:decode_us_per_step=20000";

fn endless() -> Value {
    chat(json!({"max_tokens": 8000, "stream": true}))
}

#[track_caller]
fn overloaded(answer: &Response, names: &str) {
    let error = answer.error(503);
    assert_eq!((&error["code"], &error["type"]), (&json!("overloaded"), &json!("service_unavailable_error")));
    assert!(error["message"].as_str().is_some_and(|message| message.contains(names)), "{error}");
    assert!((1..=60).contains(&answer.retry_after()));
}

#[test]
fn more_requests_than_permits_are_refused_until_one_leaves() {
    let server = Launch::fake(SLOW).set("admission.max_requests=2").start();
    let mut inside: Vec<_> = (0..2).map(|_| server.stream(CHAT, &endless())).collect();
    for body in [chat(json!({})), endless()] {
        overloaded(&server.post(CHAT, &body), "admission.max_requests");
    }
    overloaded(&server.post(COMPLETIONS, &completion(json!({}))), "admission.max_requests");
    // Texts that cost no device cost a turn of the tokenizer all the same.
    overloaded(&server.post("/tokenize", &json!({"prompt": "a"})), "admission.max_requests");
    // What costs nothing is not counted, and a request that is wrong reads so before it is counted.
    server.get("/v1/models").ok();
    server.post(CHAT, &json!({})).error(400);
    inside.pop();
    assert!(eventually(|| server.post(CHAT, &chat(json!({}))).status == 200), "one has left");
}

#[test]
fn more_waiting_tokens_than_the_bound_are_refused() {
    let server = Launch::fake(SLOW).set("scheduler.max_running=1").set("admission.max_waiting_tokens=100").start();
    let mut running = server.stream(CHAT, &endless());
    running.next().expect("an opening");
    // The request hears of its start after the first token and before the second.
    running.next().expect("it runs");
    running.next().expect("its prompt does not wait any more");
    let long = |len| completion(json!({"prompt": "x".repeat(len), "stream": true}));
    // Larger than the whole bound, but alone: its limit is the context.
    let waiting = server.stream(COMPLETIONS, &long(120));
    overloaded(&server.post(COMPLETIONS, &completion(json!({}))), "admission.max_waiting_tokens");
    drop(waiting);
    let first = || server.connect().ask(&Request::post(COMPLETIONS, &long(60)));
    server.wait_for("garrick_permits_in_use", |permits| permits == 1.0);
    let waiting = server.stream(COMPLETIONS, &long(60));
    overloaded(&first(), "admission.max_waiting_tokens");
    drop((waiting, running));
}

#[test]
fn the_place_is_free_once_the_answer_is_read() {
    let launch = Launch::fake("fake").set("admission.max_requests=1").keyed();
    let key = launch.new_key("--concurrency 1");
    let server = launch.start();
    let mut connections = [server.connect(), server.connect(), server.connect()];
    for i in 0..300 {
        let body = chat(json!({"max_tokens": 1 + i % 3, "stream": i % 2 == 0}));
        let answer = connections[i % 3].ask(&Request::post(CHAT, &body).key(&key));
        assert_eq!(answer.status, 200, "request {i}: {}", answer.text());
    }
}

#[test]
fn refusals_hold_nothing() {
    let server = Launch::fake(SLOW).set("admission.max_requests=1").start();
    let stream = server.stream(CHAT, &endless());
    for _ in 0..50 {
        overloaded(&server.post(CHAT, &chat(json!({}))), "admission.max_requests");
        server.post(CHAT, &chat(json!({"n": 0}))).error(400);
    }
    drop(stream);
    server.wait_idle();
    server.post(CHAT, &chat(json!({}))).ok();
}
