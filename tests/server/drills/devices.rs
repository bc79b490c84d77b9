//! Devices that fail, for a while or for good: nobody notices but in time, as long as another lane lives.

use serde_json::{Value, json};

use super::is_honest;
use crate::fixture::{CHAT, COMPLETIONS, Launch, Request, Server, chat, choice_text, completion, eventually, with};

fn lanes(model: &str, num: usize) -> Server {
    Launch::fake(model).set(&format!("engine.lanes={num}")).start()
}

/// Everything that a move could repeat, forget or mix up.
fn questions(well: &Server) -> Vec<(&'static str, Value)> {
    let penalised = chat(json!({"max_tokens": 60, "seed": 3, "frequency_penalty": 0.5}));
    let text = well.post(CHAT, &penalised).ok()["choices"][0]["message"]["content"].clone();
    let word = text.as_str().and_then(|text| text.split_whitespace().nth(50)).expect("60 words").to_owned();
    let texts = json!({"prompt": ["one two three", "four"], "echo": true, "logprobs": 2, "seed": 5, "max_tokens": 60});
    vec![
        (CHAT, chat(json!({"max_tokens": 60, "seed": 1}))),
        (CHAT, chat(json!({"max_tokens": 60, "n": 3, "seed": 2, "logprobs": true, "top_logprobs": 2}))),
        (CHAT, with(penalised, json!({"stop": [word]}))),
        (COMPLETIONS, completion(texts)),
    ]
}

fn answer(server: &Server, path: &str, body: &Value) -> (Value, Value) {
    let answer = server.post(path, body).ok();
    (answer["choices"].clone(), answer["usage"].clone())
}

#[test]
fn a_stream_goes_on_when_its_device_is_lost() {
    let body = chat(json!({"stream": true, "max_tokens": 60, "seed": 7, "stream_options": {"include_usage": true}}));
    let run = |model: &str| {
        let server = lanes(model, 2);
        let events = server.stream(CHAT, &body).rest();
        let usage = events.last().expect("usage")["usage"].clone();
        (choice_text(&events, 0), usage, server)
    };
    let (text, usage, _well) = run("fake");
    let (moved_text, moved_usage, server) = run("fake:lose_at_step=40");
    assert_eq!(moved_text, text, "nothing is repeated, nothing is missing");
    assert_eq!(moved_usage, usage, "each token is counted once");
    server.wait_idle();
    assert_eq!(server.metric("garrick_lane_lost"), 1.0);
    assert_eq!(server.metric("garrick_moved_jobs_total"), 1.0);
    assert_eq!(server.metric("garrick_generated_tokens_total"), 60.0);
    assert_eq!(server.metric("garrick_book_errors_total"), 0.0);
}

#[test]
fn choices_scores_and_stops_survive_one_lost_device_and_two() {
    let well = lanes("fake", 1);
    for (path, body) in questions(&well) {
        let expected = answer(&well, path, &body);
        // One sequence is short enough for three lanes to finish it.
        let is_one = expected.0.as_array().is_some_and(|choices| choices.len() == 1);
        for (step, num_lost) in [(40, 1.0), (25, 2.0)].into_iter().take(1 + usize::from(is_one)) {
            let server = lanes(&format!("fake:lose_at_step={step}"), 4);
            assert_eq!(answer(&server, path, &body), expected, "{step}: {body}");
            assert!(server.metric("garrick_lane_lost") >= num_lost, "{step}: {body}");
            assert!(server.metric("garrick_moved_jobs_total") >= num_lost, "{step}: {body}");
            server.wait_idle();
        }
    }
}

#[test]
fn a_crowd_survives_a_lost_device() {
    let well = lanes("fake", 1);
    let body = |seed: u64| chat(json!({"stream": true, "max_tokens": 50, "seed": seed}));
    let expected: Vec<String> = (0..6).map(|seed| choice_text(&well.stream(CHAT, &body(seed)).rest(), 0)).collect();
    let server = lanes("fake:decode_us_per_step=2000,lose_on_token=255", 4);
    let mut streams: Vec<_> = (0..6).map(|seed| server.stream(CHAT, &body(seed))).collect();
    streams.iter_mut().for_each(|stream| drop(stream.next().expect("it runs")));
    // It ends with an error once three devices are gone; those beside it go on.
    is_honest(&server.post(COMPLETIONS, &completion(json!({"prompt": [7, 8, 255, 9]}))).error(500));
    for (stream, expected) in streams.iter_mut().zip(&expected) {
        assert_eq!(&choice_text(&stream.rest(), 0), expected);
    }
    assert_eq!(server.metric("garrick_lane_lost"), 3.0, "one lane is left");
    server.post(CHAT, &chat(json!({}))).ok();
    server.wait_idle();
}

#[test]
fn a_device_that_fails_for_a_while_is_given_time() {
    let body = chat(json!({"max_tokens": 50, "n": 3, "seed": 4}));
    let expected = answer(&lanes("fake", 1), CHAT, &body);
    let server = lanes("fake:fault_at_step=20,fault_steps=3", 1);
    assert_eq!(answer(&server, CHAT, &body), expected);
    assert_eq!((server.metric("garrick_lane_rests_total"), server.metric("garrick_lane_lost")), (3.0, 0.0));
    assert!(eventually(|| server.log().contains("left alone")), "{}", server.log());
    server.wait_idle();
}

#[test]
fn while_a_device_is_left_alone_others_take_its_work() {
    // A lane fails from its 20th step on; the other has run none when it takes over.
    let body = chat(json!({"max_tokens": 30, "seed": 4}));
    let expected = answer(&lanes("fake", 1), CHAT, &body);
    let server = lanes("fake:fault_at_step=20,fault_steps=1000", 2);
    assert_eq!(answer(&server, CHAT, &body), expected);
    assert_eq!((server.metric("garrick_lane_rests_total"), server.metric("garrick_steals_total")), (1.0, 1.0));
    server.wait_idle();
}

#[test]
fn a_device_that_always_fails_ends_its_requests_and_then_the_server() {
    let mut server = lanes("fake:fault_at_step=1,fault_steps=1000000", 1);
    let body = chat(json!({"max_tokens": 5}));
    // Four steps each: alone, twice more after moves that find no other lane, and the last.
    is_honest(&server.post(CHAT, &body).error(500));
    let (mut connection, request) = (server.connect(), Request::post(CHAT, &body));
    connection.send(&request);
    let end = server.finish();
    assert_eq!(end.code, Some(75), "{}", end.stderr);
    assert!(end.stderr.contains("error: no lane is left: start the server again"), "{}", end.stderr);
}
