//! Refusals: the status, OpenAI's shape, and which field it was.

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Request, Server, chat, completion, with};

#[track_caller]
fn refused(server: &Server, path: &str, body: &Value, param: &str) {
    let shown: String = body.to_string().chars().take(200).collect();
    let answer = server.post(path, body);
    assert_eq!(answer.status, 400, "{path} {shown}: {}", answer.text());
    let error = answer.error(400);
    assert_eq!((&error["param"], &error["type"]), (&json!(param), &json!("invalid_request_error")), "{shown}");
    let message = error["message"].as_str().expect("a text");
    let names_it = message.contains(param.split(['[', '.']).next().unwrap_or(param));
    assert!(names_it && message.len() < 400, "{shown}: {message}");
}

#[test]
fn wrong_fields_of_both_routes_are_refused_by_name() {
    let server = Launch::fake("fake").start();
    let cases = [
        ("model", json!(null)),
        ("model", json!(1)),
        ("temperature", json!("hot")),
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("top_p", json!(0)),
        ("top_p", json!(1.01)),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("min_p", json!(1.1)),
        ("frequency_penalty", json!(2.5)),
        ("presence_penalty", json!(-2.5)),
        ("repetition_penalty", json!(0)),
        ("seed", json!("x")),
        ("seed", json!(1e30)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!("many")),
        ("max_completion_tokens", json!(13)),
        ("min_tokens", json!(13)),
        ("stop", json!(5)),
        ("stop", json!("")),
        ("stop[1]", json!(["a", 1])),
        ("stop", json!(vec!["x"; 17])),
        ("stop", json!("x".repeat(257))),
        ("stop_token_ids", json!("x")),
        ("stop_token_ids[0]", json!([1024])),
        ("logit_bias", json!([])),
        ("logit_bias.x", json!({"x": 1})),
        ("logit_bias.1024", json!({"1024": 1})),
        ("logit_bias.5", json!({"5": 101})),
        ("ignore_eos", json!(1)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("prompt_logprobs", json!(21)),
        ("metadata", json!("x")),
        ("metadata.a", json!({"a": 1})),
        ("user", json!(7)),
        ("store", json!(true)),
        ("service_tier", json!("flex")),
        ("best_beams", json!(1)),
        ("guided_json", json!({})),
    ];
    for (param, value) in cases {
        let name = param.split(['[', '.']).next().expect("a name");
        refused(&server, CHAT, &chat(json!({name: value})), param);
        refused(&server, COMPLETIONS, &completion(json!({name: value})), param);
    }
}

#[test]
fn wrong_fields_of_chats_are_refused_by_name() {
    let server = Launch::fake("fake").start();
    let fields = [
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("functions", json!([])),
        ("function_call", json!("none")),
        ("response_format", json!({"type": "json_schema", "json_schema": {}})),
        ("response_format", json!({"type": "json_object"})),
        ("reasoning_effort", json!("low")),
        ("prediction", json!({})),
        ("audio", json!({})),
        ("modalities", json!(["audio"])),
        ("web_search_options", json!({})),
        ("top_logprobs", json!(2)),
        ("logprobs", json!(3)),
        ("chat_template_kwargs", json!([])),
        ("chat_template_kwargs.messages", json!({"messages": []})),
        ("messages", json!(null)),
        ("messages", json!([])),
        ("messages", json!("Hello")),
        ("messages[0]", json!(["Hello"])),
        ("messages[0].role", json!([{"content": "x"}])),
        ("messages[0].role", json!([{"role": "pirate", "content": "x"}])),
        ("messages[0].content", json!([{"role": "user"}])),
        ("messages[0].content", json!([{"role": "user", "content": 5}])),
        ("messages[0].content", json!([{"role": "assistant", "content": null}])),
        ("messages[0].content[0].type", json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])),
        ("messages[0].colour", json!([{"role": "user", "content": "x", "colour": "red"}])),
    ];
    for (param, value) in fields {
        let name = param.split(['[', '.']).next().expect("a name");
        refused(&server, CHAT, &chat(json!({name: value})), param);
    }
    refused(&server, CHAT, &chat(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs");
    refused(&server, CHAT, &chat(json!({"stream": true, "prompt_logprobs": 1})), "prompt_logprobs");
    refused(&server, CHAT, &chat(json!({"prompt": "Hello"})), "prompt");
    let options = json!({"stream": true, "stream_options": {"speed": 1}});
    refused(&server, CHAT, &chat(options), "stream_options.speed");
}

#[test]
fn wrong_fields_of_completions_and_text_routes_are_refused_by_name() {
    let server = Launch::fake("fake").start();
    let fields = [
        ("prompt", json!(null)),
        ("prompt", json!("")),
        ("prompt", json!([])),
        ("prompt", json!({})),
        ("prompt[0]", json!([[]])),
        ("prompt[1]", json!(["a", [1]])),
        ("prompt[1]", json!([1, "a"])),
        ("prompt[0]", json!([1024])),
        ("prompt[0]", json!([-1])),
        ("prompt[0][1]", json!([[1, 2000]])),
        ("prompt[0]", json!([true])),
        ("prompt", json!(vec!["x"; 129])),
        ("logprobs", json!(true)),
        ("logprobs", json!(21)),
        ("echo", json!("yes")),
        ("best_of", json!(2)),
        ("suffix", json!("end")),
        ("messages", json!([])),
    ];
    for (param, value) in fields {
        let name = param.split(['[', '.']).next().expect("a name");
        refused(&server, COMPLETIONS, &completion(json!({name: value})), param);
    }
    refused(&server, COMPLETIONS, &completion(json!({"prompt": vec!["x"; 100], "n": 2})), "n");
    refused(&server, "/tokenize", &json!({}), "prompt");
    refused(&server, "/tokenize", &json!({"prompt": 5}), "prompt");
    refused(&server, "/tokenize", &json!({"prompt": "a", "colour": 1}), "colour");
    refused(&server, "/detokenize", &json!({}), "tokens");
    refused(&server, "/detokenize", &json!({"tokens": ["a"]}), "tokens[0]");
}

#[test]
fn what_is_no_json_object_is_refused() {
    let server = Launch::fake("fake").start();
    let deep = "[".repeat(10_000);
    let bodies: [&[u8]; 8] =
        [b"", b"{", b"[]", b"null", b"\"x\"", b"\xff\xfe", b"{\"model\": \"default\",}", deep.as_bytes()];
    for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize", "/v1/chat/completions/render"] {
        for body in bodies {
            let error = server.ask(&Request::new("POST", path).body(body)).error(400);
            assert_eq!((&error["code"], &error["param"]), (&json!("invalid_request"), &Value::Null), "{path}");
        }
    }
}

#[test]
fn a_body_over_the_limit_is_413() {
    let server = Launch::fake("fake").set("server.max_body_bytes=2048").start();
    let fits = completion(json!({"prompt": "x".repeat(1800)}));
    server.post(COMPLETIONS, &fits).ok();
    for path in [CHAT, COMPLETIONS, "/tokenize"] {
        let answer = server.post(path, &completion(json!({"prompt": "x".repeat(3000)})));
        let error = answer.error(413);
        assert_eq!((&error["code"], &error["type"]), (&json!("too_large"), &json!("invalid_request_error")), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains("2048")), "{error}");
    }
}

#[test]
fn unknown_routes_are_typed() {
    let server = Launch::fake("fake").start();
    for path in ["/", "/v1", "/v1/engines", "/v1/chat/completions/", "/health", "/%ff", "//"] {
        assert_eq!(server.get(path).error(404)["code"], "not_found", "{path}");
    }
}

#[test]
fn a_prompt_that_can_never_run_names_both_numbers() {
    let server = Launch::fake("fake").arg("--max-model-len").arg("64").start();
    let message = |path, body: &Value, param| {
        let error = server.post(path, body).error(400);
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!(param)), "{error}");
        error["message"].as_str().expect("a text").to_owned()
    };
    let text = message(COMPLETIONS, &completion(json!({"prompt": "x".repeat(70)})), "prompt");
    assert!(text.contains("64") && text.contains("70"), "{text}");
    let text = message(COMPLETIONS, &completion(json!({"prompt": "x".repeat(64), "max_tokens": null})), "prompt");
    assert!(text.contains("64"), "{text}");
    let text = message(COMPLETIONS, &completion(json!({"max_tokens": 60})), "prompt");
    assert!(text.contains("64") && text.contains("60"), "{text}");
    let long = json!([{"role": "user", "content": "x".repeat(70)}]);
    let text = message(CHAT, &chat(json!({"messages": long})), "messages");
    assert!(text.contains("64") && text.contains("77"), "{text}");
    // One good prompt does not save a bad one, and nothing of the good one stays.
    message(COMPLETIONS, &completion(json!({"prompt": ["x", "x".repeat(70)]})), "prompt");
}

/// A mebibyte of fake KV is 4096 blocks, which four lanes share: 1024 blocks hold 16384 tokens.
#[test]
fn a_prompt_larger_than_the_whole_kv_pool_names_both_numbers() {
    let launch = Launch::fake("fake").arg("--max-model-len").arg("100000").arg("--lanes").arg("4");
    let server = launch.arg("--kv-memory").arg("1MiB").start();
    let error = server.post(COMPLETIONS, &completion(json!({"prompt": "x".repeat(20_000)}))).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains("20000") && message.contains("KV"), "{message}");
    server.post(COMPLETIONS, &completion(json!({"prompt": "x".repeat(16_000)}))).ok();
}

#[test]
fn more_choices_than_run_at_once_are_refused() {
    let server = Launch::fake("fake").set("scheduler.max_running=2").start();
    refused(&server, CHAT, &chat(json!({"n": 3})), "n");
    server.post(CHAT, &chat(json!({"n": 2}))).ok();
}

#[test]
fn a_deadline_header_is_a_whole_number_within_the_limit() {
    let server = Launch::fake("fake").set("admission.max_timeout_ms=5000").start();
    let ask = |value: &str| server.ask(&Request::post(CHAT, &chat(json!({}))).header("x-request-timeout-ms", value));
    for value in ["", "0", "-1", "1.5", "soon", "5001", "99999999999999999999"] {
        let error = ask(value).error(400);
        assert_eq!((&error["code"], &error["param"]), (&json!("invalid_request"), &json!("X-Request-Timeout-Ms")));
        assert!(error["message"].as_str().is_some_and(|message| message.contains("5000")), "{error}");
    }
    ask("5000").ok();
}

#[test]
fn a_templates_own_refusal_is_a_400_with_its_message() {
    let server = Launch::fake("fake").start();
    let body = with(chat(json!({})), json!({"messages": [{"role": "user", "content": "x", "name": 5}]}));
    refused(&server, CHAT, &body, "messages[0].name");
}

#[test]
fn bytes_that_are_no_http_do_not_hurt() {
    let server = Launch::fake("fake").start();
    for bytes in [&b"\x00\xff\r\n\r\n"[..], b"GET\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"] {
        let mut connection = server.connect();
        connection.send_bytes(bytes);
        assert!(connection.ends());
    }
    server.post(CHAT, &chat(json!({}))).ok();
}

#[test]
fn small_requests_for_enormous_answers_are_refused() {
    let server = Launch::fake("fake").start();
    let prompts = vec![vec![5; 4000]; 8];
    let echoed = completion(json!({"prompt": prompts, "echo": true, "logprobs": 20, "n": 16, "max_tokens": 1}));
    refused(&server, COMPLETIONS, &echoed, "logprobs");
    let one = completion(json!({"prompt": vec![5; 4000], "echo": true, "logprobs": 5, "n": 2, "max_tokens": 1}));
    server.post(COMPLETIONS, &one).ok();
    let zeros = vec![0; 20_000];
    refused(&server, CHAT, &chat(json!({"chat_template_kwargs": {"x": [zeros.clone()]}})), "chat_template_kwargs.x");
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"enum": zeros}}}]);
    refused(&server, "/v1/chat/completions/render", &chat(json!({"tools": tools, "max_tokens": null})), "tools");
}

#[test]
fn sdks_are_told_what_is_not_worth_another_try() {
    let server = Launch::fake("fake:decode_us_per_step=20000").start();
    let late = Request::post(CHAT, &chat(json!({"max_tokens": 8000}))).header("x-request-timeout-ms", "100");
    let answer = server.ask(&late);
    assert_eq!(answer.error(504)["code"], "deadline_exceeded");
    assert_eq!(answer.header("x-should-retry"), Some("false"));
}
