use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::spec::Spec;

/// A safetensors file: header, then data.
fn file(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn entry(dtype: &str, shape: &[u64], offsets: (u64, u64)) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [offsets.0, offsets.1]})
}

fn parse(bytes: Vec<u8>) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    safetensors::parse("m.safetensors", Arc::new(bytes))
}

#[test]
fn elements_are_read_exactly() {
    let mut data = Vec::new();
    data.extend([1.5f32, -0.25].iter().flat_map(|x| x.to_le_bytes()));
    data.extend([1.5f32, -0.25].iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()));
    data.extend([1.5f32, -0.25].iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()));
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a": entry("F32", &[2], (0, 8)), "b": entry("BF16", &[2, 1], (8, 12)), "c": entry("F16", &[1, 2], (12, 16)),
    });
    let tensors = parse(file(&header, &data)).unwrap();
    assert_eq!(tensors.len(), 3);
    for name in ["a", "b", "c"] {
        assert_eq!(tensors[name].to_f32(), [1.5, -0.25], "{name}");
    }
}

#[test]
fn items_of_a_fused_tensor_share_its_bytes() {
    let data: Vec<u8> = (0..12u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let tensors = parse(file(&json!({"x": entry("F32", &[3, 2, 2], (0, 48))}), &data)).unwrap();
    let item = tensors["x"].index(1);
    assert_eq!((item.shape.clone(), item.to_f32()), (vec![2, 2], vec![4.0, 5.0, 6.0, 7.0]));
    assert_eq!(item.rows(1..2).to_f32(), [6.0, 7.0]);
}

/// Two rows of two Q8_0 blocks, each with a scale of its own and the quants 0, 1, …, 31.
#[test]
fn quantised_rows_are_whole_blocks() {
    let block = |scale: f32| [half::f16::from_f32(scale).to_le_bytes().to_vec(), (0..32).collect()].concat();
    let bytes: Vec<u8> = [1.0, -2.0, 0.5, 4.0].into_iter().flat_map(block).collect();
    let all = 0..bytes.len();
    assert_eq!(all.end, 2 * Dtype::Q8_0.row_bytes(64));
    let tensor = Tensor::new("w".into(), Dtype::Q8_0, vec![2, 64], Arc::new(bytes), all);
    let expected = |scale: f32| (0..32).map(move |q| scale * q as f32);
    let second: Vec<f32> = expected(0.5).chain(expected(4.0)).collect();
    let mut row = vec![f32::NAN; 64];
    tensor.read_row(1, &mut row);
    assert_eq!(row, second);
    assert_eq!(tensor.to_f32()[64..], second);
    let item = tensor.index(1);
    assert_eq!((item.shape.as_slice(), item.data().len(), item.to_f32()), (&[64][..], 68, second));
    let cut = || Tensor::new("w".into(), Dtype::Q8_0, vec![2, 32], Arc::new(vec![0u8; 34]), 0..34);
    assert!(std::panic::catch_unwind(cut).is_err(), "half of the rows are missing");
    assert!(
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| item.rows(0..32))).is_err(),
        "rows of a vector are elements"
    );
}

#[test]
fn files_that_lie_are_refused_by_file_and_tensor() {
    let data = [0u8; 8];
    let header = |entry: Value| file(&json!({"w": entry}), &data);
    let good = header(entry("F32", &[2], (0, 8)));
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "0 bytes are too few"),
        ("cut in the header", good[..20].to_vec(), "truncated"),
        ("cut in the data", good[..good.len() - 1].to_vec(), "tensor `w`: offsets 0..8 lie outside the 7 bytes"),
        ("header length", u64::MAX.to_le_bytes().to_vec(), "claims 18446744073709551615 bytes"),
        ("not JSON", file(&json!("x"), &data)[..11].to_vec(), "not a JSON object"),
        ("offsets beyond", header(entry("F32", &[2], (8, 16))), "tensor `w`: offsets 8..16"),
        ("offsets reversed", header(entry("F32", &[2], (8, 0))), "tensor `w`: offsets 8..0"),
        ("shape too large", header(entry("F32", &[3], (0, 8))), "tensor `w`: shape [3] of F32"),
        ("shape overflows", header(entry("F32", &[u64::MAX, 2, 0], (0, 0))), "tensor `w`: shape"),
        ("wide shape", header(entry("F32", &[1; 9], (0, 4))), "tensor `w`: 9 dimensions"),
        ("dtype", header(entry("I64", &[1], (0, 8))), "tensor `w`: dtype I64 is not supported; supported: F32, F16, BF16"),
        ("unheard-of dtype", header(entry("Q7", &[1], (0, 8))), "tensor `w`: dtype Q7"),
        ("no offsets", header(json!({"dtype": "F32", "shape": [2]})), "tensor `w`: malformed header entry"),
        ("negative", header(json!({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]})), "tensor `w`: malformed"),
    ];
    assert!(parse(good.clone()).is_ok());
    for (what, bytes, expected) in cases {
        let message = parse(bytes).err().unwrap_or_else(|| panic!("{what} is accepted")).to_string();
        assert!(message.starts_with("m.safetensors: ") && message.contains(expected), "{what}: {message}");
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn index(map: Value) -> Vec<u8> {
    json!({"metadata": {}, "weight_map": map}).to_string().into_bytes()
}

#[test]
fn shards_must_hold_what_the_index_says() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let message = |expected: &str| {
        let message = safetensors::open_folder(at).err().expect(expected).to_string();
        assert!(message.contains(expected), "{message}");
    };
    message("neither model.safetensors nor model.safetensors.index.json is here");
    write(at, "1.safetensors", &file(&json!({"a": entry("F32", &[1], (0, 4))}), &[0; 4]));
    write(at, "2.safetensors", &file(&json!({"b": entry("F32", &[1], (0, 4))}), &[0; 4]));
    let name = "model.safetensors.index.json";

    write(at, name, b"{}");
    message("weight_map");
    write(at, name, &index(json!({"a": "1.safetensors", "b": "../2.safetensors"})));
    message("shard \"../2.safetensors\" is not a plain file name");
    write(at, name, &index(json!({"a": "1.safetensors", "b": "3.safetensors"})));
    message("3.safetensors");
    write(at, name, &index(json!({"a": "1.safetensors", "c": "2.safetensors"})));
    message("tensor `b` is in 2.safetensors, where the index does not put it");
    write(at, name, &index(json!({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"})));
    message("tensor `c` is not in 2.safetensors");
    write(at, name, &index(json!({"a": "1.safetensors", "b": "2.safetensors"})));
    let tensors = safetensors::open_folder(at).unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a", "b"]);
}

/// One layer, small enough to spell out.
fn small_spec(changes: Value) -> Spec {
    let mut config = json!({
        "model_type": "qwen3", "vocab_size": 4, "hidden_size": 2, "intermediate_size": 3, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "max_position_embeddings": 8,
        "rms_norm_eps": 1e-6, "rope_theta": 100.0, "hidden_act": "silu",
    });
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    Spec::from_config(&config, None).unwrap()
}

fn tensor(name: &str, shape: &[usize]) -> (String, Tensor) {
    let bytes: Vec<u8> = (0..shape.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let range = 0..bytes.len();
    (name.to_string(), Tensor::new(name.into(), Dtype::F32, shape.to_vec(), Arc::new(bytes), range))
}

fn small_tensors() -> BTreeMap<String, Tensor> {
    let layer = |name: &str, shape: &[usize]| tensor(&format!("model.layers.0.{name}.weight"), shape);
    BTreeMap::from([
        tensor("model.embed_tokens.weight", &[4, 2]),
        tensor("model.norm.weight", &[2]),
        tensor("lm_head.weight", &[4, 2]),
        layer("input_layernorm", &[2]),
        layer("post_attention_layernorm", &[2]),
        layer("self_attn.q_proj", &[4, 2]),
        layer("self_attn.k_proj", &[2, 2]),
        layer("self_attn.v_proj", &[2, 2]),
        layer("self_attn.o_proj", &[2, 4]),
        layer("self_attn.q_norm", &[2]),
        layer("self_attn.k_norm", &[2]),
        layer("mlp.gate_proj", &[3, 2]),
        layer("mlp.up_proj", &[3, 2]),
        layer("mlp.down_proj", &[2, 3]),
    ])
}

fn refusal(spec: &Spec, tensors: &BTreeMap<String, Tensor>) -> String {
    bind(spec, tensors).err().expect("refused").to_string()
}

#[test]
fn every_tensor_is_needed_in_its_shape() {
    let spec = small_spec(json!({}));
    assert!(bind(&spec, &small_tensors()).is_ok());
    for name in small_tensors().into_keys() {
        let mut tensors = small_tensors();
        tensors.remove(&name);
        assert!(refusal(&spec, &tensors).starts_with(&format!("tensor `{name}` is missing")));
        tensors.extend([tensor(&name, &[7, 5])]);
        let message = refusal(&spec, &tensors);
        assert!(message.starts_with(&format!("tensor `{name}` has shape [7, 5]; config.json implies [")), "{message}");
    }
}

#[test]
fn a_tensor_without_a_place_is_refused() {
    let mut tensors = small_tensors();
    tensors.extend([tensor("model.layers.1.mlp.up_proj.weight", &[3, 2])]);
    let message = refusal(&small_spec(json!({})), &tensors);
    assert!(message.contains("1 tensor(s)") && message.contains("`model.layers.1.mlp.up_proj.weight`"), "{message}");
    // A bias that config.json does not announce would change every logit.
    let mut tensors = small_tensors();
    tensors.extend([tensor("model.layers.0.self_attn.q_proj.bias", &[4])]);
    assert!(refusal(&small_spec(json!({})), &tensors).contains("`model.layers.0.self_attn.q_proj.bias`"));
    let message = refusal(&small_spec(json!({"attention_bias": true})), &tensors);
    assert!(message.contains("`model.layers.0.self_attn.k_proj.bias` is missing"), "{message}");
}

#[test]
fn harmless_leftovers_are_named() {
    let mut tensors = small_tensors();
    tensors.extend([tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[1])]);
    let tied = small_spec(json!({"tie_word_embeddings": true}));
    let ignored = bind(&tied, &tensors).unwrap().ignored;
    assert_eq!(ignored, ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]);
    // A head that differs means that it is not tied, whatever config.json says.
    let bytes = Arc::new(vec![1u8; 32]);
    let other = Tensor::new("lm_head.weight".into(), Dtype::F32, vec![4, 2], bytes, 0..32);
    tensors.insert("lm_head.weight".into(), other);
    assert!(refusal(&tied, &tensors).contains("`lm_head.weight` differs from `model.embed_tokens.weight`"));
}

#[test]
fn an_untied_head_that_is_missing_says_why_it_is_wanted() {
    let mut tensors = small_tensors();
    tensors.remove("lm_head.weight");
    assert!(refusal(&small_spec(json!({})), &tensors).contains("not tied"));
}

#[test]
fn fused_experts_are_split() {
    let spec = small_spec(json!({
        "model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 3,
        "norm_topk_prob": true,
    }));
    let mut tensors = small_tensors();
    tensors.retain(|name, _| !name.contains(".mlp."));
    tensors.extend([
        tensor("model.layers.0.mlp.gate.weight", &[2, 2]),
        tensor("model.layers.0.mlp.experts.gate_up_proj", &[2, 6, 2]),
        tensor("model.layers.0.mlp.experts.down_proj", &[2, 2, 3]),
    ]);
    let bound = bind(&spec, &tensors).unwrap();
    let MlpTensors::Moe { gate_up, down, .. } = &bound.layers[0].mlp else { panic!("not routed") };
    assert_eq!((gate_up[1][0].shape.as_slice(), gate_up[1][0].to_f32()[0]), (&[6, 2][..], 12.0));
    assert_eq!((down[1].shape.as_slice(), down[1].to_f32()[0]), (&[2, 3][..], 6.0));
}

#[test]
fn the_text_part_keeps_its_tensors_only() {
    let mut whole = BTreeMap::new();
    for (name, tensor) in small_tensors() {
        whole.insert(format!("language_model.{name}"), tensor);
    }
    whole.extend([tensor("vision_tower.patch.weight", &[2]), tensor("multi_modal_projector.weight", &[2])]);
    let (text, num_left_out) = text_part(whole);
    assert_eq!(num_left_out, 2);
    assert!(text.keys().eq(small_tensors().keys()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(bytes);
    }

    /// Whatever a header says, the tensors that come of it lie within the file.
    #[test]
    fn mutated_headers_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fix_length: bool,
        cut in 0usize..40,
    ) {
        let header = json!({"a": entry("F32", &[2, 1], (0, 8)), "b": entry("BF16", &[4], (8, 16))});
        let mut bytes = file(&header, &[7; 16]);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if fix_length {
            let length = header.to_string().len() as u64;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        bytes.truncate(bytes.len() - cut);
        if let Ok(tensors) = parse(bytes) {
            for tensor in tensors.values() {
                prop_assert_eq!(tensor.to_f32().len(), tensor.shape.iter().product::<usize>());
            }
        }
    }

    #[test]
    fn any_numbers_in_a_header_never_panic(shape in prop::collection::vec(any::<u64>(), 0..4), start: u64, end: u64) {
        let _ = parse(file(&json!({"a": entry("F16", &shape, (start, end))}), &[0; 64]));
    }
}
