mod families;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::reader::TensorEntry;
use super::*;
use crate::model::weights::{Dtype, Tensor};

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/gguf/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn json<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    serde_json::from_slice(&fixture(name)).unwrap()
}

fn load(bytes: Vec<u8>) -> Result<ModelSource, GgufError> {
    read(Arc::new(bytes), "tiny".into(), None, &mut |_, _| {})
}

/// The message with which a changed llama.gguf is refused.
fn refusal(bytes: Vec<u8>) -> String {
    match load(bytes) {
        Ok(_) => panic!("the file was accepted"),
        Err(error) => error.to_string(),
    }
}

/// A minimal writer: enough to say things that no honest writer says.
#[derive(Default)]
struct Writer {
    keys: Vec<(String, u32, Vec<u8>)>,
    /// Name, dimensions as the file has them, type, offset.
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

impl Writer {
    fn key(mut self, name: &str, kind: u32, value: impl AsRef<[u8]>) -> Self {
        self.keys.push((name.into(), kind, value.as_ref().to_vec()));
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.push((name.into(), dims.to_vec(), kind, offset));
        self
    }

    fn bytes(self) -> Vec<u8> {
        let text = |t: &str| [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat();
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (name, kind, value) in self.keys {
            out.extend([text(&name), kind.to_le_bytes().to_vec(), value].concat());
        }
        for (name, dims, kind, offset) in self.tensors {
            out.extend([text(&name), (dims.len() as u32).to_le_bytes().to_vec()].concat());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(self.data);
        out
    }

    fn error(self) -> String {
        Container::read(Arc::new(self.bytes())).err().expect("refused").to_string()
    }
}

#[test]
fn blocks_are_dequantised_to_the_bit() {
    let file = Container::read(Arc::new(fixture("blocks.gguf"))).unwrap();
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let mut num_types = 0;
    for (name, entry) in &file.tensors {
        let Some(expected) = file.tensors.get(&format!("{name} as F32")) else { continue };
        let (tensor, expected) = (tensors::mapped(&file, name, entry), tensors::mapped(&file, name, expected));
        assert_eq!((tensor.dtype.to_string(), tensor.shape.as_slice()), (name.clone(), &[3, 512][..]));
        let expected = expected.to_f32();
        assert_eq!(bits(&tensor.to_f32()), bits(&expected), "{name}");
        let mut row = [f32::NAN; 512];
        tensor.read_row(1, &mut row);
        assert_eq!(bits(&row), bits(&expected[512..1024]), "{name}");
        num_types += 1;
    }
    assert_eq!((num_types, file.tensors.len()), (10, 20));
}

#[test]
fn a_whole_llama() {
    let contents = load(fixture("llama.gguf")).unwrap();
    let spec = &contents.spec;
    assert_eq!((spec.vocab_size, spec.hidden_size, spec.layers.len()), (288, 64, 2));
    assert_eq!((spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.max_positions), (4, 2, 16, 256));
    assert_eq!((spec.norm_eps, spec.tied_head, spec.qkv_bias), (1e-5, false, false));
    assert_eq!(spec.ropes[0].inv_freq.len(), 8);
    let hashes: BTreeMap<String, String> = json("llama.json");
    let loaded: BTreeMap<String, String> = contents
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let mut hash = Sha256::new();
            tensor.to_f32().iter().for_each(|x| hash.update(x.to_le_bytes()));
            (name.clone(), hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
        })
        .collect();
    assert_eq!(loaded, hashes);
    crate::model::weights::bind(spec, &contents.tensors).map(|_| ()).unwrap();
}

#[test]
fn progress_reaches_its_end() {
    let mut seen = Vec::new();
    read(Arc::new(fixture("llama.gguf")), String::new(), None, &mut |done, total| seen.push((done, total))).unwrap();
    assert!(seen.is_sorted() && seen.len() == 21);
    assert!(seen.last().is_some_and(|(done, total)| done == total && *total > 90_000));
}

#[test]
fn text_of_a_llama() {
    let source = load(fixture("llama.gguf")).unwrap();
    let tokenizer = &source.tokenizer;
    assert_eq!((tokenizer.bos(), tokenizer.eos(), source.eos_tokens.as_slice()), (Some(1), Some(0), &[0][..]));
    assert_eq!((source.name.as_str(), source.chat.bos_token.as_str()), ("tiny", "<s>"));
    assert_eq!(source.chat.template.as_deref(), Some("{{ messages[0].content }}"));
    let id = |text: &str| tokenizer.id_of(text).unwrap();
    let ids = |text: &str, special| tokenizer.encode(text, special).unwrap();
    assert_eq!(ids("hello world", true), [1, id("hello"), id("Ġworld")]);
    assert_eq!(ids("hello<|end|><tool>", false), [id("hello"), 0, 2]);
    assert_eq!(ids("1234", false), [id("1"), id("2"), id("3"), id("4")]);
    assert_eq!(tokenizer.decode(&ids("hello world<|end|> 水<tool>", false), true), "hello world 水<tool>");
}

#[test]
fn pieces_as_sentencepiece_cuts_them() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
    }
    let container = Container::read(Arc::new(fixture("pieces.gguf"))).unwrap();
    let parts = TokenizerParts::read(&container.metadata).unwrap();
    assert_eq!((parts.bos, parts.eos), (Some(1), Some(2)));
    for case in json::<Vec<Case>>("pieces.json") {
        let ids = |special| parts.encoder.encode(case.text.as_str(), special).unwrap().get_ids().to_vec();
        assert_eq!(ids(false), case.ids, "{:?}", case.text);
        assert_eq!(ids(true)[1..], case.ids, "{:?}", case.text);
        assert_eq!(ids(true)[0], 1);
        assert_eq!(parts.encoder.decode(&case.ids, true).unwrap(), case.text);
    }
}

#[test]
fn splits_of_the_pre_tokenisers() {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    let text = "I'LL pay $1234,56  now\r\n\n ok";
    let cases: [(&str, &[&str]); 6] = [
        ("smollm", &["I", "'", "LL", " pay", " $", "1", "2", "3", "4", ",", "5", "6", " ", " now", "\r\n\n", " ok"]),
        ("gpt-2", &["I", "'", "LL", " pay", " $", "1234", ",", "56", " ", " now", "\r\n\n", " ok"]),
        ("qwen2", &["I", "'LL", " pay", " $", "1", "2", "3", "4", ",", "5", "6", " ", " now", "\r\n\n", " ok"]),
        ("llama-bpe", &["I", "'LL", " pay", " $", "123", "4", ",", "56", " ", " now", "\r\n\n", " ok"]),
        ("tekken", &["I", "'LL", " pay", " $", "1", "2", "3", "4", ",", "5", "6", " ", " now", "\r\n\n", " ok"]),
        ("default", &["I", "'", "LL", " pay", " ", "$", "123", "4", ",", "56", " ", " now", "\r\n\n", " ok"]),
    ];
    for (name, expected) in cases {
        let kind = pretokenizer::Kind::named(name, "pre").unwrap();
        let mut pieces = PreTokenizedString::from(text);
        kind.pre_tokenizer().unwrap().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let found: Vec<&str> = splits.iter().map(|(_, (start, end), _)| &text[*start..*end]).collect();
        assert_eq!(found, expected, "{name}");
    }
    let error = pretokenizer::Kind::named("klingon", "tokenizer.ggml.pre").unwrap_err().to_string();
    assert!(error.contains("`klingon`") && error.contains("smollm"), "{error}");
}

#[test]
fn refusals_name_what_is_wrong() {
    let count = |n: u64| n.to_le_bytes();
    let cases = [
        (Writer::default().tensor("w", &[256], 11, 0), "tensor `w`: has type Q3_K"),
        (Writer::default().tensor("w", &[256], 999, 0), "unknown type 999"),
        (Writer::default().tensor("w", &[33], 8, 0), "multiple of 32"),
        (Writer::default().tensor("w", &[128], 12, 0), "rows of Q4_K need a multiple of 256"),
        (Writer::default().tensor("w", &[256], 14, 0), "needs bytes"),
        (Writer::default().tensor("w", &[0, 4], 0, 0), "has shape [4, 0]"),
        (Writer::default().tensor("w", &[1 << 40, 1 << 40], 0, 0), "too large"),
        (Writer::default().tensor("w", &[4], 0, 5), "offset 5"),
        (Writer::default().tensor("w", &[4], 0, 32), "within tensor `w`"),
        (Writer::default().tensor("w", &[4], 0, u64::MAX - 31), "within tensor `w`"),
        (Writer::default().tensor("w", &[1, 1, 1, 1, 1], 0, 0), "5 dimensions"),
        (Writer::default().tensor(&"w".repeat(65), &[4], 0, 0), "65 bytes; the limit is 64"),
        (Writer::default().key("k", 77, []), "value type 77"),
        (Writer::default().key("k", 8, count(1 << 60)), "within key `k`"),
        (Writer::default().key("k", 9, [&9u32.to_le_bytes()[..], &count(1)].concat()), "list of lists"),
        (Writer::default().key("k", 9, [&4u32.to_le_bytes()[..], &count(u64::MAX)].concat()), "within key `k`"),
        (Writer::default().key("k", 0, [1]).key("k", 0, [1]), "key `k`: is there twice"),
        (Writer::default().key("general.alignment", 4, 7u32.to_le_bytes()), "multiple of 8"),
    ];
    for (writer, expected) in cases {
        let error = writer.error();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let overlap = Writer { data: vec![0; 32], ..Default::default() };
    let overlap = overlap.tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).error();
    assert!(overlap.contains("tensor `b`: overlaps"), "{overlap}");
}

/// Replaces bytes of the same length, every time they occur.
fn replaced(from: &str, to: &str) -> Vec<u8> {
    replaced_in(fixture("llama.gguf"), from, to)
}

fn replaced_in(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, w)| *w == from.as_bytes()).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{from} is not in the file");
    places.iter().for_each(|&at| bytes[at..at + to.len()].copy_from_slice(to.as_bytes()));
    bytes
}

/// Adds keys in front of all others, and a filler so that the tensors keep their alignment.
fn with_keys(file: &[u8], keys: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let text = |t: &[u8]| [&(t.len() as u64).to_le_bytes()[..], t].concat();
    let entry = |name: &str, kind: u32, value: &[u8]| [&text(name.as_bytes())[..], &kind.to_le_bytes(), value].concat();
    let mut added: Vec<u8> = keys.iter().flat_map(|(name, kind, value)| entry(name, *kind, value)).collect();
    let filler = (added.len() + 26).next_multiple_of(32) - added.len() - 26;
    added.extend(entry("filler", 8, &text(&vec![b'x'; filler])));
    let mut bytes = file.to_vec();
    let num_keys = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 1 + keys.len() as u64;
    bytes[16..24].copy_from_slice(&num_keys.to_le_bytes());
    bytes.splice(24..24, added);
    bytes
}

fn with_key(name: &str, kind: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    with_keys(&fixture("llama.gguf"), &[(name, kind, value.as_ref().to_vec())])
}

#[test]
fn keys_that_change_the_model() {
    let text = |t: &str| [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat();
    let cases = [
        (with_key("llama.expert_count", 4, 8u32.to_le_bytes()), "key `llama.expert_count`: is 8"),
        (with_key("llama.attention.scale", 6, 0.5f32.to_le_bytes()), "key `llama.attention.scale`: is 0.5"),
        (with_key("llama.attention.value_length", 4, 8u32.to_le_bytes()), "supported: the width of a head, 16"),
        (with_key("llama.rope.scaling.type", 8, text("longrope")), "is `longrope`; supported: none, linear, yarn"),
        (with_key("llama.rope.scaling.type", 8, text("yarn")), "original_context_length`: is missing"),
        (with_key("tokenizer.ggml.eot_token_id", 4, 999u32.to_le_bytes()), "is 999, but there are 288 tokens"),
    ];
    for (bytes, expected) in cases {
        let error = refusal(bytes);
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let linear = load(with_key("llama.rope.scale_linear", 6, 4f32.to_le_bytes())).unwrap().spec;
    let plain = load(fixture("llama.gguf")).unwrap().spec;
    assert_eq!(linear.ropes[0].inv_freq[1] * 4.0, plain.ropes[0].inv_freq[1]);
    let keys = [
        ("llama.rope.scaling.type", 8, text("yarn")),
        ("llama.rope.scaling.factor", 6, 4f32.to_le_bytes().to_vec()),
        ("llama.rope.scaling.original_context_length", 4, 64u32.to_le_bytes().to_vec()),
    ];
    let yarn = with_keys(&fixture("llama.gguf"), &keys);
    let yarn = load(yarn).unwrap().spec;
    assert!((yarn.ropes[0].attention_factor - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    let turn = load(with_key("tokenizer.ggml.eot_token_id", 4, 1u32.to_le_bytes())).unwrap();
    assert_eq!(turn.eos_tokens, [0, 1]);
}

#[test]
fn other_models_are_refused_by_name() {
    let cases = [
        ("llama-bpe", "llama-xyz", "key `tokenizer.ggml.pre`: is `llama-xyz`"),
        ("blk.1.ffn_up.weight", "blk.1.ffn_xx.weight", "tensor `blk.1.ffn_xx.weight`"),
        ("blk.1.ffn_up.weight", "blk.7.ffn_up.weight", "none of the model's 2 layers"),
        ("llama.block_count", "lama_.block_count", "key `llama.block_count`: is missing"),
        ("llama.block_count", "llama.block_kount", "key `llama.block_kount`: is 2, which is not supported in a llama"),
        ("hell o", "hell q", "key `tokenizer.ggml.merges`: merge 3"),
        ("gpt2", "bert", "key `tokenizer.ggml.model`: is `bert`"),
        ("token_embd.weight", "token_embx.weight", "tensor `token_embd.weight`: is missing"),
    ];
    for (from, to, expected) in cases {
        let error = refusal(replaced(from, to));
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    assert!(refusal(b"PK\x03\x04 a zip file".to_vec()).contains("not a GGUF file"));
    assert!(refusal(b"GGUF\0\0\0\x03".to_vec()).contains("big-endian"));
    let mut old = fixture("llama.gguf");
    old[4] = 1;
    assert!(refusal(old).contains("version 1"));
}

#[test]
fn rotary_factors_divide_the_frequencies() {
    let container = |factors: &[f32]| {
        let mut file = Container::read(Arc::new(fixture("llama.gguf"))).unwrap();
        let mut bytes = file.bytes.as_bytes().to_vec();
        let start = bytes.len();
        factors.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        let range = start..bytes.len();
        let entry = TensorEntry { dtype: Dtype::F32, shape: vec![factors.len()], range };
        file.tensors.insert(config::ROPE_FACTORS.into(), entry);
        Container { bytes: Arc::new(bytes), ..file }
    };
    let spec = |file: &Container| config::spec(file, tensors::rope_factors(file), None).map(|(_, spec)| spec);
    let plain = spec(&container(&[1.0; 8])).unwrap();
    let halved = spec(&container(&[1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 8.0])).unwrap();
    let ratios: Vec<f32> = plain.ropes[0].inv_freq.iter().zip(&halved.ropes[0].inv_freq).map(|(a, b)| a / b).collect();
    assert_eq!(ratios, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 8.0]);
    for bad in [&[1.0; 7][..], &[0.0; 8], &[f32::NAN; 8]] {
        let error = spec(&container(bad)).unwrap_err().to_string();
        assert!(error.contains("rope_freqs.weight") && error.contains('8'), "{error}");
    }
}

#[test]
fn values_are_read_by_what_they_are() {
    let list = |kind: u32, len: u64, items: &[u8]| [&kind.to_le_bytes()[..], &len.to_le_bytes(), items].concat();
    let text = |t: &str| [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat();
    let bytes = Writer::default()
        .key("u8", 0, [200])
        .key("i32", 5, (-3i32).to_le_bytes())
        .key("f32", 6, 0.5f32.to_le_bytes())
        .key("nan", 6, f32::NAN.to_le_bytes())
        .key("flag", 7, [1])
        .key("text", 8, text("wörd"))
        .key("junk", 8, [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat())
        .key("texts", 9, list(8, 2, &[text("a"), text("")].concat()))
        .key("ints", 9, list(3, 2, &[1, 0, 0xff, 0xff]))
        .bytes();
    let metadata = Container::read(Arc::new(bytes)).unwrap().metadata;
    assert_eq!(metadata.count("u8").unwrap(), Some(200));
    assert_eq!(metadata.count("none").unwrap(), None);
    assert_eq!(metadata.float("f32").unwrap(), Some(0.5));
    assert_eq!(metadata.flag("flag").unwrap(), Some(true));
    assert_eq!(metadata.text("text").unwrap(), Some("wörd"));
    assert_eq!(metadata.texts("texts").unwrap(), Some(vec!["a", ""]));
    assert_eq!(metadata.integers("ints").unwrap(), Some(vec![1, -1]));
    for error in [
        metadata.count("i32").unwrap_err(),
        metadata.float("nan").unwrap_err(),
        metadata.text("junk").unwrap_err(),
        metadata.text("texts").unwrap_err(),
        metadata.texts("text").unwrap_err(),
        metadata.floats("ints").unwrap_err(),
    ] {
        assert!(error.to_string().starts_with("key `"), "{error}");
    }
}

/// Roughly where the structure of llama.gguf ends.
const HEADER_BYTES: usize = 10_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Files cut short are refused, and the reason is that.
    #[test]
    fn truncated_files(at: prop::sample::Index) {
        let mut bytes = fixture("llama.gguf");
        bytes.truncate(at.index(bytes.len()));
        let error = refusal(bytes);
        prop_assert!(error.contains("ends after"), "{error}");
    }

    /// Changed bytes, most of them where the structure is, neither panic nor make the reader ask for memory that
    /// the file does not back. (A change within the weights may well go unnoticed.)
    #[test]
    fn mutated_files(edits in prop::collection::vec((0usize..HEADER_BYTES, any::<u8>()), 1..6), wide in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![0u64, 1, u64::MAX, 1 << 32, 1 << 62, 0x7fff_ffff])), 0..2)) {
        let mut bytes = fixture("llama.gguf");
        for (at, value) in edits {
            bytes[at] = value;
        }
        for (at, value) in wide {
            let at = at.index(HEADER_BYTES);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let size = bytes.len();
        if let Ok(contents) = load(bytes) {
            let loaded: usize = contents.tensors.values().map(|t| t.data().len()).sum();
            prop_assert!(loaded <= size);
            let _ = contents.tokenizer.encode("hello world 123", true);
        }
    }

    #[test]
    fn arbitrary_bytes(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &tail].concat();
        prop_assert!(load(bytes).is_err());
    }

    /// Whatever a table says: a tensor that is accepted lies in the file, has the bytes of its shape, and its rows can
    /// be read, whatever the blocks hold.
    #[test]
    fn arbitrary_tables(
        kind in prop_oneof![4 => prop::sample::select(vec![0u32, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30]), 1 => any::<u32>()],
        dims in prop::collection::vec(prop_oneof![8 => prop::sample::select(vec![1u64, 2, 3, 32, 64, 256, 512]), 1 => any::<u64>()], 0..6),
        offset in prop::sample::select(vec![0u64, 32, 33, 64, u64::MAX - 31]),
        data in prop::collection::vec(any::<u8>(), 0..4000),
    ) {
        let bytes = Writer { data, ..Default::default() }.tensor("w", &dims, kind, offset).bytes();
        let size = bytes.len();
        let Ok(file) = Container::read(Arc::new(bytes)) else { return Ok(()) };
        let tensor = tensors::mapped(&file, "w", &file.tensors["w"]);
        prop_assert!(tensor.data().len() <= size);
        prop_assert_eq!(tensor.shape.iter().rev().map(|&n| n as u64).collect::<Vec<_>>(), dims);
        let values = tensor.to_f32();
        prop_assert_eq!(values.len(), tensor.num_elements());
        let cols = tensor.shape[tensor.shape.len() - 1];
        let mut row = vec![0.0; cols];
        tensor.read_row(values.len() / cols - 1, &mut row);
        prop_assert!(row.iter().zip(&values[values.len() - cols..]).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn truncated_blocks(at: prop::sample::Index) {
        let mut bytes = fixture("blocks.gguf");
        bytes.truncate(at.index(bytes.len() - 32));
        let error = Container::read(Arc::new(bytes)).err().expect("refused").to_string();
        prop_assert!(error.contains("ends after"), "{error}");
    }

    #[test]
    fn rows_are_a_permutation(heads in 1usize..9, pairs in 1usize..40) {
        let rows = heads * pairs * 2;
        let order = architecture::RowOrder::Interleaved { num_heads: heads };
        let mut sources: Vec<usize> = (0..rows).map(|row| order.source(row, rows)).collect();
        sources.sort_unstable();
        prop_assert!(sources.into_iter().eq(0..rows));
    }
}
