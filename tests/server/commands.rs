//! The other commands of the program.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::fixture::{Launch, garrick, garrick_reads};

#[test]
fn help_names_every_command() {
    let dir = tempdir().expect("a folder");
    let help = garrick(dir.path(), &["--help"]);
    assert_eq!(help.code, Some(0));
    for word in
        ["serve", "check", "chat", "render", "keys", "kernels", "bench", "load", "--model", "--set", "64", "GARRICK__"]
    {
        assert!(help.stdout.contains(word), "{word}: {}", help.stdout);
    }
    for command in ["serve", "check", "chat", "render", "keys", "kernels", "bench", "load"] {
        assert_eq!(garrick(dir.path(), &[command, "--help"]).code, Some(0), "{command}");
    }
    assert!(garrick(dir.path(), &["--version"]).stdout.starts_with("garrick "));
    for wrong in [&["dance"][..], &["--dance"], &["keys"], &["keys", "create"], &["bench", "--batch", "0"]] {
        assert_eq!(garrick(dir.path(), wrong).code, Some(64), "{wrong:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0, "nothing was made");
}

#[test]
fn check_says_what_would_run() {
    let dir = tempdir().expect("a folder");
    let good = garrick(dir.path(), &["check", "--model", "fake", "--lanes", "2"]);
    assert_eq!(good.code, Some(0), "{good:?}");
    for word in ["fake", "blocks", "lanes", "127.0.0.1:8080"] {
        assert!(good.stdout.contains(word), "{word}: {}", good.stdout);
    }
    assert_eq!(garrick(dir.path(), &["check", "--model", "missing"]).code, Some(66));
    assert_eq!(garrick(dir.path(), &["check", "--model", "fake", "--listen", "0.0.0.0:1"]).code, Some(64));
    assert_eq!(garrick(dir.path(), &["check", "--model", "fake", "--set", "kv.dtype=f8"]).code, Some(64));
}

#[test]
fn check_says_where_the_libraries_of_cuda_are() {
    let dir = tempdir().expect("a folder");
    let stand_in = concat!(env!("CARGO_MANIFEST_DIR"), "/target/kernels/stand-in");
    let place = format!("engine.cuda_libraries={stand_in}");
    let done = garrick(dir.path(), &["check", "--cuda", "--model", "fake", "--set", &place]);
    assert_eq!(done.code, Some(0), "{done:?}");
    for name in ["cuBLASLt", "NVRTC", "NCCL"] {
        let line = done.stdout.lines().find(|line| line.starts_with("cuda    ") && line.contains(name));
        let line = line.unwrap_or_else(|| panic!("no line on {name}: {}", done.stdout));
        assert!(line.contains(", in ") || line.contains("pip install"), "{line}");
    }
    if std::path::Path::new(stand_in).exists() {
        let expected = format!("cuda    cuBLASLt 13.0.2, in {stand_in}/libcublasLt.so.13 (");
        assert!(done.stdout.contains(&expected), "{}", done.stdout);
    }
}

#[test]
fn kernels_are_built_by_a_toolkit_and_kept() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir().expect("a folder");
    let nvcc = dir.path().join("nvcc");
    // Stands in for a toolkit's: the same arguments, and an ELF file's first bytes.
    let script = "#!/bin/sh\n[ \"$1\" != --version ] || { echo 'Cuda compilation tools, release 13.9, V13.9.1'; exit 0; }\n\
                  while [ $# -gt 1 ]; do [ \"$1\" != -o ] || out=$2; last=$2; shift; done\n\
                  [ -f \"$last\" ] && printf '\\177ELF' >\"$out\"\n";
    std::fs::write(&nvcc, script).expect("a script");
    std::fs::set_permissions(&nvcc, std::fs::Permissions::from_mode(0o755)).expect("a program");
    let out = dir.path().join("built");
    let (nvcc, folder) = (nvcc.to_str().expect("a name"), out.to_str().expect("a name"));
    let build = |more: &[&str]| garrick(dir.path(), &[&["kernels", "build", "--out", folder], more].concat());
    let done = build(&["--chip", "sm_103a", "--chip", "sm_110a", "--nvcc", nvcc]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("sm_103a: ") && done.stdout.contains("engine.cuda_kernels="), "{}", done.stdout);
    let mut entries: Vec<_> = std::fs::read_dir(&out).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    entries.sort_by_key(|path| path.to_string_lossy().rsplit('-').next().map(str::to_owned));
    assert_eq!(entries.len(), 2, "{entries:?}");
    let manifest = std::fs::read_to_string(entries[0].join("MANIFEST")).expect("a manifest");
    assert!(manifest.contains("compiler nvcc 13.9, V13.9.1 -std=c++17 -O3\n"), "{manifest}");
    assert_eq!(std::fs::read(entries[0].join("gemm.cubin")).expect("a cubin"), b"\x7fELF");

    assert_eq!(build(&["--chip", "sm_75"]).code, Some(64));
    let absent = build(&["--chip", "sm_90a", "--nvcc", "/nowhere/nvcc"]);
    assert_eq!(absent.code, Some(69), "{absent:?}");
    assert!(absent.stderr.contains("/nowhere/nvcc does not start"), "{}", absent.stderr);
}

#[test]
fn what_only_gpus_keep_is_refused_on_the_cpu_by_name() {
    let dir = tempdir().expect("a folder");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    for (key, instead) in [("kv.dtype", "bf16 or int8"), ("engine.weights", "int8 or int4")] {
        let set = format!("{key}=fp8");
        let refused = garrick(dir.path(), &["check", "--model", model, "--set", "engine.device=cpu", "--set", &set]);
        assert_eq!(refused.code, Some(64), "{refused:?}");
        assert!(refused.stderr.contains(&format!("{key} is fp8")) && refused.stderr.contains(instead), "{refused:?}");
    }
}

/// What is in force, not what was asked for.
#[test]
fn check_says_how_weights_are_computed() {
    let dir = tempdir().expect("a folder");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    let check = |more: &str| {
        let common = ["check", "--model", model, "--kv-memory", "1MiB", "--set", "engine.isa=scalar"];
        let done = garrick(dir.path(), &[&common[..], &more.split(' ').collect::<Vec<_>>()].concat());
        assert_eq!(done.code, Some(0), "{done:?}");
        let line = |start: &str| done.stdout.lines().find(|line| line.starts_with(start)).map(str::to_owned);
        (line("weights ").expect("a line on weights"), line("warning "))
    };
    let (weights, warning) = check("--compute f32");
    assert!(weights.starts_with("weights bf16, ") && weights.ends_with(" MiB, computed in f32"), "{weights}");
    assert_eq!(warning, None);

    let (weights, warning) = check("--compute bf16");
    assert!(weights.ends_with("computed in f32"), "the level has no dot product: {weights}");
    let warning = warning.expect("a warning");
    assert!(warning.contains("engine.compute=bf16 does not apply"), "{warning}");
    assert!(warning.ends_with("scalar has no bfloat16 dot product"), "{warning}");

    let (weights, warning) = check("--compute int8");
    assert!(weights.ends_with("computed in f32"), "bf16 weights are not rounded by themselves: {weights}");
    assert!(warning.is_some_and(|line| line.contains("engine.weights=int8")));

    let (weights, warning) = check("--weights int8 --compute int8");
    assert!(weights.starts_with("weights int8, ") && weights.ends_with("computed in int8"), "{weights}");
    assert_eq!(warning, None);
}

#[test]
fn bench_measures_every_batch() {
    let dir = tempdir().expect("a folder");
    let common =
        ["bench", "--model", "fake:decode_us_per_step=500", "--batch", "1,3", "--output-tokens", "8", "--repeat", "1"];
    let json = garrick(dir.path(), &[&common[..], &["--json"]].concat());
    assert_eq!(json.code, Some(0), "{json:?}");
    let report: Value = serde_json::from_str(&json.stdout).expect("JSON");
    let batches: Vec<_> = report["results"].as_array().expect("a list").iter().map(|row| &row["batch"]).collect();
    assert_eq!(batches, [&json!(1), &json!(3)]);
    for row in report["results"].as_array().expect("a list") {
        assert!(row["decode_tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    }
    let table = garrick(dir.path(), &common);
    assert!(table.stdout.contains("DECODE TOK/S"), "{table:?}");
    assert_eq!(garrick(dir.path(), &["bench", "--model", "fake", "--batch", "4000"]).code, Some(64));
}

#[test]
fn load_counts_what_a_server_sends() {
    let server = Launch::fake("fake:decode_us_per_step=1000").keyed().start();
    let url = format!("http://{}", server.address);
    let run = |key: &str, more: &str| {
        server.launch.cli(&format!("load --url {url} --model fake --streams 3 --tokens 4 --key {key} --json {more}"))
    };
    let key = server.launch.new_key("");
    let measured = run(&key, &format!("--warm-up 0 --duration 1 --pid {}", server.pid()));
    assert_eq!(measured.code, Some(0), "{measured:?}");
    let report: Value = serde_json::from_str(&measured.stdout).expect("JSON");
    let number = |name: &str| report[name].as_u64().expect("a number");
    // Opening, four tokens, end, [DONE]; what three streams were in the midst of when time was up is counted too.
    assert!((0..=3 * 6).contains(&(number("events") as i64 - 7 * number("requests") as i64)), "{report}");
    assert!(number("requests") > 0, "{report}");
    assert_eq!(report["failures"], 0, "{report}");
    assert!(report["ttft_ms"]["p99"].as_f64() > Some(0.0), "{report}");
    assert!(report["server_cpu_us_per_event"].as_f64().is_some(), "{report}");
    server.wait_idle();
    let refused = run("sk-wrong", "--warm-up 0 --duration 0.3");
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(refused.stderr.contains("401"), "{refused:?}");
    let table = server.launch.cli(&format!("load --url {url} --model fake --key {key} --warm-up 0 --duration 0.5"));
    assert!(table.stdout.contains("events") && table.stdout.contains("first text"), "{table:?}");
    assert_eq!(run(&key, "--duration -1").code, Some(64));
    assert_eq!(run(&key, "--pid 4000000000").code, Some(69));
}

#[test]
fn keys_refuse_what_makes_no_sense() {
    let dir = tempdir().expect("a folder");
    for args in ["--tenant x --rpm 0", "--tenant x --rpm many", "--rpm 2"] {
        let args: Vec<_> = ["keys", "create"].into_iter().chain(args.split(' ')).collect();
        assert_eq!(garrick(dir.path(), &args).code, Some(64), "{args:?}");
    }
    assert_eq!(garrick(dir.path(), &["keys", "create", "--tenant", " "]).code, Some(64));
    assert_eq!(garrick(dir.path(), &["keys", "revoke", "key_none"]).code, Some(64));
    assert_eq!(garrick(dir.path(), &["keys", "list", "--json"]).stdout.trim(), "[]");
    let elsewhere = garrick(dir.path(), &["keys", "list", "--set", "store.path=missing/folder/x.db"]);
    assert_ne!(elsewhere.code, Some(0), "{elsewhere:?}");
}

#[test]
fn a_chat_in_the_terminal_prints_the_answers() {
    let launch = Launch::fake("fake").keyed();
    let key = launch.new_key("");
    let server = launch.start();
    let url = format!("http://{}", server.address);
    let args = ["chat", "--url", &url, "--key", &key, "--max-tokens", "5", "--system", "Be brief."];
    let talk = garrick_reads(server.launch.dir(), &args, "Hello\nAgain\n");
    assert_eq!(talk.code, Some(0), "{talk:?}");
    assert_eq!(talk.stdout.matches(" w").count(), 10, "{talk:?}");
    let stranger = garrick_reads(server.launch.dir(), &["chat", "--url", &url], "Hello\n");
    assert!(stranger.stderr.contains("API key"), "{stranger:?}");
    let nobody = garrick_reads(server.launch.dir(), &["chat", "--url", "http://127.0.0.1:1"], "Hello\n");
    assert_eq!(nobody.code, Some(69), "{nobody:?}");
}

#[test]
fn a_chat_becomes_its_prompt() {
    let dir = tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
    write("t.jinja", "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ extra }}");
    write(
        "in.json",
        r#"{"messages": [{"role": "user", "content": "Hi"}], "bos_token": "^", "kwargs": {"extra": "!"}}"#,
    );
    let args = |input| ["render", "--chat-template", "t.jinja", "--input", input];
    let rendered = garrick(dir.path(), &args("in.json"));
    assert_eq!((rendered.code, rendered.stdout.trim_end()), (Some(0), "^<user>Hi!"), "{rendered:?}");
    write("bad.json", r#"{"messages": "Hi"}"#);
    for input in ["bad.json", "missing.json"] {
        assert_eq!(garrick(dir.path(), &args(input)).code, Some(64), "{input}");
    }
}
