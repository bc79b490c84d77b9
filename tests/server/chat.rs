//! Chats on a fake model: shapes, streams, limits.

use serde_json::{Value, json};

use crate::fixture::{Launch, choice_text};

pub const CHAT: &str = "/v1/chat/completions";

pub fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "default", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = Launch::fake("fake").start();
    let whole = server.post(CHAT, &chat(json!({"seed": 5}))).ok();
    let mut stream = server.stream(CHAT, &chat(json!({"seed": 5, "stream": true})));
    let chunks = stream.rest();
    assert_eq!(whole["choices"][0]["message"]["content"], choice_text(&chunks, 0));
}
