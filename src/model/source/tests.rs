use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

/// A copy of a golden model that a test may break.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        let file_name = path.file_name().unwrap();
        if !file_name.to_string_lossy().starts_with("golden") {
            std::fs::write(folder.path().join(file_name), std::fs::read(&path).unwrap()).unwrap();
        }
    }
    folder
}

fn edit(folder: &Path, file: &str, change: impl Fn(&mut Value)) {
    let path = folder.join(file);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn open_quietly(path: &Path) -> Result<ModelSource, ModelError> {
    open(path, None, &mut |_, _| ())
}

fn refusal(path: &Path) -> String {
    open_quietly(path).err().expect("refused").to_string()
}

#[test]
fn a_folder_is_opened_whole() {
    let source = open_quietly(&fixture("qwen3")).unwrap();
    assert_eq!((source.name.as_str(), source.spec.model_type.as_str()), ("qwen3", "qwen3"));
    assert_eq!((source.eos_tokens.as_slice(), source.chat.eos_token.as_str()), (&[2][..], "</s>"));
    assert_eq!(source.tensors["lm_head.weight"].shape, [320, 64]);
    assert_eq!(source.tokenizer.encode("w5 w300", false).unwrap(), [5, 300]);
    assert_eq!(source.generation, GenerationDefaults::default());
}

/// The golden Gemma 3 as it would lie inside a checkpoint that also sees images.
#[test]
fn the_text_part_of_an_image_checkpoint_is_the_same_model() {
    let alone = open_quietly(&fixture("gemma3")).unwrap();
    let folder = copy("gemma3");
    edit(folder.path(), "config.json", |config| {
        let text = config.take();
        *config = json!({"model_type": "gemma3", "text_config": text, "vision_config": {}});
    });
    let mut tensors: Vec<(String, &Tensor)> =
        alone.tensors.iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor)).collect();
    tensors.push(("vision_tower.head.weight".into(), &alone.tensors["model.norm.weight"]));
    let views = tensors.iter().map(|(name, tensor)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, tensor.shape.clone(), tensor.data());
        (name, view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();

    let nested = open_quietly(folder.path()).unwrap();
    assert_eq!(nested.spec, alone.spec);
    assert!(nested.tensors.keys().eq(alone.tensors.keys()));
    assert!(nested.tensors.values().zip(alone.tensors.values()).all(|(a, b)| a.data() == b.data()));
}

#[test]
fn generation_config_gives_defaults_and_end_tokens() {
    let folder = copy("llama");
    let file = "generation_config.json";
    edit(folder.path(), file, |config| {
        *config = json!({
            "eos_token_id": [7, 9], "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": null,
            "repetition_penalty": 1.1,
        });
    });
    let source = open_quietly(folder.path()).unwrap();
    // The tokenizer's own end token counts too.
    assert_eq!(source.eos_tokens, [2, 7, 9]);
    let expected = GenerationDefaults {
        do_sample: Some(true),
        temperature: Some(0.6),
        top_k: Some(20),
        top_p: Some(0.95),
        min_p: None,
        repetition_penalty: Some(1.1),
    };
    assert_eq!(source.generation, expected);
    for (field, value) in [
        ("temperature", json!("hot")),
        ("temperature", json!(-1)),
        ("top_k", json!(-1)),
        ("top_p", json!(0)),
        ("min_p", json!(1.5)),
        ("repetition_penalty", json!(0)),
        ("do_sample", json!("yes")),
        ("eos_token_id", json!(320)),
        ("eos_token_id", json!([2, "</s>"])),
    ] {
        let folder = copy("llama");
        edit(folder.path(), file, |config| config[field] = value.clone());
        let message = refusal(folder.path());
        assert!(message.contains(file) && message.contains(&format!("`{field}`")), "{message}");
    }
    // Without it, config.json says where a text ends.
    std::fs::remove_file(folder.path().join(file)).unwrap();
    edit(folder.path(), "config.json", |config| config["eos_token_id"] = json!(5));
    assert_eq!(open_quietly(folder.path()).unwrap().eos_tokens, [2, 5]);
}

#[test]
fn what_is_broken_is_named() {
    let missing = Path::new("/nonexistent/model");
    assert!(refusal(missing).starts_with("/nonexistent/model: "));
    let file = fixture("llama").join("config.json");
    assert!(refusal(&file).contains("neither a folder"));

    type Break = fn(&Path);
    let cases: &[(Break, &[&str])] = &[
        (|at| std::fs::remove_file(at.join("config.json")).unwrap(), &["config.json is missing"]),
        (|at| std::fs::write(at.join("config.json"), "{").unwrap(), &["config.json: is not JSON"]),
        (|at| std::fs::write(at.join("config.json"), "[]").unwrap(), &["config.json: `config` is []"]),
        (|at| edit(at, "config.json", |c| c["model_type"] = json!("bert")), &["config.json: `model_type` is \"bert\""]),
        (|at| std::fs::remove_file(at.join("tokenizer.json")).unwrap(), &["tokenizer.json"]),
        (|at| std::fs::write(at.join("tokenizer.json"), "{}").unwrap(), &["tokenizer.json"]),
        (|at| std::fs::remove_file(at.join("model.safetensors")).unwrap(), &["neither model.safetensors nor"]),
        (
            |at| edit(at, "config.json", |c| c["intermediate_size"] = json!(145)),
            &["mlp.gate_proj.weight", "[144, 64]", "[145, 64]"],
        ),
        (|at| edit(at, "config.json", |c| c["num_hidden_layers"] = json!(3)), &["`model.layers.3."]),
        (|at| edit(at, "config.json", |c| c["num_hidden_layers"] = json!(5)), &["`model.layers.4.", "is missing"]),
        (|at| edit(at, "config.json", |c| c["tie_word_embeddings"] = json!(true)), &["`lm_head.weight` differs"]),
        (
            |at| {
                let path = at.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            },
            &["model.safetensors", "tensor `model.", "truncated"],
        ),
        (
            |at| {
                let path = at.join("model.safetensors");
                let mut bytes = std::fs::read(&path).unwrap();
                let at = bytes.windows(6).position(|w| w == b"\"BF16\"").unwrap();
                bytes[at..at + 6].copy_from_slice(b"\"I16\" ");
                std::fs::write(&path, bytes).unwrap();
            },
            &["model.safetensors", "tensor `", "dtype I16 is not supported"],
        ),
    ];
    for (break_it, expected) in cases {
        let folder = copy("llama");
        break_it(folder.path());
        let message = refusal(folder.path());
        for part in *expected {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
        assert!(message.contains(folder.path().to_str().unwrap()), "{message:?} does not name the folder");
    }
}
