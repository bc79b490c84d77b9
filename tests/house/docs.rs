//! The documents against the code: the tables of actors.md and the README, the keys and the files that they name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use garrick::api::openapi;
use garrick::api::wire::error::ErrorBody;
use garrick::base::config::keys::{KEYS, sections};
use garrick::base::error::{Code, Error};
use garrick::base::metrics::{ALIASES, PROCESS_NAMES, TABLE};
use serde_json::Value;

use super::report;
use super::source::{after, root, sources};

/// Every page a reader may open, with its text.
fn pages() -> Vec<(String, String)> {
    let mut paths = vec!["README.md".to_owned(), "actors.md".into(), "CHANGELOG.md".into()];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        paths.push(format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    paths.retain(|path| path.ends_with(".md"));
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap())).collect()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The cells of each row of the tables under `heading`, without backticks and without the head.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let section = after(page, &format!("\n{heading}\n")).unwrap_or_else(|| panic!("no section '{heading}'"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut rows = Vec::new();
    let mut in_body = false;
    for line in section.lines() {
        // A pipe within a cell is written `\|`.
        let cells = line.replace("\\|", "\u{1}");
        let Some(cells) = cells.trim().strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
            in_body = false;
            continue;
        };
        let cells: Vec<String> = cells.split('|').map(|c| c.trim().replace('`', "").replace('\u{1}', "|")).collect();
        if in_body {
            rows.push(cells);
        } else {
            in_body = cells.iter().all(|c| !c.is_empty() && c.chars().all(|c| c == '-' || c == ':'));
        }
    }
    assert!(!rows.is_empty(), "no table under '{heading}'");
    rows
}

/// What the sources say of a message: who handles it and what is answered.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    answer: String,
    to: BTreeSet<String>,
}

fn messages_of_the_code() -> BTreeMap<String, Message> {
    let mut messages = BTreeMap::new();
    let files = sources();
    for file in files.iter().filter(|s| s.part() == "actors") {
        for derive in file.text.split("#[derive(").skip(1) {
            let (list, item) = derive.split_once(")]").unwrap();
            if !list.split(',').any(|name| name.trim() == "Message") {
                continue;
            }
            let answer = after(item, "rtype(result = \"").and_then(|t| t.split('"').next()).unwrap().to_owned();
            let name = after(item, "pub struct ").unwrap();
            let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned();
            messages.insert(name, Message { answer, to: BTreeSet::new() });
        }
    }
    for file in files.iter().filter(|s| s.part() == "actors") {
        for handler in file.program.split("impl Handler<").skip(1) {
            let (message, actor) = handler.split_once("> for ").unwrap();
            let actor = actor.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            let known = messages.get_mut(message).unwrap_or_else(|| panic!("{message} is handled but not a message"));
            known.to.insert(actor.trim_end_matches("Actor").to_owned());
        }
    }
    assert!(messages.len() > 8, "only {} messages were found", messages.len());
    messages
}

#[test]
fn actors_md_lists_the_messages_of_the_code() {
    let listed = rows(&page("actors.md"), "## Messages").into_iter().map(|row| {
        let [name, _from, to, answer, _when] = <[String; 5]>::try_from(row).expect("message, from, to, answer, when");
        (name, Message { answer, to: to.split(", ").map(str::to_owned).collect() })
    });
    let (listed, known): (BTreeMap<_, _>, _) = (listed.collect(), messages_of_the_code());
    let names: BTreeSet<_> = listed.keys().chain(known.keys()).collect();
    let differing = names.into_iter().filter(|name| listed.get(*name) != known.get(*name));
    report(
        differing.map(|n| format!("{n}: actors.md says {:?}, the code {:?}", listed.get(n), known.get(n))).collect(),
    );
}

/// Every handler begins with a fault point of its own, and every fault point has a drill.
#[test]
fn every_handler_can_be_made_to_panic_and_is() {
    /// Sent by nobody in the process yet.
    const WITHOUT_DRILL: [&str; 1] = ["Auth.KeyRevoked"];
    let (mut points, mut wrong) = (BTreeSet::new(), Vec::new());
    for file in sources() {
        let hits = file.text.split("faults::hit(\"").skip(1).filter_map(|rest| rest.split('"').next());
        points.extend(hits.map(str::to_owned));
    }
    for (message, told) in messages_of_the_code() {
        for point in told.to.iter().map(|actor| format!("{actor}.{message}")) {
            if !points.contains(&point) {
                wrong.push(format!("{point}: the handler does not begin with `faults::hit(\"{point}\")`"));
            }
        }
    }
    let drills = page("tests/server/drills/panics.rs");
    let undrilled = points.iter().filter(|point| !WITHOUT_DRILL.contains(&point.as_str()));
    wrong.extend(undrilled.filter(|p| !drills.contains(&format!("\"{p}\""))).map(|p| format!("{p}: has no drill")));
    report(wrong);
}

#[test]
fn actors_md_lists_the_cast() {
    let listed: BTreeSet<String> = rows(&page("actors.md"), "## Cast").into_iter().map(|row| row[0].clone()).collect();
    let mut known = BTreeSet::new();
    for file in sources() {
        for actor in file.program.split("impl Actor for ").skip(1) {
            let name = actor.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            known.insert(name.trim_end_matches("Actor").to_owned());
        }
    }
    assert_eq!(listed, known);
}

#[test]
fn the_readme_lists_every_error_code() {
    let listed: BTreeSet<String> =
        rows(&page("README.md"), "## Errors").into_iter().map(|row| row[1].clone()).collect();
    let word = |code: &Code| {
        let body = serde_json::to_value(ErrorBody::new(&Error::new(*code, ""), "")).unwrap();
        body["error"]["code"].as_str().unwrap().to_owned()
    };
    let known = Code::ALL.iter().map(word).collect();
    assert_eq!(listed, known);
}

/// Name and labels of each row under a heading of docs/metrics.md.
fn metrics_under(heading: &str) -> BTreeSet<(String, String)> {
    let rows = rows(&page("docs/metrics.md"), heading).into_iter();
    rows.map(|row| (row[0].clone(), if row[1] == "—" { String::new() } else { row[1].clone() })).collect()
}

#[test]
fn the_page_on_metrics_lists_every_metric() {
    let ours = TABLE.iter().map(|metric| (metric.name.to_owned(), metric.labels.join(", "))).collect();
    assert_eq!(metrics_under("## Ours"), ours);
    let aliases = ALIASES.iter().map(|alias| (alias.name.to_owned(), alias.labels.join(", "))).collect();
    assert_eq!(metrics_under("## vLLM's names"), aliases);
    let page = page("docs/metrics.md");
    let unnamed = PROCESS_NAMES.iter().filter(|(name, _)| !page.contains(&format!("`{name}`")));
    report(unnamed.map(|(name, _)| format!("docs/metrics.md does not name {name}")).collect());
}

/// As `GET /health/live`, from the code that registers them.
fn registered_routes() -> BTreeSet<String> {
    let server = page("src/api/server.rs");
    let mut routes = BTreeSet::new();
    for route in server.split("at(\"").skip(1) {
        let (path, handlers) = route.split_once('"').unwrap();
        for method in handlers.split("Method::").skip(1) {
            let method: String = method.chars().take_while(char::is_ascii_uppercase).collect();
            // What a pattern may match is no part of the route's name.
            routes.insert(format!("{method} {}", path.replace(":.+}", "}")));
        }
    }
    assert!(routes.len() > 10, "only {} routes were found", routes.len());
    routes
}

#[test]
fn the_readme_lists_every_route() {
    let listed: BTreeSet<String> = rows(&page("README.md"), "## Routes")
        .into_iter()
        .flat_map(|row| row[0].split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(listed, registered_routes());
}

#[test]
fn the_openapi_document_describes_every_route() {
    let document = serde_json::to_value(openapi::document()).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let methods = |path: &str, item: &Value| {
        item.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())).collect::<Vec<_>>()
    };
    let described: BTreeSet<String> = paths.flat_map(|(path, item)| methods(path, item)).collect();
    assert_eq!(described, registered_routes());
}

/// The names in the first column of the table under a heading, without those of the tables further down.
fn fields_of(heading: &str) -> BTreeSet<String> {
    let page = page("docs/api.md").replace("\n### ", "\n## ");
    rows(&page, heading).iter().flat_map(|row| row[0].split(", ").map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn docs_api_md_lists_the_fields_of_the_openapi_document() {
    let document = serde_json::to_value(openapi::document()).unwrap();
    let described = |request: &str| -> BTreeSet<String> {
        let fields = &document["components"]["schemas"][request]["properties"];
        fields.as_object().unwrap().keys().cloned().collect()
    };
    let (chat, own) = (fields_of("## Chat completions"), fields_of("## Text completions"));
    assert_eq!(chat, described("ChatRequest"));
    assert_eq!(chat, described("RenderRequest"));
    let of_chats = ["messages", "top_logprobs", "add_generation_prompt", "continue_final_message"];
    let of_chats = of_chats.iter().chain(&["chat_template_kwargs", "response_format", "modalities", "tools"]);
    let of_chats: BTreeSet<String> = of_chats.map(|name| name.to_string()).collect();
    let listed: BTreeSet<String> = chat.difference(&of_chats).chain(&own).cloned().collect();
    assert_eq!(listed, described("CompletionRequest"));
}

/// What stands in backticks on one line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn keys_that_documents_name_exist() {
    let (sections, mut wrong) = (sections(), Vec::new());
    for (name, text) in pages() {
        for word in quoted(&text) {
            let key = word.split(['=', ' ', ':']).next().unwrap_or_default();
            let Some((section, rest)) = key.split_once('.') else { continue };
            let is_word = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let is_file = ["rs", "md", "yaml", "json", "toml", "sh", "db", "gguf", "safetensors"].contains(&rest);
            if sections.contains(&section) && is_word(rest) && !is_file && !KEYS.iter().any(|k| k.path == key) {
                wrong.push(format!("{name}: there is no key {key}"));
            }
        }
    }
    report(wrong);
}

#[test]
fn files_that_documents_link_to_exist() {
    let mut wrong = Vec::new();
    for (name, text) in pages() {
        let folder = root().join(&name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#', ' ']).next().unwrap();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                wrong.push(format!("{name}: {target} does not exist"));
            }
        }
    }
    report(wrong);
}
