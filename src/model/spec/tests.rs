use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A complete config.json with what each architecture needs besides.
fn config(model_type: &str) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 144,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    let own = match model_type {
        "gemma2" => json!({
            "hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "sliding_window": 16,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        }),
        "gemma3_text" => json!({
            "hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "sliding_window": 16,
            "sliding_window_pattern": 6, "rope_local_base_freq": 500.0,
        }),
        "granite" => json!({
            "attention_multiplier": 0.1, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0,
        }),
        "smollm3" => json!({"no_rope_layer_interval": 4}),
        "mixtral" => json!({"num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen3_moe" => json!({
            "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "norm_topk_prob": true,
        }),
        _ => json!({}),
    };
    patch(&mut config, &own);
    config
}

/// Sets fields; `"-"` removes one.
fn patch(config: &mut Value, changes: &Value) {
    for (field, value) in changes.as_object().unwrap() {
        if value == "-" {
            config.as_object_mut().unwrap().remove(field);
        } else {
            config[field] = value.clone();
        }
    }
}

fn spec(model_type: &str, changes: Value) -> Result<Spec, SpecError> {
    let mut config = config(model_type);
    patch(&mut config, &changes);
    Spec::from_config(&config, None)
}

const FAMILIES: &[&str] = &[
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "smollm3",
    "granite",
];

#[test]
fn every_family_parses() {
    for family in FAMILIES {
        let spec = spec(family, json!({})).unwrap();
        assert_eq!((spec.q_width(), spec.kv_width(), spec.qkv_width()), (64, 32, 128), "{family}");
        assert_eq!(spec.max_positions, 512, "{family}");
    }
}

/// (model_type, change, what the message must name)
#[rustfmt::skip]
fn refusals() -> Vec<(&'static str, Value, &'static [&'static str])> {
    vec![
        ("llama", json!({"model_type": "-"}), &["`model_type` is missing"]),
        ("llama", json!({"model_type": "gpt_neox"}), &["`model_type` is \"gpt_neox\"", "llama, mistral"]),
        ("llama", json!({"hidden_size": "-"}), &["`hidden_size` is missing"]),
        ("llama", json!({"hidden_size": "64"}), &["`hidden_size` is \"64\"", "integer"]),
        ("llama", json!({"hidden_size": 0}), &["`hidden_size` is 0"]),
        ("llama", json!({"hidden_size": -64}), &["`hidden_size` is -64"]),
        ("llama", json!({"hidden_size": 64.5}), &["`hidden_size` is 64.5"]),
        ("llama", json!({"vocab_size": 1e300}), &["`vocab_size`"]),
        ("llama", json!({"num_hidden_layers": 1_000_000}), &["`num_hidden_layers` is 1000000", "4096"]),
        ("llama", json!({"num_key_value_heads": 3}), &["`num_key_value_heads` is 3", "num_attention_heads 4"]),
        ("llama", json!({"head_dim": 15}), &["`head_dim` is 15", "even"]),
        ("llama", json!({"head_dim": null, "hidden_size": 66}), &["`num_attention_heads` is 4", "hidden_size 66"]),
        ("llama", json!({"rms_norm_eps": 0}), &["`rms_norm_eps` is 0"]),
        ("llama", json!({"hidden_act": "relu"}), &["`hidden_act` is \"relu\"", "silu, gelu_pytorch_tanh"]),
        ("llama", json!({"torch_dtype": "float8_e4m3fn"}), &["`torch_dtype` is \"float8_e4m3fn\"", "bfloat16"]),
        ("llama", json!({"quantization_config": {"quant_method": "gptq"}}), &["`quantization_config` is \"gptq\""]),
        ("llama", json!({"attention_bias": "yes"}), &["`attention_bias` is \"yes\"", "true or false"]),
        ("llama", json!({"clip_qkv": 8.0}), &["`clip_qkv` is 8"]),
        ("llama", json!({"final_logit_softcapping": 30.0}), &["`final_logit_softcapping` is 30"]),
        ("llama", json!({"layer_types": vec!["sliding_attention"; 8]}), &["`layer_types`", "1: sliding"]),
        ("llama", json!({"rope_theta": 0.5}), &["`rope_theta` is 0.5"]),
        ("llama", json!({"rope_scaling": {"factor": 2.0}}), &["`rope_scaling.rope_type` is missing"]),
        ("llama", json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), &["`rope_scaling.type` is \"dynamic\"", "llama3, yarn"]),
        ("llama", json!({"rope_parameters": {"rope_type": "mrope"}}), &["`rope_parameters.rope_type` is \"mrope\""]),
        ("llama", json!({"rope_scaling": {"type": "linear"}}), &["`rope_scaling.factor` is missing"]),
        ("llama", json!({"rope_scaling": {"type": "linear", "factor": 0}}), &["`rope_scaling.factor` is 0"]),
        ("llama", json!({"rope_scaling": "linear"}), &["`rope_scaling` is \"linear\"", "object"]),
        ("llama", json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 64}}), &["`rope_scaling.high_freq_factor` is 1", "low_freq_factor 4"]),
        ("llama", json!({"partial_rotary_factor": 1.5}), &["`partial_rotary_factor` is 1.5", "head_dim 16"]),
        ("mistral", json!({"rope_theta": "-"}), &["`rope_theta` is missing"]),
        ("mistral", json!({"num_key_value_heads": "-"}), &["`num_key_value_heads` is missing"]),
        ("mistral", json!({"sliding_window": "wide"}), &["`sliding_window` is \"wide\""]),
        ("qwen3", json!({"head_dim": "-"}), &["`head_dim` is missing"]),
        ("qwen2", json!({"use_sliding_window": true, "sliding_window": 16}), &["`max_window_layers` is missing"]),
        ("qwen2", json!({"layer_types": ["full_attention"]}), &["`layer_types` is a list of 1 values", "8 values"]),
        ("qwen2", json!({"layer_types": vec!["linear_attention"; 8]}), &["`layer_types[0]` is \"linear_attention\""]),
        ("qwen2", json!({"layer_types": vec!["sliding_attention"; 8], "sliding_window": 4}), &["`use_sliding_window` is false"]),
        ("gemma2", json!({"sliding_window": "-"}), &["`sliding_window` is missing"]),
        ("gemma2", json!({"query_pre_attn_scalar": "-"}), &["`query_pre_attn_scalar` is missing"]),
        ("gemma3_text", json!({"sliding_window_pattern": "-"}), &["`sliding_window_pattern` is missing"]),
        ("gemma3_text", json!({"rope_local_base_freq": "-"}), &["`rope_local_base_freq` is missing"]),
        ("gemma3_text", json!({"use_bidirectional_attention": true}), &["`use_bidirectional_attention` is true"]),
        ("gemma3_text", json!({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}),
            &["`rope_parameters.sliding_attention` is missing"]),
        ("gemma3_text", json!({"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": {}}}),
            &["`rope_parameters.full_attention.rope_theta` is missing"]),
        ("gemma3_text", json!({"model_type": "gemma3"}), &["`text_config` is missing"]),
        ("phi3", json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0],
            "original_max_position_embeddings": 64}}), &["`rope_scaling.short_factor` is a list of 1 values", "8 values"]),
        ("phi3", json!({"rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![0.0; 8],
            "original_max_position_embeddings": 64}}), &["`rope_scaling.long_factor[0]` is 0"]),
        ("phi3", json!({"rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![1.0; 8]}}),
            &["`rope_scaling.original_max_position_embeddings` is missing"]),
        ("smollm3", json!({"no_rope_layer_interval": "-"}), &["`no_rope_layer_interval` is missing"]),
        ("smollm3", json!({"no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 2]}), &["`no_rope_layers[7]` is 2"]),
        ("granite", json!({"logits_scaling": 0}), &["`logits_scaling` is 0"]),
        ("granite", json!({"attention_multiplier": "-"}), &["`attention_multiplier` is missing"]),
        ("mixtral", json!({"num_local_experts": "-"}), &["`num_local_experts` is missing"]),
        ("mixtral", json!({"num_experts_per_tok": 5}), &["`num_experts_per_tok` is 5", "num_local_experts 4"]),
        ("qwen3_moe", json!({"norm_topk_prob": "-"}), &["`norm_topk_prob` is missing"]),
        ("qwen3_moe", json!({"use_sliding_window": true}), &["`use_sliding_window` is true"]),
        ("qwen3_moe", json!({"mlp_only_layers": ["first"]}), &["`mlp_only_layers` is \"first\""]),
    ]
}

#[test]
fn refusals_name_the_field_and_what_is_allowed() {
    for (family, change, expected) in refusals() {
        let message = match spec(family, change.clone()) {
            Ok(_) => panic!("{family} accepts {change}"),
            Err(error) => error.to_string(),
        };
        for part in expected {
            assert!(message.contains(part), "{family}, {change}: {message:?} does not say {part:?}");
        }
    }
}

#[test]
fn long_values_are_cut_in_messages() {
    let error = spec("llama", json!({"hidden_act": "é".repeat(10_000)})).unwrap_err().to_string();
    assert!(error.len() < 500, "{} bytes", error.len());
}

#[test]
fn a_context_length_beyond_the_model_is_refused_with_both_numbers() {
    let config = config("llama");
    assert_eq!(Spec::from_config(&config, Some(100)).unwrap().max_positions, 100);
    let message = Spec::from_config(&config, Some(513)).unwrap_err().to_string();
    assert!(message.contains("`max_model_len` is 513") && message.contains("512"), "{message}");
    assert!(Spec::from_config(&config, Some(0)).is_err());
}

fn windows(spec: &Spec) -> Vec<bool> {
    spec.layers.iter().map(|layer| layer.window.is_some()).collect()
}

#[test]
fn windows_follow_each_familys_rule() {
    let (t, f) = (true, false);
    let of = |family, change| windows(&spec(family, change).unwrap());
    assert_eq!(of("llama", json!({})), [f; 8]);
    assert_eq!(of("mistral", json!({"sliding_window": 24})), [t; 8]);
    assert_eq!(of("mistral", json!({"sliding_window": null})), [f; 8]);
    assert_eq!(of("gemma2", json!({})), [t, f, t, f, t, f, t, f]);
    assert_eq!(of("gemma3_text", json!({})), [t, t, t, t, t, f, t, t]);
    assert_eq!(
        of("gemma3_text", json!({"sliding_window_pattern": "-", "_sliding_window_pattern": 3})),
        [t, t, f, t, t, f, t, t]
    );
    let qwen = json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 5});
    assert_eq!(of("qwen2", qwen.clone()), [f, f, f, f, f, t, t, t]);
    assert_eq!(of("qwen3", json!({"use_sliding_window": false, "sliding_window": 16, "max_window_layers": 5})), [f; 8]);
    let mut listed = qwen;
    listed["layer_types"] = json!([
        "sliding_attention",
        "full_attention",
        "full_attention",
        "full_attention",
        "full_attention",
        "full_attention",
        "full_attention",
        "sliding_attention"
    ]);
    assert_eq!(of("qwen2", listed), [t, f, f, f, f, f, f, t]);
    assert_eq!(of("smollm3", json!({"use_sliding_window": true, "sliding_window": 9})), [f, f, f, t, f, f, f, t]);
}

#[test]
fn layers_without_rope_and_layers_with_another() {
    let smollm3 = spec("smollm3", json!({})).unwrap();
    let without: Vec<usize> = (0..8).filter(|i| smollm3.layers[*i].rope.is_none()).collect();
    assert_eq!(without, [3, 7]);
    let gemma3 = spec("gemma3_text", json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}})).unwrap();
    assert_eq!(gemma3.ropes.len(), 2);
    assert_eq!((gemma3.layers[5].rope, gemma3.layers[0].rope), (Some(0), Some(1)));
    assert_eq!((gemma3.ropes[0].inv_freq[0], gemma3.ropes[1].inv_freq[0]), (0.125, 1.0));
    assert!((gemma3.ropes[1].inv_freq[4] - 500f32.powf(-0.5)).abs() < 1e-7);
}

#[test]
fn biases_follow_each_familys_rule() {
    let of = |family, change| {
        let spec = spec(family, change).unwrap();
        (spec.qkv_bias, spec.o_bias, spec.mlp_bias)
    };
    let both = json!({"attention_bias": true, "mlp_bias": true});
    assert_eq!(of("llama", json!({})), (false, false, false));
    assert_eq!(of("llama", both.clone()), (true, true, true));
    assert_eq!(of("qwen2", json!({})), (true, false, false));
    assert_eq!(of("qwen3", both.clone()), (true, true, false));
    assert_eq!(of("mistral", both), (false, false, false));
}

#[test]
fn a_missing_tie_means_the_classs_default() {
    for (family, tied) in
        [("llama", false), ("qwen2", false), ("gemma2", true), ("gemma3_text", true), ("smollm3", true)]
    {
        assert_eq!(spec(family, json!({"tie_word_embeddings": "-"})).unwrap().tied_head, tied, "{family}");
    }
}

#[test]
fn routed_and_dense_layers_mix() {
    let spec = spec("qwen3_moe", json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]})).unwrap();
    let routed: Vec<usize> = (0..8).filter(|i| matches!(spec.layers[*i].mlp, MlpSpec::Moe(_))).collect();
    assert_eq!(routed, [1, 5, 7]);
}

#[test]
fn both_styles_say_the_same() {
    let old = spec("llama", json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
    let parameters = json!({"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0});
    let new = spec(
        "llama",
        json!({"rope_theta": "-", "torch_dtype": "-", "dtype": "bfloat16", "rope_parameters": parameters}),
    );
    assert_eq!(old, new.unwrap());
}

#[test]
fn part_of_a_head_may_turn() {
    let spec = spec("phi3", json!({"partial_rotary_factor": 0.75})).unwrap();
    assert_eq!((spec.ropes[0].rotary_dim, spec.ropes[0].inv_freq.len()), (12, 6));
    assert!((spec.ropes[0].inv_freq[1] - 10_000f32.powf(-2.0 / 12.0)).abs() < 1e-7);
}

/// Worked out by hand from the paper's formulas for head_dim 16, theta 10000, 64 positions, factor 8 (the golden model
/// `llama-yarn-head64` holds the defaults to transformers).
#[test]
fn yarn_options() {
    let of = |options: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64});
        patch(&mut scaling, &options);
        spec("llama", json!({"rope_scaling": scaling})).unwrap().ropes.remove(0)
    };
    let plain = of(json!({}));
    assert!((plain.attention_factor - (0.1 * 8f32.ln() + 1.0)).abs() < 1e-6);
    let given = of(json!({"attention_factor": 0.5, "mscale": 2.0, "mscale_all_dim": 1.0}));
    assert_eq!(given.attention_factor, 0.5);
    let ratio = of(json!({"mscale": 2.0, "mscale_all_dim": 1.0})).attention_factor;
    assert!((ratio - (0.2 * 8f32.ln() + 1.0) / (0.1 * 8f32.ln() + 1.0)).abs() < 1e-6);
    // beta_fast 32 lies before the first frequency; beta_slow 1 at 16 * ln(64 / 2π) / (2 ln 10000) = 2.0160, so the
    // ramp ends at 3 where it is rounded out, and at 2.0160 where it is not.
    let blend = |kept: f32, i: i32| 10_000f32.powf(-2.0 * i as f32 / 16.0) * (kept + (1.0 - kept) / 8.0);
    let exact = of(json!({"truncate": false}));
    for (rope, end) in [(plain, 3.0), (exact, 2.016_000_2)] {
        for i in 0..8 {
            let expected = blend((1.0 - i as f32 / end).max(0.0), i);
            let found = rope.inv_freq[i as usize];
            assert!((found / expected - 1.0).abs() < 1e-4, "{i}: {found} {expected}");
        }
    }
}

#[test]
fn yarn_and_longrope_decide_the_context_length() {
    let yarn = json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}});
    assert_eq!(spec("qwen2", yarn).unwrap().max_positions, 2048);

    let scaling = json!({"type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8]});
    let mut phi = config("phi3");
    patch(&mut phi, &json!({"rope_scaling": scaling, "original_max_position_embeddings": 64}));
    let of = |len| Spec::from_config(&phi, len).unwrap();
    assert_eq!((of(None).ropes[0].inv_freq[0], of(None).max_positions), (0.5, 512));
    assert_eq!((of(Some(65)).ropes[0].inv_freq[0], of(Some(65)).max_positions), (0.5, 65));
    assert_eq!((of(Some(64)).ropes[0].inv_freq[0], of(Some(64)).max_positions), (1.0, 64));
    let factor = (1.0 + 8f32.ln() / 64f32.ln()).sqrt();
    assert!((of(None).ropes[0].attention_factor - factor).abs() < 1e-6);
    phi["max_position_embeddings"] = json!(64);
    assert_eq!(Spec::from_config(&phi, None).unwrap().max_positions, 64);
}

#[test]
fn the_text_part_of_gemma3() {
    let config = json!({
        "model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152},
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    });
    let spec = Spec::from_config(&config, None).unwrap();
    assert_eq!((spec.model_type.as_str(), spec.vocab_size, spec.hidden_size), ("gemma3_text", 262_208, 2560));
    assert_eq!((spec.num_heads, spec.num_kv_heads, spec.head_dim), (8, 4, 256));
    assert_eq!((spec.layers[0].window, spec.layers[5].window), (Some(1024), None));
    assert_eq!((spec.max_positions, spec.tied_head), (131_072, true));
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..10).prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
        Just(json!([0, 1, "x"])),
        Just(json!({"rope_type": "yarn", "factor": 1e-300})),
        Just(json!({"rope_type": "longrope", "short_factor": [], "long_factor": [1e300]})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a field says, parsing ends in a spec that keeps its promises or in an error.
    #[test]
    fn any_field_may_say_anything(
        family in 0..FAMILIES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4),
        scaling in any_value(),
        max_model_len in prop::option::of(any::<usize>()),
    ) {
        let mut config = config(FAMILIES[family]);
        let fields: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        for (field, value) in changes {
            config[field.get(&fields)] = value;
        }
        config["rope_scaling"] = scaling;
        if let Ok(spec) = Spec::from_config(&config, max_model_len) {
            prop_assert_eq!(spec.num_heads % spec.num_kv_heads, 0);
            prop_assert!(spec.max_positions >= 1);
            for layer in &spec.layers {
                prop_assert!(layer.rope.is_none_or(|i| i < spec.ropes.len()));
            }
            for rope in &spec.ropes {
                prop_assert!(rope.rotary_dim <= spec.head_dim && rope.inv_freq.len() * 2 == rope.rotary_dim);
                prop_assert!(rope.inv_freq.iter().all(|f| f.is_finite()) && rope.attention_factor.is_finite());
            }
        }
    }
}
