//! Responses, field for field. The texts were validated against the types of the OpenAI Python SDK (3.52.0), whose only
//! complaints are nulls that OpenAI itself sends and the SDK reads: `finish_reason` in chunks of text completions, and
//! what an echoed prompt's first token has for log-probabilities.

use serde::Serialize;

use super::error::ErrorBody;
use super::logprobs::*;
use super::models::{Model, ModelList};
use super::response::*;
use super::tokenize::{DetokenizeResponse, RenderResponse, TokenizeResponse};
use crate::base::error::Error;

#[track_caller]
fn golden(value: impl Serialize, expected: &str) {
    assert_eq!(serde_json::to_string(&value).unwrap(), expected);
}

fn head(object: &'static str) -> Head<'static> {
    Head { id: "x-1", object, created: 1_700_000_000, model: "demo", system_fingerprint: Some("fp_1") }
}

fn chat_logprobs() -> ChatLogprobs<'static> {
    let top = vec![TokenText::new("H".as_bytes(), -0.5), TokenText::new(vec![0xc3u8], f32::NEG_INFINITY)];
    ChatLogprobs { content: vec![ChatTokenLogprob { token: top[0].clone(), top_logprobs: top }], refusal: None }
}

#[test]
fn chat_completion() {
    let choice = ChatChoice {
        index: 0,
        message: ChatMessage::new("Hi"),
        logprobs: Some(chat_logprobs()),
        finish_reason: "stop",
    };
    let answer = ChatCompletion {
        head: head(Head::CHAT),
        choices: vec![choice],
        usage: Usage::new(10, 4, 2),
        prompt_logprobs: None,
    };
    golden(
        answer,
        r#"{"id":"x-1","object":"chat.completion","created":1700000000,"model":"demo","system_fingerprint":"fp_1","choices":[{"index":0,"message":{"role":"assistant","content":"Hi","refusal":null},"logprobs":{"content":[{"token":"H","logprob":-0.5,"bytes":[72],"top_logprobs":[{"token":"H","logprob":-0.5,"bytes":[72]},{"token":"�","logprob":-9999.0,"bytes":[195]}]}],"refusal":null},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":0}}}"#,
    );
}

#[test]
fn chat_chunks() {
    let chunk = |delta, finish_reason, usage| {
        let choice = ChatChunkChoice { index: 0, delta, logprobs: None, finish_reason };
        serde_json::to_string(&ChatChunk { head: head(Head::CHAT_CHUNK), choices: &[choice], usage }).unwrap()
    };
    let start = r#"{"id":"x-1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp_1","choices":["#;
    let opening = chunk(ChatDelta::opening(), None, ChunkUsage::NotAsked);
    assert_eq!(
        opening,
        format!(
            r#"{start}{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}"#
        )
    );
    let text = chunk(ChatDelta::text("Hi"), None, ChunkUsage::NotYet);
    assert_eq!(
        text,
        format!(
            r#"{start}{{"index":0,"delta":{{"content":"Hi"}},"logprobs":null,"finish_reason":null}}],"usage":null}}"#
        )
    );
    let last = chunk(ChatDelta::default(), Some("length"), ChunkUsage::NotAsked);
    assert_eq!(last, format!(r#"{start}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"length"}}]}}"#));
    let usage = ChunkUsage::Is(Usage::new(1, 0, 2));
    let end = serde_json::to_string(&ChatChunk { head: head(Head::CHAT_CHUNK), choices: &[], usage }).unwrap();
    assert_eq!(
        end,
        format!(
            r#"{start}],"usage":{{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":{{"cached_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0}}}}}}"#
        )
    );
}

#[test]
fn completion() {
    let mut logprobs = CompletionLogprobs::default();
    logprobs.push("<s>".into(), false, None, None);
    logprobs.push("né".into(), true, None, None);
    let top = [("a".to_owned(), -0.25), ("a".to_owned(), -3.0), ("b".to_owned(), f32::NEG_INFINITY)];
    logprobs.push("a".into(), true, Some(-0.25), Some(top.into_iter().collect()));
    assert_eq!(logprobs.next_offset(), 3);
    let prompt = PromptLogprob { logprob: -1.5, rank: 2, decoded_token: "é".into() };
    let choice = CompletionChoice {
        index: 0,
        text: "néa",
        logprobs: Some(logprobs),
        finish_reason: Some("length"),
        prompt_logprobs: Some(vec![None, Some(PromptLogprobs(vec![(7, prompt.clone()), (7, prompt)]))]),
    };
    let answer = Completion { head: head(Head::TEXT), choices: vec![choice], usage: Usage::new(1, 0, 2) };
    golden(
        answer,
        r#"{"id":"x-1","object":"text_completion","created":1700000000,"model":"demo","system_fingerprint":"fp_1","choices":[{"index":0,"text":"néa","logprobs":{"tokens":["<s>","né","a"],"token_logprobs":[null,null,-0.25],"top_logprobs":[null,null,{"a":-0.25,"b":-9999.0}],"text_offset":[0,0,2]},"finish_reason":"length","prompt_logprobs":[null,{"7":{"logprob":-1.5,"rank":2,"decoded_token":"é"}}]}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}"#,
    );
}

#[test]
fn completion_chunk() {
    let choice = CompletionChoice { index: 1, text: "x", logprobs: None, finish_reason: None, prompt_logprobs: None };
    let chunk = CompletionChunk { head: head(Head::TEXT), choices: &[choice], usage: ChunkUsage::NotAsked };
    golden(
        chunk,
        r#"{"id":"x-1","object":"text_completion","created":1700000000,"model":"demo","system_fingerprint":"fp_1","choices":[{"index":1,"text":"x","logprobs":null,"finish_reason":null}]}"#,
    );
}

#[test]
fn the_small_ones() {
    let model = Model::new("demo", 1_700_000_000, 1024);
    golden(&model, r#"{"id":"demo","object":"model","created":1700000000,"owned_by":"garrick","max_model_len":1024}"#);
    golden(ModelList::new(&[]), r#"{"object":"list","data":[]}"#);
    let error = Error::invalid("messages[2].content", "wrong").with_internal("secret");
    golden(
        ErrorBody::new(&error, "req_1"),
        r#"{"error":{"message":"wrong","type":"invalid_request_error","param":"messages[2].content","code":"invalid_request","request_id":"req_1"}}"#,
    );
    let error = Error::rate_limited("later", 3);
    golden(
        ErrorBody::new(&error, "req_1"),
        r#"{"error":{"message":"later","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded","request_id":"req_1"}}"#,
    );
    let tokens = TokenizeResponse { count: 2, max_model_len: 8, tokens: &[1, 2], token_strs: None };
    golden(tokens, r#"{"count":2,"max_model_len":8,"tokens":[1,2],"token_strs":null}"#);
    golden(DetokenizeResponse { prompt: "a" }, r#"{"prompt":"a"}"#);
    golden(RenderResponse { prompt: "a", count: 1, tokens: &[1] }, r#"{"prompt":"a","count":1,"tokens":[1]}"#);
}
