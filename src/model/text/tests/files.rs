use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::vocabularies;
use crate::model::text::{TextError, Tokenizer, read_chat_source};

fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn a_checkpoint_folder_is_read() {
    let config = json!({"bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>", "add_bos_token": true,
        "added_tokens_decoder": {"0": {"content": "<pad>", "special": true}, "3": {"content": "one", "special": false}}});
    let dir =
        folder(&[("tokenizer.json", vocabularies::words().to_string()), ("tokenizer_config.json", config.to_string())]);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("one", true).unwrap(), [1, 3]);
    assert!(tokenizer.is_special(0) && tokenizer.is_special(2) && !tokenizer.is_special(3));
    let source = read_chat_source(dir.path()).unwrap();
    assert_eq!((source.bos_token.as_str(), source.eos_token.as_str()), ("<s>", "</s>"));
    assert_eq!((source.template, source.tool_template), (None, None));
}

#[test]
fn chat_templates_are_found_in_every_place() {
    let string = json!({"chat_template": "old"}).to_string();
    let list = json!({"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"},
        {"name": "rag", "template": "docs"}]});
    let beside = json!({"chat_template": "processor"}).to_string();
    type Case<'a> = (&'a [(&'a str, String)], Option<&'a str>, Option<&'a str>);
    let cases: [Case<'_>; 5] = [
        (&[("tokenizer_config.json", string.clone())], Some("old"), None),
        (&[("tokenizer_config.json", list.to_string())], Some("plain"), Some("tools")),
        (&[("chat_template.json", beside.clone())], Some("processor"), None),
        (&[("tokenizer_config.json", string.clone()), ("chat_template.json", beside)], Some("old"), None),
        (
            &[
                ("tokenizer_config.json", string),
                ("chat_template.jinja", "new".into()),
                ("additional_chat_templates/tool_use.jinja", "new tools".into()),
            ],
            Some("new"),
            Some("new tools"),
        ),
    ];
    for (files, template, tool_template) in cases {
        let source = read_chat_source(folder(files).path()).unwrap();
        assert_eq!((source.template.as_deref(), source.tool_template.as_deref()), (template, tool_template));
    }
}

#[test]
fn special_tokens_map_fills_in() {
    let dir = folder(&[
        ("tokenizer_config.json", json!({"bos_token": null}).to_string()),
        ("special_tokens_map.json", json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}).to_string()),
    ]);
    let source = read_chat_source(dir.path()).unwrap();
    assert_eq!((source.bos_token.as_str(), source.eos_token.as_str()), ("<s>", "</s>"));
}

#[test]
fn what_is_wrong_is_named() {
    let message = |files: &[(&str, String)]| match Tokenizer::from_dir(folder(files).path()) {
        Err(TextError::File { path, message }) => format!("{path}: {message}"),
        other => panic!("{other:?}"),
    };
    assert!(message(&[]).contains("tokenizer.json: is missing"));
    assert!(message(&[("tokenizer.json", "{".into())]).contains("tokenizer.json"));
    let words = ("tokenizer.json", vocabularies::words().to_string());
    assert!(message(&[words, ("tokenizer_config.json", "[".into())]).contains("tokenizer_config.json"));
    let dir = folder(&[("tokenizer_config.json", json!({"chat_template": 3}).to_string())]);
    assert!(read_chat_source(dir.path()).unwrap_err().to_string().contains("chat_template"));
}

/// Replaces part of a file.
fn damaged(text: String, at: usize, len: usize, with: &str) -> String {
    let mut bytes = text.into_bytes();
    let at = at % bytes.len();
    let end = (at + len).min(bytes.len());
    bytes.splice(at..end, with.bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A damaged folder is refused or works; nothing in it brings the process down.
    #[test]
    fn damaged_files_are_survived(
        at in any::<usize>(), len in 0usize..12, with in "([0-9]{1,5}|null|\"|\\[|\\]|\\{\\}|[a-z▁<>]{0,3}|-1|true)", which in 0usize..8
    ) {
        let vocabularies = [vocabularies::byte_level(), vocabularies::llama2(), vocabularies::metaspace(),
            vocabularies::word_piece(), vocabularies::words()];
        let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": [{"name": "default",
            "template": "{{ x }}"}], "added_tokens_decoder": {"0": {"content": "<pad>", "special": true}}}).to_string();
        let dir = match vocabularies.get(which) {
            Some(json) => folder(&[("tokenizer.json", damaged(json.to_string(), at, len, &with)), ("tokenizer_config.json", config)]),
            None => folder(&[("tokenizer.json", vocabularies[0].to_string()), ("tokenizer_config.json", damaged(config, at, len, &with))]),
        };
        let _ = read_chat_source(dir.path());
        if let Ok(tokenizer) = Tokenizer::from_dir(dir.path()) {
            if let Ok(ids) = tokenizer.encode("one 你 <s> ing", true) {
                tokenizer.decode(&ids, true);
            }
            tokenizer.decode(&(0..300).collect::<Vec<_>>(), false);
        }
    }
}
