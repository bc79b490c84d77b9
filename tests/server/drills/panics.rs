//! A panic in every handler of every message, and in what runs beside them: the request that met it gets its typed
//! error, the process stays, what died comes back, nothing is left behind, and the next request works.

use serde_json::{Value, json};

use super::is_honest;
use crate::fixture::{CHAT, COMPLETIONS, Launch, Server, chat, completion, eventually};

/// What the client whose request meets the panic sees.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// Nothing.
    Good,
    Status(u16, &'static str),
    /// A stream that ends with an error event.
    ErrorEvent,
    /// An answer that comes late, or a 503, by who comes by first: the request or the lane's own heartbeat.
    GoodOrDead,
    /// Readiness asked, and was told no.
    NotReady,
    /// Nobody.
    Nothing,
}

/// A point (or two that are met one after the other), what is seen, and who is started again.
type Drill = (&'static [&'static str], Seen, Option<&'static str>);

use Seen::{ErrorEvent, Good, GoodOrDead, NotReady, Nothing, Status};

/// `tests/house` finds every handler's point here. `Auth.KeyRevoked` is missing: nobody in the process sends it.
#[rustfmt::skip]
const DRILLS: &[Drill] = &[
    (&["Auth.Authenticate"], Status(503, "unavailable"), Some("Auth")),
    (&["Quota.Reserve"], Status(503, "unavailable"), Some("Quota")),
    (&["Request.Begin"], Status(500, "internal"), None),
    (&["Request.PromptsStarted"], ErrorEvent, None),
    (&["Request.StreamEnded"], Good, None),
    (&["Stream.EventsReady"], ErrorEvent, None),
    (&["Stream.EventsReady", "Request.EventsReady"], ErrorEvent, None),
    (&["Scheduler.Tick"], GoodOrDead, Some("Scheduler")),
    (&["Scheduler.Wake"], Good, Some("Scheduler")),
    (&["Scheduler.Inspect"], NotReady, Some("Scheduler")),
    (&["Executor.RunStep"], Good, Some("Executor")),
    (&["Supervisor.look"], Nothing, Some("Supervisor")),
    (&["Stream.detokenise"], ErrorEvent, None),
    (&["text.encode"], Status(500, "internal"), None),
    (&["http.handler"], Status(500, "internal"), None),
    (&["http.body"], ErrorEvent, None),
];

/// Longer than what is prepared on the HTTP worker itself.
fn long_text() -> Value {
    chat(json!({"messages": [{"role": "user", "content": "word ".repeat(400)}]}))
}

fn restarts(server: &Server, actor: &str) -> f64 {
    server.metric(&format!("garrick_actor_restarts_total{{actor=\"{actor}\"}}"))
}

fn finished(server: &Server, reason: &str) -> f64 {
    server.metric(&format!("garrick_finished_total{{reason=\"{reason}\"}}"))
}

fn provoke(server: &Server, seen: Seen) {
    let streamed = chat(json!({"stream": true, "max_tokens": 200}));
    match seen {
        Good => drop(server.post(CHAT, &chat(json!({}))).ok()),
        Status(status, code) => {
            let answer = server.post(CHAT, &chat(json!({})));
            assert_eq!(answer.error(status)["code"], code, "{}", answer.text());
            assert!(status != 503 || answer.retry_after() > 0);
        }
        GoodOrDead => {
            let answer = server.post(CHAT, &chat(json!({})));
            assert!(answer.status == 200 || answer.error(503)["code"] == "unavailable", "{}", answer.text());
        }
        ErrorEvent => is_honest(&server.stream(CHAT, &streamed).error()),
        NotReady => assert_eq!(server.get("/health/ready").status, 503),
        Nothing => {}
    }
}

#[test]
fn a_panic_in_any_handler_costs_one_request_at_most() {
    let server = Launch::fake("fake:decode_us_per_step=2000").drilled().start();
    for (points, seen, actor) in DRILLS {
        let before = actor.map(|actor| restarts(&server, actor));
        let panics = server.metric("garrick_panics_total");
        points.iter().for_each(|point| server.launch.arm(point));
        provoke(&server, *seen);
        assert!(eventually(|| !points.iter().any(|point| server.launch.is_armed(point))), "{points:?} were not met");
        assert!(eventually(|| server.get("/health/ready").status == 200), "{points:?}: not ready again");
        if let (Some(actor), Some(before)) = (actor, before) {
            // Reading metrics needs the door, which may be what died.
            let is_open = || server.get("/metrics").status == 200;
            assert!(eventually(|| is_open() && restarts(&server, actor) == before + 1.0), "{points:?}: not restarted");
        }
        assert_eq!(server.metric("garrick_panics_total"), panics + points.len() as f64, "{points:?}");
        let again = server.post(CHAT, &chat(json!({"seed": 1}))).ok();
        assert_eq!(again["choices"][0]["finish_reason"], "length", "{points:?}");
        server.wait_idle();
    }
    assert!(eventually(|| server.log().contains("drill: http.body")), "the log has every panic");
    assert!(!server.log().contains("thread 'main' panicked"), "in its own shape: {}", server.log());
}

#[test]
fn a_lane_that_dies_takes_only_its_own_with_it() {
    let server = Launch::fake("fake:decode_us_per_step=2000").set("engine.lanes=2").drilled().start();
    let body = chat(json!({"stream": true, "max_tokens": 500}));
    let mut streams: Vec<_> = (0..4).map(|_| server.stream(CHAT, &body)).collect();
    // The first text, after the opening event: all of them run.
    streams.iter_mut().for_each(|stream| (0..2).for_each(|_| drop(stream.next().expect("it runs"))));
    server.launch.arm("Scheduler.Tick");
    let ends: Vec<Value> = streams.iter_mut().map(|stream| stream.rest().pop().expect("an event")).collect();
    let failed = ends.iter().filter(|end| end.get("error").is_some()).count();
    assert!((1..4).contains(&failed), "{failed} of 4 failed");
    assert!(eventually(|| server.get("/health/ready").status == 200));
    assert_eq!((finished(&server, "failed"), finished(&server, "done")), (failed as f64, 4.0 - failed as f64));
    server.wait_for("garrick_actor_restarts_total", |n| n == 1.0);
}

#[test]
fn a_panic_in_the_pool_of_preparations_is_a_500() {
    let server = Launch::fake("fake").drilled().start();
    for (path, body) in [(CHAT, long_text()), ("/tokenize", json!({"prompt": "x"}))] {
        server.launch.arm("text.encode");
        is_honest(&server.post(path, &body).error(500));
        server.post(path, &body).ok();
    }
    assert_eq!(server.metric("garrick_panics_total"), 2.0);
}

#[test]
fn every_request_is_counted_once_whoever_dies() {
    let server = Launch::fake("fake").drilled().start();
    let points = ["Request.PromptsStarted", "Request.StreamEnded", "Stream.EventsReady", "Stream.detokenise"];
    for point in points {
        server.launch.arm(point);
        server.stream(CHAT, &chat(json!({"stream": true}))).rest();
        server.wait_idle();
    }
    server.wait_for("garrick_finished_total", |n| n == points.len() as f64);
    assert_eq!(finished(&server, "failed"), points.len() as f64);
}

#[test]
fn a_quota_outlives_its_actor() {
    let launch = Launch::fake("fake:decode_us_per_step=2000").drilled().keyed();
    let key = launch.new_key("--concurrency 1");
    let server = launch.start();
    let ask = |max_tokens: u64| {
        let body = chat(json!({"stream": true, "max_tokens": max_tokens}));
        crate::fixture::Request::post(CHAT, &body).key(&key)
    };
    let mut stream = server.connect().stream(&ask(5000));
    stream.next().expect("it runs");
    server.launch.arm("Quota.Reserve");
    assert_eq!(server.ask(&ask(1)).error(503)["code"], "unavailable");
    server.wait_for("garrick_actor_restarts_total", |n| n == 1.0);
    assert_eq!(server.ask(&ask(1)).error(429)["code"], "rate_limit_exceeded", "its place is still taken");
    drop(stream);
    server.wait_idle();
    server.connect().stream(&ask(1)).rest();
}

#[test]
fn a_door_that_died_asks_whether_it_is_still_open() {
    // The server starts open, and believes so for an hour; then a key is made.
    let server = Launch::fake("fake").set("auth.cache_ttl_s=3600").set("auth.metrics_open=true").drilled().start();
    server.post(CHAT, &chat(json!({}))).ok();
    let key = server.launch.new_key("");
    server.post(CHAT, &chat(json!({}))).ok();
    server.launch.arm("Auth.Authenticate");
    server.post(CHAT, &chat(json!({}))).error(503);
    server.wait_for("garrick_actor_restarts_total", |n| n == 1.0);
    server.post(CHAT, &chat(json!({}))).error(401);
    server.ask(&crate::fixture::Request::post(CHAT, &chat(json!({}))).key(&key)).ok();
}

#[test]
fn a_panic_while_the_server_shuts_down_does_not_keep_it() {
    for point in ["Request.Shutdown", "Stream.Shutdown"] {
        let launch = Launch::fake("fake:decode_us_per_step=2000").set("server.drain_timeout_s=0").drilled();
        let mut server = launch.start();
        let mut stream = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 5000})));
        stream.next().expect("it runs");
        server.launch.arm(point);
        server.terminate();
        is_honest(&stream.error());
        let finished = server.finish();
        assert_eq!(finished.code, Some(0), "{point}: {finished:?}");
        assert!(!server.launch.is_armed(point), "{point} was not met");
    }
}

#[test]
fn a_poisoned_request_fails_alone() {
    // Token 255 makes every step that computes it panic; the others in the batch are told nothing.
    let server = Launch::fake("fake:decode_us_per_step=2000,panic_on_token=255").start();
    let plain = chat(json!({"stream": true, "max_tokens": 300, "seed": 3}));
    let expected = crate::fixture::choice_text(&server.stream(CHAT, &plain).rest(), 0);
    let mut others: Vec<_> = (0..4).map(|_| server.stream(CHAT, &plain)).collect();
    others.iter_mut().for_each(|stream| drop(stream.next().expect("it runs")));
    for n in 1..=3 {
        let poisoned = completion(json!({"prompt": [7, 8, 255, 9], "n": n}));
        is_honest(&server.post(COMPLETIONS, &poisoned).error(500));
    }
    for stream in &mut others {
        assert_eq!(crate::fixture::choice_text(&stream.rest(), 0), expected);
    }
    assert_eq!(restarts(&server, "Executor"), 0.0);
    assert_eq!((finished(&server, "failed"), finished(&server, "done")), (3.0, 5.0));
}
