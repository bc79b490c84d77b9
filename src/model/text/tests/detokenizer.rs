use proptest::prelude::*;

use super::vocabularies::*;
use crate::model::TokenId;
use crate::model::text::{Detokenizer, Tokenizer, TokenizerConfig};

/// Everything pushed, piece by piece, and what came at the end.
fn stream(tokenizer: &Tokenizer, ids: &[TokenId], skip_special: bool) -> (Vec<String>, String) {
    let mut detokenizer = Detokenizer::new(tokenizer, skip_special);
    let pushed = ids.iter().map(|id| detokenizer.push(*id).to_owned()).collect();
    (pushed, detokenizer.finish().to_owned())
}

fn streamed(tokenizer: &Tokenizer, ids: &[TokenId], skip_special: bool) -> String {
    let (pushed, last) = stream(tokenizer, ids, skip_special);
    pushed.concat() + &last
}

/// Tokens of a vocabulary with byte fallback whose byte runs spell whole characters.
fn whole_characters() -> impl Strategy<Value = Vec<TokenId>> {
    let word = (0u32..11).prop_map(|id| vec![id]);
    let character = prop_oneof!["[a-z ▁é你😀]"].prop_map(|text| text.bytes().map(fallback_id).collect());
    prop::collection::vec(prop_oneof![word, character], 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any ids at all, ids without meaning included.
    #[test]
    fn byte_level_streams_what_the_reference_decodes(
        ids in prop::collection::vec(prop_oneof![0u32..300, 0x80u32..0xff, 256u32..264], 0..40), skip in any::<bool>()
    ) {
        let json = byte_level();
        let expected = reference(&json).decode(&ids, skip).unwrap();
        let tokenizer = ours(&json);
        prop_assert_eq!(streamed(&tokenizer, &ids, skip), &expected[..]);
        prop_assert_eq!(tokenizer.decode(&ids, skip), expected);
    }

    #[test]
    fn byte_fallback_streams_what_the_reference_decodes(ids in whole_characters(), skip in any::<bool>()) {
        for json in [llama2(), gemma(), metaspace()] {
            let expected = reference(&json).decode(&ids, skip).unwrap();
            let tokenizer = ours(&json);
            prop_assert_eq!(streamed(&tokenizer, &ids, skip), &expected[..]);
            prop_assert_eq!(tokenizer.decode(&ids, skip), expected);
        }
    }

    /// A run with a bad byte keeps its good characters; a run without a good one is the reference's.
    #[test]
    fn broken_byte_runs_lose_nothing_else(ids in prop::collection::vec(0u32..300, 0..24)) {
        let json = llama2();
        let expected = reference(&json).decode(&ids, true).unwrap();
        let text = streamed(&ours(&json), &ids, true);
        if !expected.contains('\u{fffd}') {
            prop_assert_eq!(&text, &expected);
        }
        let good = |text: &str| text.replace('\u{fffd}', "");
        prop_assert!(good(&text).len() >= good(&expected).len());
        let num_marks = |text: &str| text.matches(char::REPLACEMENT_CHARACTER).count();
        prop_assert!(num_marks(&text) <= num_marks(&expected));
    }

    #[test]
    fn words_and_word_pieces_stream_what_the_reference_decodes(
        ids in prop::collection::vec(0u32..10, 0..12), skip in any::<bool>()
    ) {
        for json in [words(), word_piece()] {
            let expected = reference(&json).decode(&ids, skip).unwrap();
            prop_assert_eq!(streamed(&ours(&json), &ids, skip), expected);
        }
    }

    /// Real text, one byte per token: no replacement character, and every character as soon as it is whole.
    #[test]
    fn characters_come_whole_and_at_once(text in "[a-z é你😀\u{301}]{0,12}") {
        // The first 256 tokens of the vocabulary are the bytes.
        let ids: Vec<TokenId> = text.bytes().map(TokenId::from).collect();
        let (pushed, last) = stream(&ours(&byte_level()), &ids, true);
        prop_assert_eq!(last, "");
        let mut at = 0;
        for (index, piece) in pushed.iter().enumerate() {
            prop_assert_eq!(&text[at..at + piece.len()], piece);
            at += piece.len();
            prop_assert_eq!(at == index + 1, text.is_char_boundary(index + 1));
        }
    }
}

#[test]
fn a_character_that_never_ends_becomes_one_mark_at_the_end() {
    let tokenizer = ours(&byte_level());
    let half = tokenizer.encode("你", false).unwrap()[0];
    assert_eq!(tokenizer.token_text(half), "你");
    let first_byte = TokenId::from("你".as_bytes()[0]);
    assert_eq!(stream(&tokenizer, &[first_byte], true), (vec![String::new()], "\u{fffd}".into()));
    assert_eq!(stream(&tokenizer, &[first_byte, 65], true), (vec![String::new(), "\u{fffd}A".into()], String::new()));
    // Byte fallback makes one mark of each byte.
    let tokenizer = ours(&gemma());
    let ids = [fallback_id(0xe4), fallback_id(0xbd)];
    assert_eq!(stream(&tokenizer, &ids, true), (vec![String::new(); 2], "\u{fffd}\u{fffd}".into()));
}

#[test]
fn special_tokens_are_skipped_or_shown() {
    let tokenizer = ours(&byte_level());
    let ids = tokenizer.encode("<|im_start|>the｜plain｜<|im_end|>", false).unwrap();
    assert_eq!(streamed(&tokenizer, &ids, true), "the｜plain｜");
    assert_eq!(streamed(&tokenizer, &ids, false), "<|im_start|>the｜plain｜<|im_end|>");
}

#[test]
fn a_continuation_keeps_its_leading_space() {
    let tokenizer = ours(&llama2());
    let hello = tokenizer.id_of("▁Hello").unwrap();
    let bos = tokenizer.id_of("<s>").unwrap();
    let text = |mut detokenizer: Detokenizer| detokenizer.push(hello).to_owned();
    assert_eq!(text(Detokenizer::new(&tokenizer, true)), "Hello");
    assert_eq!(text(Detokenizer::after(&tokenizer, &[bos], true)), "Hello");
    assert_eq!(text(Detokenizer::after(&tokenizer, &[bos, hello], true)), " Hello");
    let tokenizer = ours(&words());
    assert_eq!(Detokenizer::after(&tokenizer, &[3], true).push(4), " two");
}

#[test]
fn decoders_that_need_the_whole_list_are_refused_by_name() {
    for (decoder, name) in [
        (serde_json::json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}), "CTC"),
        (serde_json::json!({"type": "Strip", "content": " ", "start": 0, "stop": 1}), "Strip"),
        (serde_json::json!({"type": "BPEDecoder", "suffix": "</w>"}), "BPEDecoder"),
    ] {
        let mut json = words();
        json["decoder"] = decoder;
        let error = Tokenizer::from_parts(reference(&json), TokenizerConfig::default()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_damaged_vocabulary_is_refused() {
    let mut json = words();
    json["model"]["vocab"]["far"] = serde_json::json!(4_000_000_000u32);
    let error = Tokenizer::from_parts(reference(&json), TokenizerConfig::default()).unwrap_err();
    assert!(error.to_string().contains("4000000000"), "{error}");
}
