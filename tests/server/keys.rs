//! API keys: who enters, how much each may take, and what is kept of them.

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Request, Response, Server, chat, completion, eventually};

fn ask(server: &Server, key: &str, body: &Value) -> Response {
    server.ask(&Request::post(CHAT, body).key(key))
}

/// Refused by a limit of its key.
#[track_caller]
fn limited(answer: &Response, limit: &str) {
    let error = answer.error(429);
    assert_eq!((&error["code"], &error["type"]), (&json!("rate_limit_exceeded"), &json!("rate_limit_error")));
    assert!(error["message"].as_str().is_some_and(|message| message.contains(limit)), "{error}");
    assert!((1..=61).contains(&answer.retry_after()));
}

#[test]
fn nobody_enters_without_a_key() {
    let launch = Launch::fake("fake").keyed();
    let key = launch.new_key("--name second");
    let server = launch.start();
    let unknown = format!("gk_{}", "A".repeat(43));
    let headers = [
        None,
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some("Bearer nonsense".to_owned()),
        Some(format!("Bearer {unknown}")),
        Some(format!("Basic {key}")),
        Some(key.clone()),
        Some(format!("Bearer {}", &key[..key.len() - 1])),
    ];
    let routes =
        [("POST", CHAT), ("POST", COMPLETIONS), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nowhere")];
    for header in &headers {
        for (method, path) in routes {
            let request = Request::new(method, path).body(chat(json!({})).to_string());
            let request = header.iter().fold(request, |request, value| request.header("authorization", value));
            let answer = server.ask(&request);
            let error = answer.error(401);
            assert_eq!((&error["code"], &error["type"]), (&json!("invalid_api_key"), &json!("authentication_error")));
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    for path in ["/health/live", "/health/ready"] {
        server.ask(&Request::get(path)).ok();
    }
    ask(&server, &key, &chat(json!({}))).ok();
    server.ask(&Request::post(CHAT, &chat(json!({}))).header("authorization", &format!("bearer  {key} "))).ok();
    server.ask(&Request::get("/nowhere").key(&key)).error(404);
}

#[test]
fn metrics_may_be_open() {
    let server = Launch::fake("fake").keyed().set("auth.metrics_open=true").start();
    assert_eq!(server.ask(&Request::get("/metrics")).status, 200);
    server.ask(&Request::get("/v1/models")).error(401);
}

#[test]
fn requests_in_a_minute_are_counted_for_each_key() {
    let launch = Launch::fake("fake").keyed();
    let (limited_key, other) = (launch.new_key("--rpm 2"), launch.new_key("--rpm 2"));
    let server = launch.start();
    for _ in 0..2 {
        ask(&server, &limited_key, &chat(json!({}))).ok();
        // A request that is wrong counts for nothing.
        ask(&server, &limited_key, &chat(json!({"n": 0}))).error(400);
    }
    for streamed in [false, true] {
        limited(&ask(&server, &limited_key, &chat(json!({"stream": streamed}))), "rpm");
    }
    ask(&server, &other, &chat(json!({}))).ok();
    assert_eq!(server.metric("garrick_quota_refusals_total{limit=\"rpm\"}"), 2.0);
}

#[test]
fn tokens_in_a_minute_are_reserved_and_the_rest_is_given_back() {
    let launch = Launch::fake("fake").keyed();
    let key = launch.new_key("--tpm 100");
    let server = launch.start();
    let ends_at_once = |prompt: &str| {
        let body = completion(json!({"prompt": prompt, "max_tokens": 70, "logit_bias": {"1023": 100}}));
        server.ask(&Request::post(COMPLETIONS, &body).key(&key))
    };
    // Each may use 75 of 100 and uses 6: four are 24.
    for _ in 0..4 {
        ends_at_once("Hello").ok();
        server.wait_idle();
    }
    limited(&ends_at_once(&"x".repeat(29)), "tpm");
    // Alone it is over the limit already: waiting cannot help.
    let error = ends_at_once(&"x".repeat(31)).error(400);
    assert!(error["message"].as_str().is_some_and(|m| m.contains("101") && m.contains("100")), "{error}");
    ends_at_once("x").ok();
    assert_eq!(server.metric("garrick_quota_refusals_total{limit=\"tpm\"}"), 2.0);
}

#[test]
fn requests_at_once_are_counted_until_they_end_or_leave() {
    let launch = Launch::fake("fake:decode_us_per_step=20000").keyed();
    let key = launch.new_key("--concurrency 1");
    let server = launch.start();
    for body in [chat(json!({"max_tokens": 8000, "stream": true})), chat(json!({"max_tokens": 20, "stream": true}))] {
        let mut stream = server.connect().stream(&Request::post(CHAT, &body).key(&key));
        stream.next().expect("it runs");
        limited(&ask(&server, &key, &chat(json!({}))), "concurrency");
        if body["max_tokens"] == 20 {
            stream.rest();
        }
        drop(stream);
        server.wait_idle();
        ask(&server, &key, &chat(json!({}))).ok();
    }
}

#[test]
fn a_revoked_key_opens_nothing() {
    let launch = Launch::fake("fake").set("auth.cache_ttl_s=1").keyed();
    let key = launch.new_key("--name doomed");
    let server = launch.start();
    ask(&server, &key, &chat(json!({}))).ok();
    let list: Value = serde_json::from_str(&server.launch.cli("keys list --json").stdout).expect("JSON");
    let doomed =
        list.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "doomed")).expect("it is listed");
    let revoke = format!("keys revoke {}", doomed["id"].as_str().expect("an id"));
    assert_eq!(server.launch.cli(&revoke).code, Some(0));
    assert!(eventually(|| ask(&server, &key, &chat(json!({}))).status == 401), "the cache forgets it");
    server.get("/v1/models").ok();
}

#[test]
fn the_first_key_closes_an_open_server() {
    let launch = Launch::fake("fake").set("auth.cache_ttl_s=0").set("auth.metrics_open=true");
    let server = launch.start();
    server.post(CHAT, &chat(json!({}))).ok();
    // Clients of other servers send keys that mean nothing here.
    ask(&server, "sk-dummy", &chat(json!({}))).ok();
    let key = server.launch.new_key("");
    server.post(CHAT, &chat(json!({}))).error(401);
    ask(&server, &key, &chat(json!({}))).ok();
}

#[test]
fn without_a_key_only_this_machine_is_served() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let refused = Launch::fake("fake").listen(address).fails();
        assert_eq!(refused.code, Some(64), "{refused:?}");
        assert!(refused.stderr.contains("garrick keys create"), "{refused:?}");
    }
    let server = Launch::fake("fake").keyed().listen("0.0.0.0:0").start();
    server.get("/v1/models").ok();
}

#[test]
fn tenants_do_not_share_cached_prefixes() {
    let launch = Launch::fake("fake").keyed();
    let other = launch.cli("keys create --tenant other").stdout.trim().to_owned();
    let (one, two) = (launch.new_key(""), launch.new_key(""));
    let server = launch.start();
    let cached = |key: &str| {
        let body = completion(json!({"prompt": "p".repeat(100)}));
        let answer = server.ask(&Request::post(COMPLETIONS, &body).key(key)).ok();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone()
    };
    assert_eq!(
        (cached(&one), cached(&two), cached(&other), cached(&other)),
        (0.into(), 96.into(), 0.into(), 96.into())
    );
}

#[test]
fn a_key_is_kept_as_a_hash_only() {
    let launch = Launch::fake("fake");
    let key = launch.new_key("--name visible --rpm 5 --tpm unlimited");
    let list = launch.cli("keys list").stdout;
    assert!(list.contains("visible") && list.contains("active") && !list.contains(&key), "{list}");
    let files = std::fs::read_dir(launch.dir()).expect("a folder").map(|file| file.expect("a file").path());
    let found = files.filter(|file| {
        let bytes = std::fs::read(file).expect("it can be read");
        bytes.windows(key.len()).any(|window| window == key.as_bytes())
    });
    assert_eq!(found.count(), 0);
}
