//! Slow readers, silent streams, deadlines.

use serde_json::{Value, json};

use crate::fixture::{CHAT, Connection, Frame, Launch, Request, Server, chat, with};

/// About 2 KB an event, 16 choices: megabytes, far more than sockets take from a stream that nobody reads.
fn flood() -> Value {
    chat(json!({"n": 16, "max_tokens": 1000, "stream": true, "logprobs": true, "top_logprobs": 20}))
}

fn stalled(server: &Server) -> Connection {
    let mut connection = Connection::open_narrow(server.address);
    connection.send(&Request::post(CHAT, &flood()));
    connection
}

#[test]
fn a_reader_that_takes_nothing_is_cut() {
    let settings = [
        // While it is written; after everything was generated; and by what it makes us hold.
        ["fake:decode_us_per_step=10000", "server.stall_timeout_s=1", "server.max_stream_buffer_bytes=1073741824"],
        ["fake", "server.stall_timeout_s=1", "server.max_stream_buffer_bytes=1073741824"],
        ["fake", "server.stall_timeout_s=3600", "server.max_stream_buffer_bytes=4096"],
    ];
    for [model, timeout, buffer] in settings {
        let server = Launch::fake(model).set(timeout).set(buffer).start();
        let mut connection = stalled(&server);
        server.wait_for("garrick_stream_stalls_total", |stalls| stalls == 1.0);
        server.wait_idle();
        assert!(connection.ends(), "the connection is closed, not left hanging");
        server.wait_for("garrick_finished_total", |n| n == 1.0);
        server.post(CHAT, &chat(json!({}))).ok();
    }
}

#[test]
fn a_reader_that_is_slow_but_reads_is_not_cut() {
    let server = Launch::fake("fake:decode_us_per_step=1000").set("server.stall_timeout_s=1").start();
    let body = chat(json!({"n": 4, "max_tokens": 100, "stream": true, "logprobs": true, "top_logprobs": 20}));
    let mut stream = Connection::open_narrow(server.address).stream(&Request::post(CHAT, &body));
    for _ in 0..20 {
        stream.next().expect("it goes on");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let last = stream.rest().pop().expect("an event");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(server.metric("garrick_stream_stalls_total"), 0.0);
}

#[test]
fn a_silent_stream_says_that_it_lives() {
    let server = Launch::fake("fake:wedge_at_step=3,wedge_ms=2500").set("server.heartbeat_s=1").start();
    let mut stream = server.stream(CHAT, &chat(json!({"stream": true})));
    let mut comments = 0;
    let mut events = 0;
    while let Some(frame) = stream.frame() {
        match frame {
            Frame::Comment(_) => comments += 1,
            Frame::Event { .. } => events += 1,
        }
    }
    assert!(comments >= 1 && events == 15, "{comments} comments, {events} events");
}

#[test]
fn a_deadline_ends_what_it_meets() {
    let server = Launch::fake("fake:decode_us_per_step=20000").start();
    let request = |extra| {
        let body = with(chat(json!({"max_tokens": 8000})), extra);
        Request::post(CHAT, &body).header("x-request-timeout-ms", "300")
    };
    assert_eq!(server.ask(&request(json!({}))).error(504)["code"], "deadline_exceeded");
    let error = server.connect().stream(&request(json!({"stream": true}))).error();
    assert_eq!((&error["code"], &error["type"]), (&json!("deadline_exceeded"), &json!("timeout_error")));
    server.wait_idle();
}

#[test]
fn a_deadline_ends_what_waits() {
    let server = Launch::fake("fake:decode_us_per_step=20000")
        .set("scheduler.max_running=1")
        .set("admission.default_timeout_ms=400")
        .start();
    let body = chat(json!({"max_tokens": 8000, "stream": true}));
    let mut running = server.connect().stream(&Request::post(CHAT, &body).header("x-request-timeout-ms", "5000"));
    running.next().expect("it runs");
    assert_eq!(server.post(CHAT, &chat(json!({}))).error(504)["code"], "deadline_exceeded");
    running.next().expect("it was not disturbed");
    drop(running);
}

#[test]
fn one_answers_while_others_stream() {
    let server = Launch::fake("fake:decode_us_per_step=5000").start();
    let body = chat(json!({"max_tokens": 8000, "stream": true}));
    let mut others: Vec<_> = (0..31).map(|_| server.stream(CHAT, &body)).collect();
    others.iter_mut().for_each(|stream| drop(stream.next().expect("it runs")));
    server.wait_for("garrick_requests_running", |running| running == 31.0);
    assert_eq!(server.post(CHAT, &chat(json!({}))).ok()["usage"]["completion_tokens"], 12);
    assert_eq!(server.stream(CHAT, &chat(json!({"stream": true}))).rest().len(), 14);
    server.wait_for("garrick_requests_running", |running| running == 31.0);
}
