//! Embedding models that are incomplete, damaged, hostile or of another kind: each gets one clear sentence.

mod embedding_models;

use embedding_models::{Folder, KINDS, Tensor, as_gguf, load};
use tritone_runtime::checkpoint::Value;
use tritone_runtime::config::{Pooling, RopeScaling};
use tritone_runtime::embedding::Embedder;
use tritone_runtime::error::Error;
use tritone_runtime::model::Model;

#[track_caller]
fn refused(result: Result<Model, Error>, parts: &[&str]) {
    let message = result.and_then(|model| Embedder::new(&model)).err().expect("this must be refused").to_string();
    assert!(!message.contains('\n') && message.len() < 900, "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn folders_that_are_no_good() {
    for kind in KINDS {
        let good = || Folder::new(kind);
        let without = |name: &str| {
            let mut folder = good();
            folder.tensors.remove(name).unwrap();
            folder
        };
        let load = |folder: Folder| load(&folder.write().0);
        load(good()).unwrap();
        for (name, gguf) in [
            ("layers.1.self_attn.v_proj.norm.weight", "blk.1.attn_v_norm_in.weight"),
            ("layers.0.self_attn.q_proj.norm.weight", "blk.0.attn_q_norm_in.weight"),
            ("layers.1.mlp.down_proj.norm.weight", "blk.1.ffn_down_norm_in.weight"),
            ("layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight"),
            ("norm.weight", "output_norm.weight"),
            ("embed_tokens.weight", "embed_tokens.weight"),
        ] {
            refused(load(without(name)), &[gguf, "missing"]);
        }
        let shaped = |name: &str, shape: &[usize]| {
            let mut folder = good();
            let bits = vec![0x3f80; shape.iter().product()];
            folder.tensors.insert(name.to_owned(), Tensor { shape: shape.to_vec(), bits });
            folder
        };
        refused(load(shaped("layers.0.mlp.up_proj.norm.weight", &[127])), &["ffn_up_norm_in", "[127]", "[128]"]);
        refused(load(shaped("layers.0.self_attn.o_proj.norm.weight", &[128])), &["attn_output_norm_in", "[256]"]);
        refused(load(shaped("layers.0.input_layernorm.weight", &[1, 129])), &["attn_norm", "shape"]);
        refused(load(shaped("layers.0.self_attn.k_norm.weight", &[4, 16])), &["attn_k_norm", "shape"]);
        refused(load(shaped("layers.0.self_attn.q_proj.bias", &[256])), &["q_proj.bias", "no place"]);
        refused(load(shaped("model.norm.weight", &[128])), &["output_norm.weight", "twice"]);
        // A head that nobody asked for is not looked at.
        load(shaped("lm_head.weight", &[3])).unwrap();
        for bad in [0x7fc0, 0x7f80] {
            let mut folder = good();
            folder.tensors.get_mut("layers.1.mlp.gate_proj.norm.weight").unwrap().bits[7] = bad;
            refused(load(folder), &["ffn_gate_norm_in", "element 7"]);
        }

        let modules = |edit: fn(&mut serde_json::Value)| load(good().json("modules.json", edit));
        refused(modules(|m| *m = serde_json::json!([])), &["modules.json", "no step of it pools"]);
        refused(modules(|m| *m = serde_json::json!({})), &["modules.json", "JSON"]);
        refused(modules(|m| m[2]["type"] = "sentence_transformers.models.Dense".into()), &["modules.json", "Dense"]);
        refused(
            modules(|m| m[2]["type"] = "sentence_transformers.models.Pooling".into()),
            &["modules.json", "Pooling"],
        );
        for path in ["../1_Pooling", "/etc", "", ".", "a/b", "a\\b", "a\0b"] {
            let folder = good().json("modules.json", |m| m[1]["path"] = path.into());
            refused(load(folder), &["modules.json", "does not lie in the model's folder"]);
        }
        refused(modules(|m| m[1]["path"] = "2_Pooling".into()), &["2_Pooling", "open"]);
        let pooling = |content: &str| {
            let mut folder = good();
            folder.files.insert("1_Pooling/config.json".to_owned(), content.into());
            load(folder)
        };
        refused(pooling("{}"), &["1_Pooling", "no way of pooling"]);
        refused(pooling("["), &["1_Pooling", "JSON"]);
        refused(pooling(r#"{"pooling_mode_max_tokens": true}"#), &["1_Pooling", "'max'", "lasttoken"]);
        refused(pooling(r#"{"pooling_mode": "\u001b[2J"}"#), &["1_Pooling", "\\u{1b}"]);
        let both = r#"{"pooling_mode_cls_token": true, "pooling_mode_lasttoken": true}"#;
        refused(pooling(both), &["1_Pooling", "cls, lasttoken"]);
        refused(
            pooling(r#"{"pooling_mode_lasttoken": true, "word_embedding_dimension": 127}"#),
            &["1_Pooling", "127", "128"],
        );
        let newer = load(good().json("1_Pooling/config.json", |p| *p = serde_json::json!({"pooling_mode": "mean"})));
        assert_eq!(newer.unwrap().config().pooling, Some(Pooling::Mean));

        // Without the list of steps it is a model that generates, and these need a head.
        let mut folder = good();
        folder.files.remove("modules.json");
        refused(load(folder), &["lm_head.weight", "missing"]);
        // The end token is not known to anyone.
        let folder = good().json("tokenizer_config.json", |t| *t = serde_json::json!({}));
        refused(load(folder.json("config.json", |c| c["eos_token_id"] = serde_json::Value::Null)), &["eos_token_id"]);
        refused(load(good().json("config.json", |c| c["eos_token_id"] = 640.into())), &["eos_token_id", "640"]);
    }
    let gemma = |key: &str, value: serde_json::Value| {
        load(&Folder::new("gemma3").json("config.json", |config| config[key] = value).write().0)
    };
    refused(gemma("hidden_activation", "gelu".into()), &["'gelu'", "gelu_pytorch_tanh"]);
    refused(gemma("use_bidirectional_attention", true.into()), &["use_bidirectional_attention"]);
    refused(gemma("attn_logit_softcapping", 50.0.into()), &["attn_logit_softcapping"]);
    refused(gemma("final_logit_softcapping", 30.0.into()), &["final_logit_softcapping"]);
    refused(gemma("query_pre_attn_scalar", 0.into()), &["attention.scale", "finite"]);
    refused(gemma("query_pre_attn_scalar", (-1).into()), &["attention.scale", "finite"]);
    refused(gemma("sliding_window", u32::MAX.into()), &["attention.sliding_window", "4294967295"]);
    refused(gemma("layer_types", vec!["full_attention"; 3].into()), &["layer_types", "no order"]);
    refused(gemma("layer_types", vec!["chunked_attention"; 7].into()), &["layer_types", "no order"]);
    refused(gemma("rope_local_base_freq", 0.0.into()), &["rope.freq_base_swa", "positive"]);
    let scaled = serde_json::json!({"sliding_attention": {"rope_type": "linear", "factor": 8.0}});
    refused(gemma("rope_parameters", scaled), &["rope_parameters", "linear", "sliding window"]);
    let scaled = serde_json::json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}});
    assert_eq!(gemma("rope_parameters", scaled).unwrap().config().rope_scaling, RopeScaling::Linear { factor: 8.0 });
}

#[test]
fn gguf_files_that_are_no_good() {
    let with = |kind: &str, key: &str, value: Option<Value>| {
        let key = format!("{kind}.{key}");
        let (_folder, path) = as_gguf(kind, |other, old| if other == key { value.clone() } else { Some(old.clone()) });
        load(&path)
    };
    for kind in KINDS {
        for (number, says) in [(4, "ranks"), (9, "pooling is 9"), (u32::MAX, "4294967295")] {
            refused(with(kind, "pooling_type", Some(Value::U32(number))), &["pooling_type", says]);
        }
        refused(with(kind, "pooling_type", Some(Value::String("last".into()))), &["pooling_type", "expected"]);
        // Without a way of pooling, or with none, it is pooled as others are.
        for value in [None, Some(Value::U32(0))] {
            let embedder = Embedder::new(&with(kind, "pooling_type", value).unwrap()).unwrap();
            assert!(embedder.warning().is_some());
        }
        refused(with(kind, "attention.key_length", None), &["keys of 32 elements"]);
    }
    refused(with("gemma3", "attention.scale", Some(Value::F32(f32::NAN))), &["attention.scale", "finite"]);
    refused(with("gemma3", "attention.sliding_window_pattern", Some(Value::U32(0))), &["sliding_window_pattern", "0"]);
    // What a file of other converters leaves out is Gemma's own.
    let model = with("gemma3", "attention.sliding_window_pattern", None).unwrap();
    assert_eq!(model.config().window.unwrap().period, 6);
    assert_eq!(with("gemma3", "attention.sliding_window", None).unwrap().config().window, None);
}

/// Random damage to any file but the weights may be found out or not; it may not end the process.
#[test]
fn random_damage() {
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) as usize) % below
    };
    for kind in KINDS {
        // Without the weights of all layers but the first a round is fast, and still gets to them.
        let mut good = Folder::new(kind).json("config.json", |config| {
            config["num_hidden_layers"] = 1.into();
            if let Some(kinds) = config["layer_types"].as_array_mut() {
                kinds.truncate(1);
            }
        });
        good.tensors.retain(|name, _| !name.starts_with("layers.") || name.starts_with("layers.0."));
        load(&good.write().0).unwrap();
        let names: Vec<String> = good.files.keys().cloned().collect();
        let mut loaded = 0;
        for round in 0..60 {
            let mut folder = good.clone();
            let file = folder.files.get_mut(&names[round % names.len()]).unwrap();
            for _ in 0..=random(3) {
                let at = random(file.len().min(700));
                file[at] = match random(3) {
                    0 => b'0' + random(10) as u8,
                    1 => file[at] ^ 1 << random(8),
                    _ => random(256) as u8,
                };
            }
            if let Ok(mut embedder) = load(&folder.write().0).and_then(|model| Embedder::new(&model)) {
                let tokens = embedder.tokens("The king said so.");
                let _ = embedder.embed(&[tokens]);
                loaded += 1;
            }
        }
        println!("{kind}: {loaded} of 60 loaded");
        assert!((1..60).contains(&loaded));
    }
}
