//! Whatever is asked, a stream says in pieces what the whole answer says at once.

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Server, chat, choice_text, completion, with};

/// Fields that make answers differ; each case is asked whole and streamed, with the same seed.
fn cases(choices: Value, tail: Value) -> Vec<Value> {
    let base = [
        json!({}),
        json!({"temperature": 0}),
        json!({"max_tokens": 1}),
        json!({"stop": " w"}),
        json!({"stop": ["5", "17"], "max_tokens": 40}),
        json!({"stop": ["5", "17"], "max_tokens": 40, "include_stop_str_in_output": true}),
        json!({"stop_token_ids": (600..660).collect::<Vec<_>>(), "max_tokens": 40}),
        json!({"logit_bias": {"1023": 100}}),
        json!({"logit_bias": {"195": 100}, "max_tokens": 5}),
    ];
    base.into_iter()
        .flat_map(|case| [case.clone(), with(case.clone(), choices.clone()), with(case, tail.clone())])
        .collect()
}

#[test]
fn chats_agree() {
    let server = Launch::fake("fake").start();
    for case in cases(json!({"n": 3}), json!({"logprobs": true, "top_logprobs": 2})) {
        agree(&server, CHAT, chat(with(json!({"seed": 7}), case)));
    }
}

#[test]
fn completions_agree() {
    let server = Launch::fake("fake").start();
    for case in cases(json!({"n": 2, "prompt": ["Hello", "you"]}), json!({"logprobs": 2})) {
        for echo in [false, true] {
            agree(&server, COMPLETIONS, completion(with(json!({"seed": 7, "echo": echo}), case.clone())));
        }
    }
}

/// Text that no token ends at a character's border is never split.
#[test]
fn a_character_is_never_split() {
    let server = Launch::fake("fake").start();
    // Byte 0xC3 again and again: no valid text, and each piece must still be told once.
    let body = completion(json!({"logit_bias": {"195": 100}, "max_tokens": 4, "seed": 1}));
    let whole = server.post(COMPLETIONS, &body).ok();
    assert_eq!(whole["choices"][0]["text"], "\u{fffd}".repeat(4));
}

#[track_caller]
fn agree(server: &Server, path: &str, body: Value) {
    let whole = server.post(path, &body).ok();
    let streamed = with(body.clone(), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut chunks = server.stream(path, &streamed).rest();
    let usage = chunks.pop().expect("a chunk of usage");
    assert_eq!(usage["choices"], json!([]), "{body}");
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage["usage"][field], whole["usage"][field], "{field} of {body}");
    }
    for choice in whole["choices"].as_array().expect("choices") {
        let index = choice["index"].as_u64().expect("an index");
        let text = choice["text"].as_str().or(choice["message"]["content"].as_str()).expect("a text");
        assert_eq!(choice_text(&chunks, index), text, "choice {index} of {body}");
        let parts = parts(&chunks, index);
        assert_eq!(finish(&parts), choice["finish_reason"], "choice {index} of {body}");
        assert_eq!(logprobs(&parts), logprobs(&[choice]), "choice {index} of {body}");
    }
}

fn parts(chunks: &[Value], index: u64) -> Vec<&Value> {
    let all = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices"));
    all.filter(|choice| choice["index"] == index).collect()
}

/// The last part's reason; none of the others may have one.
fn finish(parts: &[&Value]) -> Value {
    let (last, others) = parts.split_last().expect("a part");
    assert!(others.iter().all(|part| part["finish_reason"].is_null()));
    last["finish_reason"].clone()
}

/// All lists of all parts, each joined, by name.
fn logprobs(parts: &[&Value]) -> Vec<(String, Vec<Value>)> {
    let names = ["content", "tokens", "token_logprobs", "top_logprobs", "text_offset"];
    let list = |name: &str| {
        let lists = parts.iter().filter_map(|part| part["logprobs"][name].as_array());
        lists.flatten().cloned().collect()
    };
    names.map(|name| (name.to_owned(), list(name))).into()
}
