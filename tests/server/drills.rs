//! When the engine goes wrong: requests end with an honest error, nothing internal is told, and the server goes on.

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Server, chat, completion, eventually};

/// Words of our own insides that no client may read.
const INTERNAL: [&str; 5] = ["drill", "panic", "step", "lane", "src/"];

#[track_caller]
fn is_honest(error: &Value) {
    assert_eq!((&error["code"], &error["type"]), (&json!("internal"), &json!("server_error")), "{error}");
    let message = error["message"].as_str().expect("a text");
    let told = INTERNAL.iter().find(|word| message.contains(**word));
    assert!(told.is_none(), "{message}");
}

#[test]
fn a_step_that_fails_or_panics_is_a_500_and_then_the_server_goes_on() {
    for drill in ["fail_at_step", "panic_at_step"] {
        // The first answer takes six steps at most, so one that runs when step 7 fails is hit by it.
        let server = Launch::fake(&format!("fake:{drill}=7")).start();
        server.post(CHAT, &chat(json!({"max_tokens": 5}))).ok();
        let answer = server.post(CHAT, &chat(json!({"max_tokens": 50})));
        if answer.status == 500 {
            is_honest(&answer.error(500));
            assert!(server.log().contains("drill"), "the log has the reason: {}", server.log());
        } else {
            // Or the step was run again, and nobody noticed.
            assert_eq!(answer.ok()["usage"]["completion_tokens"], 50);
        }
        server.wait_idle();
        let again = server.post(COMPLETIONS, &completion(json!({"seed": 1}))).ok();
        assert_eq!(again["choices"][0]["finish_reason"], "length");
        server.get("/health/ready").ok();
    }
}

#[test]
fn a_stream_ends_with_an_error_event_when_its_step_fails() {
    for drill in ["fail_at_step", "panic_at_step"] {
        let server = Launch::fake(&format!("fake:decode_us_per_step=1000,{drill}=7")).start();
        let mut stream = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 50, "n": 2})));
        let events = stream.rest();
        let last = events.last().expect("an event");
        if last.get("error").is_some() {
            is_honest(&last["error"]);
            assert_eq!(last["error"]["request_id"].as_str(), stream.head.header("x-request-id"));
        } else {
            assert_eq!(last["choices"][0]["finish_reason"], "length");
        }
        server.wait_idle();
        server.post(CHAT, &chat(json!({}))).ok();
    }
}

#[test]
fn a_wedged_step_makes_the_server_not_ready_until_it_ends() {
    let server: Server = Launch::fake("fake:wedge_at_step=3,wedge_ms=3000").set("engine.max_step_s=1").start();
    let mut stream = server.stream(CHAT, &chat(json!({"stream": true})));
    let not_ready = eventually(|| server.get("/health/ready").status == 503);
    assert!(not_ready, "a step of 3 s is longer than engine.max_step_s");
    let answer = server.get("/health/ready");
    assert_eq!(answer.json()["status"], "not ready");
    assert!(answer.text().contains("lane 0"), "{}", answer.text());
    server.get("/health/live").ok();
    assert!(eventually(|| server.get("/health/ready").status == 200), "the step has ended");
    let last = stream.rest().pop().expect("an event");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
}
