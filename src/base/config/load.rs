//! Layers, from weakest to strongest: defaults, the file, `GARRICK__SECTION__KEY`, `--set`, named flags.
//!
//! Each layer becomes a list of settings that remember where they stand; all are checked, also those that a stronger
//! layer hides, and every problem is reported at once.

use std::collections::HashMap;
use std::fmt;

use serde_saphyr::{Location, MessageFormatter, Spanned, UserMessageFormatter};

use super::keys;
use super::sections::{Config, Device};
use super::suggest::unknown;
use super::value::{Allowed, Value, shortened};

const ENV_PREFIX: &str = "GARRICK__";
/// A configuration is a page of text; more is a wrong file.
const MAX_FILE_BYTES: usize = 1 << 20;
/// Problems listed in one error.
const MAX_PROBLEMS: usize = 20;

/// Every problem found, one on a line: where it stands, the key, the value, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// A named argument such as `--listen`, which stands for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// As typed, for messages: `--listen`.
    pub name: &'static str,
    /// The key that it sets.
    pub path: &'static str,
    pub value: String,
}

/// Where a setting stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    File { name: String, line: u64, column: u64 },
    Env(String),
    Set(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::Set(text) => write!(f, "--set {text}"),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

struct Setting {
    path: String,
    value: Value,
    origin: Origin,
}

/// Builds the configuration. `file` is its name, for messages, and its text. Of `env`, only names that begin with
/// `GARRICK__` are looked at; `sets` are `section.key=value`.
pub fn load(
    file: Option<(&str, &str)>,
    env: impl Iterator<Item = (String, String)>,
    sets: &[String],
    flags: &[Flag],
) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    let mut settings = Vec::new();
    if let Some((name, text)) = file {
        read_file(name, text, &mut settings, &mut problems);
    }
    read_env(env, &mut settings, &mut problems);
    read_sets(sets, &mut settings, &mut problems);
    settings.extend(flags.iter().map(|f| Setting {
        path: f.path.to_owned(),
        value: Value::Untyped(f.value.clone()),
        origin: Origin::Flag(f.name),
    }));

    let mut config = Config::default();
    let mut origins = HashMap::new();
    for Setting { path, value, origin } in settings {
        let Some(key) = keys::find(&path) else {
            problems.push(format!("{origin}: {}", unknown(&path)));
            continue;
        };
        match (key.set)(&mut config, &value) {
            Ok(()) => _ = origins.insert(key.path, origin),
            Err(Allowed(what)) => {
                problems.push(format!("{origin}: {path} is {}, but must be {what}", value.shown()));
            }
        }
    }
    check_pairs(&config, &origins, &mut problems);

    if problems.is_empty() {
        return Ok(config);
    }
    if problems.len() > MAX_PROBLEMS {
        let more = problems.len() - MAX_PROBLEMS;
        problems.truncate(MAX_PROBLEMS);
        problems.push(format!("and {more} more"));
    }
    Err(ConfigError(problems))
}

fn read_file(name: &str, text: &str, settings: &mut Vec<Setting>, problems: &mut Vec<String>) {
    if text.len() > MAX_FILE_BYTES {
        problems.push(format!("{name}: {} bytes, more than the limit of {MAX_FILE_BYTES}", text.len()));
        return;
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 16, max_events: 20_000, max_aliases: 100 },
        with_snippet: false,
        strict_booleans: true,
        // The key that gets it refuses it, by name.
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
    };
    let root = match serde_saphyr::from_str_with_options::<Option<Spanned<Value>>>(text, options) {
        Ok(root) => root,
        Err(e) => {
            let message = UserMessageFormatter.format_message(&e).replace(char::is_control, " ");
            problems.push(match e.location() {
                Some(at) => format!("{name}:{}:{}: {message}", at.line(), at.column()),
                None => format!("{name}: {message}"),
            });
            return;
        }
    };
    let origin = |at: Location| Origin::File { name: name.to_owned(), line: at.line(), column: at.column() };
    let sections = match root.map(|r| (r.value, r.referenced)) {
        None | Some((Value::Null, _)) => return,
        Some((Value::Map(sections), _)) => sections,
        Some((other, at)) => {
            let what = keys::sections().join(", ");
            problems.push(format!("{}: the file is {}, but must hold the sections {what}", origin(at), other.shown()));
            return;
        }
    };
    for (section, body) in sections {
        let known = keys::sections().contains(&section.value.as_str());
        match body.value {
            _ if !known => problems.push(format!("{}: {}", origin(section.referenced), unknown(&section.value))),
            Value::Null => {}
            Value::Map(entries) => settings.extend(entries.into_iter().map(|(key, value)| {
                let path = format!("{}.{}", section.value, key.value);
                // A wrong key is at the key, a wrong value at the value.
                let at = if keys::find(&path).is_some() { value.referenced } else { key.referenced };
                Setting { path, value: value.value, origin: origin(at) }
            })),
            other => problems.push(format!(
                "{}: {} is {}, but must be a section with the keys {}",
                origin(body.referenced),
                section.value,
                other.shown(),
                keys::keys_of(&section.value).join(", ")
            )),
        }
    }
}

fn read_env(env: impl Iterator<Item = (String, String)>, settings: &mut Vec<Setting>, problems: &mut Vec<String>) {
    let mut ours: Vec<_> = env.filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    ours.sort();
    for (name, value) in ours {
        let path = name[ENV_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        if name.bytes().any(|b| b.is_ascii_lowercase()) {
            problems.push(format!("environment variable {name}: names of variables are in capitals"));
            continue;
        }
        settings.push(Setting { path, value: Value::Untyped(value), origin: Origin::Env(name) });
    }
}

fn read_sets(sets: &[String], settings: &mut Vec<Setting>, problems: &mut Vec<String>) {
    for set in sets {
        let Some((path, value)) = set.split_once('=') else {
            problems.push(format!("--set {}: must be section.key=value", shortened(set)));
            continue;
        };
        let path = path.trim().to_owned();
        let origin = Origin::Set(shortened(set).trim_matches('\'').to_owned());
        settings.push(Setting { path, value: Value::Untyped(value.to_owned()), origin });
    }
}

/// The rules between keys. Both are named, with where they were set.
fn check_pairs(c: &Config, origins: &HashMap<&'static str, Origin>, problems: &mut Vec<String>) {
    let stands = |path: &str| match origins.get(path) {
        Some(origin) => format!("{path} ({origin})"),
        None => format!("{path} (by default)"),
    };
    let mut at_most = |small: (&str, u64), large: (&str, u64), why: &str| {
        if small.1 > large.1 {
            problems.push(format!(
                "{} is {}, but must be at most {}, which is {}: {why}",
                stands(small.0),
                small.1,
                stands(large.0),
                large.1
            ));
        }
    };
    at_most(
        ("scheduler.max_running", c.scheduler.max_running as u64),
        ("scheduler.max_batch_tokens", c.scheduler.max_batch_tokens as u64),
        "each running sequence takes a token of every step",
    );
    at_most(
        ("scheduler.prompt_lookup_min", c.scheduler.prompt_lookup_min as u64),
        ("scheduler.prompt_lookup_max", c.scheduler.prompt_lookup_max as u64),
        "longer matches are looked for first",
    );
    if let Some(default) = c.admission.default_timeout_ms {
        at_most(
            ("admission.default_timeout_ms", default),
            ("admission.max_timeout_ms", c.admission.max_timeout_ms),
            "the default deadline is one that a request could ask for",
        );
    }
    if let Some(threads) = c.engine.threads {
        at_most(
            ("engine.lanes", c.engine.lanes as u64),
            ("engine.threads", threads as u64),
            "every lane computes on a thread of its own",
        );
    }
    if c.engine.device == Device::Cpu && c.engine.tensor_parallel > 1 {
        problems.push(format!(
            "{} is {}, but must be 1 where {} is cpu: GPUs share a model, and threads do without",
            stands("engine.tensor_parallel"),
            c.engine.tensor_parallel,
            stands("engine.device")
        ));
    }
}
