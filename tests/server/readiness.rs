//! Ready means that a request sent now would make progress; live means that the process answers. They differ.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{CHAT, Launch, PATIENCE, Server, chat, eventually};

fn reasons(server: &Server) -> Vec<String> {
    let answer = server.get("/health/ready");
    let body = answer.json();
    let ready = (answer.status, &body["status"]) == (200, &json!("ready"));
    let reasons: Vec<String> = serde_json::from_value(body["reasons"].clone()).expect("texts");
    assert_eq!(ready, reasons.is_empty(), "{body}");
    assert!(ready || (answer.status, &body["status"]) == (503, &json!("not ready")), "{body}");
    reasons
}

fn is_said(server: &Server, said: &str) -> bool {
    eventually(|| matches!(&*reasons(server), [reason] if reason.starts_with(said)))
}

/// The lane that has run steps.
fn lane_at_work(server: &Server) -> usize {
    let at_work = (0..2).find(|lane| server.metric(&format!("garrick_requests_running{{lane=\"{lane}\"}}")) > 0.0);
    at_work.expect("a lane runs the request")
}

#[test]
fn a_wedged_lane_is_named_and_the_others_go_on() {
    let model = "fake:wedge_at_step=3,wedge_ms=4000";
    let server = Launch::fake(model).arg("--lanes").arg("2").set("engine.max_step_s=1").start();
    assert!(reasons(&server).is_empty());
    assert_eq!(server.metric("garrick_ready"), 1.0);
    let mut wedged = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 8})));
    wedged.next().expect("it began");
    let lane = lane_at_work(&server);
    assert!(is_said(&server, &format!("lane {lane}: a step has been running for ")), "{:?}", reasons(&server));
    server.get("/health/live").ok();
    assert_eq!(server.metric("garrick_ready"), 0.0);
    assert_eq!(server.metric(&format!("garrick_lane_ready{{lane=\"{lane}\"}}")), 0.0);
    assert_eq!(server.metric(&format!("garrick_lane_ready{{lane=\"{}\"}}", 1 - lane)), 1.0);
    assert!(server.metric(&format!("garrick_step_age_seconds{{lane=\"{lane}\"}}")) > 1.0);
    assert!(eventually(|| reasons(&server).is_empty()), "the step has ended");
    assert_eq!((server.metric("garrick_ready"), server.metric("garrick_step_age_seconds")), (1.0, 0.0));
    let last = wedged.rest().pop().expect("an event");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_step_within_the_limit_is_no_trouble() {
    let server = Launch::fake("fake:wedge_at_step=3,wedge_ms=1500").set("engine.max_step_s=3600").start();
    let mut stream = server.stream(CHAT, &chat(json!({"stream": true})));
    assert!(eventually(|| server.metric("garrick_step_age_seconds") > 0.5));
    assert!(reasons(&server).is_empty());
    stream.rest();
}

#[test]
fn a_server_whose_only_device_is_lost_ends_and_says_that_it_may_be_started_again() {
    let mut server = Launch::fake("fake:lose_at_step=3").start();
    let error: Value = server.post(CHAT, &chat(json!({"max_tokens": 50}))).error(500);
    assert_eq!(error["code"], "internal");
    let end = server.finish();
    assert_eq!(end.code, Some(75), "{}", end.stderr);
    assert!(end.stderr.contains("the device is lost"), "{}", end.stderr);
    assert!(end.stderr.contains("error: no lane is left: start the server again"), "{}", end.stderr);
}

#[test]
fn a_lost_lane_leaves_new_work_to_the_others() {
    let server = Launch::fake("fake:lose_at_step=40").arg("--lanes").arg("2").start();
    server.post(CHAT, &chat(json!({"max_tokens": 45}))).ok();
    let [reason] = &*reasons(&server) else { panic!("{:?}", reasons(&server)) };
    assert!(reason.ends_with("the device is lost"), "{reason}");
    for _ in 0..4 {
        server.post(CHAT, &chat(json!({"max_tokens": 1}))).ok();
    }
    server.get("/health/live").ok();
    assert_eq!(server.metric("garrick_lane_ready"), 1.0, "of two");
}

#[test]
fn a_server_whose_only_lane_keeps_dying_gives_it_up_and_ends() {
    let mut server = Launch::fake("fake").drilled().start();
    // Its back-off grows to seconds: that a lane is given up takes longer than other things.
    let deadline = Instant::now() + 6 * PATIENCE;
    while TcpStream::connect(server.address).is_ok() {
        assert!(Instant::now() < deadline, "it is still being built again");
        // An idle lane ticks by itself, and dies of it.
        server.launch.arm("Scheduler.Tick");
        std::thread::sleep(Duration::from_millis(20));
    }
    let end = server.finish();
    assert_eq!(end.code, Some(75), "{}", end.stderr);
    assert!(end.stderr.contains("keeps dying and is given up"), "{}", end.stderr);
}
