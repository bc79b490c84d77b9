use std::collections::HashSet;

use super::registry::Value;
use super::*;

fn touched() -> Metrics {
    let m = Metrics::new();
    m.set_max_tenants(2);
    m.set_served(Served {
        model_name: "demo".into(),
        block_tokens: 16,
        num_blocks: 64,
        cache_dtype: "bf16".into(),
        prefix_cache: true,
    });
    m.request_done("/v1/models", 200, 0.002);
    m.error("rate_limited");
    m.finished("done", "stop");
    m.quota_refused("rpm");
    m.tenant("acme").prompt_tokens.increment(9);
    for h in [&m.ttft_s, &m.itl_s, &m.queue_wait_s] {
        h.record(0.02);
    }
    m.restarts("Auth").increment(1);
    let lane = m.lane(3);
    lane.step_s.record(0.01);
    lane.step_tokens.record(7.0);
    lane.blocks_free.set(5.0);
    lane.blocks_held.set(3.0);
    m.set_lane_device(3, "cpu (AVX2, 2 thread(s))");
    m.lane_health(3).ready.set(1.0);
    m
}

fn has_line(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
}

#[test]
fn every_row_is_printed_with_its_help_and_kind_and_a_series() {
    let text = touched().render();
    let rows = TABLE.iter().map(|m| (m.name, m.kind, m.help)).chain(ALIASES.iter().map(|a| (a.name, a.kind, a.help)));
    for (name, kind, help) in rows {
        let (kind, suffix) = match kind {
            Kind::Counter => ("counter", ""),
            Kind::Gauge => ("gauge", ""),
            Kind::Histogram(_) => ("histogram", "_count"),
        };
        has_line(&text, &format!("# TYPE {name} {kind}"));
        has_line(&text, &format!("# HELP {name} {help}"));
        let of_it =
            |l: &str| l.strip_prefix(&format!("{name}{suffix}")).is_some_and(|rest| rest.starts_with(['{', ' ']));
        assert!(text.lines().any(of_it), "{name} has no series in\n{text}");
    }
    let printed = text.lines().filter(|l| l.starts_with("# TYPE")).count();
    assert_eq!(printed, TABLE.len() + ALIASES.len() + PROCESS_NAMES.len());
}

#[test]
fn many_samples_of_one_size_are_as_many_samples() {
    let (one_by_one, at_once) = (Histogram::new(&[0.0, 0.5, 1.0]), Histogram::new(&[0.0, 0.5, 1.0]));
    for (value, num_samples) in [(0.0, 3), (0.25, 2), (7.5, 4), (0.5, 0)] {
        (0..num_samples).for_each(|_| one_by_one.record(value));
        at_once.record_many(value, num_samples);
    }
    assert_eq!(at_once.distribution(), one_by_one.distribution());
    assert_eq!(at_once.distribution().count(), 9);
}

#[test]
fn labels_and_buckets_come_from_the_table() {
    let text = touched().render();
    for line in [
        r#"garrick_requests_total{route="/v1/models",code="200"} 1"#,
        r#"garrick_request_duration_seconds_bucket{route="/v1/models",le="0.005"} 1"#,
        r#"garrick_ttft_seconds_bucket{le="0.01"} 0"#,
        r#"garrick_ttft_seconds_bucket{le="0.025"} 1"#,
        r#"garrick_ttft_seconds_bucket{le="+Inf"} 1"#,
        "garrick_ttft_seconds_sum 0.02",
        "garrick_ttft_seconds_count 1",
        r#"garrick_kv_blocks{lane="3",state="free"} 5"#,
        r#"garrick_step_tokens_bucket{lane="3",le="8"} 1"#,
        r#"garrick_quota_refusals_total{limit="rpm"} 1"#,
        r#"garrick_tenant_tokens_total{tenant="acme",kind="prompt"} 9"#,
        "garrick_generated_tokens_total 0",
    ] {
        has_line(&text, line);
    }
}

#[test]
fn vllms_names_tell_of_all_lanes_together() {
    let m = touched();
    let other = m.lane(0);
    other.running.set(2.0);
    m.lane(3).running.set(3.0);
    other.blocks_free.set(0.0);
    other.blocks_held.set(4.0);
    other.step_tokens.record(100.0);
    let text = m.render();
    for line in [
        r#"vllm:num_requests_running{model_name="demo",engine="0"} 5"#,
        r#"vllm:kv_cache_usage_perc{model_name="demo",engine="0"} 0.5833333333333334"#,
        r#"vllm:request_success_total{model_name="demo",engine="0",finished_reason="stop"} 1"#,
        r#"vllm:time_to_first_token_seconds_bucket{model_name="demo",engine="0",le="0.025"} 1"#,
        r#"vllm:iteration_tokens_total_count{model_name="demo",engine="0"} 2"#,
        r#"vllm:iteration_tokens_total_sum{model_name="demo",engine="0"} 107"#,
        r#"vllm:cache_config_info{model_name="demo",engine="0",block_size="16",num_gpu_blocks="64",cache_dtype="bf16",enable_prefix_caching="True"} 1"#,
    ] {
        has_line(&text, line);
    }
}

#[test]
fn names_follow_the_conventions() {
    let names: HashSet<_> = TABLE.iter().map(|m| m.name).chain(ALIASES.iter().map(|a| a.name)).collect();
    assert_eq!(names.len(), TABLE.len() + ALIASES.len());
    for metric in TABLE {
        assert!(metric.name.starts_with("garrick_"));
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        if let Kind::Histogram(buckets) = metric.kind {
            assert!(buckets.is_sorted() && !buckets.is_empty(), "{}", metric.name);
        }
    }
    assert!(ALIASES.iter().all(|alias| alias.name.starts_with("vllm:")));
}

#[test]
fn a_sample_counts_in_the_first_bucket_that_holds_it() {
    let histogram = Histogram::new(&[1.0, 2.0, 4.0]);
    for value in [0.0, 1.0, 1.5, 4.0, 4.1, -1.0, f64::NAN] {
        histogram.record(value);
    }
    let distribution = histogram.distribution();
    // What is no number is below every bound or above none: it is counted, in the first bucket, and adds nothing.
    assert_eq!((distribution.counts, distribution.sum), (vec![4, 1, 1, 1], 10.6));
}

#[test]
fn only_so_many_tenants_have_series() {
    let m = Metrics::new();
    m.set_max_tenants(2);
    for tenant in ["a", "b", "c", "d", "a", "c"] {
        m.tenant(tenant).requests.increment(1);
    }
    let text = m.render();
    for (tenant, requests) in [("a", 2), ("b", 1), ("other", 3)] {
        has_line(&text, &format!("garrick_tenant_requests_total{{tenant=\"{tenant}\"}} {requests}"));
    }
    assert_eq!(text.matches("garrick_tenant_requests_total{").count(), 3);
}

#[test]
fn labels_that_could_break_a_line_are_escaped() {
    let m = Metrics::new();
    m.set_max_tenants(1);
    m.tenant("a\"b\\c\nd").requests.increment(1);
    has_line(&m.render(), r#"garrick_tenant_requests_total{tenant="a\"b\\c\nd"} 1"#);
}

#[test]
fn threads_that_record_at_once_lose_nothing() {
    let m = Metrics::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    m.itl_s.record(0.001);
                    m.streams_open.increment(1.0);
                    m.tenant("t").requests.increment(1);
                }
            });
        }
    });
    let distribution = m.itl_s.distribution();
    assert_eq!((distribution.count(), distribution.sum), (4000, 4.0));
    assert_eq!(m.streams_open.get(), 4000.0);
    assert_eq!(m.registry.sum(&table::TENANT_REQUESTS), Value::Number(4000.0));
}

#[test]
fn the_process_tells_of_itself() {
    let text = metrics().render();
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{name} "))).unwrap_or_else(|| panic!("{name}"));
        line.parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_threads") >= 1.0 && value("process_open_fds") >= 3.0);
    // After 2020, and not in the future.
    let started = value("process_start_time_seconds");
    assert!(started > 1.577e9 && started < crate::base::clock::unix_s() as f64 + 2.0, "{started}");
    assert!(value("process_cpu_seconds_total") >= 0.0);
}

#[test]
fn the_process_has_one_registry() {
    // Other tests of this process may record too.
    metrics().generated_tokens.increment(2);
    let text = metrics().render();
    let total = text.lines().find_map(|l| l.strip_prefix("garrick_generated_tokens_total ")).unwrap();
    assert!(total.parse::<u64>().unwrap() >= 2, "{total}");
}
