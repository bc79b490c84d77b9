//! What a request asks of sampling and stopping, seen from outside, on a fake model: it draws words as ` w300`.

use serde_json::{Value, json};

use crate::fixture::{COMPLETIONS, Launch, Server, choice_text, completion, with};

/// Of a fake model with the default vocabulary.
const END_TOKEN: &str = "1023";

fn ask(server: &Server, extra: Value) -> (String, String, u64) {
    let answer = server.post(COMPLETIONS, &completion(extra)).ok();
    let choice = &answer["choices"][0];
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let num_tokens = answer["usage"]["completion_tokens"].as_u64().expect("a count");
    (text(&choice["text"]), text(&choice["finish_reason"]), num_tokens)
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let server = Launch::fake("fake").start();
    let text = |extra| ask(&server, extra).0;
    assert_eq!(text(json!({"seed": 1})), text(json!({"seed": 1})));
    assert_ne!(text(json!({"seed": 1})), text(json!({"seed": 2})));
    assert_ne!(text(json!({})), text(json!({})));
    assert_eq!(text(json!({"temperature": 0})), text(json!({"temperature": 0, "seed": 9})));
    assert_eq!(text(json!({"seed": -1})), text(json!({"seed": -1})));
}

#[test]
fn a_stop_string_ends_the_text_wherever_it_falls() {
    let server = Launch::fake("fake").start();
    let (whole, _, _) = ask(&server, json!({"seed": 11, "max_tokens": 40}));
    // Pieces of the text itself: within a word, over one border, over two.
    for (at, len) in [(1, 1), (7, 2), (13, 4), (20, 5), (33, 7), (50, 12), (0, 5)] {
        let stop = &whole[at..at + len];
        let expected = &whole[..whole.find(stop).expect("it is there")];
        for (include, expected) in [(false, expected.to_owned()), (true, format!("{expected}{stop}"))] {
            let extra =
                json!({"seed": 11, "max_tokens": 40, "stop": ["never", stop], "include_stop_str_in_output": include});
            let (text, finish, num_tokens) = ask(&server, extra.clone());
            assert_eq!((text.as_str(), finish.as_str()), (expected.as_str(), "stop"), "stop {stop:?}");
            assert!(num_tokens <= 40);
            let chunks = server.stream(COMPLETIONS, &completion(with(extra, json!({"stream": true})))).rest();
            assert_eq!(choice_text(&chunks, 0), expected, "stop {stop:?}");
        }
    }
    // What only looked like the beginning of a stop string is told in the end.
    let (text, finish, _) =
        ask(&server, json!({"seed": 11, "max_tokens": 40, "stop": format!("{}!", &whole[whole.len() - 3..])}));
    assert_eq!((text, finish.as_str()), (whole, "length"));
}

#[test]
fn stop_tokens_end_the_text_and_are_not_in_it() {
    let server = Launch::fake("fake").start();
    let (whole, _, _) = ask(&server, json!({"seed": 4}));
    let words: Vec<&str> = whole.split(" w").skip(1).collect();
    let token: u32 = words[5].parse().expect("a word is its token");
    let first = words.iter().position(|word| *word == words[5]).expect("it is there");
    let (text, finish, num_tokens) = ask(&server, json!({"seed": 4, "stop_token_ids": [token]}));
    assert_eq!(text, words[..first].iter().map(|word| format!(" w{word}")).collect::<String>());
    assert_eq!((finish.as_str(), num_tokens), ("stop", first as u64 + 1));
}

#[test]
fn a_text_is_as_long_as_it_may_be() {
    let server = Launch::fake("fake").arg("--max-model-len").arg("64").start();
    let length = |extra| {
        let (_, finish, num_tokens) = ask(&server, extra);
        (finish, num_tokens)
    };
    for name in ["max_tokens", "max_completion_tokens"] {
        assert_eq!(length(json!({"max_tokens": null, name: 7})), ("length".into(), 7));
    }
    // "Hello" leaves 59 of 64.
    assert_eq!(length(json!({"max_tokens": null})), ("length".into(), 59));
    assert_eq!(length(json!({"max_tokens": 59})), ("length".into(), 59));
}

#[test]
fn the_end_token_ends_unless_it_is_ignored_or_too_early() {
    let server = Launch::fake("fake").start();
    let ends = json!({"logit_bias": {END_TOKEN: 100}});
    assert_eq!(ask(&server, ends.clone()), (String::new(), "stop".into(), 1));
    assert_eq!(ask(&server, with(ends.clone(), json!({"ignore_eos": true}))), (String::new(), "length".into(), 12));
    let (text, finish, num_tokens) = ask(&server, with(ends, json!({"min_tokens": 5})));
    assert_eq!((text.matches(" w").count(), finish.as_str(), num_tokens), (5, "stop", 6));
}

#[test]
fn a_bias_forces_or_forbids_a_token() {
    let server = Launch::fake("fake").start();
    assert_eq!(ask(&server, json!({"logit_bias": {"300": 100}, "max_tokens": 3})).0, " w300 w300 w300");
    let (plain, ..) = ask(&server, json!({"temperature": 0, "max_tokens": 1}));
    let token = plain.trim_start_matches(" w");
    let (other, ..) = ask(&server, json!({"temperature": 0, "max_tokens": 1, "logit_bias": {token: -100}}));
    assert_ne!(plain, other);
}

#[test]
fn choices_differ_but_not_when_greedy() {
    let server = Launch::fake("fake").start();
    let texts = |extra| {
        let answer = server.post(COMPLETIONS, &completion(with(json!({"n": 4}), extra))).ok();
        let mut texts: Vec<_> =
            answer["choices"].as_array().expect("choices").iter().map(|c| c["text"].to_string()).collect();
        texts.sort_unstable();
        texts.dedup();
        texts.len()
    };
    assert_eq!(texts(json!({"seed": 1})), 4);
    assert_eq!(texts(json!({"temperature": 0})), 1);
}
