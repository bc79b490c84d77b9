//! The rules of the house, checked on the sources: who may import whom, what may stand where, and that the documents
//! say what the code says.

mod docs;
mod source;

use std::fs;

use sha2::{Digest, Sha256};
use source::{Source, crate_paths, has_word, line_of, root, sources, word_places};

/// From the bottom up. A part imports from lower layers, and from its own as [`sideways`] says.
const LAYERS: &[&[&str]] = &[
    &["base"],
    &["model", "kv", "sample", "sched"],
    &["exec"],
    &["store", "gate", "route"],
    &["actors"],
    &["api", "cli", "app"],
    &["main", "lib"],
];

fn layer(part: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&part))
}

/// Imports within a layer.
fn sideways(from: &str, path: &str) -> bool {
    let to = path.split("::").next().unwrap_or_default();
    match from {
        // The word for a token, and nothing else of the model.
        "kv" => path == "model::TokenId",
        // And what is asked of logits, which devices and `sample` both draw by.
        "sample" => path == "model::TokenId" || path.starts_with("model::draws::"),
        "sched" => ["kv", "sample"].contains(&to) || path == "model::TokenId",
        "gate" => to == "store",
        "app" => to == "api",
        "cli" => to == "app",
        _ => false,
    }
}

/// Fails with every breach at once.
fn report(breaches: Vec<String>) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

/// Every place where `word` stands in the files that `applies` picks.
fn places(word: &str, applies: impl Fn(&Source) -> bool, why: &str) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| applies(s)) {
        for at in word_places(&source.code, word) {
            found.push(format!("{}:{}: `{word}`: {why}", source.path, line_of(&source.code, at)));
        }
    }
    found
}

#[test]
fn imports_run_downwards() {
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|s| !["main", "lib"].contains(&s.part())) {
        let from = source.part();
        let Some(here) = layer(from) else {
            breaches.push(format!("{}: `{from}` is in no layer of tests/house/main.rs", source.path));
            continue;
        };
        for path in crate_paths(&source.code) {
            let to = path.split("::").next().unwrap_or_default();
            let allowed = to == from || sideways(from, &path) || layer(to).is_some_and(|there| there < here);
            if !allowed {
                breaches.push(format!("{}: {from} must not import crate::{path}", source.path));
            }
        }
    }
    report(breaches);
}

#[test]
fn devices_know_plans_and_not_lanes() {
    let programs = sources().into_iter().filter(|s| s.part() == "exec");
    let mut breaches = Vec::new();
    for source in programs {
        for path in crate_paths(&source.program) {
            if path.starts_with("sched::") && !path.starts_with("sched::plan::") {
                breaches.push(format!("{}: exec takes plans from sched, not crate::{path}", source.path));
            }
        }
    }
    report(breaches);
}

#[test]
fn nobody_climbs_out_of_a_part_by_super() {
    let mut breaches = Vec::new();
    for source in sources() {
        // In a module of depth n, n times `super` is the crate's root.
        let climb = ["super"; 16][..source.depth()].join("::");
        if word_places(&source.program, &climb).next().is_some() {
            breaches.push(format!("{}: `{climb}` leaves {}; write crate::", source.path, source.part()));
        }
    }
    report(breaches);
}

#[test]
fn actors_and_http_stay_in_their_layers() {
    let outside = |s: &Source| !["actors", "api", "app"].contains(&s.part());
    let mut breaches = Vec::new();
    for name in ["actix", "actix_web"] {
        for source in sources().iter().filter(|s| outside(s)) {
            // A command may start the runtime that it calls the layers below in.
            let starts_runtime = |at: &usize| source.part() == "cli" && source.code[*at..].starts_with("actix::System");
            for at in word_places(&source.code, name).filter(|at| !starts_runtime(at)) {
                let line = line_of(&source.code, at);
                breaches.push(format!("{}:{line}: `{name}`: only in actors/, api/ and app/", source.path));
            }
        }
    }
    breaches.extend(places("sqlx", |s| s.part() != "store", "only in store/"));
    for name in ["cudarc", "libloading"] {
        breaches.extend(places(name, |s| !s.path.starts_with("src/exec/cuda/device/"), "only in exec/cuda/device/"));
    }
    report(breaches);
}

/// The kernels in the program are what the compiler made of these sources.
#[test]
fn prebuilt_kernels_are_those_of_the_sources() {
    let folder = root().join("kernels");
    let manifest = fs::read_to_string(folder.join("prebuilt/MANIFEST")).unwrap();
    let listed: Vec<(String, String)> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("source ")?.split_once(' '))
        .map(|(hash, name)| (name.to_owned(), hash.to_owned()))
        .collect();
    let mut found: Vec<(String, String)> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "h"))
        .map(|path| {
            let hash = Sha256::digest(fs::read(&path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), hash)
        })
        .collect();
    found.sort();
    assert_eq!(listed, found, "run scripts/check-kernels.sh compile prebuilt");
}

#[test]
fn cores_have_no_clock_no_runtime_and_no_files() {
    let core = |s: &Source| {
        ["kv", "sample", "sched"].contains(&s.part())
            || s.path.starts_with("src/gate/auth/")
            || s.path.starts_with("src/gate/quota/")
    };
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|s| core(s)) {
        for word in ["tokio", "Instant", "SystemTime", "sleep", "spawn", "File", "TcpStream", "clock"] {
            if has_word(&source.program, word) {
                breaches.push(format!("{}: `{word}`: a core takes `now` and returns values", source.path));
            }
        }
    }
    report(breaches);
}

#[test]
fn unsafe_stands_in_few_places_and_says_why_it_holds() {
    let allowed = |path: &str| path.starts_with("src/exec/") || path == "src/model/weights/mapped.rs";
    let mut breaches = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for at in word_places(&source.code, "unsafe") {
            let line = line_of(&source.code, at);
            if !allowed(&source.path) {
                breaches.push(format!("{}:{line}: unsafe only in exec/ and where files are mapped", source.path));
            }
            let what = source.code[at + "unsafe".len()..].trim_start();
            let near = &lines[line.saturating_sub(8)..line];
            if (what.starts_with('{') || what.starts_with("impl")) && !near.iter().any(|l| l.contains("SAFETY:")) {
                breaches.push(format!("{}:{line}: unsafe without a SAFETY comment", source.path));
            }
        }
    }
    report(breaches);
}

#[test]
fn nothing_is_left_for_later() {
    let mut breaches = Vec::new();
    for word in ["todo", "unimplemented", "dbg"] {
        for source in sources() {
            let called = |at: &usize| source.code[at + word.len()..].starts_with('!');
            for at in word_places(&source.code, word).filter(called) {
                breaches.push(format!("{}:{}: `{word}!`", source.path, line_of(&source.code, at)));
            }
        }
    }
    report(breaches);
}

#[test]
fn nothing_is_unwrapped_without_a_reason() {
    let mut breaches = Vec::new();
    for source in sources() {
        for at in word_places(&source.program, "unwrap") {
            let line = line_of(&source.program, at);
            breaches
                .push(format!("{}:{line}: `unwrap` in the program; return an error, or `expect` why not", source.path));
        }
    }
    report(breaches);
}

#[test]
fn every_channel_is_bounded() {
    let mut breaches = places("do_send", |_| true, "it ignores the mailbox's bound; use try_send or send");
    breaches.extend(places("unbounded_channel", |_| true, "give the channel a bound"));
    breaches.extend(places("unbounded", |_| true, "give the channel a bound"));
    for source in sources() {
        // std's `channel()` takes no bound; tokio's takes one. A oneshot holds one value.
        for (at, _) in
            source.code.match_indices("channel()").filter(|(at, _)| !source.code[..*at].ends_with("oneshot::"))
        {
            breaches.push(format!("{}:{}: a channel without a bound", source.path, line_of(&source.code, at)));
        }
    }
    report(breaches);
}

#[test]
fn files_are_short_and_open_with_what_they_are() {
    let mut breaches = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > 500 {
            breaches.push(format!("{}: {lines} lines; split it (500 at most)", source.path));
        }
        if !source.is_test() && !source.text.starts_with("//! ") {
            breaches.push(format!("{}: begins without `//!`", source.path));
        }
    }
    report(breaches);
}

#[test]
fn modules_are_named_for_what_they_do() {
    let vague = ["utils", "util", "common", "core", "manager", "service", "helpers", "misc"];
    let named = |s: &Source| s.path.split(['/', '.']).any(|part| vague.contains(&part));
    report(sources().iter().filter(|s| named(s)).map(|s| format!("{}: says nothing", s.path)).collect());
}

#[test]
fn every_key_of_the_configuration_is_explained() {
    let text = fs::read_to_string(root().join("config.yaml")).unwrap();
    let keys: Vec<&str> = text.lines().filter(|l| l.starts_with("  ") && !l.trim_start().starts_with('#')).collect();
    assert_eq!(keys.len(), garrick::base::config::keys::KEYS.len(), "config.yaml has every key once");
    let silent = keys.iter().filter(|l| l.split_once("  # ").is_none_or(|(_, why)| why.len() < 10));
    report(silent.map(|l| format!("config.yaml: no comment: {l}")).collect());
}
