//! Speculative decoding seen from outside: the same answers, in fewer steps, and what `/metrics` says of it.

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Server, chat, choice_text, completion, project, with};

const DRAFTED: &str = "garrick_draft_tokens_total";
const ACCEPTED: &str = "garrick_accepted_draft_tokens_total";

/// Everything that takes part in a draw, and everything that may end a text within a draft.
fn cases() -> Vec<Value> {
    let say = |text: &str| json!([{"role": "user", "content": text}]);
    let repeat = json!({
        "messages": say("Please repeat the words: apple river stone apple river stone apple"), "max_tokens": 60,
    });
    let on = |extra: Value| with(repeat.clone(), extra);
    vec![
        on(json!({"temperature": 0})),
        on(json!({"temperature": 0, "ignore_eos": true, "logprobs": true, "top_logprobs": 3})),
        on(json!({"seed": 5, "temperature": 1.3, "ignore_eos": true, "logprobs": true})),
        on(json!({"temperature": 0, "ignore_eos": true, "frequency_penalty": 0.4, "repetition_penalty": 1.1})),
        on(json!({"seed": 6, "n": 3, "ignore_eos": true})),
        on(json!({"temperature": 0, "ignore_eos": true, "min_tokens": 30, "stop": ["river st", "never"]})),
        on(json!({"temperature": 0, "ignore_eos": true, "max_tokens": 17})),
        json!({"messages": say("What is 27 + 58?"), "temperature": 0}),
    ]
}

/// Choices and usage of an answer: what does not name the request.
fn told(server: &Server, case: &Value) -> (Value, Value, String) {
    let answer = server.post(CHAT, &chat(case.clone())).ok();
    let chunks = server.stream(CHAT, &chat(with(case.clone(), json!({"stream": true})))).rest();
    (answer["choices"].clone(), answer["usage"].clone(), choice_text(&chunks, 0))
}

#[test]
fn answers_are_the_same_with_drafts_and_without() {
    let serve = |speculative: &str| {
        let launch = Launch::model(&project().join("models/demo"));
        launch.set(&format!("scheduler.speculative={speculative}")).set("scheduler.prompt_lookup_min=1").start()
    };
    let (drafting, plain) = (serve("always"), serve("off"));
    for case in cases() {
        let (drafted, expected) = (told(&drafting, &case), told(&plain, &case));
        assert_eq!(drafted, expected, "{case}");
        assert_eq!(expected.0[0]["message"]["content"], expected.2, "{case}");
    }
    let (drafted, accepted) = (drafting.metric(DRAFTED), drafting.metric(ACCEPTED));
    assert!(accepted > 100.0 && drafted > accepted, "{accepted} of {drafted}");
    assert_eq!(drafting.metric("vllm:spec_decode_num_draft_tokens_total"), drafted);
    assert_eq!(drafting.metric("vllm:spec_decode_num_accepted_tokens_total"), accepted);
    assert_eq!(plain.metric(DRAFTED), 0.0);
    for name in ["garrick_generated_tokens_total", "garrick_ttft_seconds_count", "garrick_itl_seconds_count"] {
        assert_eq!(drafting.metric(name), plain.metric(name), "{name}");
    }
    assert!(drafting.metric("garrick_steps_total") + accepted / 4.0 < plain.metric("garrick_steps_total"));
}

/// The fake model's clock is its own, so what pays is certain.
#[test]
fn drafts_are_made_where_they_pay() {
    let accepted_and_drafted = |model: &str| {
        let server = Launch::fake(model).set("kv.prefix_cache=false").start();
        let body = completion(json!({"max_tokens": 300, "temperature": 0}));
        let answer = server.post(COMPLETIONS, &body).ok();
        assert_eq!(answer["usage"]["completion_tokens"], 300);
        assert_eq!(server.metric("garrick_hop_tokens_total{hop=\"decode\"}"), 300.0);
        let (accepted, drafted) = (server.metric(ACCEPTED), server.metric(DRAFTED));
        assert_eq!(server.metric("garrick_steps_total"), 300.0 - accepted, "each saves a step");
        (accepted, drafted)
    };
    let (accepted, _) = accepted_and_drafted("fake:period=7,decode_us_per_step=1000,prefill_us_per_token=10");
    assert!(accepted > 150.0, "rows are nearly free: {accepted}");
    let (_, drafted) = accepted_and_drafted("fake:decode_us_per_step=1000,prefill_us_per_token=10");
    assert!(drafted < 30.0, "nothing repeats: {drafted}");
    let (_, drafted) = accepted_and_drafted("fake:period=7,decode_us_per_step=500,prefill_us_per_token=1000");
    assert!(drafted < 30.0, "a row costs more than a step: {drafted}");
}
