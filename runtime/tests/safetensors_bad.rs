//! Folders that are incomplete, damaged, hostile or of another kind: each gets one clear sentence.

mod llama_folder;

use llama_folder::{Folder, Tensor, WEIGHTS, file_of, pack};
use serde_json::{Value, json};
use tritone_runtime::config::Config;
use tritone_runtime::safetensors;
use tritone_runtime::tokenizer::Tokenizer;

const INDEX: &str = "model.safetensors.index.json";

const NORM: &str = "model.norm.weight";
const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const QUERY_SCALE: &str = "model.layers.0.self_attn.q_proj.weight_scale";

#[test]
fn the_good_folder_loads() {
    Folder::llama().load().unwrap();
    let folder = Folder::llama();
    let again = pack(&folder.tensors());
    folder.with(WEIGHTS, again).load().unwrap();
}

#[test]
fn headers_that_lie() {
    let good = Folder::llama;
    good().with(WEIGHTS, []).refused(&[WEIGHTS, "empty"]);
    good().with(WEIGHTS, [0; 7]).refused(&[WEIGHTS, "7 bytes"]);
    good().with(WEIGHTS, (1_u64 << 50).to_le_bytes()).refused(&[WEIGHTS, "1125899906842624 bytes"]);
    good().with(WEIGHTS, u64::MAX.to_le_bytes()).refused(&[WEIGHTS, "18446744073709551615 bytes"]);
    good().with(WEIGHTS, [&3_u64.to_le_bytes()[..], b"{}"].concat()).refused(&["3 bytes", "2 follow"]);
    good().with(WEIGHTS, file_of("{}", &[])).refused(&["lm_head.weight", "missing"]);
    good().header_text("{").refused(&[WEIGHTS, "JSON"]);
    good().header_text("[]").refused(&[WEIGHTS, "JSON"]);
    good().header_text("{\"a\":1}").refused(&[WEIGHTS, "JSON"]);
    good().header_text("{\"a\":{\"dtype\":\"F32\"}}").refused(&[WEIGHTS, "shape"]);
    good().with(WEIGHTS, [&4_u64.to_le_bytes()[..], &[0xff; 4]].concat()).refused(&[WEIGHTS, "JSON"]);
    for deep in ["[", "{\"a\":"] {
        good().header_text(&format!("{{\"a\":{}", deep.repeat(200_000))).refused(&[WEIGHTS, "JSON"]);
        good().header_text(&format!("{{\"__metadata__\":{}", deep.repeat(200_000))).refused(&[WEIGHTS, "JSON"]);
    }
    let entry = "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}";
    good().header_text(&format!("{{\"a\":{entry},\"a\":{entry}}}")).refused(&[WEIGHTS, "`a`", "twice"]);
}

#[test]
fn tensors_that_lie() {
    let edited = |key: &str, value: Value| Folder::llama().header(|header| header[NORM][key] = value);
    edited("dtype", json!("F8_E4M3")).refused(&[NORM, "F8_E4M3", "BF16"]);
    edited("dtype", json!("\u{1b}[2J")).refused(&[NORM, "\\u{1b}"]);
    edited("dtype", json!("F32")).refused(&[NORM, "[256]"]);
    for shape in [
        json!([255]),
        json!([256, 0]),
        json!([]),
        json!([1_u64 << 40, 1_u64 << 40]),
        json!([u64::MAX, 3]),
        json!([1, 1, 1, 1, 256]),
    ] {
        edited("shape", shape).refused(&[WEIGHTS, NORM, "shape"]);
    }
    edited("shape", json!([-1])).refused(&[WEIGHTS, "JSON"]);
    let norm = Folder::llama().split().0[NORM]["data_offsets"].clone();
    let [start, end] = [0, 1].map(|i| norm[i].as_u64().unwrap());
    edited("data_offsets", json!([end, start])).refused(&[WEIGHTS, NORM]);
    edited("data_offsets", json!([u64::MAX - 511, u64::MAX])).refused(&[WEIGHTS, NORM]);
    edited("data_offsets", json!([u64::MAX - 512, u64::MAX])).refused(&[WEIGHTS, NORM, "past the end"]);
    edited("data_offsets", json!([1_u64 << 40, (1_u64 << 40) + 512])).refused(&[WEIGHTS, NORM, "past the end"]);
    edited("data_offsets", json!([start])).refused(&[WEIGHTS, "JSON"]);
    edited("data_offsets", json!([start - 2, end - 2])).refused(&[WEIGHTS, NORM, "overlaps"]);
    edited("data_offsets", json!([0, 512])).refused(&[WEIGHTS, "overlaps"]);
    Folder::llama().header(|header| drop(header.as_object_mut().unwrap().remove(NORM))).refused(&[WEIGHTS, "gap"]);
    let mut longer = Folder::llama().0[WEIGHTS].clone();
    longer.push(0);
    Folder::llama().with(WEIGHTS, longer.clone()).refused(&[WEIGHTS, "1 bytes follow"]);
    longer.truncate(longer.len() - 2);
    Folder::llama().with(WEIGHTS, longer).refused(&[WEIGHTS, "past the end"]);
}

#[test]
fn weights_that_do_not_fit() {
    let good = Folder::llama();
    let without = |name: &str| {
        let tensors: Vec<Tensor> = good.tensors().into_iter().filter(|(other, ..)| other != name).collect();
        good.clone().with(WEIGHTS, pack(&tensors))
    };
    without(QUERY_SCALE).refused(&[QUERY_SCALE, "missing"]);
    without(QUERY).refused(&["attn_q.weight", "missing"]);
    without("model.embed_tokens.weight").refused(&["model.embed_tokens.weight", "missing"]);
    without("lm_head.weight").refused(&["lm_head.weight", "missing"]);
    without(NORM).refused(&["output_norm.weight", "missing"]);

    let added = |name: &str, entry: Value, data: &[u8]| {
        let mut tensors = good.tensors();
        tensors.retain(|(other, ..)| other != name);
        tensors.push((name.to_owned(), entry, data.to_vec()));
        good.clone().with(WEIGHTS, pack(&tensors))
    };
    let bias = "model.layers.0.self_attn.q_proj.bias";
    added(bias, json!({"dtype": "F32", "shape": [1]}), &[0; 4]).refused(&[bias, "bitnet, llama, qwen3"]);
    let layer = "model.layers.99999999999999999999.mlp.up_proj.weight";
    added(layer, json!({"dtype": "U8", "shape": [1, 1]}), &[0]).refused(&[layer]);
    added(QUERY_SCALE, json!({"dtype": "F32", "shape": [2]}), &[0; 8]).refused(&[QUERY_SCALE, "one number"]);
    added(QUERY_SCALE, json!({"dtype": "U8", "shape": [1]}), &[1]).refused(&[QUERY_SCALE, "one number"]);
    for scale in [0.0, f32::NAN] {
        let entry = json!({"dtype": "F32", "shape": [1]});
        added(QUERY_SCALE, entry, &scale.to_le_bytes()).refused(&[QUERY_SCALE, "the scale is"]);
    }
    added(NORM, json!({"dtype": "U8", "shape": [256]}), &[0; 256]).refused(&[NORM, "packed"]);
    added(QUERY, json!({"dtype": "U8", "shape": [32, 512]}), &[0; 1 << 14]).refused(&["attn_q.weight", "shape"]);
    added(QUERY, json!({"dtype": "U8", "shape": [1 << 14]}), &[0; 1 << 14]).refused(&[QUERY]);
    added(QUERY, json!({"dtype": "F32", "shape": [1]}), &[0; 4]).refused(&[QUERY, "scale"]);

    good.clone().data(QUERY, &[0b0000_1100]).refused(&["attn_q.weight", "code 3"]);
    good.clone().data("model.embed_tokens.weight", &[0xc0, 0x7f]).load().unwrap();
}

/// What other programs write and read: null for what is not said, ids that are none or several, a scale without dimensions.
#[test]
fn folders_that_are_sound_but_odd() {
    let keys =
        ["tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "use_bidirectional_attention"];
    for key in keys {
        Folder::llama().config(key, Value::Null).load().unwrap();
    }
    let quantization = |value: Value| {
        Folder::llama().json("config.json", |config| config["quantization_config"]["use_rms_norm"] = value)
    };
    for value in [Value::Null, json!(false)] {
        quantization(value).load().unwrap();
    }
    let bos = |id: Value| {
        let folder = Folder::llama().with("tokenizer_config.json", "{}").config("bos_token_id", id);
        folder.load().unwrap().tokenizer().bos()
    };
    assert_eq!(bos(json!(0)), Some(0));
    for (id, expected) in [(json!(-1), None), (Value::Null, None), (json!([]), None), (json!([-1, 7, 8]), Some(7))] {
        assert_eq!(bos(id), expected);
    }
    let (ours, mut same) = (Folder::llama(), Vec::new());
    let scalar = ours.clone().header(|header| header[QUERY_SCALE]["shape"] = json!([]));
    for folder in [ours, scalar] {
        let query = folder.open().unwrap();
        same.push(query.tensor("blk.0.attn_q.weight").unwrap().to_f32().unwrap());
    }
    assert_eq!(same[0], same[1]);
}

#[test]
fn files_that_are_missing_or_elsewhere() {
    let good = Folder::llama;
    good().without("config.json").refused(&["config.json", "open"]);
    good().without(WEIGHTS).refused(&[WEIGHTS, INDEX]);
    good().without("tokenizer.json").refused(&["tokenizer.json"]);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        good().with(name, "").refused(&[name, "empty"]);
        good().with(name, "{").refused(&[name, "JSON", "download it again"]);
        good().with(name, "[".repeat(100_000)).refused(&[name, "JSON"]);
        good().with(name, format!("{{\"model\":{}", "[".repeat(100_000))).refused(&[name, "JSON"]);
    }

    let index = |map: Value| good().with(INDEX, json!({"metadata": {}, "weight_map": map}).to_string());
    for path in ["/etc/passwd", "../model.safetensors", "..", ".", "", "a/model.safetensors", "a\\b", "c:\\a", "a\0b"] {
        index(json!({"a": path})).refused(&[INDEX, "does not lie in the model's folder"]);
    }
    index(json!({})).refused(&[INDEX, "no files"]);
    index(json!([])).refused(&[INDEX, "JSON"]);
    good().with(INDEX, "{}").refused(&[INDEX, "JSON"]);
    index(json!({"a": "model-00001.safetensors"})).refused(&["model-00001.safetensors", "open"]);
    index(json!({"absent.weight": WEIGHTS})).refused(&[INDEX, "absent.weight"]);

    let mut second = Folder::llama().tensors();
    second.retain(|(name, ..)| name == NORM);
    let both = json!({"model.norm.weight": "second.safetensors", "lm_head.weight": WEIGHTS});
    index(both).with("second.safetensors", pack(&second)).refused(&["output_norm.weight", "twice"]);
}

#[test]
fn configurations_that_do_not_run() {
    let config = |key: &str, value: Value| Folder::llama().config(key, value);
    config("model_type", json!("mamba")).refused(&["'mamba'", "bitnet, llama, qwen3"]);
    config("model_type", json!("\u{1b}]0;x\u{7}")).refused(&["\\u{1b}"]);
    config("hidden_act", json!("gelu")).refused(&["hidden_act", "'gelu'"]);
    config("attention_bias", json!(true)).refused(&["attention_bias"]);
    let quantization = |key: &str, value: &str| {
        Folder::llama().json("config.json", |config| config["quantization_config"][key] = json!(value))
    };
    quantization("quant_method", "gptq").refused(&["quantization_config", "'gptq'", "bitnet"]);
    quantization("linear_class", "linear").refused(&["quantization_config", "'linear'", "autobitlinear"]);
    quantization("quantization_mode", "later").refused(&["quantization_config", "'later'", "online"]);
    Folder::llama()
        .json("config.json", |config| config["quantization_config"]["use_rms_norm"] = json!(true))
        .refused(&["quantization_config", "use_rms_norm", "q_proj.norm.weight"]);
    Folder::llama()
        .json("config.json", |config| drop(config.as_object_mut().unwrap().remove("quantization_config")))
        .refused(&["weight_scale", "no quantization"]);
    config("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0})).refused(&["rope_scaling", "'longrope'"]);
    let yarn = |key: &str, value: Value| {
        let mut rope = json!({"rope_type": "yarn", "factor": 2.0});
        rope[key] = value;
        config("rope_scaling", rope)
    };
    yarn("factor", Value::Null).refused(&["factor", "positive"]);
    yarn("factor", json!(0.5)).refused(&["factor of 0.5", "at least 1"]);
    yarn("truncate", json!(false)).refused(&["truncate"]);
    yarn("attention_factor", json!(-1.0)).refused(&["attention_factor", "positive"]);
    yarn("beta_fast", json!(0.5)).refused(&["from 1 to 0.5 turns"]);
    yarn("original_max_position_embeddings", json!(0)).refused(&["original_max_position_embeddings", "positive"]);
    yarn("original_max_position_embeddings", json!(1e12)).refused(&["original_context_length", "4294967295"]);
    let flat = |config: &mut Value| {
        config["rope_theta"] = json!(1.0);
        config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0});
    };
    Folder::llama().json("config.json", flat).refused(&["base of 1"]);
    config("rope_scaling", json!({"rope_type": "llama3"})).refused(&["factor", "positive"]);
    config("rope_scaling", json!({"rope_type": "linear", "factor": -1.0})).refused(&["factor", "positive"]);
    for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "num_key_value_heads"] {
        config(key, json!(0)).refused(&["0"]);
        config(key, json!(u32::MAX)).refused(&["4294967295"]);
        config(key, json!(-1)).refused(&["config.json", "JSON"]);
        config(key, json!("many")).refused(&["config.json", "JSON", "not of the form"]);
    }
    for key in ["bos_token_id", "eos_token_id"] {
        config(key, json!(1_u64 << 32)).refused(&["config.json", "no token has the id 4294967296"]);
    }
    config("head_dim", json!(7)).refused(&["7"]);
    config("rms_norm_eps", json!(-1.0)).refused(&["rms"]);
    config("rms_norm_eps", json!(1e300)).refused(&["epsilon"]);
    Folder::llama()
        .json("config.json", |config| {
            config.as_object_mut().unwrap().remove("rope_theta");
            config["rope_parameters"]["rope_theta"] = json!(0.0);
        })
        .refused(&["freq_base"]);
}

#[test]
fn tokenizers_that_do_not_fit() {
    let tokenizer = |edit: &dyn Fn(&mut Value)| Folder::llama().json("tokenizer.json", edit);
    tokenizer(&|t| t["model"]["type"] = json!("WordPiece")).refused(&["tokenizer.json", "'WordPiece'", "BPE"]);
    tokenizer(&|t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(a+)+$")).refused(&[
        "tokenizer.json",
        "(a+)+$",
        "Llama-3",
    ]);
    tokenizer(&|t| t["pre_tokenizer"] = Value::Null).refused(&["tokenizer.json", "byte"]);
    tokenizer(&|t| t["model"]["vocab"]["far"] = json!(512)).refused(&["512", "embedding"]);
    tokenizer(&|t| t["model"]["vocab"]["far"] = json!(u32::MAX)).refused(&["4294967295", "embedding"]);
    tokenizer(&|t| t["model"]["vocab"]["far"] = json!(-1)).refused(&["tokenizer.json", "JSON"]);
    tokenizer(&|t| t["model"]["vocab"]["same"] = json!(7)).refused(&["tokenizer.json", "id 7"]);
    tokenizer(&|t| drop(t["model"]["vocab"].as_object_mut().unwrap().remove("!"))).refused(&["0x21"]);
    tokenizer(&|t| t["model"]["merges"][0] = json!(["not", "there"])).refused(&["merge 0"]);
    tokenizer(&|t| t["model"]["merges"][0] = json!("nospace")).refused(&["merge 0"]);
    tokenizer(&|t| t["model"]["merges"][0] = json!(["a"])).refused(&["tokenizer.json", "JSON"]);
    let template = |value: Value| Folder::llama().json("tokenizer_config.json", |t| t["chat_template"] = value);
    template(json!("{% for")).refused(&["chat template"]);
    template(json!("a".repeat(100_000))).refused(&["chat template"]);
    template(json!(7)).refused(&["tokenizer_config.json", "JSON"]);
}

/// Random damage to every file may be found out or not; it may not end the process.
#[test]
fn random_damage() {
    let good = Folder::llama();
    let header_len = good.split().0.to_string().len();
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) as usize) % below
    };
    let names: Vec<String> = good.0.keys().cloned().collect();
    for round in 0..200 {
        let mut folder = good.clone();
        let file = folder.0.get_mut(&names[round % names.len()]).unwrap();
        let end = file.len().min(header_len);
        for _ in 0..=random(3) {
            let at = random(end);
            file[at] = match random(3) {
                0 => b'0' + random(10) as u8,
                1 => file[at] ^ 1 << random(8),
                _ => random(256) as u8,
            };
        }
        let written = folder.write();
        if let Ok(checkpoint) = safetensors::open(&written.0) {
            let _ = Config::from_checkpoint(&checkpoint);
            let _ = Tokenizer::from_checkpoint(&checkpoint);
            for tensor in checkpoint.tensors() {
                let _ = tensor.to_f32();
            }
            checkpoint.summary(true);
        }
    }
}
