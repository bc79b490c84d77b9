//! Rust sources as the house rules read them: text without comments and literals, test code apart from the program's.
//!
//! A scanner and not a parser: it knows comments, literals, attributes and braces, which is what the rules ask about.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One file under `src/`.
pub struct Source {
    /// Relative to the project, as `src/sched/lane.rs`.
    pub path: String,
    pub text: String,
    /// Comments and literals blanked, line for line.
    pub code: String,
    /// `code` without `#[cfg(test)]` items; empty for a file that is a test module.
    pub program: String,
}

impl Source {
    /// The folder or file right under `src/`, without its ending: `sched`, `app`.
    pub fn part(&self) -> &str {
        let path = self.path.strip_prefix("src/").unwrap_or(&self.path);
        path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// How many names the module's path has: `src/kv/pool.rs` has two.
    pub fn depth(&self) -> usize {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').count()
    }

    pub fn is_test(&self) -> bool {
        self.program.is_empty()
    }
}

/// The project's folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of `src/`, in order.
pub fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    paths.sort();
    let mut sources: Vec<Source> = paths.iter().map(|path| read(path)).collect();
    let tests: Vec<String> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        let in_tests =
            |test: &String| source.path == format!("{test}.rs") || source.path.starts_with(&format!("{test}/"));
        if tests.iter().any(in_tests) {
            source.program.clear();
        }
    }
    assert!(sources.len() > 50, "only {} files were found under src/", sources.len());
    sources
}

fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn read(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let code = blank(&text);
    let program = without_tests(&code);
    let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    Source { path, text, code, program }
}

/// Modules in files of their own that are compiled for tests only, as paths without ending.
fn test_modules(source: &Source) -> Vec<String> {
    let folder = match source.path.strip_suffix("/mod.rs") {
        Some(folder) => folder.to_owned(),
        None => source.path.trim_end_matches(".rs").to_owned(),
    };
    let beside = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut modules = Vec::new();
    for (at, _) in source.code.match_indices("#[cfg(test)]") {
        // Literals are blank in `code`; the text has `path`, at the same place.
        let end = at + source.code[at..].find(['{', ';']).unwrap_or(0);
        let (item, text) = (&source.code[at..end], &source.text[at..end]);
        if let Some(name) = after(text, "path = \"").and_then(|t| t.split('"').next()) {
            modules.push(format!("{beside}/{}", name.trim_end_matches(".rs")));
        } else if let Some(name) = after(item, "mod ") {
            modules.push(format!("{folder}/{}", name.trim()));
        }
    }
    modules
}

pub fn after<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.find(start).map(|at| &text[at + start.len()..])
}

/// Comments, strings and characters become spaces; line ends stay.
pub fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = literal_len(rest, out.chars().next_back());
        if len == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            // Byte for byte, so that places in both texts agree.
            out.extend(rest[..len].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
            rest = &rest[len..];
        }
    }
    out
}

/// Bytes of the comment or literal that `text` starts with; 0 if it starts with neither.
fn literal_len(text: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment_len(text);
    }
    if text.starts_with('"') {
        return quoted_len(text, '"');
    }
    if !in_word && (text.starts_with("r\"") || text.starts_with("r#") || text.starts_with("br")) {
        return raw_string_len(text);
    }
    if text.starts_with('\'') {
        // A lifetime has no closing quote right after its first character.
        let mut chars = text.chars().skip(1);
        let first = chars.next();
        return if first == Some('\\') || chars.next() == Some('\'') { quoted_len(text, '\'') } else { 0 };
    }
    0
}

fn block_comment_len(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn raw_string_len(text: &str) -> usize {
    let start = text.trim_start_matches('b');
    let Some(start) = start.strip_prefix('r') else { return 0 };
    let hashes = start.len() - start.trim_start_matches('#').len();
    if !start[hashes..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let open = text.len() - start.len() + hashes + 1;
    text[open..].find(&close).map_or(text.len(), |at| open + at + close.len())
}

/// Blanks every item behind `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(at) = out.find("#[cfg(test)]") {
        let end = at + item_len(&out[at..]);
        let gap: String = out[at..end].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..end, &gap);
    }
    out
}

/// To the end of an item: its `;`, or the brace that closes its first one.
fn item_len(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Whether `word` stands in `code` as a word of its own.
pub fn has_word(code: &str, word: &str) -> bool {
    word_places(code, word).next().is_some()
}

/// Where `word` stands in `code` as a word of its own.
pub fn word_places<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let (before, behind) = (&code[..at], &code[at + word.len()..]);
        !before.ends_with(inside) && !behind.starts_with(inside)
    })
}

/// Line number of a place.
pub fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// What a file takes from the crate, each as `sched::plan::StepPlan`, as long as the text spells it out.
pub fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for at in word_places(code, "crate") {
        if let Some(tree) = code[at + "crate".len()..].strip_prefix("::") {
            expand(tree, "", &mut paths);
        }
    }
    paths
}

/// Reads one `a::{b, c::d}`; returns what follows it.
fn expand<'a>(tree: &'a str, prefix: &str, into: &mut BTreeSet<String>) -> &'a str {
    let tree = tree.trim_start();
    if let Some(mut rest) = tree.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches([',', ' ', '\n']);
            if let Some(rest) = rest.strip_prefix('}') {
                return rest;
            }
            let next = expand(rest, prefix, into);
            if next.len() == rest.len() {
                return rest;
            }
            rest = next;
        }
    }
    let len = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(tree.len());
    let (name, rest) = tree.split_at(len);
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    match rest.strip_prefix("::") {
        Some(rest) if !rest.starts_with('<') => expand(rest, &path, into),
        _ => {
            into.insert(path);
            let behind = rest.trim_start();
            behind.strip_prefix("as ").map_or(rest, |r| r.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
        }
    }
}

#[test]
fn literals_and_comments_are_blanked_in_place() {
    let text = "let a = \"x // \\\" y\"; // do_send\nlet b = r#\"un\"safe\"#; 'l: loop { '\\'' }\n/* a /* b */ c */ fn f<'a>() {}";
    let code = blank(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(line_of(&code, code.find("fn").unwrap()), 3);
    for gone in ["//", "do_send", "safe", "\\", "c */"] {
        assert!(!code.contains(gone), "{gone} in {code}");
    }
    assert!(code.contains("'l: loop") && code.contains("fn f<'a>()"));
}

#[test]
fn imports_are_read_from_groups_and_paths() {
    let code = "use crate::kv::{pool::Pool, table::{self, Table as T}, BLOCK};\nlet x = crate::sample::pick::<u8>();";
    let paths: Vec<_> = crate_paths(code).into_iter().collect();
    assert_eq!(paths, ["kv::BLOCK", "kv::pool::Pool", "kv::table::Table", "kv::table::self", "sample::pick"]);
}

#[test]
fn tests_are_told_from_the_program() {
    let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { c() } }\nfn d() {}\n#[cfg(test)]\nmod more;\n";
    let program = without_tests(code);
    assert!(has_word(&program, "d") && !has_word(&program, "b") && !has_word(&program, "more"));
}
