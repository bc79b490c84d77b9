//! Small tokenizers of every kind that generating models ship, written out in code.

use serde_json::{Map, Value, json};

use crate::model::text::{Tokenizer, TokenizerConfig};

/// GPT-2's alphabet, derived as its source does: printable bytes first, the rest counted up from 256.
fn alphabet() -> Vec<char> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    (0..256)
        .map(|byte| {
            let code = if is_printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap()
        })
        .collect()
}

fn numbered(names: impl IntoIterator<Item = String>) -> Map<String, Value> {
    names.into_iter().enumerate().map(|(id, name)| (name, json!(id))).collect()
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false})
}

fn tokenizer_json(model: Value, decoder: Value, pre_tokenizer: Value, added_tokens: Vec<Value>) -> Value {
    json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added_tokens, "normalizer": null, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": decoder, "model": model})
}

/// Every byte, a few merges (one ends inside a character), two special tokens and one that is only added.
pub fn byte_level() -> Value {
    let letters = alphabet();
    let bytes = |text: &str| text.bytes().map(|byte| letters[byte as usize]).collect::<String>();
    let half = "你".bytes().take(2).map(|byte| letters[byte as usize]).collect::<String>();
    let merged = [bytes(" t"), bytes(" th"), bytes("é"), half, bytes("你")];
    let merges: Vec<Value> = merged
        .iter()
        .map(|name| {
            let last = name.char_indices().last().unwrap().0;
            json!([&name[..last], &name[last..]])
        })
        .collect();
    let names = letters.iter().map(|letter| letter.to_string()).chain(merged);
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": numbered(names), "merges": merges});
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let added = vec![added(261, "<|im_start|>", true), added(262, "<|im_end|>", true), added(263, "｜plain｜", false)];
    tokenizer_json(model, level.clone(), level, added)
}

fn sentence_piece(decoder: Value) -> Value {
    let words = ["<unk>", "<s>", "</s>", "▁", "▁Hello", "▁▁two", "wörld", "你", "a▁b", "!", "0x41"];
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let names = words.iter().map(|word| word.to_string()).chain(bytes);
    let model = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": numbered(names), "merges": []});
    tokenizer_json(
        model,
        decoder,
        Value::Null,
        vec![added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
    )
}

/// Id of a byte in [`llama2`], [`gemma`] and [`metaspace`].
pub fn fallback_id(byte: u8) -> u32 {
    11 + u32::from(byte)
}

/// As Llama 2, Mistral and Phi-3: the text loses one leading space.
pub fn llama2() -> Value {
    sentence_piece(json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
}

/// As Gemma: no space is lost.
pub fn gemma() -> Value {
    sentence_piece(json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}))
}

/// As T5's: every space of the first token is lost.
pub fn metaspace() -> Value {
    sentence_piece(json!({"type": "Sequence", "decoders": [
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}, {"type": "ByteFallback"}]}))
}

pub fn word_piece() -> Value {
    let words = ["[UNK]", "[CLS]", "play", "##ing", "##ed", ".", "don", "'", "##t"];
    let model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": numbered(words.map(str::to_owned))});
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    tokenizer_json(model, decoder, json!({"type": "WhitespaceSplit"}), vec![added(1, "[CLS]", true)])
}

/// Words joined by spaces, as in the reference models of `tests/fixtures`.
pub fn words() -> Value {
    let names = ["<pad>", "<s>", "</s>", "one", "two", "three"];
    let model = json!({"type": "WordLevel", "unk_token": "<pad>", "vocab": numbered(names.map(str::to_owned))});
    tokenizer_json(model, Value::Null, json!({"type": "WhitespaceSplit"}), vec![added(1, "<s>", true)])
}

pub fn reference(json: &Value) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap()
}

pub fn ours(json: &Value) -> Tokenizer {
    Tokenizer::from_parts(reference(json), TokenizerConfig::default()).unwrap()
}
