//! Every family against the checkpoint it was converted from (`tests/fixtures/gguf/families.py`).

use serde_json::Value;

use super::*;
use crate::model::spec::{QkNorm, Spec};
use crate::model::weights::{bind, safetensors};

#[derive(Deserialize)]
struct Family {
    folder: String,
    config: Value,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

fn families() -> BTreeMap<String, Family> {
    json("families.json")
}

fn file_of(name: &str) -> Vec<u8> {
    fixture(&format!("{name}.gguf"))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The tensors of the checkpoint that its configuration asks for.
fn tensors_of(folder: &str, spec: &Spec) -> BTreeMap<String, Tensor> {
    let path = format!("{}/tests/fixtures/models/{folder}", env!("CARGO_MANIFEST_DIR"));
    let layer = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<usize>().ok();
    let mut tensors = safetensors::open_folder(path.as_ref()).unwrap();
    tensors.retain(|name, _| layer(name).is_none_or(|layer| layer < spec.layers.len()));
    if spec.tied_head {
        tensors.remove("lm_head.weight");
    }
    tensors
}

#[test]
fn a_family_is_the_folder_it_came_from() {
    for (name, family) in families() {
        let source = load(file_of(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let told = Spec::from_config(&family.config, None).unwrap();
        let is_gemma = name.starts_with("gemma");
        assert_eq!(told.norm_unit_offset, is_gemma);
        // The file's norms have their 1 already, so that what is multiplied by is the same.
        let offset = if is_gemma { 1.0 } else { 0.0 };
        assert_eq!(source.spec, Spec { norm_unit_offset: false, ..told }, "{name}");
        let expected = tensors_of(&family.folder, &source.spec);
        assert!(source.tensors.keys().eq(expected.keys()), "{name}");
        for (tensor, stored) in source.tensors.values().zip(expected.values()) {
            assert_eq!(tensor.shape, stored.shape, "{name}: {}", stored.name);
            if stored.shape.len() > 1 {
                assert!(tensor.dtype == stored.dtype && tensor.data() == stored.data(), "{name}: {}", stored.name);
            } else {
                let offset = if stored.name.ends_with("norm.weight") { offset } else { 0.0 };
                let values: Vec<f32> = stored.to_f32().iter().map(|w| w + offset).collect();
                assert_eq!(bits(&tensor.to_f32()), bits(&values), "{name}: {}", stored.name);
            }
        }
        bind(&source.spec, &source.tensors).map(|_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// That the comparison above is about something.
#[test]
fn families_differ_where_they_should() {
    let spec = |name: &str| load(file_of(name)).unwrap().spec;
    let windows = |spec: &Spec| spec.layers.iter().map(|layer| layer.window.is_some()).collect::<Vec<_>>();
    let (mistral, qwen2, qwen3) = (spec("mistral"), spec("qwen2"), spec("qwen3"));
    let (gemma2, gemma3) = (spec("gemma2"), spec("gemma3"));
    assert_eq!((mistral.model_type.as_str(), windows(&mistral)), ("mistral", vec![true, true]));
    assert_eq!((qwen2.qkv_bias, qwen2.o_bias, qwen2.tied_head), (true, false, true));
    assert_eq!((qwen2.max_positions, qwen2.ropes[0].attention_factor > 1.1), (512, true));
    assert_eq!((qwen3.qk_norm, qwen3.head_dim, qwen3.tied_head), (QkNorm::PerHead, 32, false));
    assert_eq!((gemma2.attention_softcap, gemma2.final_softcap), (Some(20.0), Some(15.0)));
    assert_eq!((windows(&gemma2), gemma2.embedding_scale), (vec![true, false], 8.0));
    assert_eq!((gemma3.qk_norm, windows(&gemma3)), (QkNorm::PerHead, vec![true, true, true, true, true, false, true]));
    assert_eq!(gemma3.ropes.len(), 2);
}

#[test]
fn nothing_is_copied_but_what_must_be_put_in_order() {
    for name in families().keys() {
        let bytes: Arc<dyn Bytes> = Arc::new(file_of(name));
        let mapped = bytes.as_bytes().as_ptr_range();
        let source = read(bytes.clone(), name.clone(), None, &mut |_, _| {}).unwrap();
        for tensor in source.tensors.values() {
            let is_copied = !mapped.contains(&tensor.data().as_ptr());
            let is_reordered =
                name == "mistral" && [".q_proj.", ".k_proj."].iter().any(|part| tensor.name.contains(part));
            assert_eq!(is_copied, is_reordered, "{name}: {}", tensor.name);
        }
    }
}

#[test]
fn texts_have_the_tokens_that_llama_cpp_gives_them() {
    for (name, family) in families() {
        let source = load(file_of(&name)).unwrap();
        for Text { text, ids } in family.texts {
            assert_eq!(source.tokenizer.encode(&text, true).unwrap(), ids, "{name}: {text:?}");
            // What a space before or after a special token becomes is not to be had back.
            if !text.contains('<') {
                assert_eq!(source.tokenizer.decode(&ids, true), text, "{name}");
            }
        }
    }
}

#[test]
fn ends_and_templates_of_the_families() {
    for (name, ends, bos, template) in [
        ("mistral", &[2][..], "<s>", "[INST]"),
        ("qwen2", &[0, 2], "<|endoftext|>", "<|im_start|>"),
        ("gemma2", &[1, 5], "<bos>", "<start_of_turn>"),
        ("gemma3", &[1, 5], "<bos>", "<start_of_turn>"),
    ] {
        let source = load(file_of(name)).unwrap();
        assert_eq!((source.eos_tokens.as_slice(), source.chat.bos_token.as_str()), (ends, bos), "{name}");
        assert!(source.chat.template.is_some_and(|text| text.contains(template)), "{name}");
    }
}

/// Spells keys otherwise, so that they are those of no architecture.
fn hidden(mut bytes: Vec<u8>, keys: &[&str]) -> Vec<u8> {
    for key in keys {
        let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).expect(key);
        bytes[at] = b'_';
    }
    bytes
}

fn number(key: &str, value: u32) -> (&str, u32, Vec<u8>) {
    (key, 4, value.to_le_bytes().to_vec())
}

fn float(key: &str, value: f32) -> (&str, u32, Vec<u8>) {
    (key, 6, value.to_le_bytes().to_vec())
}

fn flags<'a>(key: &'a str, values: &[u8]) -> (&'a str, u32, Vec<u8>) {
    (key, 9, [&7u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), values].concat())
}

fn spec_of(bytes: Vec<u8>) -> Result<Spec, GgufError> {
    config::spec(&Container::read(Arc::new(bytes))?, None, None).map(|(_, spec)| spec)
}

#[test]
fn windows_lie_where_the_file_says() {
    let (window, pattern) = ("qwen3.attention.sliding_window", "qwen3.attention.sliding_window_pattern");
    let windows = |bytes: Vec<u8>| -> Vec<Option<usize>> {
        spec_of(bytes).unwrap().layers.iter().map(|layer| layer.window).collect()
    };
    let qwen = |keys: &[(&str, u32, Vec<u8>)]| with_keys(&file_of("qwen3"), keys);
    assert_eq!(windows(qwen(&[number(window, 7), flags(pattern, &[0, 1])])), [None, Some(7)]);
    assert_eq!(windows(qwen(&[number(window, 7), number(pattern, 2)])), [Some(7), None]);
    assert_eq!(windows(qwen(&[number(window, 0)])), [None, None]);
    let gemma = "gemma2.attention.sliding_window_pattern";
    assert_eq!(windows(with_keys(&file_of("gemma2"), &[flags(gemma, &[0, 1])])), [None, Some(16)]);
    let gemma = hidden(file_of("gemma3"), &["gemma3.attention.sliding_window"]);
    assert_eq!(windows(gemma), [None; 7]);
    let gemma = with_keys(&file_of("gemma3"), &[number("gemma3.attention.sliding_window_pattern", 2)]);
    let expected: Vec<_> = (0..7).map(|layer| (layer % 2 == 0).then_some(16)).collect();
    assert_eq!(windows(gemma), expected);
    for (keys, expected) in [
        (vec![number(window, 7)], "sliding_window_pattern`: is missing"),
        (vec![number(window, 7), number(pattern, 0)], "sliding_window_pattern`: is 0"),
        (vec![number(window, 7), flags(pattern, &[0, 1, 1])], "a list of 3 values"),
    ] {
        let error = spec_of(qwen(&keys)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn numbers_that_only_gemma_has() {
    let plain = spec_of(file_of("gemma3")).unwrap();
    let local = spec_of(with_keys(&file_of("gemma3"), &[float("gemma3.rope.freq_base_swa", 500.0)])).unwrap();
    assert_eq!(local.ropes[0], plain.ropes[0]);
    assert!((local.ropes[1].inv_freq[1] - 500f32.powf(-2.0 / 16.0)).abs() < 1e-6);
    let capped = with_keys(&file_of("gemma3"), &[float("gemma3.final_logit_softcapping", 30.0)]);
    assert_eq!((spec_of(capped).unwrap().final_softcap, plain.final_softcap), (Some(30.0), None));
    // The 27 B are known by their layers.
    let lengths = ["gemma2.attention.key_length", "gemma2.attention.value_length", "gemma2.block_count"];
    let scale = |layers: u32| {
        let keys = [number(lengths[0], 8), number(lengths[1], 8), number(lengths[2], layers)];
        spec_of(with_keys(&hidden(file_of("gemma2"), &lengths), &keys)).unwrap().attention_scale
    };
    assert_eq!((scale(46), scale(42)), (0.25, (8f32).powf(-0.5)));
    for key in ["attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"] {
        let key = format!("gemma2.{key}");
        let error = spec_of(hidden(file_of("gemma2"), &[&key])).unwrap_err().to_string();
        assert!(error.starts_with(&format!("key `{key}`: is missing")), "{error}");
    }
    let error = spec_of(hidden(file_of("gemma3"), &["gemma3.rope.freq_base"])).unwrap_err().to_string();
    assert!(error.contains("`gemma3.rope.freq_base`: is missing"), "{error}");
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let text = |key, t: &str| (key, 8, [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat());
    let flag = |key, value: u8| (key, 7, vec![value]);
    let cases = [
        (number("qwen3.expert_count", 8), "key `qwen3.expert_count`: is 8, which is not supported in a qwen3"),
        (float("qwen3.attn_logit_softcapping", 50.0), "key `qwen3.attn_logit_softcapping`: is 50"),
        (flags("qwen3.attention.recurrent_layers", &[1, 0]), "key `qwen3.attention.recurrent_layers`: is a list"),
        (text("qwen3.attention.kind", "linear"), "key `qwen3.attention.kind`: is `linear`"),
        (flag("qwen3.swin_norm", 1), "key `qwen3.swin_norm`: is true"),
        (flag("qwen3.attention.causal", 0), "key `qwen3.attention.causal`: is false"),
        (number("qwen3.rope.dimension_count", 16), "key `qwen3.rope.dimension_count`: is 16"),
        (number("split.count", 2), "key `split.count`: is 2"),
    ];
    for (key, expected) in cases {
        let error = refusal(with_keys(&file_of("qwen3"), &[key]));
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let harmless = [
        flag("qwen3.swin_norm", 0),
        number("qwen3.expert_count", 0),
        float("qwen3.logit_scale", 0.0),
        flag("qwen3.attention.causal", 1),
        text("qwen3.tensor_data_layout", "as ever"),
        number("other.expert_count", 8),
    ];
    assert!(spec_of(with_keys(&file_of("qwen3"), &harmless)).is_ok());
    let adapter = with_keys(&hidden(file_of("qwen3"), &["general.type"]), &[text("general.type", "adapter")]);
    assert!(refusal(adapter).contains("key `general.type`: is `adapter`"));
    let error = refusal(replaced_in(file_of("qwen2"), "attn_v.bias", "attn_x.bias"));
    assert!(error.contains("blk.0.attn_x.bias`: is not a tensor of the qwen2 architecture"), "{error}");
    let error = refusal(replaced_in(file_of("gemma2"), "post_ffw_norm", "prev_ffw_norm"));
    assert!(error.contains("prev_ffw_norm"), "{error}");
    let error = refusal(replaced_in(file_of("qwen2"), "qwen2", "phi33"));
    assert!(error.contains("is `phi33`; supported: `llama`, `qwen2`, `qwen3`, `gemma2`, `gemma3`"), "{error}");
}

/// Qwen2 always has biases: a file without them is not one.
#[test]
fn biases_are_not_forgotten() {
    let mut file = Container::read(Arc::new(file_of("qwen2"))).unwrap();
    file.tensors.retain(|name, _| !name.ends_with(".bias"));
    let (architecture, spec) = config::spec(&file, None, None).unwrap();
    let tensors = tensors::load(&file, architecture, &spec, &mut |_, _| {}).unwrap();
    let error = bind(&spec, &tensors).err().expect("refused").to_string();
    assert!(error.contains("self_attn.q_proj.bias"), "{error}");
}

/// llama.cpp would not compute with them either.
#[test]
fn rotary_factors_have_no_place_but_in_a_llama() {
    let mut file = Container::read(Arc::new(file_of("qwen3"))).unwrap();
    let plain = config::spec(&file, None, None).unwrap().1;
    let entry = TensorEntry { shape: vec![16], range: 0..64, dtype: Dtype::F32 };
    file.tensors.insert(config::ROPE_FACTORS.into(), entry);
    let (architecture, spec) = config::spec(&file, Some(vec![2.0; 16]), None).unwrap();
    assert_eq!(spec, plain);
    let error = tensors::load(&file, architecture, &spec, &mut |_, _| {}).err().expect("refused").to_string();
    assert!(error.contains("tensor `rope_freqs.weight`: is not a tensor of the qwen3"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Changed bytes where the structure is neither panic nor are they taken for more than the file has.
    #[test]
    fn mutated_families(
        name in prop::sample::select(vec!["mistral", "qwen2", "qwen3", "gemma2", "gemma3"]),
        edits in prop::collection::vec((0usize..1200, any::<u8>()), 1..6),
    ) {
        let mut bytes = file_of(name);
        for (at, value) in edits {
            bytes[at] = value;
        }
        let size = bytes.len();
        if let Ok(source) = load(bytes) {
            prop_assert!(source.tensors.values().map(|tensor| tensor.data().len()).sum::<usize>() <= size);
        }
    }
}
