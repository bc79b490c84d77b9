use proptest::prelude::*;
use serde_json::{Value, json};

use super::chat::{ChatRequest, RenderRequest};
use super::completion::{CompletionRequest, Prompt};
use super::tokenize::{DetokenizeRequest, TokenizeInput, TokenizeRequest};
use crate::base::error::{Code, Error};
use crate::sample::SamplingParams;

const VOCAB: u32 = 1000;

fn body(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// A chat request with these fields over the least one.
fn chat(extra: Value) -> Result<ChatRequest, Error> {
    let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    ChatRequest::parse(&body(&request), VOCAB)
}

fn completion(extra: Value) -> Result<CompletionRequest, Error> {
    let mut request = json!({"model": "m", "prompt": "hi"});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    CompletionRequest::parse(&body(&request), VOCAB)
}

fn messages(messages: Value) -> Result<ChatRequest, Error> {
    chat(json!({ "messages": messages }))
}

/// The error is a 400 that names `param`, and its message has every one of `words`.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, param: &str, words: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.code, Code::InvalidRequest);
    assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
    for word in words {
        assert!(error.message.contains(word), "'{}' lacks '{word}'", error.message);
    }
}

#[test]
fn the_least_request_leaves_everything_to_the_defaults() {
    let request = chat(json!({})).unwrap();
    assert_eq!(request.model, "m");
    assert_eq!(request.messages, json!([{"role": "user", "content": "hi"}]));
    assert!(request.template.add_generation_prompt && request.template.kwargs.is_empty());
    assert!(!request.streaming.stream);
    assert_eq!((request.sampling.n, request.sampling.max_tokens, request.sampling.logprobs), (1, None, None));
    let defaults = SamplingParams { temperature: 0.6, top_k: 20, ..SamplingParams::default() };
    assert_eq!(request.sampling.params(&defaults, 7), SamplingParams { seed: 7, ..defaults });
}

#[test]
fn every_sampling_field_arrives() {
    let request = chat(json!({
        "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.25, "frequency_penalty": -2, "presence_penalty": 2,
        "repetition_penalty": 1.5, "seed": -3, "logit_bias": {"0": -100, "999": 1.5}, "logprobs": true,
        "top_logprobs": 20, "stop": ["a", "b"], "stop_token_ids": [5, 6], "include_stop_str_in_output": true,
        "min_tokens": 2, "max_tokens": 9, "max_completion_tokens": 9, "ignore_eos": true, "n": 16, "stream": true,
        "stream_options": {"include_usage": true, "include_obfuscation": false},
        "chat_template_kwargs": {"enable_thinking": false}, "add_generation_prompt": false,
        "continue_final_message": false,
    }))
    .unwrap();
    let s = &request.sampling;
    assert_eq!(
        (s.stop.clone(), s.stop_token_ids.clone(), s.include_stop),
        (vec!["a".into(), "b".into()], vec![5, 6], true)
    );
    assert_eq!((s.min_tokens, s.max_tokens, s.ignore_eos, s.n), (2, Some(9), true, 16));
    assert!(request.streaming.stream && request.streaming.include_usage && !request.template.add_generation_prompt);
    assert_eq!(request.template.kwargs["enable_thinking"], false);
    let defaults = SamplingParams { temperature: 0.6, top_k: 20, ..SamplingParams::default() };
    let expected = SamplingParams {
        temperature: 0.0,
        top_k: 0,
        top_p: 0.5,
        min_p: 0.25,
        frequency_penalty: -2.0,
        presence_penalty: 2.0,
        repetition_penalty: 1.5,
        logit_bias: vec![(0, -100.0), (999, 1.5)],
        logprobs: Some(20),
        seed: u64::MAX - 2,
    };
    assert_eq!(s.params(&defaults, 7), expected);
}

#[test]
fn null_is_the_same_as_absent() {
    let nothing = chat(json!({})).unwrap();
    let names = [
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "logit_bias",
        "stop",
        "n",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "functions",
        "response_format",
        "audio",
        "modalities",
        "prediction",
        "web_search_options",
        "reasoning_effort",
        "user",
        "metadata",
        "store",
        "service_tier",
        "no_such_field",
    ];
    for name in names {
        assert_eq!(chat(json!({ name: null })).unwrap(), nothing, "{name}");
    }
    assert!(messages(json!([{"role": "user", "content": "x", "name": null, "no_such_field": null}])).is_ok());
}

#[test]
fn what_openai_ignores_is_accepted() {
    let nothing = chat(json!({})).unwrap();
    for (name, value) in [
        ("user", json!("u1")),
        ("metadata", json!({"a": "b"})),
        ("store", json!(false)),
        ("service_tier", json!("auto")),
        ("service_tier", json!("default")),
        ("safety_identifier", json!("x")),
        ("prompt_cache_key", json!("x")),
        ("response_format", json!({"type": "text"})),
        ("modalities", json!(["text"])),
        ("tools", json!([])),
    ] {
        assert_eq!(chat(json!({ name: value })).unwrap(), nothing, "{name}");
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for name in [
        "audio",
        "function_call",
        "functions",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "reasoning_effort",
        "tool_choice",
        "verbosity",
        "web_search_options",
        "prompt_cache_options",
        "prompt_cache_retention",
    ] {
        for value in [json!("x"), json!(false), json!({}), json!([])] {
            refused(chat(json!({ name: value })), name, &[name, "not supported"]);
        }
    }
    refused(chat(json!({"tools": [{"type": "function"}]})), "tools", &["not supported"]);
    refused(
        chat(json!({"response_format": {"type": "json_object"}})),
        "response_format",
        &["response_format.type", "'text'"],
    );
    refused(chat(json!({"response_format": {"type": "text", "x": 1}})), "response_format.x", &["not a known field"]);
    refused(chat(json!({"modalities": ["text", "audio"]})), "modalities", &["text only"]);
    refused(chat(json!({"store": true})), "store", &["store = true"]);
    refused(chat(json!({"service_tier": "flex"})), "service_tier", &["flex", "'auto'"]);
    refused(chat(json!({"continue_final_message": true})), "continue_final_message", &["not supported"]);
    refused(completion(json!({"suffix": "x"})), "suffix", &["not supported"]);
    refused(completion(json!({"best_of": 4, "n": 2})), "best_of", &["best_of = 4"]);
    refused(completion(json!({"tools": []})), "tools", &["not a known field"]);
    for unknown in ["guided_json", "messages_", "Temperature"] {
        refused(chat(json!({ unknown: 1 })), unknown, &["not a known field"]);
        refused(completion(json!({ unknown: 1 })), unknown, &["not a known field"]);
    }
}

#[test]
fn numbers_out_of_range_name_their_limits() {
    for (name, value, words) in [
        ("temperature", json!(2.1), ["from 0 to 2", "not 2.1"]),
        ("temperature", json!("hot"), ["a number", "not a string"]),
        ("top_p", json!(0), ["above 0, up to 1", "not 0"]),
        ("top_p", json!(1e-60), ["above 0", "not 1.0"]),
        ("top_k", json!(-2), ["from -1 to", "not -2"]),
        ("top_k", json!(1.5), ["an integer", "not 1.5"]),
        ("min_p", json!(1.01), ["from 0 to 1", "not 1.01"]),
        ("frequency_penalty", json!(-2.5), ["from -2 to 2", "not -2.5"]),
        ("repetition_penalty", json!(10.5), ["above 0, up to 10", "not 10.5"]),
        ("seed", json!(9_223_372_036_854_775_808u64), ["an integer", "not 9223372036854775808"]),
        ("n", json!(17), ["from 1 to 16", "not 17"]),
        ("max_tokens", json!(0), ["from 1 to", "not 0"]),
        ("max_tokens", json!(true), ["an integer", "not true or false"]),
        ("prompt_logprobs", json!(21), ["from 0 to 20", "not 21"]),
        ("stream", json!("yes"), ["true or false", "not a string"]),
    ] {
        refused(chat(json!({ name: value })), name, &words);
        refused(completion(json!({ name: value })), name, &words);
    }
    refused(chat(json!({"logprobs": 5})), "logprobs", &["true or false"]);
    refused(completion(json!({"logprobs": true})), "logprobs", &["from 0 to 20"]);
    refused(chat(json!({"top_logprobs": 5})), "top_logprobs", &["only with logprobs"]);
    refused(chat(json!({"max_tokens": 5, "max_completion_tokens": 6})), "max_completion_tokens", &["6", "5"]);
    refused(chat(json!({"max_tokens": 5, "min_tokens": 6})), "min_tokens", &["6", "5"]);
    refused(chat(json!({"stream_options": {}})), "stream_options", &["stream = true"]);
    let streamed = json!({"stream": true, "stream_options": {"include_usage": 1}});
    refused(chat(streamed), "stream_options.include_usage", &["true or false"]);
    refused(chat(json!({"stream": true, "prompt_logprobs": 1})), "prompt_logprobs", &["not available in streams"]);
}

#[test]
fn lists_and_maps_are_bounded_and_their_entries_checked() {
    refused(chat(json!({"stop": ["a", ""]})), "stop[1]", &["empty", "256"]);
    refused(chat(json!({"stop": ""})), "stop", &["empty"]);
    refused(chat(json!({"stop": vec!["a"; 17]})), "stop", &["17 entries", "16"]);
    refused(chat(json!({"stop": "x".repeat(257)})), "stop", &["257 bytes", "256"]);
    refused(chat(json!({"stop": ["a", 3]})), "stop[1]", &["a string", "a number"]);
    refused(chat(json!({"stop_token_ids": [1, 1000]})), "stop_token_ids[1]", &["0 to 999", "not 1000"]);
    refused(chat(json!({"stop_token_ids": vec![1; 65]})), "stop_token_ids", &["65 entries", "64"]);
    refused(chat(json!({"logit_bias": {"5": 101}})), "logit_bias.5", &["from -100 to 100", "not 101"]);
    for name in ["1000", "x", "-1", "+1", "01", ""] {
        refused(chat(json!({"logit_bias": {name: 1}})), &format!("logit_bias.{name}"), &["0 to 999"]);
    }
    let many: serde_json::Map<_, _> = (0..1025).map(|i| (i.to_string(), json!(1))).collect();
    refused(chat(json!({ "logit_bias": many })), "logit_bias", &["1025 entries", "1024"]);
    refused(chat(json!({"metadata": {"a": 1}})), "metadata.a", &["a string"]);
    refused(
        chat(json!({"chat_template_kwargs": {"messages": []}})),
        "chat_template_kwargs.messages",
        &["by the server"],
    );
    let long = "k".repeat(5000);
    let error = chat(json!({ &long: 1 })).unwrap_err();
    assert!(error.message.len() < 200 && error.param.unwrap().len() < 100, "a client's text is cut");
}

#[test]
fn conversations_keep_what_templates_read() {
    let request = messages(json!([
        {"role": "system", "content": "s", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        // As the SDK gives back what it got.
        {"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null, "function_call": null,
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "assistant", "content": "done", "reasoning_content": "hm", "tool_calls": null},
        {"role": "developer", "content": ""},
    ]))
    .unwrap();
    assert_eq!(
        request.messages,
        json!([
            {"role": "system", "content": "s", "name": "boss"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null,
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
            {"role": "assistant", "content": "done", "reasoning_content": "hm"},
            {"role": "developer", "content": ""},
        ])
    );
}

#[test]
fn a_wrong_message_is_named_by_its_place() {
    refused(messages(json!([])), "messages", &["empty"]);
    refused(messages(json!("hi")), "messages", &["a list", "a string"]);
    refused(messages(json!(["hi"])), "messages[0]", &["an object", "a string"]);
    refused(ChatRequest::parse(br#"{"model": "m"}"#, VOCAB), "messages", &["missing"]);
    refused(ChatRequest::parse(br#"{"messages": []}"#, VOCAB), "model", &["missing", "'default'"]);
    let good = json!({"role": "user", "content": "x"});
    let second = |message: Value| messages(json!([good, message]));
    refused(second(json!({"content": "x"})), "messages[1].role", &["missing", "'user'"]);
    refused(second(json!({"role": "robot", "content": "x"})), "messages[1].role", &["'robot'", "'assistant'"]);
    refused(second(json!({"role": "user"})), "messages[1].content", &["missing"]);
    refused(second(json!({"role": "user", "content": null})), "messages[1].content", &["missing"]);
    refused(second(json!({"role": "assistant", "content": null})), "messages[1].content", &["missing"]);
    refused(second(json!({"role": "user", "content": 5})), "messages[1].content", &["a number"]);
    refused(second(json!({"role": "user", "content": []})), "messages[1].content", &["empty"]);
    refused(second(json!({"role": "user", "content": ["x"]})), "messages[1].content[0]", &["an object"]);
    for kind in ["image_url", "input_audio", "file", "refusal"] {
        let content = json!([{"type": "text", "text": "x"}, {"type": kind, kind: {}}]);
        refused(
            second(json!({"role": "user", "content": content})),
            "messages[1].content[1].type",
            &[kind, "text only"],
        );
    }
    refused(second(json!({"role": "user", "content": "x", "weight": 1})), "messages[1].weight", &["not a known field"]);
    refused(
        second(json!({"role": "user", "content": "x", "tool_calls": [1]})),
        "messages[1].tool_calls",
        &["not a known"],
    );
    refused(second(json!({"role": "assistant", "content": "x", "audio": {}})), "messages[1].audio", &["not supported"]);
    let called = |call: Value| second(json!({"role": "assistant", "tool_calls": [call]}));
    refused(called(json!({"type": "custom"})), "messages[1].tool_calls[0].type", &["'custom'", "'function'"]);
    refused(called(json!({})), "messages[1].tool_calls[0].function", &["missing"]);
    refused(called(json!({"function": {}})), "messages[1].tool_calls[0].function.name", &["missing"]);
    let bad = json!({"function": {"name": "f", "arguments": 3}});
    refused(called(bad), "messages[1].tool_calls[0].function.arguments", &["a number"]);
}

#[test]
fn a_render_request_may_carry_tools() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let request = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools});
    assert_eq!(RenderRequest::parse(&body(&request), VOCAB).unwrap().tools, Some(tools));
    let request = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [1]});
    refused(RenderRequest::parse(&body(&request), VOCAB), "tools[0]", &["an object"]);
}

#[test]
fn prompts_come_in_four_kinds() {
    let prompts = |prompt: Value| completion(json!({ "prompt": prompt })).map(|r| r.prompts);
    let text = |t: &str| Prompt::Text(t.into());
    assert_eq!(prompts(json!("a")).unwrap(), [text("a")]);
    assert_eq!(prompts(json!(["a", ""])).unwrap(), [text("a"), text("")]);
    assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], [2, 999]])).unwrap(), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 999])]);
    refused(CompletionRequest::parse(br#"{"model": "m"}"#, VOCAB), "prompt", &["missing"]);
    refused(prompts(json!({})), "prompt", &["a list of token ids", "an object"]);
    refused(prompts(json!([])), "prompt", &["empty list"]);
    refused(prompts(json!([[]])), "prompt[0]", &["empty list"]);
    refused(prompts(json!([true])), "prompt[0]", &["true or false"]);
    refused(prompts(json!(["a", [1]])), "prompt[1]", &["a string, as the first"]);
    refused(prompts(json!([[1], "a"])), "prompt[1]", &["a list, as the first"]);
    refused(prompts(json!([1, "a"])), "prompt[1]", &["0 to 999", "a string"]);
    refused(prompts(json!([[1], [2, 1000]])), "prompt[1][1]", &["0 to 999", "not 1000"]);
    refused(prompts(json!([[1], [-1]])), "prompt[1][0]", &["not -1"]);
    refused(prompts(json!(vec!["a"; 129])), "prompt", &["129 entries", "128"]);
    refused(completion(json!({"prompt": vec!["a"; 9], "n": 15})), "n", &["135 choices", "128"]);
    let request = completion(json!({"echo": true, "logprobs": 5, "best_of": 1, "suffix": ""})).unwrap();
    assert!(request.echo && request.sampling.logprobs == Some(5));
}

#[test]
fn tokenize_takes_texts_and_conversations() {
    let parse = |request: Value| TokenizeRequest::parse(&body(&request));
    let text = parse(json!({"prompt": "a", "return_token_strs": true})).unwrap();
    assert_eq!(text.input, TokenizeInput::Text("a".into()));
    assert!(text.add_special_tokens && text.return_token_strs && text.model.is_none());
    let chat = parse(json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{}]})).unwrap();
    assert!(!chat.add_special_tokens);
    assert!(matches!(chat.input, TokenizeInput::Chat { tools: Some(_), .. }));
    refused(parse(json!({})), "prompt", &["missing", "messages"]);
    refused(parse(json!({"prompt": "a", "messages": []})), "messages", &["not a known field"]);
    let tokens = |tokens: Value| DetokenizeRequest::parse(&body(&json!({ "tokens": tokens })), VOCAB).map(|r| r.tokens);
    assert_eq!(tokens(json!([1, 2])).unwrap(), [1, 2]);
    assert!(tokens(json!([])).unwrap().is_empty());
    refused(tokens(json!([1, 1000])), "tokens[1]", &["0 to 999"]);
    refused(tokens(json!("x")), "tokens", &["a list"]);
}

#[test]
fn what_is_not_an_object_is_refused_as_a_whole() {
    for bad in ["", "{", "[]", "3", "\"x\"", "{\"model\": }", "{} {}", &"[".repeat(10_000)] {
        let error = ChatRequest::parse(bad.as_bytes(), VOCAB).unwrap_err();
        assert!(error.code == Code::InvalidRequest && error.param.is_none(), "{bad}");
        assert!(error.message.starts_with("the body"), "{}", error.message);
    }
}

/// JSON of any shape, with the names that the parsers know at every level.
fn any_json() -> impl Strategy<Value = Value> {
    let names = prop_oneof![
        3 => prop::sample::select(vec![
            "model", "messages", "role", "content", "type", "text", "prompt", "stop", "logit_bias", "stream",
            "stream_options", "tool_calls", "function", "arguments", "name", "n", "seed", "tools", "metadata", "tokens",
            "response_format", "chat_template_kwargs", "max_tokens", "5",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["user", "assistant", "text", "function", "auto", "m"]).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn parse_all(body: &[u8]) -> Vec<Error> {
    let results = [
        ChatRequest::parse(body, VOCAB).map(drop),
        RenderRequest::parse(body, VOCAB).map(drop),
        CompletionRequest::parse(body, VOCAB).map(drop),
        TokenizeRequest::parse(body).map(drop),
        DetokenizeRequest::parse(body, VOCAB).map(drop),
    ];
    results.into_iter().filter_map(Result::err).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_json_panics_and_every_refusal_is_a_short_400(mut json in any_json(), with_model: bool) {
        if let (true, Some(map)) = (with_model, json.as_object_mut()) {
            map.insert("model".into(), "m".into());
        }
        for error in parse_all(&body(&json)) {
            prop_assert_eq!(error.code, Code::InvalidRequest);
            prop_assert!(!error.message.is_empty() && error.message.len() < 1200, "{}", error.message);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        parse_all(&bytes);
    }

    /// One field at a time, so that deep checks are reached: what is accepted is within its limits.
    #[test]
    fn what_is_accepted_is_within_its_limits(name in prop::sample::select(vec![
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "stop", "logit_bias", "stop_token_ids",
    ]), value in any_json()) {
        if let Ok(request) = completion(json!({ name: value })) {
            let s = request.sampling.params(&SamplingParams::default(), 0);
            prop_assert!((0.0..=2.0).contains(&s.temperature) && s.top_p > 0.0 && s.top_p <= 1.0);
            prop_assert!((0.0..=1.0).contains(&s.min_p) && s.repetition_penalty > 0.0 && s.repetition_penalty <= 10.0);
            prop_assert!(s.logit_bias.iter().all(|(t, b)| *t < VOCAB && b.abs() <= 100.0));
            let s = request.sampling;
            prop_assert!((1..=16).contains(&s.n) && s.stop.iter().all(|t| (1..=256).contains(&t.len())));
            prop_assert!(s.stop_token_ids.iter().all(|t| *t < VOCAB));
        }
    }
}
