//! When the engine goes wrong: requests end with an honest error, nothing internal is told, and the server goes on.

mod clock;
mod connections;
mod devices;
// Without debug assertions there are no fault points.
#[cfg(debug_assertions)]
mod panics;
mod store;

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Server, chat, choice_text, completion, eventually, with};

/// Words of our own insides that no client may read.
const INTERNAL: [&str; 5] = ["drill", "panic", "step", "lane", "src/"];

#[track_caller]
fn is_honest(error: &Value) {
    assert_eq!((&error["code"], &error["type"]), (&json!("internal"), &json!("server_error")), "{error}");
    let message = error["message"].as_str().expect("a text");
    let told = INTERNAL.iter().find(|word| message.contains(**word));
    assert!(told.is_none(), "{message}");
}

#[cfg(not(debug_assertions))]
#[test]
fn a_build_without_fault_points_says_so() {
    let failed = Launch::fake("fake").env("GARRICK_FAULTS", "faults").fails();
    assert_eq!(failed.code, Some(64), "{failed:?}");
    assert!(failed.stderr.contains("GARRICK_FAULTS"), "{failed:?}");
}

/// A step that fails once is run again, sequence by sequence; only one that fails twice running ends its request.
const TWICE: &str = "fail_at_step=7,panic_at_step=8";

#[test]
fn a_step_that_fails_once_is_noticed_by_nobody() {
    let body = chat(json!({"max_tokens": 50, "n": 3, "seed": 4}));
    let choices = |model: &str| {
        let server = Launch::fake(model).start();
        let choices = server.post(CHAT, &body).ok()["choices"].clone();
        let streamed = server.stream(CHAT, &with(body.clone(), json!({"stream": true}))).rest();
        assert_eq!(choice_text(&streamed, 2), choices[2]["message"]["content"].as_str().expect("a text"));
        let is_drilled = model.contains("_at_step");
        assert!(!is_drilled || eventually(|| server.log().contains("drill")), "the log has the reason");
        assert!(is_drilled || !server.log().contains("drill"), "{}", server.log());
        choices
    };
    let expected = choices("fake");
    for drill in ["fail_at_step=7", "panic_at_step=7"] {
        assert_eq!(choices(&format!("fake:{drill}")), expected, "{drill}");
    }
}

#[test]
fn a_step_that_fails_twice_is_a_500_and_then_the_server_goes_on() {
    let server = Launch::fake(&format!("fake:{TWICE}")).start();
    is_honest(&server.post(CHAT, &chat(json!({"max_tokens": 50}))).error(500));
    assert!(eventually(|| server.log().contains("drill")), "the log has the reason: {}", server.log());
    server.wait_idle();
    server.get("/health/ready").ok();
    let again = server.post(COMPLETIONS, &completion(json!({"seed": 1}))).ok();
    assert_eq!(again["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_stream_whose_step_fails_twice_ends_with_an_error_event() {
    let server = Launch::fake(&format!("fake:{TWICE}")).start();
    let mut stream = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 50})));
    let events = stream.rest();
    let (last, others) = events.split_last().expect("an event");
    is_honest(&last["error"]);
    assert_eq!(last["error"]["request_id"].as_str(), stream.head.header("x-request-id"));
    assert_eq!(choice_text(others, 0).matches(" w").count(), 6, "what came before stands");
    server.wait_idle();
    server.post(CHAT, &chat(json!({}))).ok();
}

#[test]
fn a_step_that_fails_twice_costs_one_request() {
    let server = Launch::fake("fake:decode_us_per_step=5000,fail_at_step=60,panic_at_step=61").start();
    let body = chat(json!({"stream": true, "max_tokens": 100}));
    let streams: Vec<_> = (0..4).map(|_| server.stream(CHAT, &body)).collect();
    let failed = streams.into_iter().filter_map(|mut stream| stream.rest().pop()?.get("error").cloned());
    assert_eq!(failed.count(), 1);
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
