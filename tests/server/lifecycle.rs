//! Start and stop: what a signal does, and what a server refuses to start with.

use serde_json::{Value, json};

use crate::fixture::{CHAT, Launch, Request, chat, choice_text, eventually};

const SLOW: &str = "fake:decode_us_per_step=20000";

fn endless(streamed: bool) -> Value {
    chat(json!({"max_tokens": 8000, "stream": streamed}))
}

#[test]
fn a_drain_lets_streams_finish_and_nothing_in() {
    let mut server = Launch::fake(SLOW).start();
    let mut idle = server.connect();
    idle.ask(&Request::get("/health/ready")).ok();
    let mut stream = server.stream(CHAT, &chat(json!({"max_tokens": 100, "stream": true})));
    stream.next().expect("it runs");
    server.terminate();
    let refused = || {
        let answer = server.post(CHAT, &chat(json!({"max_tokens": 1})));
        answer.status == 503 && answer.error(503)["code"] == "draining" && answer.retry_after() > 0
    };
    assert!(eventually(refused), "new connections are told");
    let answer = idle.ask(&Request::post(CHAT, &chat(json!({}))));
    assert_eq!(answer.error(503)["code"], "draining", "and so are old ones");
    assert_eq!(server.get("/health/ready").status, 503);
    server.get("/health/live").ok();
    let events = stream.rest();
    assert_eq!(events.last().expect("an event")["choices"][0]["finish_reason"], "length");
    assert_eq!(choice_text(&events, 0).matches(" w").count(), 100);
    assert_eq!(server.finish().code, Some(0));
}

#[test]
fn a_drain_ends_what_takes_too_long_with_an_error_event() {
    for timeout in [0, 1] {
        let mut server = Launch::fake(SLOW).set(&format!("server.drain_timeout_s={timeout}")).start();
        let mut stream = server.stream(CHAT, &endless(true));
        let mut pending = server.connect();
        pending.send(&Request::post(CHAT, &endless(false)));
        server.wait_for("garrick_requests_running", |running| running == 2.0);
        server.terminate();
        let error = stream.error();
        assert_eq!((&error["code"], &error["type"]), (&json!("draining"), &json!("service_unavailable_error")));
        let answer = pending.receive();
        assert_eq!(answer.error(503)["code"], "draining");
        assert!(answer.retry_after() >= 1);
        assert_eq!(server.finish().code, Some(0));
    }
}

#[test]
fn a_second_signal_ends_the_waiting() {
    let mut server = Launch::fake(SLOW).set("server.drain_timeout_s=3600").start();
    let mut stream = server.stream(CHAT, &endless(true));
    server.terminate();
    assert!(eventually(|| server.get("/health/ready").status == 503));
    server.terminate();
    assert_eq!(stream.error()["code"], "draining");
    assert_eq!(server.finish().code, Some(0));
}

#[test]
fn a_store_serves_one_start_after_another() {
    let launch = Launch::fake("fake").keyed();
    let key = launch.new_key("");
    let mut first = launch.start();
    first.ask(&Request::get("/v1/models").key(&key)).ok();
    first.terminate();
    assert_eq!(first.finish().code, Some(0));
    let second = Launch::fake("fake").beside(&first.launch).start();
    second.ask(&Request::get("/v1/models").key(&key)).ok();
    second.ask(&Request::get("/v1/models")).error(401);
}

#[test]
fn a_port_that_is_taken_is_69() {
    let server = Launch::fake("fake").start();
    let failed = Launch::fake("fake").listen(&server.address.to_string()).fails();
    assert_eq!(failed.code, Some(69), "{failed:?}");
    assert!(failed.stderr.contains(&server.address.to_string()) && failed.stderr.contains("--listen"), "{failed:?}");
}

#[test]
fn a_wrong_configuration_is_64_and_says_where() {
    let cases = [
        ("server:\n  listen: 127.0.0.1:0\n  heartbeat_s: soon\n", "config.yaml:3", "server.heartbeat_s"),
        ("server:\n  heartbeats_s: 3\n", "config.yaml:2", "server.heartbeats_s"),
        ("kv:\n  memory_share: 2\n", "config.yaml:2", "kv.memory_share"),
        ("surver:\n  listen: 127.0.0.1:0\n", "config.yaml:1", "surver"),
        ("server: [\n", "config.yaml:", ""),
    ];
    for (text, place, key) in cases {
        let launch = Launch::fake("fake");
        std::fs::write(launch.dir().join("config.yaml"), text).expect("a file");
        let failed = launch.fails();
        assert_eq!(failed.code, Some(64), "{failed:?}");
        assert!(failed.stderr.contains(place) && failed.stderr.contains(key), "{text}: {failed:?}");
    }
    let elsewhere = [
        (Launch::fake("fake").set("engine.lanes=0"), "engine.lanes"),
        (Launch::fake("fake").set("nothing"), "nothing"),
        (Launch::fake("fake").env("GARRICK__SERVER__HEARTBEAT_S", "x"), "GARRICK__SERVER__HEARTBEAT_S"),
        (Launch::fake("fake").env("GARRICK__SERVER__PORT", "1"), "GARRICK__SERVER__PORT"),
        (Launch::fake("fake").arg("--lanes").arg("many"), "--lanes"),
        (Launch::fake("fake").arg("--config").arg("missing.yaml"), "missing.yaml"),
        (Launch::fake("fake").arg("--frobnicate"), "--frobnicate"),
        (Launch::fake("fake:speed=9"), "speed"),
        (Launch::fake("fake").set("kv.memory=1"), "kv.memory"),
    ];
    for (launch, named) in elsewhere {
        let failed = launch.fails();
        assert_eq!(failed.code, Some(64), "{failed:?}");
        assert!(failed.stderr.contains(named), "{named}: {failed:?}");
    }
}

#[test]
fn a_model_that_cannot_be_opened_is_66() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = dir.path().join("model.gguf");
    std::fs::write(&text, "not a model").expect("a file");
    for path in [dir.path().join("missing"), dir.path().to_owned(), text] {
        let failed = Launch::model(&path).fails();
        assert_eq!(failed.code, Some(66), "{failed:?}");
        assert!(failed.stderr.contains(path.to_str().expect("UTF-8")), "{failed:?}");
    }
}

#[test]
fn the_stronger_place_of_a_setting_wins() {
    let name_of = |launch: Launch| {
        let file = "model:\n  served_name: file\n";
        std::fs::write(launch.dir().join("config.yaml"), file).expect("a file");
        launch.start().get("/v1/models").ok()["data"][0]["id"].clone()
    };
    let fake = || Launch::fake("fake");
    let env = |launch: Launch| launch.env("GARRICK__MODEL__SERVED_NAME", "env");
    let set = |launch: Launch| launch.set("model.served_name=set");
    assert_eq!(name_of(fake()), "file");
    assert_eq!(name_of(env(fake())), "env");
    assert_eq!(name_of(set(env(fake()))), "set");
    assert_eq!(name_of(set(env(fake())).arg("--served-model-name").arg("flag")), "flag");
}
