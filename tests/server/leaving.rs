//! Clients that leave: whatever they waited for stops, and everything that it held comes back.

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Goodbye, Launch, Request, Server, chat, completion, leave};

/// Slow enough that nothing ends by itself: a full answer would take minutes.
const SLOW: &str = "fake:decode_us_per_step=20000";

fn endless(extra: Value) -> Value {
    crate::fixture::with(chat(json!({"max_tokens": 8000, "n": 2})), extra)
}

fn is_running(server: &Server, num: f64) {
    server.wait_for("garrick_requests_running", |running| running == num);
    server.wait_for("garrick_kv_blocks{state=\"held\"}", |held| held > 0.0);
}

#[test]
fn leaving_a_stream_ends_its_work() {
    let server = Launch::fake(SLOW).start();
    for (round, how) in Goodbye::ALL.into_iter().enumerate() {
        let mut stream = server.stream(CHAT, &endless(json!({"stream": true})));
        for _ in 0..4 {
            stream.next().expect("it goes on");
        }
        is_running(&server, 2.0);
        let _still_open = leave(stream.into_connection(), how);
        server.wait_idle();
        server.wait_for("garrick_finished_total{reason=\"cancelled\"}", |n| n == round as f64 + 1.0);
    }
}

/// A whole answer takes a millisecond or two here, so that some clients leave in the very moment in which it ends.
#[test]
fn leaving_as_the_answer_ends_leaves_nothing() {
    let server = Launch::fake("fake").start();
    for round in 0..400 {
        let mut connection = server.connect();
        let body = completion(json!({"max_tokens": 8 + round / 2, "stream": true}));
        connection.send(&Request::post(COMPLETIONS, &body));
        connection.head();
        leave(connection, Goodbye::ALL[round % 2]);
    }
    server.wait_idle();
}

#[test]
fn leaving_a_stream_that_is_silent_ends_its_work() {
    // A step takes seconds, so the client is gone long before anything could be written.
    for how in Goodbye::ALL {
        let server = Launch::fake("fake:wedge_at_step=2,wedge_ms=3000").start();
        let stream = server.stream(CHAT, &endless(json!({"stream": true})));
        let _still_open = leave(stream.into_connection(), how);
        server.wait_idle();
    }
}

#[test]
fn leaving_a_pending_answer_ends_its_work() {
    let server = Launch::fake(SLOW).start();
    for how in Goodbye::ALL {
        let mut connection = server.connect();
        connection.send(&Request::post(CHAT, &endless(json!({}))));
        is_running(&server, 2.0);
        let _still_open = leave(connection, how);
        server.wait_idle();
    }
}

#[test]
fn leaving_the_queue_frees_the_place() {
    let server = Launch::fake(SLOW).set("scheduler.max_running=2").start();
    let mut running = server.stream(CHAT, &endless(json!({"stream": true})));
    running.next().expect("it runs");
    for (how, streamed) in Goodbye::ALL.into_iter().flat_map(|how| [(how, true), (how, false)]) {
        let mut connection = server.connect();
        connection.send(&Request::post(CHAT, &endless(json!({"stream": streamed}))));
        server.wait_for("garrick_permits_in_use", |permits| permits == 2.0);
        let _still_open = leave(connection, how);
        server.wait_for("garrick_permits_in_use", |permits| permits == 1.0);
        server.wait_for("garrick_requests_waiting", |waiting| waiting == 0.0);
    }
    running.next().expect("nobody else was disturbed");
}

#[test]
fn leaving_while_the_request_is_sent_holds_nothing() {
    let server = Launch::fake(SLOW).start();
    for how in Goodbye::ALL {
        let mut connection = server.connect();
        connection
            .send_bytes(b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 1000\r\n\r\n{\"model\"");
        let _still_open = leave(connection, how);
    }
    server.wait_idle();
}

#[test]
fn many_leave_at_once() {
    let server = Launch::fake("fake:decode_us_per_step=2000").arg("--lanes").arg("2").start();
    let streams: Vec<_> = (0..40)
        .map(|i| {
            let body = completion(json!({"prompt": vec!["x"; 1 + i % 3], "max_tokens": 8000, "stream": true}));
            server.stream(COMPLETIONS, &body)
        })
        .collect();
    for (i, stream) in streams.into_iter().enumerate() {
        leave(stream.into_connection(), if i % 2 == 0 { Goodbye::Fin } else { Goodbye::Reset });
    }
    server.wait_idle();
    server.post(CHAT, &chat(json!({}))).ok();
}

/// The end of an answer and the end of its reader may come in one breath.
#[test]
fn who_leaves_while_the_answer_ends_leaves_nothing() {
    let server = Launch::fake("fake").start();
    for _ in 0..150 {
        let mut stream = server.stream(CHAT, &chat(json!({"max_tokens": 400, "stream": true})));
        stream.next().expect("it began");
        drop(stream);
    }
    server.wait_for("garrick_finished_total", |ended| ended == 150.0);
    server.wait_idle();
}
