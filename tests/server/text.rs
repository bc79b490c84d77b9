//! Routes that need no device: tokens, templates, models, health.

use serde_json::{Value, json};

use crate::fixture::{CHAT, Launch, chat};

#[test]
fn tokens_and_text_come_back_as_they_were() {
    let server = Launch::fake("fake").start();
    for text in ["Hello", "Grüße \u{1f600}\n\tx", " "] {
        let tokens = server.post("/tokenize", &json!({"prompt": text, "return_token_strs": true})).ok();
        let ids: Vec<u64> = text.bytes().map(u64::from).collect();
        assert_eq!((&tokens["tokens"], &tokens["count"]), (&json!(ids), &json!(ids.len())));
        assert_eq!(tokens["max_model_len"], 8192);
        assert_eq!(tokens["token_strs"].as_array().map(Vec::len), Some(ids.len()));
        let back = server.post("/detokenize", &json!({"model": "fake", "tokens": ids})).ok();
        assert_eq!(back, json!({"prompt": text}));
    }
    assert_eq!(server.post("/detokenize", &json!({"tokens": [300, 1023]})).ok()["prompt"], " w300<|end|>");
    assert_eq!(server.post("/tokenize", &json!({"prompt": "a"})).ok()["token_strs"], Value::Null);
    server.post("/tokenize", &json!({"prompt": "a", "model": "nope"})).error(404);
    assert_eq!(server.post("/detokenize", &json!({"tokens": [1024]})).error(400)["param"], "tokens[0]");
}

#[test]
fn a_rendered_chat_is_the_prompt_that_runs() {
    let server = Launch::fake("fake").start();
    let rendered = server.post("/v1/chat/completions/render", &chat(json!({"tools": [{"type": "function"}]}))).ok();
    assert_eq!((&rendered["prompt"], &rendered["count"]), (&json!("user: Hello\n"), &json!(12)));
    let tokenized = server.post("/tokenize", &json!({"messages": chat(json!({}))["messages"]})).ok();
    assert_eq!(tokenized["tokens"], rendered["tokens"]);
    assert_eq!(server.post(CHAT, &chat(json!({}))).ok()["usage"]["prompt_tokens"], rendered["count"]);
}

#[test]
fn the_model_is_listed_under_its_name() {
    let server = Launch::fake("fake").arg("--served-model-name").arg("mine").start();
    let list = server.get("/v1/models").ok();
    let model = &list["data"][0];
    assert_eq!((&list["object"], &model["id"], &model["object"]), (&json!("list"), &json!("mine"), &json!("model")));
    assert_eq!((&model["owned_by"], &model["max_model_len"]), (&json!("garrick"), &json!(8192)));
    assert_eq!(server.get("/v1/models/mine").ok(), *model);
    assert_eq!(server.get("/v1/models/default").ok(), *model);
    assert_eq!(server.get("/v1/models/other").error(404)["code"], "model_not_found");
    let server = Launch::fake("fake").arg("--served-model-name").arg("org/mine").start();
    for path in ["/v1/models/org/mine", "/v1/models/org%2Fmine"] {
        assert_eq!(server.get(path).ok()["id"], "org/mine");
    }
}

#[test]
fn health_and_metrics_answer() {
    let server = Launch::fake("fake").start();
    assert_eq!(server.get("/health/live").ok(), json!({"status": "live"}));
    assert_eq!(server.get("/health/ready").ok(), json!({"status": "ready", "reasons": []}));
    server.post(CHAT, &chat(json!({"n": 2}))).ok();
    server.wait_idle();
    assert_eq!(server.metric("garrick_generated_tokens_total"), 24.0);
    assert_eq!(server.metric("garrick_prompt_tokens_total"), 12.0);
    assert_eq!(server.metric("garrick_requests_total{route=\"/v1/chat/completions\"}"), 1.0);
    assert!(server.metric("garrick_steps_total") >= 12.0);
    assert_eq!(server.metric("garrick_build_info"), 1.0);
    for name in ["garrick_ttft_seconds_count", "garrick_itl_seconds_count", "garrick_queue_wait_seconds_count"] {
        assert!(server.metric(name) >= 1.0, "{name}");
    }
}
