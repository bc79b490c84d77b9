use proptest::prelude::*;
use serde_json::json;

use super::vocabularies::*;
use crate::model::text::{Tokenizer, TokenizerConfig};

fn is_shared<T: Send + Sync + Clone>(_: &T) {}

#[test]
fn special_tokens_in_the_text_are_parsed() {
    let tokenizer = ours(&byte_level());
    is_shared(&tokenizer);
    let ids = tokenizer.encode("<|im_start|>hi<|im_end|>\n", false).unwrap();
    assert_eq!((ids[0], ids[3]), (261, 262));
    assert!(tokenizer.is_special(261) && !tokenizer.is_special(263) && !tokenizer.is_special(65));
    assert!(!tokenizer.is_special(u32::MAX));
    assert_eq!(tokenizer.vocab_size(), 264);
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(262));
    assert_eq!(tokenizer.id_of("<|none|>"), None);
}

#[test]
fn truncation_stored_in_the_file_is_not_applied() {
    assert_eq!(ours(&byte_level()).encode("0123456789", false).unwrap().len(), 10);
}

#[test]
fn token_bytes_are_raw() {
    let tokenizer = ours(&byte_level());
    assert_eq!(tokenizer.token_bytes(259), &"你".as_bytes()[..2]);
    assert_eq!(tokenizer.token_text(259), "\u{fffd}");
    assert_eq!(tokenizer.token_bytes(257), b" th");
    assert_eq!(tokenizer.token_bytes(261), b"<|im_start|>");
    assert_eq!(tokenizer.token_bytes(70_000), b"");
    let tokenizer = ours(&llama2());
    assert_eq!(tokenizer.token_text(tokenizer.id_of("▁Hello").unwrap()), " Hello");
    assert_eq!(tokenizer.token_bytes(fallback_id(0xff)), [0xff]);
}

fn with_bos(post_processor: bool, add_bos: Option<bool>) -> Tokenizer {
    let mut json = words();
    if post_processor {
        json["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
    }
    let config = TokenizerConfig { bos_token: Some("<s>".into()), add_bos, ..TokenizerConfig::default() };
    Tokenizer::from_parts(reference(&json), config).unwrap()
}

#[test]
fn bos_is_added_as_the_post_processor_or_the_config_says() {
    for (post_processor, add_bos, expected) in [
        (false, None, vec![3, 4]),
        (true, None, vec![1, 3, 4]),
        (false, Some(true), vec![1, 3, 4]),
        (true, Some(true), vec![1, 3, 4]),
        (true, Some(false), vec![3, 4]),
        (false, Some(false), vec![3, 4]),
    ] {
        let tokenizer = with_bos(post_processor, add_bos);
        assert_eq!(tokenizer.encode("one two", true).unwrap(), expected, "{post_processor} {add_bos:?}");
        assert_eq!(tokenizer.encode("one two", false).unwrap(), [3, 4]);
        assert_eq!(tokenizer.bos(), Some(1));
    }
    // What the text spells out itself is the text's.
    assert_eq!(with_bos(false, Some(false)).encode("<s> one", true).unwrap(), [1, 3]);
    assert_eq!(with_bos(true, Some(false)).encode("<s> one", true).unwrap(), [1, 3]);
}

#[test]
fn tokens_named_by_the_config_are_special() {
    let config = TokenizerConfig {
        eos_token: Some("</s>".into()),
        special_tokens: vec!["<pad>".into(), "absent".into(), String::new()],
        ..TokenizerConfig::default()
    };
    let tokenizer = Tokenizer::from_parts(reference(&words()), config).unwrap();
    assert_eq!(tokenizer.eos(), Some(2));
    assert!(tokenizer.is_special(2) && tokenizer.is_special(0) && !tokenizer.is_special(3));
    assert_eq!(tokenizer.vocab_size(), 6);
    assert_eq!(tokenizer.decode(&[3, 2, 4], true), "one two");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn byte_level_text_comes_back(text in "\\PC{0,40}") {
        let tokenizer = ours(&byte_level());
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false), &text[..]);
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect();
        prop_assert_eq!(bytes, text.into_bytes());
    }

    #[test]
    fn no_text_has_fewer_tokens_than_said(text in "\\PC{0,40}( the){0,40}") {
        for json in [byte_level(), llama2(), gemma()] {
            let tokenizer = ours(&json);
            prop_assert!(tokenizer.min_tokens(text.len()) <= tokenizer.encode(&text, false).unwrap().len());
        }
        prop_assert!(ours(&byte_level()).min_tokens(1 << 20) > 10_000);
    }
}
