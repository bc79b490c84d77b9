use proptest::prelude::*;
use serde_json::Value as Json;

use super::keys::KEYS;
use super::*;

const SHIPPED: &str = include_str!("../../../config.yaml");

fn from_file(text: &str) -> Result<Config, ConfigError> {
    load(Some(("config.yaml", text)), std::iter::empty(), &[], &[])
}

fn error_of(file: &str, env: &[(&str, &str)], sets: &[&str], flags: &[Flag]) -> String {
    let env = env.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    load(Some(("config.yaml", file)), env, &sets, flags).expect_err("should be refused").to_string()
}

/// Paths of all leaves of a serialised configuration.
fn leaves(config: &Config) -> Vec<(String, Json)> {
    let Json::Object(sections) = serde_json::to_value(config).unwrap() else { panic!("a tree") };
    let mut all = Vec::new();
    for (section, keys) in sections {
        let Json::Object(keys) = keys else { panic!("{section} is no section") };
        all.extend(keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)));
    }
    all
}

#[test]
fn the_shipped_file_is_the_defaults() {
    assert_eq!(from_file(SHIPPED).unwrap(), Config::default());
}

#[test]
fn the_shipped_file_lists_every_key_in_order_each_with_a_reason() {
    let (mut section, mut listed) = (String::new(), Vec::new());
    for line in SHIPPED.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (name, rest) = line.split_once(':').unwrap();
        if let Some(key) = name.strip_prefix("  ") {
            assert!(rest.contains("  # "), "no reason: {line}");
            listed.push(format!("{section}.{key}"));
        } else {
            section = name.to_owned();
        }
        assert!(line.chars().count() <= 125, "too long: {line}");
    }
    assert_eq!(listed, KEYS.iter().map(|k| k.path).collect::<Vec<_>>());
}

#[test]
fn the_table_has_every_field_once() {
    let fields: Vec<_> = leaves(&Config::default()).into_iter().map(|(path, _)| path).collect();
    assert_eq!(fields, KEYS.iter().map(|k| k.path).collect::<Vec<_>>());
}

/// A legal value, other than the default, for each key.
const OTHER_VALUES: &[(&str, &str)] = &[
    ("server.listen", "[::1]:9000"),
    ("server.workers", "3"),
    ("server.max_body_bytes", "4096"),
    ("server.max_connections", "10"),
    ("server.read_timeout_s", "9"),
    ("server.keep_alive_s", "5"),
    ("server.drain_timeout_s", "0"),
    ("server.heartbeat_s", "1"),
    ("server.stall_timeout_s", "2"),
    ("server.max_stream_buffer_bytes", "8192"),
    ("server.docs", "false"),
    ("model.path", "/models/other"),
    ("model.served_name", "other"),
    ("model.max_model_len", "2048"),
    ("model.sampling_defaults", "openai"),
    ("engine.device", "cpu"),
    ("engine.lanes", "2"),
    ("engine.tensor_parallel", "4"),
    ("engine.threads", "4"),
    ("engine.isa", "scalar"),
    ("engine.weights", "int8"),
    ("engine.compute", "bf16"),
    ("engine.cuda_graphs", "false"),
    ("engine.batch_invariant", "true"),
    ("engine.cuda_libraries", "/opt/cuda/lib:/opt/nccl"),
    ("engine.cuda_kernels", "/var/cache/kernels"),
    ("engine.max_step_s", "5"),
    ("kv.memory", "512MiB"),
    ("kv.memory_share", "0.25"),
    ("kv.dtype", "bf16"),
    ("kv.prefix_cache", "false"),
    ("scheduler.max_batch_tokens", "256"),
    ("scheduler.max_slowdown", "3.5"),
    ("scheduler.max_running", "32"),
    ("scheduler.steal_window", "0"),
    ("scheduler.speculative", "always"),
    ("scheduler.num_speculative_tokens", "3"),
    ("scheduler.prompt_lookup_min", "1"),
    ("scheduler.prompt_lookup_max", "8"),
    ("admission.max_requests", "7"),
    ("admission.max_waiting_tokens", "9999"),
    ("admission.default_timeout_ms", "1000"),
    ("admission.max_timeout_ms", "60000"),
    ("admission.tokenizer_threads", "1"),
    ("auth.cache_ttl_s", "0"),
    ("auth.max_cached_keys", "100"),
    ("auth.metrics_open", "true"),
    ("quota.rpm", "60"),
    ("quota.tpm", "10000"),
    ("quota.concurrency", "4"),
    ("store.path", "/tmp/x.db"),
    ("telemetry.log_format", "json"),
    ("telemetry.log_level", "warn,garrick::sched=debug"),
    ("telemetry.otlp_endpoint", "http://localhost:4318"),
    ("telemetry.max_tenant_labels", "3"),
];

#[test]
fn each_key_sets_its_own_field_from_every_layer() {
    assert_eq!(
        OTHER_VALUES.iter().map(|(p, _)| *p).collect::<Vec<_>>(),
        KEYS.iter().map(|k| k.path).collect::<Vec<_>>()
    );
    let default = leaves(&Config::default());
    for (path, value) in OTHER_VALUES {
        let (section, key) = path.split_once('.').unwrap();
        let quoted = if value.starts_with('[') { format!("'{value}'") } else { value.to_string() };
        let file = format!("{section}:\n  {key}: {quoted}\n");
        let env = (format!("GARRICK__{}__{}", section.to_uppercase(), key.to_uppercase()), value.to_string());
        let set = format!("{path}={value}");
        let flag = Flag { name: "--flag", path, value: value.to_string() };
        for config in [
            from_file(&file),
            load(None, [env].into_iter(), &[], &[]),
            load(None, std::iter::empty(), &[set], &[]),
            load(None, std::iter::empty(), &[], &[flag]),
        ] {
            let changed: Vec<_> = leaves(&config.unwrap())
                .into_iter()
                .zip(&default)
                .filter(|(now, before)| now != *before)
                .map(|(now, _)| now.0)
                .collect();
            assert_eq!(changed, [*path]);
        }
    }
}

#[test]
fn stronger_layers_win() {
    let file = "engine:\n  lanes: 2\n  threads: 8\nserver: {heartbeat_s: 3}\nmodel:\nkv: {memory: 1048576}\n";
    let env = [("GARRICK__ENGINE__LANES", "3"), ("GARRICK__SERVER__HEARTBEAT_S", "4"), ("GARRICK_API_KEY", "x")];
    let env = env.map(|(k, v)| (k.to_string(), v.to_string())).into_iter();
    let sets = ["engine.lanes=4".to_string(), "engine.lanes=5".to_string()];
    let flags = [Flag { name: "--lanes", path: "engine.lanes", value: "6".into() }];
    let c = load(Some(("f", file)), env.clone(), &sets, &flags).unwrap();
    assert_eq!((c.engine.lanes, c.engine.threads, c.server.heartbeat_s), (6, Some(8), 4));
    assert_eq!(c.kv.memory, Some(1 << 20));
    assert_eq!(load(Some(("f", file)), env.clone(), &sets, &[]).unwrap().engine.lanes, 5);
    assert_eq!(load(Some(("f", file)), env, &[], &[]).unwrap().engine.lanes, 3);
    assert_eq!(load(None, std::iter::empty(), &[], &[]).unwrap(), Config::default());
}

#[test]
fn null_gives_a_key_back_to_the_program() {
    let c =
        from_file("model: {served_name: null, max_model_len: ~}\nkv: {memory: null}\nengine: {threads: 4}\n").unwrap();
    assert_eq!((c.model.served_name, c.model.max_model_len, c.kv.memory), (None, None, None));
    let c = load(Some(("f", "engine: {threads: 4}")), std::iter::empty(), &["engine.threads=null".into()], &[]);
    assert_eq!(c.unwrap().engine.threads, None);
}

#[test]
fn empty_files_change_nothing() {
    for text in ["", "\n", "# only a remark\n", "---\n", "{}", "null", "server:\n"] {
        assert_eq!(from_file(text).unwrap(), Config::default(), "{text:?}");
    }
}

#[test]
fn memory_takes_units() {
    for (text, bytes) in [("2GiB", 2u64 << 30), ("512MiB", 512 << 20), ("2048 KiB", 2 << 20), ("1TiB", 1 << 40)] {
        assert_eq!(from_file(&format!("kv: {{memory: {text}}}")).unwrap().kv.memory, Some(bytes), "{text}");
    }
    for bad in ["2GB", "-1", "1.5GiB", "GiB", "1KiB", "99999999999TiB", "65TiB", "yes"] {
        let message = error_of(&format!("kv: {{memory: {bad}}}"), &[], &[], &[]);
        assert!(
            message.contains("must be null or bytes, as 512MiB or 2GiB or an integer, from 1MiB to 64TiB"),
            "{message}"
        );
    }
}

/// What is wrong in the file, and the whole message.
const FILE_ERRORS: &[(&str, &str)] = &[
    ("engine:\n  lanes: 0\n", "config.yaml:2:10: engine.lanes is 0, but must be an integer from 1 to 64"),
    ("engine:\n  lanes: 9e9\n", "config.yaml:2:10: engine.lanes is 9000000000, but must be an integer from 1 to 64"),
    ("engine: {lanes: two}", "config.yaml:1:17: engine.lanes is 'two', but must be an integer from 1 to 64"),
    ("engine: {lanes: [1]}", "config.yaml:1:17: engine.lanes is a list, but must be an integer from 1 to 64"),
    ("engine: {lanes: null}", "config.yaml:1:17: engine.lanes is null, but must be an integer from 1 to 64"),
    (
        "engine: {isa: sse}",
        "config.yaml:1:15: engine.isa is 'sse', but must be one of auto, avx512dot, avx512, avx2, scalar",
    ),
    (
        "kv: {memory_share: 1.5}",
        "config.yaml:1:20: kv.memory_share is 1.5, but must be null or a number above 0, up to 0.95",
    ),
    (
        "kv: {memory_share: .nan}",
        "config.yaml:1:20: kv.memory_share is NaN, but must be null or a number above 0, up to 0.95",
    ),
    ("kv: {prefix_cache: 1}", "config.yaml:1:20: kv.prefix_cache is 1, but must be true or false"),
    (
        "model: {served_name: 7}",
        "config.yaml:1:22: model.served_name is 7, but must be null or text: put it in quotes, so that it is not read as a \
         number or a truth value",
    ),
    (
        "server: {listen: localhost}",
        "config.yaml:1:18: server.listen is 'localhost', but must be an IP address and a port, as 127.0.0.1:8080 or \
         [::]:8080",
    ),
    (
        "telemetry: {otlp_endpoint: 'https://x:4318'}",
        "config.yaml:1:28: telemetry.otlp_endpoint is 'https://x:4318', but must be null or an address as \
         http://localhost:4318 (without TLS: send through a local collector)",
    ),
    (
        "telemetry: {log_level: loud}",
        "config.yaml:1:24: telemetry.log_level is 'loud', but must be error, warn, info, debug, trace or off, or directives \
         as info,garrick::sched=debug",
    ),
    (
        "kv:\n  dtipe: f32\n",
        "config.yaml:2:3: unknown key 'kv.dtipe'; the keys of kv are dtype, memory, prefix_cache, memory_share",
    ),
    (
        "kv:\n  lanes: 2\n",
        "config.yaml:2:3: unknown key 'kv.lanes' (engine.lanes exists); the keys of kv are dtype, memory, memory_share, \
         prefix_cache",
    ),
    (
        "servr:\n  listen: x\n",
        "config.yaml:1:1: unknown section in 'servr'; the sections are server, kv, store, model, auth, quota, engine, \
         scheduler, telemetry, admission",
    ),
    (
        "kv: 3",
        "config.yaml:1:5: kv is 3, but must be a section with the keys memory, memory_share, dtype, prefix_cache",
    ),
    (
        "- a\n- b\n",
        "config.yaml:1:1: the file is a list, but must hold the sections server, model, engine, kv, scheduler, admission, \
         auth, quota, store, telemetry",
    ),
];

#[test]
fn a_wrong_file_is_told_place_key_and_what_is_allowed() {
    for (file, message) in FILE_ERRORS {
        assert_eq!(error_of(file, &[], &[], &[]), *message, "{file}");
    }
}

#[test]
fn text_that_is_not_yaml_is_told_where() {
    for (text, place) in [
        ("server:\n  listen: [1\n", "config.yaml:"),
        ("a: b: c\n", "config.yaml:1:"),
        ("kv: {}\nkv: {}\n", "config.yaml:2:1: "),
    ] {
        let message = error_of(text, &[], &[], &[]);
        assert!(message.starts_with(place) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn other_layers_are_named_too() {
    let flag = |value: &str| [Flag { name: "--lanes", path: "engine.lanes", value: value.into() }];
    for (message, expected) in [
        (
            error_of("", &[("GARRICK__ENGINE__LANES", "-1")], &[], &[]),
            "environment variable GARRICK__ENGINE__LANES: engine.lanes is '-1', but must be an integer from 1 to 64",
        ),
        (
            error_of("", &[("GARRICK__ENGINE__LANE", "1")], &[], &[]),
            "environment variable GARRICK__ENGINE__LANE: unknown key 'engine.lane'; the keys of engine are lanes, isa, device, threads, compute, weights, max_step_s, \
             cuda_kernels, cuda_graphs, cuda_libraries, tensor_parallel, batch_invariant",
        ),
        (
            error_of("", &[("GARRICK__engine__lanes", "1")], &[], &[]),
            "environment variable GARRICK__engine__lanes: names of variables are in capitals",
        ),
        (
            error_of("", &[], &["engine.lanes=many"], &[]),
            "--set engine.lanes=many: engine.lanes is 'many', but must be an integer from 1 to 64",
        ),
        (error_of("", &[], &["engine.lanes"], &[]), "--set 'engine.lanes': must be section.key=value"),
        (error_of("", &[], &[], &flag("65")), "--lanes: engine.lanes is '65', but must be an integer from 1 to 64"),
    ] {
        assert_eq!(message, expected);
    }
}

#[test]
fn a_hidden_mistake_is_still_told_and_all_at_once() {
    let message =
        error_of("engine:\n  lanes: 0\n  isa: x\n", &[("GARRICK__ENGINE__LANES", "2")], &["kv.dtype=f16"], &[]);
    let lines: Vec<_> = message.lines().collect();
    assert_eq!(lines.len(), 3, "{message}");
    assert!(lines[0].contains(":2:10") && lines[1].contains(":3:8") && lines[2].contains("--set kv.dtype=f16"));
    let many: String = (0..100).map(|i| format!("  k{i}: 1\n")).collect();
    assert!(error_of(&format!("kv:\n{many}"), &[], &[], &[]).ends_with("\nand 80 more"));
}

#[test]
fn rules_between_keys_name_both_and_where_they_stand() {
    assert_eq!(
        error_of("scheduler:\n  max_batch_tokens: 16\n", &[], &[], &[]),
        "scheduler.max_running (by default) is 64, but must be at most scheduler.max_batch_tokens (config.yaml:2:21), which is \
         16: each running sequence takes a token of every step"
    );
    assert!(
        error_of("", &[], &["admission.default_timeout_ms=5000000"], &[])
            .contains("admission.max_timeout_ms (by default)")
    );
    assert!(error_of("engine: {lanes: 4, threads: 2}", &[], &[], &[]).contains("engine.threads (config.yaml:1:29)"));
    assert_eq!(
        error_of("engine: {tensor_parallel: 2}", &[], &["engine.device=cpu"], &[]),
        "engine.tensor_parallel (config.yaml:1:27) is 2, but must be 1 where engine.device (--set engine.device=cpu) is cpu: \
         GPUs share a model, and threads do without"
    );
}

#[test]
fn workers_leave_the_cores_to_the_model() {
    let mut server = Server::default();
    assert_eq!([0, 1, 2, 64].map(|cores| server.num_workers(cores)), [1, 1, 2, 2]);
    server.workers = Some(8);
    assert_eq!(server.num_workers(2), 8);
}

#[test]
fn a_model_is_named_after_its_path() {
    for (path, name) in [
        ("models/demo", "demo"),
        ("/data/Qwen2.5-0.5B/", "Qwen2.5-0.5B"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
        ("fake:vocab=100", "fake"),
        ("..", "model"),
        ("/", "model"),
    ] {
        let mut model = Model { path: path.into(), ..Default::default() };
        assert_eq!(model.name(), name);
        model.served_name = Some("mine".into());
        assert_eq!(model.name(), "mine");
    }
}

#[test]
fn nesting_is_bounded() {
    for open in ["[", "{a: ", "- "] {
        let message = error_of(&format!("kv: \n {}", open.repeat(100_000)), &[], &[], &[]);
        assert!(message.starts_with("config.yaml:") && message.len() < 300, "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_text_never_panics(
        file in "\\PC{0,80}|([a-z_]{1,6}: *[-0-9a-z\\[{&*!|>'\"#]{0,8}\n *){0,8}",
        name in "GARRICK__[A-Z_é.]{0,20}", value in "\\PC{0,40}", set in "\\PC{0,40}|[a-z.=]{0,20}",
    ) {
        let _ = load(Some(("f", &file)), [(name, value)].into_iter(), &[set], &[]);
    }

    #[test]
    fn a_damaged_file_is_read_or_refused_with_its_name(at in 0usize..SHIPPED.len(), junk in "[ -~\n\t]{0,6}", cut in 0usize..40) {
        let (mut a, mut b) = (at, (at + cut).min(SHIPPED.len()));
        while !SHIPPED.is_char_boundary(a) { a -= 1; }
        while !SHIPPED.is_char_boundary(b) { b += 1; }
        let text = format!("{}{junk}{}", &SHIPPED[..a], &SHIPPED[b..]);
        if let Err(e) = from_file(&text) {
            prop_assert!(e.to_string().contains("config.yaml"), "{e}");
        }
    }

    #[test]
    fn any_value_of_any_key_is_taken_or_refused_by_name(which in 0..KEYS.len(), value in "\\PC{0,12}|-?[0-9]{1,30}|[0-9.e+-]{1,9}") {
        let set = format!("{}={value}", KEYS[which].path);
        if let Err(e) = load(None, std::iter::empty(), &[set], &[]) {
            prop_assert!(e.to_string().contains(KEYS[which].path), "{e}");
        }
    }
}
