//! Several lanes in one process.

use std::thread;

use serde_json::json;

use crate::fixture::{COMPLETIONS, Launch, Server, completion};

fn answers(server: &Server, num: u64) -> Vec<String> {
    let one = |i: u64| {
        let max_tokens = if i.is_multiple_of(8) { 300 } else { 3 };
        let body = completion(json!({"prompt": format!("Request {i}"), "seed": i, "max_tokens": max_tokens}));
        let answer = server.post(COMPLETIONS, &body).ok();
        assert_eq!(answer["usage"]["completion_tokens"], max_tokens);
        answer["choices"][0]["text"].as_str().expect("a text").to_owned()
    };
    thread::scope(|scope| {
        let asked: Vec<_> = (0..num).map(|i| scope.spawn(move || one(i))).collect();
        asked.into_iter().map(|answer| answer.join().expect("an answer")).collect()
    })
}

/// One sequence at a time in each lane, and now and then a long one: lanes run dry beside lanes with queues.
#[test]
fn a_burst_is_shared_and_answered_as_by_one_lane() {
    let slow = "fake:decode_us_per_step=1000";
    let many = Launch::fake(slow).arg("--lanes").arg("4").set("scheduler.max_running=1").start();
    let shared = answers(&many, 64);
    assert!(many.metric("garrick_steals_total") > 0.0, "idle lanes take what waits elsewhere");
    for lane in 0..4 {
        assert!(many.metric(&format!("garrick_steps_total{{lane=\"{lane}\"}}")) > 0.0, "lane {lane} worked");
    }
    let one = Launch::fake(slow).start();
    assert_eq!(answers(&one, 64), shared, "tokens do not depend on lanes or batches");
}

#[test]
fn a_pool_that_is_too_small_for_all_serves_all() {
    // 1 MiB of fake KV over 32 lanes is 128 blocks each, and 12 choices need 235: some run, the others wait or are preempted.
    let launch = Launch::fake("fake").arg("--lanes").arg("32").arg("--kv-memory").arg("1MiB");
    let crowded = launch.start();
    let one = Launch::fake("fake").start();
    let texts = |server: &Server| {
        let body = completion(json!({"prompt": "p".repeat(100), "n": 12, "seed": 2, "max_tokens": 300}));
        let answer = server.post(COMPLETIONS, &body).ok();
        let choices = answer["choices"].as_array().expect("choices");
        choices.iter().map(|choice| choice["text"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&crowded), texts(&one), "preemption changes no token");
}
