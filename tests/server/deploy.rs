//! `deploy/`: rules, dashboard, Prometheus configuration and container file against the real programs, as far as they
//! can be had; `deploy/README.md` says what has only been linted.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{CHAT, Connection, Launch, Request, Server, chat, free_port, project, run, tool};

const PROMETHEUS_FROM: &str = "Debian's package prometheus has it";
const LINTERS_FROM: &str = "scripts/test.sh installs it";

fn deploy(file: &str) -> PathBuf {
    project().join("deploy").join(file)
}

fn text(file: &str) -> String {
    fs::read_to_string(deploy(file)).unwrap_or_else(|e| panic!("deploy/{file}: {e}"))
}

/// Every query of the dashboard, with its panel, for all instances and a short range.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&text("grafana/dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            let query = query.replace("$instance", ".*").replace("$__rate_interval", "10s");
            assert!(!query.contains('$'), "a variable that this test does not know: {query}");
            queries.push((panel["title"].as_str().expect("a title").to_owned(), query));
        }
    }
    assert!(queries.len() > 30, "only {} queries were found", queries.len());
    queries
}

/// Names of ours, vLLM's and the process's that stand in a text.
fn names_in(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_part(c)).map(|word| word.trim_end_matches(':'));
    words.filter(|word| ["garrick_", "vllm:", "process_"].iter().any(|start| word.starts_with(start))).collect()
}

/// Something of everything: answers, streams, an error, a refusal by quota.
struct Traffic {
    key: String,
    limited: String,
}

fn busy_server() -> (Server, Traffic) {
    let model = "fake:decode_us_per_step=1000";
    let launch = Launch::fake(model).keyed().arg("--lanes").arg("2").set("auth.metrics_open=true");
    let traffic = Traffic { key: launch.new_key(""), limited: launch.new_key("--rpm 1") };
    (launch.start(), traffic)
}

impl Traffic {
    fn send(&self, server: &Server) {
        let ask = |key: &str, extra| server.ask(&Request::post(CHAT, &chat(extra)).key(key));
        ask(&self.key, json!({"max_tokens": 20, "n": 2})).ok();
        ask(&self.key, json!({"max_tokens": 20})).ok();
        ask(&self.key, json!({"temperature": 9})).error(400);
        // The first time it is let in.
        ask(&self.limited, json!({}));
    }
}

#[test]
fn rules_and_their_tests_pass() {
    let Some(promtool) = tool("promtool", PROMETHEUS_FROM) else { return };
    let commands: [&[&str]; 3] = [
        &["check", "rules", "alerts.yml"],
        &["test", "rules", "alerts_test.yml"],
        &["check", "config", "prometheus.yml"],
    ];
    for args in commands {
        let (passes, said) = run(Command::new(&promtool).args(args).current_dir(deploy("")), "");
        assert!(passes, "{args:?}: {said}");
    }
    // A rule without a test would pass too.
    let (rules, tests) = (text("alerts.yml"), text("alerts_test.yml"));
    for rule in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = format!("alertname: {rule}\n        exp_alerts:\n");
        assert!(tests.contains(&fires), "no test lets {rule} fire");
    }
}

#[test]
fn metrics_that_rules_and_dashboard_name_are_told_by_a_server() {
    let (server, traffic) = busy_server();
    traffic.send(&server);
    let metrics = server.get("/metrics").text();
    let told: BTreeSet<&str> =
        metrics.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
    let queries: String = queries().into_iter().map(|(_, query)| query + "\n").collect();
    let (rules, tests) = (text("alerts.yml"), text("alerts_test.yml"));
    // The names of groups are no metrics.
    let named: BTreeSet<&str> = [&*queries, &*rules, &*tests].into_iter().flat_map(names_in).collect();
    assert!(named.len() > 30, "{named:?}");
    let is_told = |name: &&&str| told.contains(**name) || told.contains(&*format!("{name}_bucket"));
    let missing: Vec<_> = named.iter().filter(|name| !is_told(name)).collect();
    assert!(missing.is_empty(), "not told by a server: {missing:?}");
}

/// A Prometheus that scrapes one server every second.
struct Prometheus {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// With the project's configuration and rules, but for the target and the pace.
    fn start(program: &PathBuf, server: &Server) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let config = text("prometheus.yml");
        let (head, _) = config.split_once("    dns_sd_configs:").expect("the target is found by name");
        let config = head.replace("scrape_interval: 5s", "scrape_interval: 1s").replace("timeout: 4s", "timeout: 1s")
            + &format!("    static_configs: [{{targets: ['{}']}}]\n", server.address);
        assert!(config.contains("scrape_interval: 1s"), "{config}");
        fs::write(dir.path().join("prometheus.yml"), config).expect("a file");
        fs::copy(deploy("alerts.yml"), dir.path().join("alerts.yml")).expect("a copy");
        let port = free_port();
        let child = Command::new(program)
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(["--log.level=error"])
            .stdin(Stdio::null())
            .spawn()
            .expect("Prometheus runs");
        Self { child, port, _dir: dir }
    }

    fn is_up(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn get(&self, path: &str) -> Value {
        let address = ([127, 0, 0, 1], self.port).into();
        let answer = Connection::open(address).ask(&Request::get(path));
        serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}: {}", answer.text()))
    }

    /// The values that a query gives now. A query that Prometheus refuses fails the test.
    fn values(&self, query: &str) -> Vec<f64> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let series = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{query}: {answer}"));
        let value = |series: &Value| series["value"][1].as_str().and_then(|text| text.parse().ok());
        series.iter().map(|series| value(series).unwrap_or_else(|| panic!("{query}: {series}"))).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_prometheus_answers_every_query_of_the_dashboard() {
    let Some(program) = tool("prometheus", PROMETHEUS_FROM) else { return };
    let (server, traffic) = busy_server();
    let prometheus = Prometheus::start(&program, &server);
    let deadline = Instant::now() + Duration::from_secs(90);
    while !prometheus.is_up() {
        assert!(Instant::now() < deadline, "Prometheus does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Rates need two scrapes with something between them: traffic goes on until every panel has a number.
    let mut open = queries();
    while !open.is_empty() {
        traffic.send(&server);
        open.retain(|(_, query)| !prometheus.values(query).iter().any(|value| value.is_finite()));
        assert!(Instant::now() < deadline, "without a number: {open:?}");
    }
    assert_eq!(prometheus.values("up{job=\"garrick\"}"), [1.0]);
    assert!(prometheus.values("sum(vllm:generation_tokens_total{engine=\"0\"})")[0] > 0.0);
    // The rules are loaded, none fails, and nothing is wrong with a healthy server.
    let groups = prometheus.get("/api/v1/rules");
    let rules = groups["data"]["groups"][0]["rules"].as_array().expect("rules");
    assert_eq!(rules.len(), text("alerts.yml").matches("- alert: ").count());
    for rule in rules {
        assert!(["ok", "unknown"].contains(&rule["health"].as_str().expect("a word")), "{rule}");
        assert_eq!(rule["state"], "inactive", "{rule}");
    }
}

#[test]
fn container_and_compose_files_pass_their_linters() {
    let lint = |name: &str, args: &[&str]| {
        let Some(linter) = tool(name, LINTERS_FROM) else { return };
        let (passes, said) = run(Command::new(linter).args(args).current_dir(deploy("")), "");
        assert!(passes, "{said}");
    };
    lint("hadolint", &["Containerfile"]);
    lint("check-jsonschema", &["--builtin-schema", "vendor.compose-spec", "compose.yaml"]);
}

#[test]
fn files_that_compose_and_container_name_exist() {
    let compose = text("compose.yaml");
    let mounts = compose.lines().filter_map(|line| line.trim().strip_prefix("- ./")?.split(':').next());
    let mounted: Vec<_> = mounts.collect();
    assert!(mounted.len() >= 5, "{mounted:?}");
    let missing: Vec<_> = mounted.iter().filter(|file| !deploy(file).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let container = text("Containerfile");
    let copies = container.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|l| !l.contains("--from"));
    let ignored = fs::read_to_string(project().join(".dockerignore")).expect(".dockerignore");
    for copy in copies {
        let words: Vec<_> = copy.split(' ').filter(|word| !word.starts_with("--")).collect();
        for source in &words[..words.len() - 1] {
            assert!(project().join(source).exists(), "COPY {copy}: no {source}");
            assert!(ignored.lines().any(|line| line == format!("!{source}")), ".dockerignore leaves {source} out");
        }
    }
}

/// What one file calls another's service, folder or port is what that file has.
#[test]
fn services_find_each_other() {
    let yaml =
        |file: &str| -> Value { serde_saphyr::from_str(&text(file)).unwrap_or_else(|e| panic!("deploy/{file}: {e}")) };
    let (compose, prometheus) = (yaml("compose.yaml"), yaml("prometheus.yml"));
    let (datasource, provider) = (yaml("grafana/datasource.yml"), yaml("grafana/dashboards.yml"));
    let services = &compose["services"];
    let scraped = &prometheus["scrape_configs"][0]["dns_sd_configs"][0];
    assert!(services[scraped["names"][0].as_str().expect("a name")].is_object(), "{scraped}");
    assert!(text("Containerfile").contains(&format!("\nEXPOSE {}\n", scraped["port"])), "{scraped}");
    assert_eq!(prometheus["scrape_configs"][0]["job_name"], "garrick", "the rules' up{{job=…}}");
    let url = datasource["datasources"][0]["url"].as_str().expect("an address");
    let (host, port) = url.strip_prefix("http://").and_then(|rest| rest.split_once(':')).expect("a port");
    let published = services[host]["ports"][0].as_str().expect("a port");
    assert!(published.ends_with(&format!(":{port}")), "{url}: {published}");
    let folder = provider["providers"][0]["options"]["path"].as_str().expect("a folder");
    let mounts = services["grafana"]["volumes"].as_array().expect("volumes");
    let dashboard = format!("./grafana/dashboard.json:{folder}/garrick.json:ro");
    assert!(mounts.contains(&json!(dashboard)), "{mounts:?}");
    // nginx.conf is for one machine; compose changes the lines that a site changes.
    let command = services["nginx"]["command"][2].as_str().expect("a command");
    let (sed, _) = command.split_once(" > ").expect("it writes the file that nginx reads");
    let sed = sed.replace("/site/nginx.conf", deploy("nginx.conf").to_str().expect("UTF-8"));
    let (passes, changed) = run(Command::new("sh").args(["-c", &sed]), "");
    assert!(passes, "{changed}");
    for (line, there) in
        [("server garrick:8080 max_conns", true), ("access_log /dev/stdout", true), ("127.0.0.1:", false)]
    {
        assert_eq!(changed.contains(line), there, "{line}: {changed}");
    }
    // Those that were not asked for do not start.
    assert_eq!(services["redis"]["profiles"], json!(["redis"]));
}

/// The image's health check, run by the shell it names.
#[test]
fn the_images_health_check_knows_a_live_server_from_a_dead_one() {
    let container = text("Containerfile");
    let command = container.lines().find_map(|line| line.trim().strip_prefix("CMD [\"bash\"")).expect("a health check");
    let command: Vec<String> = serde_json::from_str(&format!("[\"bash\"{command}")).expect("a list of words");
    let check = |port: u16| {
        let script = command[2].replace("8080", &port.to_string());
        assert!(script.contains(&port.to_string()), "{script}");
        run(Command::new(&command[0]).args(["-c", &script]), "").0
    };
    let server = Launch::fake("fake").start();
    assert!(check(server.address.port()), "a live server");
    assert!(!check(free_port()), "nobody listens");
}
