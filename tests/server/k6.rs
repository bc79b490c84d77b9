//! The load tests of `loadtest/`, seconds of each, with a real k6 (`target/venv/bin/k6`): they run, they measure, and
//! they notice when something is wrong. Time limits are widened: a test asserts no speed.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::{Launch, Proxy, Server, nginx, project};

/// What k6 exits with when a threshold is not met.
const THRESHOLDS_FAILED: i32 = 99;

fn k6() -> Option<PathBuf> {
    let k6 = project().join("target/venv/bin/k6");
    if !Command::new(&k6).arg("version").output().is_ok_and(|out| out.status.success()) {
        let message = "target/venv has no k6; scripts/test.sh installs it";
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{message}");
        eprintln!("skipped: {message}");
        return None;
    }
    Some(k6)
}

struct Run {
    code: Option<i32>,
    output: String,
    metrics: Value,
}

/// Runs a script against an address; what the server says of itself is read from the server.
fn run(k6: &PathBuf, script: &str, base: std::net::SocketAddr, server: &Server, settings: &[(&str, &str)]) -> Run {
    let dir = TempDir::new().expect("a folder");
    let summary = dir.path().join("summary.json");
    let mut command = Command::new(k6);
    // Without its own HTTP interface, whose port two runs at once would fight over.
    command.args(["run", "--quiet", "--no-color", "--no-usage-report", "--address", ""]);
    command.arg("--summary-export").arg(&summary).arg(project().join("loadtest").join(script));
    command.current_dir(dir.path()).env("SLACK", "1000").envs(settings.iter().copied());
    command.env("BASE_URL", format!("http://{base}")).env("METRICS_URL", format!("http://{}", server.address));
    let out = command.output().expect("k6 runs");
    let output = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let summary = std::fs::read_to_string(summary).unwrap_or_else(|e| panic!("{e}: {output}"));
    let metrics = serde_json::from_str::<Value>(&summary).expect("JSON")["metrics"].take();
    Run { code: out.status.code(), output, metrics }
}

impl Run {
    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.output);
        assert!(self.output.contains("the server's own count"), "{}", self.output);
        assert!(self.count("garrick_tokens") > 0.0, "{}", self.output);
        self
    }

    fn count(&self, metric: &str) -> f64 {
        self.metrics[metric]["count"].as_f64().unwrap_or(0.0)
    }
}

fn demo() -> Server {
    Launch::model(&project().join("models/demo")).start()
}

#[test]
fn steady() {
    let Some(k6) = k6() else { return };
    let server = demo();
    let run = run(&k6, "steady.js", server.address, &server, &[("DURATION", "3s"), ("VUS", "3")]).succeeded();
    assert!(run.metrics["garrick_first_token_ms"]["max"].as_f64() > Some(0.0), "{}", run.metrics);
}

#[test]
fn burst() {
    let Some(k6) = k6() else { return };
    // One token in 5 ms, and room for four: most of the burst must be refused, and none before or after it.
    let server = Launch::fake("fake:decode_us_per_step=5000").set("admission.max_requests=4").start();
    let settings = [("DURATION", "3s"), ("RATE", "40"), ("QUIET_RATE", "1"), ("MAX_TOKENS", "100")];
    let run = run(&k6, "burst.js", server.address, &server, &settings).succeeded();
    assert!(run.count("garrick_refused") > 0.0, "{}", run.output);
}

#[test]
fn disconnect_storm() {
    let Some(k6) = k6() else { return };
    let server = Launch::fake("fake:decode_us_per_step=1000").set("scheduler.max_running=16").start();
    storm(&k6, server.address, &server);
}

#[test]
fn disconnect_storm_behind_nginx() {
    let (Some(k6), Some(nginx)) = (k6(), nginx()) else { return };
    let server = Launch::fake("fake:decode_us_per_step=1000").set("scheduler.max_running=16").start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    storm(&k6, proxy.address, &server);
}

/// A thousand, as the script has it by default.
fn storm(k6: &PathBuf, address: std::net::SocketAddr, server: &Server) {
    let settings = [("DURATION", "8s"), ("VUS", "40"), ("MAX_STAY_MS", "200"), ("LEAVER_TOKENS", "7000")];
    let run = run(k6, "disconnect-storm.js", address, server, &settings).succeeded();
    assert_eq!(run.count("garrick_left"), 1000.0, "{}", run.output);
    assert!(server.metric("garrick_finished_total{reason=\"cancelled\"}") > 100.0);
}

#[test]
fn mixed() {
    let Some(k6) = k6() else { return };
    let server = demo();
    let settings = [("DURATION", "6s"), ("VUS", "6"), ("LONG_WORDS", "100"), ("MAX_TOKENS", "40")];
    run(&k6, "mixed.js", server.address, &server, &settings).succeeded();
}

#[test]
fn soak() {
    let Some(k6) = k6() else { return };
    let server = demo();
    let settings = [("DURATION", "8s"), ("VUS", "4"), ("THINK_S", "0.1"), ("MAX_TOKENS", "16")];
    run(&k6, "soak.js", server.address, &server, &settings).succeeded();
}

#[test]
fn a_stream_that_breaks_is_noticed() {
    let Some(k6) = k6() else { return };
    // One request ends with an error event, after the 200.
    let server = Launch::fake("fake:decode_us_per_step=1000,fail_at_step=300,panic_at_step=301").start();
    let run = run(&k6, "steady.js", server.address, &server, &[("DURATION", "3s"), ("VUS", "2")]);
    assert_eq!(run.code, Some(THRESHOLDS_FAILED), "{}", run.output);
    assert!(run.metrics["checks"]["fails"].as_f64() >= Some(1.0), "{}", run.metrics);
}
