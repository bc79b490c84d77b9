//! Text completions on a fake model: every form of prompt, echo, log-probabilities.

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Server, chat, completion};

fn texts(server: &Server, extra: Value) -> Vec<String> {
    let answer = server.post(COMPLETIONS, &completion(extra)).ok();
    let choices = answer["choices"].as_array().expect("choices").iter().enumerate();
    choices
        .map(|(index, choice)| {
            assert_eq!(choice["index"], index, "{answer}");
            choice["text"].as_str().expect("a text").to_owned()
        })
        .collect()
}

#[test]
fn every_form_of_prompt_is_the_same_prompt() {
    let server = Launch::fake("fake").start();
    let expected = texts(&server, json!({"prompt": "Hi", "seed": 3}));
    let other = texts(&server, json!({"prompt": "Ho", "seed": 3}));
    assert_ne!(expected, other);
    // A fake model's bytes are its first tokens.
    for prompt in [json!(["Hi"]), json!([72, 105]), json!([[72, 105]])] {
        assert_eq!(texts(&server, json!({"prompt": prompt, "seed": 3})), expected);
    }
    let both = [expected, other].concat();
    for prompt in [json!(["Hi", "Ho"]), json!([[72, 105], [72, 111]])] {
        assert_eq!(texts(&server, json!({"prompt": prompt, "seed": 3})), both);
    }
}

#[test]
fn choices_stand_prompt_by_prompt() {
    let server = Launch::fake("fake").start();
    let of = |prompt: &str| texts(&server, json!({"prompt": prompt, "n": 2, "seed": 3}));
    let expected = [of("one"), of("two"), of("three")].concat();
    assert_eq!(texts(&server, json!({"prompt": ["one", "two", "three"], "n": 2, "seed": 3})), expected);
    let answer = server.post(COMPLETIONS, &completion(json!({"prompt": ["one", "two"], "n": 2}))).ok();
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(6), &json!(48)));
}

#[test]
fn an_echo_is_the_prompt_before_the_answer() {
    let server = Launch::fake("fake").start();
    let plain = texts(&server, json!({"prompt": ["Hey ", "you"], "seed": 3}));
    let echoed = texts(&server, json!({"prompt": ["Hey ", "you"], "seed": 3, "echo": true}));
    assert_eq!(echoed, [format!("Hey {}", plain[0]), format!("you{}", plain[1])]);
    let body = completion(json!({"prompt": "Hey", "echo": true, "stream": true}));
    let first = server.stream(COMPLETIONS, &body).rest().swap_remove(0);
    assert_eq!(first["choices"][0]["text"], "Hey");
}

#[test]
fn log_probabilities_stand_beside_their_tokens() {
    let server = Launch::fake("fake").start();
    for (echo, top, prompt) in
        [(false, 0, "Hey"), (false, 3, "Hey"), (true, 0, "Hey"), (true, 3, "Hey"), (true, 2, "H")]
    {
        let body = completion(json!({"prompt": prompt, "echo": echo, "logprobs": top, "max_tokens": 5}));
        let answer = server.post(COMPLETIONS, &body).ok();
        let choice = &answer["choices"][0];
        let lists = &choice["logprobs"];
        let list = |name: &str| lists[name].as_array().unwrap_or_else(|| panic!("{name}: {choice}")).clone();
        let num_tokens = 5 + if echo { prompt.len() } else { 0 };
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(name).len(), num_tokens, "{name}: {choice}");
        }
        let tokens: Vec<_> = list("tokens").iter().map(|t| t.as_str().expect("a text").to_owned()).collect();
        assert_eq!(tokens.concat(), choice["text"].as_str().expect("a text"));
        let offsets = tokens.iter().scan(0, |end, token| Some(std::mem::replace(end, *end + token.chars().count())));
        assert_eq!(list("text_offset"), offsets.map(Value::from).collect::<Vec<_>>());
        for (i, (logprob, top_of)) in list("token_logprobs").iter().zip(list("top_logprobs")).enumerate() {
            // Nothing predicts the first token of a prompt.
            assert_eq!(logprob.is_null(), echo && i == 0, "{choice}");
            assert_eq!(top_of.as_object().map(serde_json::Map::len), (!(echo && i == 0)).then_some(top), "{choice}");
        }
    }
}

#[test]
fn chats_have_log_probabilities_with_bytes() {
    let server = Launch::fake("fake").start();
    let answer = server.post(CHAT, &chat(json!({"logprobs": true, "top_logprobs": 3}))).ok();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    assert_eq!(content.len(), 12);
    for entry in &content {
        let token = entry["token"].as_str().expect("a text");
        assert_eq!(entry["bytes"], json!(token.as_bytes()));
        assert!(entry["logprob"].as_f64().is_some_and(|logprob| logprob < 0.0));
        assert_eq!(entry["top_logprobs"].as_array().map(Vec::len), Some(3));
        assert_eq!(entry["top_logprobs"][0]["token"], token);
    }
    let text: String = content.iter().filter_map(|entry| entry["token"].as_str()).collect();
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    let none = server.post(CHAT, &chat(json!({"logprobs": true}))).ok();
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn prompts_have_log_probabilities_too() {
    let server = Launch::fake("fake").start();
    let check = |list: &Value, num_tokens: usize| {
        let list = list.as_array().expect("a list");
        assert_eq!(list.len(), num_tokens);
        assert!(list[0].is_null());
        for entry in &list[1..] {
            let (_, own) = entry.as_object().and_then(|o| o.iter().next()).expect("the token itself");
            assert!(own["logprob"].is_f64() && own["rank"] == 1 && own["decoded_token"].is_string(), "{entry}");
        }
    };
    // Twice: what the prefix cache holds must not be missing. 40 tokens are more than two blocks.
    for _ in 0..2 {
        let body = completion(json!({"prompt": ["x".repeat(40), "y"], "prompt_logprobs": 2, "n": 2}));
        let answer = server.post(COMPLETIONS, &body).ok();
        for (index, num_tokens) in [(0, 40), (1, 40), (2, 1), (3, 1)] {
            check(&answer["choices"][index]["prompt_logprobs"], num_tokens);
        }
        check(&server.post(CHAT, &chat(json!({"prompt_logprobs": 0}))).ok()["prompt_logprobs"], 12);
    }
}

#[test]
fn a_prefix_is_computed_once() {
    let server = Launch::fake("fake").start();
    let body = completion(json!({"prompt": "p".repeat(100)}));
    let cached = || server.post(COMPLETIONS, &body).ok()["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(), 0);
    assert_eq!(cached(), 96);
    let off = Launch::fake("fake").set("kv.prefix_cache=false").start();
    let cached = || off.post(COMPLETIONS, &body).ok()["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!((cached(), cached()), (json!(0), json!(0)));
}
