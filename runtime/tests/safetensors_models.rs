//! The small models as Hugging Face folders: the same bits as their GGUF files where both hold the
//! same numbers, and as close to the independent reference as `reference.rs` asks of GGUF.

use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tritone_runtime::checkpoint::Checkpoint;
use tritone_runtime::config::{Config, RopeScaling};
use tritone_runtime::gguf::Gguf;
use tritone_runtime::model::{CacheType, LoadOptions, Model, Source};
use tritone_runtime::safetensors;
use tritone_runtime::template::{ChatTemplate, Message};
use tritone_runtime::tokenizer::{SpecialTokens, Tokenizer};

#[derive(Deserialize)]
struct Reference {
    prompt: String,
    ids: Vec<u32>,
    last_logits: Vec<f32>,
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(model)
}

fn references(path: &Path) -> Vec<Reference> {
    serde_json::from_slice(&std::fs::read(path.join("reference.json")).unwrap()).unwrap()
}

fn load(path: &Path, cache_type: CacheType) -> Model {
    let options = LoadOptions { cache_type, threads: Some(2), ..LoadOptions::default() };
    Model::load(Source::File(path.to_owned()), &options, &mut |_| {}).unwrap()
}

/// Logits after each prompt, and after eight tokens more, as bits.
fn logit_bits(model: &Model, references: &[Reference]) -> Vec<Vec<u32>> {
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect();
    let mut session = model.session(None).unwrap();
    let mut all = Vec::new();
    for reference in references {
        session.truncate(0);
        all.push(bits(session.prefill(&reference.ids, 0).unwrap()));
        for token in 20..28 {
            all.push(bits(session.decode(token).unwrap()));
        }
    }
    all
}

/// The same bits for all tokens but these. Short where `assert_eq` would print every logit.
#[track_caller]
fn same_bits(ours: &[Vec<u32>], theirs: &[Vec<u32>], without: &[usize]) {
    assert_eq!(ours.len(), theirs.len());
    for (step, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!(ours.len(), theirs.len());
        let different = (0..ours.len()).filter(|token| ours[*token] != theirs[*token] && !without.contains(token));
        let different: Vec<usize> = different.collect();
        assert!(different.is_empty(), "step {step}, tokens {different:?}");
    }
}

/// Rows of the head that are not the same in both: the folder has it in bf16, and the GGUF file in
/// f16, which cannot hold the smallest numbers.
fn rounded_rows(folder: &Checkpoint, gguf: &Checkpoint) -> Vec<usize> {
    let name = if gguf.find_tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" };
    let [ours, theirs] = [folder, gguf].map(|checkpoint| checkpoint.tensor(name).unwrap());
    let [a, b] = [ours, theirs].map(|tensor| tensor.to_f32().unwrap());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 6e-8));
    let rows = a.chunks(ours.cols()).zip(b.chunks(ours.cols())).enumerate();
    rows.filter(|(_, (a, b))| a != b).map(|(row, _)| row).collect()
}

fn rms(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0), |(sum, n), value| (sum + value * value, n + 1));
    (sum / f64::from(n)).sqrt()
}

/// Distance of the logits from the reference, relative to the reference's rms, for each prompt.
fn distances(model: &Model, references: &[Reference]) -> Vec<f64> {
    let mut session = model.session(None).unwrap();
    let distance = |reference: &Reference| {
        session.truncate(0);
        let logits = session.prefill(&reference.ids, 0).unwrap();
        let difference = logits.iter().zip(&reference.last_logits).map(|(a, b)| f64::from(a - b));
        rms(difference) / rms(reference.last_logits.iter().map(|b| f64::from(*b)))
    };
    references.iter().map(distance).collect()
}

/// What the folder and the GGUF file of a model say in words is the same.
fn check_metadata(folder: &Checkpoint, gguf: &Checkpoint) {
    let config = |checkpoint| Config { name: String::new(), ..Config::from_checkpoint(checkpoint).unwrap() };
    assert_eq!(config(folder), config(gguf));
    let [ours, theirs] = [folder, gguf].map(|checkpoint| Tokenizer::from_checkpoint(checkpoint).unwrap());
    assert_eq!(ours.vocab_size(), theirs.vocab_size());
    for text in ["It wasn't 12345 o'clock,\n\n  said\tthe Fox. <|eot_id|>", "", " ", "äöü €42 日本語 🦊\r\n"]
    {
        for special in [SpecialTokens::Plain, SpecialTokens::Parse] {
            assert_eq!(ours.encode(text, special, true), theirs.encode(text, special, true), "{text:?}");
        }
    }
    let talk = [Message::new("user", "Hi"), Message::new("assistant", "Hello."), Message::new("user", "Who?")];
    let [ours, theirs] = [(folder, &ours), (gguf, &theirs)].map(|(checkpoint, tokenizer)| {
        ChatTemplate::from_checkpoint(checkpoint, tokenizer).unwrap().render(&talk, true).unwrap()
    });
    assert_eq!(ours, theirs);
}

fn check_bitnet(name: &str) {
    let path = folder(name);
    let file = path.join("model-i2_s.gguf");
    let (checkpoint, gguf) = (safetensors::open(&path).unwrap(), Gguf::open(&file).unwrap());
    check_metadata(&checkpoint, &gguf);
    let rounded = rounded_rows(&checkpoint, &gguf);
    println!("{name}: f16 rounds rows {rounded:?}");
    assert!(rounded.len() < 8);
    let references = references(&path);
    let ours = load(&path, CacheType::F16);
    for reference in &references {
        assert_eq!(ours.tokenizer().encode(&reference.prompt, SpecialTokens::Plain, true), reference.ids);
    }
    same_bits(&logit_bits(&ours, &references), &logit_bits(&load(&file, CacheType::F16), &references), &rounded);
    let distances = distances(&load(&path, CacheType::F32), &references);
    println!("{name}: {distances:?}");
    assert!(distances.iter().all(|distance| *distance < 1e-4), "{distances:?}");
}

#[test]
fn scales_that_multiply() {
    check_bitnet("bitnet-relu2");
}

#[test]
fn scales_that_divide_and_heads_that_are_interleaved() {
    check_bitnet("llama-silu-bitlinear");
}

/// Floats that are ternary with a scale per 128 weights become exactly the file's trits and scales.
#[test]
fn floats_that_are_ternary() {
    let path = folder("qwen3-group128");
    let (folder, file) = (safetensors::open(&path).unwrap(), Gguf::open(path.join("model-q2_0.gguf")).unwrap());
    check_metadata(&folder, &file);
    let mut matrices = 0;
    for tensor in folder.tensors().iter().filter(|tensor| tensor.is_ternary()) {
        let [ours, theirs] = [tensor, file.tensor(tensor.name()).unwrap()].map(|tensor| tensor.ternary().unwrap());
        assert_eq!(ours.block(), 128, "{}", tensor.name());
        let mut trits = [vec![0; ours.cols()], vec![0; ours.cols()]];
        let mut values = [vec![0.0; ours.cols()], vec![0.0; ours.cols()]];
        for row in 0..ours.rows() {
            ours.row_trits(row, &mut trits[0]).unwrap();
            theirs.row_trits(row, &mut trits[1]).unwrap();
            assert_eq!(trits[0], trits[1], "{}, row {row}", tensor.name());
            ours.dequantize_row(row, &mut values[0]).unwrap();
            theirs.dequantize_row(row, &mut values[1]).unwrap();
            assert_eq!(values[0], values[1], "{}, row {row}", tensor.name());
        }
        matrices += 1;
    }
    assert_eq!(matrices, 3 * 7);
    let references = references(&path);
    let distances = distances(&load(&path, CacheType::F16), &references);
    println!("qwen3-group128: {distances:?}");
    // Activations share a scale with 128 others here and with 64 in the GGUF file: 2.9% to 3.3% was measured.
    assert!(distances.iter().all(|distance| *distance < 0.04), "{distances:?}");
}

/// One tensor of a file: name, type and shape, data.
type Entry = (String, Value, Vec<u8>);

fn entries(path: &Path) -> Vec<Entry> {
    let file = std::fs::read(path.join("model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&file[8..start]).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let entry = |(name, entry): (String, Value)| {
        let [from, to] = [0, 1].map(|i| start + entry["data_offsets"][i].as_u64().unwrap() as usize);
        (name, entry, file[from..to].to_vec())
    };
    tensors.map(entry).collect()
}

fn write(path: &Path, tensors: &[Entry]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, entry, bytes) in tensors {
        let mut entry = entry.clone();
        entry["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        data.extend(bytes);
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

/// An empty folder that is removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        let path = std::env::temp_dir().join(format!("tritone-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Temporary(path)
    }

    fn copy(&self, model: &str, names: &[&str]) {
        for name in names {
            std::fs::copy(folder(model).join(name), self.0.join(name)).unwrap();
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Weights in one file or in three are the same model, wherever a matrix and its scale lie.
#[test]
fn weights_in_several_files() {
    let split = Temporary::new("shards");
    split.copy("llama-silu-bitlinear", &["config.json", "tokenizer.json", "tokenizer_config.json"]);
    let whole = folder("llama-silu-bitlinear");
    let mut shards = vec![Vec::new(); 3];
    let mut map = serde_json::Map::new();
    for (i, entry) in entries(&whole).into_iter().enumerate() {
        map.insert(entry.0.clone(), json!(format!("model-{}-of-3.safetensors", i % 3 + 1)));
        shards[i % 3].push(entry);
    }
    for (i, shard) in shards.iter().enumerate() {
        write(&split.0.join(format!("model-{}-of-3.safetensors", i + 1)), shard);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(split.0.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let references = references(&whole);
    let [one, several] = [&whole, &split.0].map(|path| logit_bits(&load(path, CacheType::F16), &references));
    same_bits(&one, &several, &[]);
}

/// Master weights in `online` mode are rounded by their mean.
#[test]
fn master_weights() {
    let online = Temporary::new("online");
    online.copy("bitnet-relu2", &["tokenizer.json", "tokenizer_config.json"]);
    let source = folder("bitnet-relu2");
    let mut config: Value = serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    config["quantization_config"]["quantization_mode"] = json!("online");
    std::fs::write(online.0.join("config.json"), config.to_string()).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut tensors = entries(&source);
    tensors.retain(|(other, ..)| *other != format!("{name}_scale"));
    let up = tensors.iter_mut().find(|(other, ..)| other == name).unwrap();
    // A quarter of the weights each is 0.25, 0.75, -1.25 and 1.75, so the mean of the sizes is 1.
    let value = |i: usize| [0.25_f32, 0.75, -1.25, 1.75][i % 4];
    up.1 = json!({"dtype": "F32", "shape": [768, 256]});
    up.2 = (0..768 * 256).flat_map(|i| value(i).to_le_bytes()).collect();
    write(&online.0.join("model.safetensors"), &tensors);

    let checkpoint = safetensors::open(&online.0).unwrap();
    let ternary = checkpoint.tensor("blk.1.ffn_up.weight").unwrap().ternary().unwrap();
    assert_eq!((ternary.rows(), ternary.cols(), ternary.tensor_scale()), (768, 256, Some(1.0)));
    let mut trits = [9; 256];
    ternary.row_trits(700, &mut trits).unwrap();
    assert!(trits.chunks(4).all(|four| four == [0, 1, -1, 1]));
    ternary.check().unwrap();
    assert_eq!(ternary.count_zeros().unwrap(), 768 * 256 / 4);
    load(&online.0, CacheType::F16);
}

/// A folder like that of the llama with other rotary parameters.
fn llama_with_rope(name: &str, rope_theta: f64, key: &str, rope: Value) -> Temporary {
    let scaled = Temporary::new(name);
    scaled.copy("llama-silu-bitlinear", &["model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    let config = std::fs::read(folder("llama-silu-bitlinear").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["rope_theta"] = json!(rope_theta);
    config["rope_parameters"] = Value::Null;
    config[key] = rope;
    std::fs::write(scaled.0.join("config.json"), config.to_string()).unwrap();
    scaled
}

/// The scaling of Llama 3.2: the first frequencies stay, the last are divided by the factor.
#[test]
fn rope_factors() {
    let scaling = json!({
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"
    });
    let scaled = llama_with_rope("rope", 500_000.0, "rope_scaling", scaling);
    let checkpoint = safetensors::open(&scaled.0).unwrap();
    let factors = checkpoint.tensor("rope_freqs.weight").unwrap().to_f32().unwrap();
    assert_eq!(factors.len(), 32);
    // 8192 positions hold 4 waves of 2048 and 1 of 8192: theta^(2i/64) * 2 pi passes these at
    // i = 14.1 and i = 17.5.
    assert!(factors[..15].iter().all(|factor| *factor == 1.0), "{factors:?}");
    assert!(factors[18..].iter().all(|factor| *factor == 32.0), "{factors:?}");
    assert!(factors[15..18].windows(2).all(|pair| 1.0 < pair[0] && pair[0] < pair[1] && pair[1] < 32.0), "{factors:?}");
    load(&scaled.0, CacheType::F16);
}

/// YaRN with what Transformers answers (`tools/reference`, `--rope` with the same parameters).
#[test]
fn yarn() {
    let rope = json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128});
    let references: Vec<Reference> =
        serde_json::from_slice(&std::fs::read(folder("llama-silu-bitlinear").join("reference-yarn.json")).unwrap())
            .unwrap();
    // The newer place of the parameters, and the older one.
    for (name, key) in [("yarn", "rope_parameters"), ("yarn-older", "rope_scaling")] {
        let scaled = llama_with_rope(name, 1e4, key, rope.clone());
        let distances = distances(&load(&scaled.0, CacheType::F32), &references);
        println!("yarn: {distances:?}");
        // Frequencies are rounded to float32 there and not here, which flips an activation's code in the last prompt: 1.4%
        // was measured, and 3e-7 for the others. Without the scaling the first is 39% away.
        assert!(distances[..2].iter().all(|distance| *distance < 1e-4), "{distances:?}");
        assert!(distances[2] < 0.03, "{distances:?}");
    }

    // Numbers that are no defaults. Transformers has the whole length of rotated vectors, GGUF what multiplies the usual one.
    let all = |more: Value| {
        let mut rope = rope.clone();
        rope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let folder = llama_with_rope("yarn-numbers", 1e4, "rope_parameters", rope);
        match Config::from_checkpoint(&safetensors::open(&folder.0).unwrap()).unwrap().rope_scaling {
            RopeScaling::Yarn(yarn) => yarn,
            other => panic!("{other:?}"),
        }
    };
    let usual = 0.1 * 4.0f32.ln() + 1.0;
    let yarn = all(json!({"beta_fast": 16, "beta_slow": 2, "attention_factor": 2.0 * usual}));
    assert_eq!((yarn.factor, yarn.original_context, yarn.beta_fast, yarn.beta_slow), (4.0, 128, 16.0, 2.0));
    assert!((yarn.attention_factor - 2.0).abs() < 1e-6, "{yarn:?}");
    // The length is (0.1 * 2 * ln 4 + 1) / (0.1 * 1 * ln 4 + 1).
    let yarn = all(json!({"mscale": 2.0, "mscale_all_dim": 1.0}));
    assert!((yarn.attention_factor * usual * usual - (0.2 * 4.0f32.ln() + 1.0)).abs() < 1e-6, "{yarn:?}");
    assert_eq!(all(json!({"mscale": 2.0, "mscale_all_dim": 0.0})).attention_factor, 1.0);
    assert_eq!(all(json!({"original_max_position_embeddings": null})).original_context, 512);
}
