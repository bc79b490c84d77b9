//! A server that nobody asks for anything sleeps: no thread spins or wakes again and again.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::fixture::{CHAT, Launch, Server, chat};

/// How often its threads have gone to sleep of their own accord, and the processor time spent, in hundredths of a second.
fn activity(server: &Server) -> (u64, u64) {
    let folder = format!("/proc/{}", server.pid());
    let switches = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).expect("a thread that lives");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("a count");
        line.trim().parse::<u64>().expect("a number")
    };
    let tasks = fs::read_dir(format!("{folder}/task")).expect("its threads");
    let stat = fs::read_to_string(format!("{folder}/stat")).expect("the process");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<u64>().expect("a number");
    (tasks.map(|task| switches(task.expect("a thread"))).sum(), ticks(11) + ticks(12))
}

#[test]
fn an_idle_server_sleeps() {
    let server = Launch::fake("fake").arg("--lanes").arg("2").start();
    for max_tokens in [1, 200] {
        server.post(CHAT, &chat(json!({"max_tokens": max_tokens}))).ok();
        server.stream(CHAT, &chat(json!({"max_tokens": max_tokens, "stream": true}))).rest();
        server.stream(CHAT, &chat(json!({"max_tokens": 8000, "stream": true}))).next();
    }
    server.wait_idle();
    let (switches, ticks) = activity(&server);
    const SECONDS: u64 = 4;
    sleep(Duration::from_secs(SECONDS));
    let (switches, ticks) = (activity(&server).0 - switches, activity(&server).1 - ticks);
    // The supervisor looks ten times a second, each lane once; a spinning thread would not sleep at all.
    assert!(switches < 60 * SECONDS, "{switches} wake-ups in {SECONDS} s");
    assert!(ticks < 20 * SECONDS, "{ticks} ticks in {SECONDS} s");
}
