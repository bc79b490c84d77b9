//! Over HTTP, on the bundled model: a request among 31 others is answered as it is alone, to the last digit.

use std::sync::Barrier;
use std::thread;

use serde_json::{Value, json};

use crate::fixture::{CHAT, COMPLETIONS, Launch, Server, project, with};

const CROWD: usize = 32;
const WORDS: [&str; 8] = ["apple", "river", "stone", "seven", "What is", "27 + 58?", "repeat", "the words"];

/// Different requests of every kind; JSON's digits tell any two float32 apart.
fn request(i: usize) -> (&'static str, Value) {
    let words: Vec<_> = (0..1 + i * 2).map(|k| WORDS[(i + k * k) % WORDS.len()]).collect();
    let text = words.join(" ");
    let sampling = match i % 3 {
        0 => json!({"temperature": 0}),
        1 => json!({"temperature": 1.0, "top_p": 0.9, "seed": i}),
        _ => json!({"temperature": 0.8, "repetition_penalty": 1.2, "presence_penalty": 0.5, "seed": i}),
    };
    let common = with(sampling, json!({"model": "demo", "ignore_eos": true, "max_tokens": 20 + i % 5 * 10}));
    match i % 4 {
        0 => (COMPLETIONS, with(common, json!({"prompt": text, "logprobs": 5}))),
        1 => (COMPLETIONS, with(common, json!({"prompt": text, "logprobs": 1, "echo": true, "prompt_logprobs": 2}))),
        2 => {
            let messages = json!([{"role": "user", "content": text}]);
            (CHAT, with(common, json!({"messages": messages, "logprobs": true, "top_logprobs": 5})))
        }
        // Four choices from a prompt of one block or more: 25 blocks or more in the end.
        _ => (COMPLETIONS, with(common, json!({"prompt": text, "logprobs": 2, "n": 4, "max_tokens": 90}))),
    }
}

fn answer(server: &Server, i: usize) -> Value {
    let (path, body) = request(i);
    let mut answer = server.post(path, &body).ok();
    let choices = answer["choices"].take();
    assert!(choices.to_string().contains("logprob"), "{choices}");
    choices
}

#[test]
fn a_request_among_31_others_is_answered_as_alone() {
    let demo = || Launch::model(&project().join("models/demo"));
    let quiet = demo().set("engine.threads=1").set("kv.prefix_cache=false").start();
    let alone: Vec<_> = (0..CROWD).map(|i| answer(&quiet, i)).collect();
    // Two lanes of 24 blocks each (30 KiB a block): long prompts are cut, and four choices do not even fit by themselves.
    let crowded = demo().arg("--lanes").arg("2").set("engine.threads=3").set("kv.memory=1440KiB");
    let crowded = crowded.set("scheduler.max_running=32").set("scheduler.max_batch_tokens=40").start();
    for visit in 0..2 {
        let together = all_at_once(&crowded);
        for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(together, alone, "visit {visit}: {:?}", request(i));
        }
    }
    assert!(crowded.metric("garrick_preemptions_total") > 0.0, "the pool is too small for all");
    assert!(crowded.metric("garrick_cached_prompt_tokens_total") > 0.0, "prompts of the second visit are known");
    let steps = |server: &Server| server.metric("garrick_steps_total");
    assert!(steps(&crowded) < 2.0 * steps(&quiet), "requests shared steps");
}

fn all_at_once(server: &Server) -> Vec<Value> {
    let barrier = Barrier::new(CROWD);
    thread::scope(|scope| {
        let client = |i| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                answer(server, i)
            })
        };
        let clients: Vec<_> = (0..CROWD).map(client).collect();
        clients.into_iter().map(|client| client.join().expect("an answer")).collect()
    })
}
