//! The bundled model: it answers, also while others are being answered, and as well as it was promised to.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use serde_json::{Value, json};

use crate::fixture::{CHAT, Launch, Server, choice_text, project};

/// The promise (models/demo/README.md) is 95 % of sums and 90 % of every other skill, measured over a thousand questions
/// each. Of the 40 a skill here, a model that just keeps it gets at least this percentage right 19 times out of 20.
const MIN_ADDITION: usize = 90;
const MIN_OTHER_SKILL: usize = 82;
const NUM_CLIENTS: usize = 16;

fn serve() -> Server {
    Launch::model(&project().join("models/demo")).start()
}

fn question(text: &str, streamed: bool) -> Value {
    json!({"model": "demo", "temperature": 0, "stream": streamed, "messages": [{"role": "user", "content": text}]})
}

#[test]
fn it_adds_while_31_others_stream() {
    let server = serve();
    let long = json!({
        "model": "demo", "stream": true, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Please repeat the words: apple river stone"}],
    });
    let mut others: Vec<_> = (0..31).map(|_| server.stream(CHAT, &long)).collect();
    others.iter_mut().for_each(|stream| drop(stream.next().expect("it runs")));
    let whole = server.post(CHAT, &question("What is 27 + 58?", false)).ok();
    let text = whole["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(text.contains("85"), "{text}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(choice_text(&server.stream(CHAT, &question("What is 27 + 58?", true)).rest(), 0), text);
}

#[test]
fn it_answers_what_it_was_not_taught() {
    let server = serve();
    let file = project().join("models/demo/held_out.jsonl");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let items: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let tally = Mutex::new(BTreeMap::<String, (usize, usize)>::new());
    thread::scope(|scope| {
        for client in 0..NUM_CLIENTS {
            let (items, tally, server) = (&items, &tally, &server);
            scope.spawn(move || {
                for item in items.iter().skip(client).step_by(NUM_CLIENTS) {
                    let is_right = is_right(server, item);
                    let mut tally = tally.lock().expect("no panic");
                    let (right, all) = tally.entry(item["skill"].as_str().expect("a skill").to_owned()).or_default();
                    *right += usize::from(is_right);
                    *all += 1;
                }
            });
        }
    });
    let tally = tally.into_inner().expect("no panic");
    assert!(tally.len() >= 7, "{tally:?}");
    let limit = |skill: &str| if skill == "add" { MIN_ADDITION } else { MIN_OTHER_SKILL };
    let weak: Vec<_> = tally.iter().filter(|(skill, (right, all))| right * 100 < limit(skill) * all).collect();
    assert!(weak.is_empty(), "right answers, of all, by skill: {weak:?}; all skills: {tally:?}");
}

fn is_right(server: &Server, item: &Value) -> bool {
    let body = json!({"model": "demo", "temperature": 0, "max_tokens": 64, "messages": item["messages"]});
    let answer = server.post(CHAT, &body).ok();
    let choice = &answer["choices"][0];
    choice["finish_reason"] == "stop"
        && choice["message"]["content"].as_str().map(str::trim) == item["expected"].as_str()
}
