//! `/metrics`: what is told, and that it is what happened.

use std::process::Command;

use serde_json::json;

use crate::fixture::{CHAT, COMPLETIONS, Launch, Request, chat, completion, eventually, run, tool};

#[test]
fn promtool_finds_nothing_wrong_with_our_names() {
    let Some(promtool) = tool("promtool", "Debian's package prometheus has it") else { return };
    let server = Launch::fake("fake").start();
    server.stream(CHAT, &chat(json!({"stream": true}))).rest();
    server.get("/nowhere").error(404);
    let text = server.get("/metrics").text();
    let (_, said) = run(Command::new(&promtool).args(["check", "metrics"]), &text);
    // vLLM's names have colons and more that promtool dislikes; they are not ours to choose.
    let wrong: Vec<_> = said.lines().filter(|line| !line.starts_with("vllm:")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(said.contains("vllm:"), "promtool looked at all of it: {said}");
    // The same text without vLLM's names passes as a whole.
    let ours: String = text.split_inclusive('\n').filter(|line| !line.contains("vllm:")).collect();
    let (passes, said) = run(Command::new(promtool).args(["check", "metrics"]), &ours);
    assert!(passes, "{said}");
}

#[test]
fn numbers_add_up_under_both_names() {
    let server = Launch::fake("fake").arg("--lanes").arg("2").start();
    assert_eq!(server.metric("garrick_lane_device_info{lane=\"1\"}"), 1.0);
    let whole = server.post(CHAT, &chat(json!({"max_tokens": 12}))).ok();
    server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 30, "n": 2}))).rest();
    let mut left = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 8000})));
    // The first event is sent before a device is seen, the second is a token.
    (0..2).for_each(|_| drop(left.next().expect("it runs")));
    drop(left);
    server.wait_for("garrick_finished_total", |ended| ended == 3.0);
    server.wait_idle();
    let prompt = whole["usage"]["prompt_tokens"].as_f64().expect("a number");
    let is = |name: &str, value: f64| assert_eq!(server.metric(name), value, "{name}");
    for (ours, theirs) in [
        ("garrick_generated_tokens_total", "vllm:generation_tokens_total"),
        ("garrick_ttft_seconds_count", "vllm:time_to_first_token_seconds_count"),
        ("garrick_itl_seconds_count", "vllm:inter_token_latency_seconds_count"),
        ("garrick_step_tokens_sum", "vllm:iteration_tokens_total_sum"),
        ("garrick_prefix_queries_total", "vllm:prefix_cache_queries_total"),
    ] {
        assert!(server.metric(ours) > 0.0, "{ours}");
        is(theirs, server.metric(ours));
    }
    is("vllm:prompt_tokens_total", 3.0 * prompt);
    is("vllm:request_prompt_tokens_sum", 3.0 * prompt);
    is("vllm:request_success_total{finished_reason=\"length\"}", 2.0);
    is("vllm:request_success_total{finished_reason=\"abort\"}", 1.0);
    is("vllm:e2e_request_latency_seconds_count", 2.0);
    is("vllm:request_queue_time_seconds_count", 3.0);
    is("vllm:request_params_n_sum", 4.0);
    is("vllm:kv_cache_usage_perc", 0.0);
    is("vllm:num_requests_running{model_name=\"fake\",engine=\"0\"}", 0.0);
    is("vllm:cache_config_info{block_size=\"16\"}", 1.0);
    // A choice of `t` tokens has one first token and `t - 1` gaps.
    let (tokens, first) =
        (server.metric("garrick_generated_tokens_total"), server.metric("garrick_ttft_seconds_count"));
    is("garrick_itl_seconds_count", tokens - first);
    assert!(tokens >= 12.0 + 60.0 + 1.0 && first == 4.0, "{tokens} tokens, {first} choices");
}

/// A lane looks at nothing while it is in a step; what came meanwhile waits all the same.
#[test]
fn what_comes_during_a_step_waits() {
    let server = Launch::fake("fake:wedge_at_step=2,wedge_ms=4000").start();
    let mut first = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 20})));
    // The opening, and the token of the only step before the long one.
    (0..2).for_each(|_| drop(first.next().expect("it runs")));
    let others: Vec<_> = (0..3).map(|_| server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 4})))).collect();
    server.wait_for("garrick_requests_waiting", |waiting| waiting == 3.0);
    server.wait_for("vllm:num_requests_waiting", |waiting| waiting == 3.0);
    others.into_iter().for_each(|mut stream| drop(stream.rest()));
    server.wait_for("garrick_requests_waiting", |waiting| waiting == 0.0);
}

#[test]
fn tokens_are_counted_at_every_hop() {
    let server = Launch::fake("fake").set("kv.prefix_cache=false").start();
    let prompt = (0..3).map(|_| server.post(CHAT, &chat(json!({"max_tokens": 12}))).ok());
    let prompt: f64 = prompt.map(|answer| answer["usage"]["prompt_tokens"].as_f64().expect("a number")).sum();
    let hop = |hop: &str| server.metric(&format!("garrick_hop_tokens_total{{hop=\"{hop}\"}}"));
    let hops: Vec<f64> = ["prepare", "quota", "queue", "prefill", "decode", "stream"].into_iter().map(hop).collect();
    assert_eq!(hops, [prompt, prompt + 36.0, prompt, prompt, 36.0, 36.0]);
    assert!(server.metric("garrick_step_sequences_count") > 0.0);
    assert_eq!(server.metric("garrick_step_sequences_sum"), 36.0, "one sequence at a time, a token a step");
}

#[test]
fn errors_are_counted_by_code_wherever_they_are_told() {
    let server = Launch::fake("fake:fail_at_step=7,panic_at_step=8").start();
    server.get("/nowhere").error(404);
    server.post(CHAT, &chat(json!({"model": "another"}))).error(404);
    server.post(CHAT, &chat(json!({"temperature": 9}))).error(400);
    let mut stream = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 50})));
    stream.rest();
    let errors = |code: &str| server.metric(&format!("garrick_errors_total{{code=\"{code}\"}}"));
    for (code, count) in [("not_found", 1.0), ("model_not_found", 1.0), ("invalid_request", 1.0), ("internal", 1.0)] {
        assert_eq!(errors(code), count, "{code}");
    }
    assert_eq!(server.metric("garrick_failed_steps_total"), 2.0);
}

#[test]
fn tenants_beyond_the_bound_are_counted_together() {
    let launch = Launch::fake("fake").keyed().set("telemetry.max_tenant_labels=2");
    let keys: Vec<String> = ["a", "b", "c", "d"]
        .into_iter()
        .map(|tenant| launch.cli(&format!("keys create --tenant {tenant} --rpm 1")).stdout.trim().to_owned())
        .collect();
    let server = launch.start();
    for key in &keys {
        let request = Request::post(COMPLETIONS, &completion(json!({"max_tokens": 5}))).key(key);
        assert_eq!(server.ask(&request).ok()["usage"]["completion_tokens"], 5);
        server.ask(&request).error(429);
    }
    let generated =
        |tenant: &str| server.metric(&format!("garrick_tenant_tokens_total{{tenant=\"{tenant}\",kind=\"generated\"}}"));
    assert_eq!(["a", "b", "other", "c"].map(generated), [5.0, 5.0, 10.0, 0.0]);
    let refused = |tenant: &str| server.metric(&format!("garrick_tenant_refusals_total{{tenant=\"{tenant}\"}}"));
    assert_eq!(["a", "b", "other", "d"].map(refused), [1.0, 1.0, 2.0, 0.0]);
    assert_eq!(server.metric("garrick_quota_refusals_total{limit=\"rpm\"}"), 4.0);
}

#[test]
fn the_clients_own_words_are_no_labels() {
    let server = Launch::fake("fake").start();
    let lines = || server.get("/metrics").text().lines().count();
    server.get("/made-up/first").error(404);
    lines();
    // The scrape's own route is there from now on.
    let before = lines();
    for i in 0..20 {
        server.get(&format!("/made-up/{i}")).error(404);
        server.post(CHAT, &chat(json!({"model": format!("model-{i}")}))).error(404);
    }
    assert!(eventually(|| server.metric("garrick_errors_total") == 41.0));
    // The chat route is new: a counter and a histogram.
    let histogram = 3 + 17;
    assert!(lines() <= before + 1 + histogram, "{} lines were {before}", lines());
}
