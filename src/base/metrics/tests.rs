use std::collections::HashSet;

use super::*;

fn touched() -> Metrics {
    let m = Metrics::new();
    m.request_done("/v1/models", 200, 0.002);
    m.finished("stop");
    m.quota_refused("rpm");
    for h in [&m.ttft_s, &m.itl_s, &m.queue_wait_s] {
        h.record(0.02);
    }
    m.restarts("Auth").increment(1);
    let lane = m.lane(3);
    lane.step_s.record(0.01);
    lane.step_tokens.record(7.0);
    lane.blocks_free.set(5.0);
    m
}

#[test]
fn every_row_is_rendered_with_its_help_and_kind_and_nothing_else_is() {
    let text = touched().render();
    for metric in TABLE {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {} {kind}\n", metric.name)), "{} in\n{text}", metric.name);
        assert!(text.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{}", metric.name);
    }
    let rendered = text.lines().filter(|l| l.starts_with("# TYPE")).count();
    assert_eq!(rendered, TABLE.len());
}

#[test]
fn labels_and_buckets_come_from_the_table() {
    let text = touched().render();
    for line in [
        r#"garrick_requests_total{route="/v1/models",code="200"} 1"#,
        r#"garrick_request_duration_seconds_bucket{route="/v1/models",le="0.005"} 1"#,
        r#"garrick_ttft_seconds_bucket{le="0.01"} 0"#,
        r#"garrick_ttft_seconds_bucket{le="0.025"} 1"#,
        r#"garrick_kv_blocks{lane="3",state="free"} 5"#,
        r#"garrick_step_tokens_bucket{lane="3",le="8"} 1"#,
        r#"garrick_quota_refusals_total{limit="rpm"} 1"#,
        "garrick_generated_tokens_total 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}

#[test]
fn names_follow_the_conventions() {
    let names: HashSet<_> = TABLE.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), TABLE.len());
    for metric in TABLE {
        assert!(metric.name.starts_with("garrick_"));
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        assert_eq!(metric.name.ends_with("_seconds"), metric.unit == metrics::Unit::Seconds, "{}", metric.name);
        if let Kind::Histogram(buckets) = metric.kind {
            assert!(buckets.is_sorted() && !buckets.is_empty(), "{}", metric.name);
        }
    }
}

#[test]
fn what_is_held_is_counted_until_it_drops() {
    let m = Metrics::new();
    let (a, b) = (Held::new(&m.streams_open), Held::new(&m.streams_open));
    drop(a);
    assert!(m.render().contains("garrick_streams_open 1\n"));
    drop(b);
    assert!(m.render().contains("garrick_streams_open 0\n"));
}

#[test]
fn the_process_has_one_registry() {
    // Other tests of this process may record too.
    metrics().generated_tokens.increment(2);
    let text = metrics().render();
    let total = text.lines().find_map(|l| l.strip_prefix("garrick_generated_tokens_total ")).unwrap();
    assert!(total.parse::<u64>().unwrap() >= 2, "{total}");
}
