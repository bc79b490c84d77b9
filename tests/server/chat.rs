//! Chats on a fake model: the shapes of answers and streams, ids, usage.

use serde_json::{Value, json};

use crate::fixture::{CHAT, Launch, Request, chat};

#[test]
fn a_whole_answer_has_openais_shape() {
    let server = Launch::fake("fake").start();
    let answer = server.post(CHAT, &chat(json!({"n": 2}))).ok();
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")), "{answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("fake")));
    assert!(answer["created"].as_u64().is_some_and(|created| created > 1_700_000_000));
    assert!(answer["system_fingerprint"].is_string());
    for (index, choice) in answer["choices"].as_array().expect("choices").iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!((&choice["message"]["role"], &choice["message"]["refusal"]), (&json!("assistant"), &Value::Null));
        assert!(choice["logprobs"].is_null());
    }
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(2));
    // A fake model's token is a byte on the way in: "user: Hello\n".
    let usage = json!({
        "prompt_tokens": 12, "completion_tokens": 24, "total_tokens": 36,
        "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
    });
    assert_eq!(answer["usage"], usage);
}

#[test]
fn a_stream_has_openais_shape_and_its_headers() {
    let server = Launch::fake("fake").start();
    let body = chat(json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}}));
    let mut stream = server.stream(CHAT, &body);
    let headers = [
        ("content-type", Some("text/event-stream")),
        ("cache-control", Some("no-store")),
        ("x-accel-buffering", Some("no")),
        ("transfer-encoding", Some("chunked")),
        ("content-encoding", None),
        ("content-length", None),
    ];
    for (name, value) in headers {
        assert_eq!(stream.head.header(name), value, "{name}");
    }
    let mut chunks = stream.rest();
    for (index, chunk) in chunks.iter().take(2).enumerate() {
        assert_eq!(chunk["choices"][0]["index"], index);
        assert_eq!(chunk["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    }
    let usage = chunks.pop().expect("usage is the last");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(24)));
    let id = usage["id"].as_str().expect("an id");
    for chunk in &chunks {
        assert_eq!((chunk["id"].as_str(), &chunk["object"]), (Some(id), &json!("chat.completion.chunk")));
        assert_eq!(chunk.get("usage"), Some(&Value::Null), "usage is there and null until the end");
        assert!(chunk["choices"][0]["delta"].get("role").is_none() || chunk["choices"][0]["delta"]["content"] == "");
    }
    // Without being asked for, usage is not there at all.
    let plain = server.stream(CHAT, &chat(json!({"stream": true}))).rest();
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[test]
fn a_request_id_is_the_clients_where_it_is_fit_and_ours_where_not() {
    let server = Launch::fake("fake").start();
    let long = "x".repeat(129);
    let cases = [
        (Some("abc-1.2_3:4/5+6="), true),
        (None, false),
        (Some(""), false),
        (Some("two words"), false),
        (Some("\"quoted\""), false),
        (Some(long.as_str()), false),
    ];
    for (given, is_kept) in cases {
        for body in [chat(json!({})), chat(json!({"stream": true})), json!({})] {
            let request = Request::post(CHAT, &body);
            let request = given.map_or(request.clone(), |id| request.header("x-request-id", id));
            let answer = server.ask(&request);
            let id = answer.header("x-request-id").expect("an id");
            assert_eq!(Some(id) == given, is_kept, "{given:?} became {id}");
            assert!(is_kept || id.starts_with("req_"), "{id}");
        }
    }
}

#[test]
fn one_connection_serves_many_requests() {
    let server = Launch::fake("fake").start();
    let mut connection = server.connect();
    for _ in 0..3 {
        connection.ask(&Request::post(CHAT, &chat(json!({})))).ok();
        let streamed = connection.ask(&Request::post(CHAT, &chat(json!({"stream": true}))));
        assert!(streamed.text().ends_with("data: [DONE]\n\n"));
        connection.ask(&Request::get("/nowhere")).error(404);
    }
}

#[test]
fn messages_and_fields_that_openai_takes_are_taken() {
    let server = Launch::fake("fake").start();
    let fields = [
        json!({"user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "safety_identifier": "s"}),
        json!({"tools": [], "response_format": {"type": "text"}, "modalities": ["text"], "logprobs": false}),
        json!({"stop": null, "temperature": null, "max_completion_tokens": 12, "chat_template_kwargs": {"a": 1}}),
        json!({"messages": [
            {"role": "system", "content": "s"}, {"role": "developer", "content": "d"},
            {"role": "user", "name": "n", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "t"},
        ]}),
    ];
    for extra in fields {
        server.post(CHAT, &chat(extra)).ok();
    }
}

#[test]
fn a_model_has_its_served_name_and_default() {
    let server = Launch::fake("fake").arg("--served-model-name").arg("org/mine").start();
    for name in ["org/mine", "default"] {
        assert_eq!(server.post(CHAT, &chat(json!({"model": name}))).ok()["model"], "org/mine");
    }
    let error = server.post(CHAT, &chat(json!({"model": "fake"}))).error(404);
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    assert!(error["message"].as_str().is_some_and(|m| m.contains("'fake'") && m.contains("'org/mine'")), "{error}");
}
