//! Small random embedding models, made when they are needed: `tools/reference/embedding.py` draws the same numbers and
//! says what vectors they have to make.

#![allow(dead_code, reason = "each test uses some of it")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tritone_runtime::checkpoint::{self, Checkpoint};
use tritone_runtime::error::{Error, Place};
use tritone_runtime::gguf::Writer;
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::quantize::{ScaleGrid, TernaryEncoder, TernaryFormat};
use tritone_runtime::safetensors;

/// The architectures.
pub const KINDS: [&str; 2] = ["qwen3", "gemma3"];

pub const HIDDEN: usize = 128;
const FFN: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD: usize = 64;
const VOCAB: usize = 640;
const CONTEXT: usize = 512;
/// Tokens that a layer of Gemma sees, except for one in [`PERIOD`] layers.
const WINDOW: usize = 16;
const PERIOD: usize = 6;

/// One tensor: its shape, and its numbers as the upper halves of `f32`.
#[derive(Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub bits: Vec<u16>,
}

/// A folder before it is written: tensors by name, and all other files.
#[derive(Clone)]
pub struct Folder {
    pub tensors: BTreeMap<String, Tensor>,
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A folder that is there until this is dropped.
pub struct Written(pub PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/data").join(path)
}

/// Texts, their tokens and the vectors that the model of this kind has to make of them.
pub fn references(kind: &str) -> Vec<(String, Vec<u32>, Vec<f32>)> {
    let text = std::fs::read_to_string(repository(&format!("embedding/{kind}.json"))).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let read = |one: &Value| {
        let numbers = |key: &str| one[key].as_array().unwrap().iter();
        (
            one["text"].as_str().unwrap().to_owned(),
            numbers("ids").map(|id| id.as_u64().unwrap() as u32).collect(),
            numbers("embedding").map(|x| x.as_f64().unwrap() as f32).collect(),
        )
    };
    all.iter().map(read).collect()
}

/// The cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

impl Folder {
    /// The model of an architecture.
    pub fn new(kind: &str) -> Folder {
        let gemma = kind == "gemma3";
        let n_layers = if gemma { 7 } else { 2 };
        let mut shapes = BTreeMap::from([
            ("embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
            ("norm.weight".to_owned(), vec![HIDDEN]),
        ]);
        for layer in 0..n_layers {
            let name = |part: &str| format!("layers.{layer}.{part}.weight");
            for (part, rows, cols) in [
                ("self_attn.q_proj", HEADS * HEAD, HIDDEN),
                ("self_attn.k_proj", KV_HEADS * HEAD, HIDDEN),
                ("self_attn.v_proj", KV_HEADS * HEAD, HIDDEN),
                ("self_attn.o_proj", HIDDEN, HEADS * HEAD),
                ("mlp.gate_proj", FFN, HIDDEN),
                ("mlp.up_proj", FFN, HIDDEN),
                ("mlp.down_proj", HIDDEN, FFN),
            ] {
                shapes.insert(name(part), vec![rows, cols]);
                shapes.insert(name(&format!("{part}.norm")), vec![cols]);
            }
            for (part, size) in [("self_attn.q_norm", HEAD), ("self_attn.k_norm", HEAD)] {
                shapes.insert(name(part), vec![size]);
            }
            let more: &[&str] = if gemma { &["pre_feedforward_layernorm", "post_feedforward_layernorm"] } else { &[] };
            for part in ["input_layernorm", "post_attention_layernorm"].iter().chain(more) {
                shapes.insert(name(part), vec![HIDDEN]);
            }
        }
        let mut state: u64 = if gemma { 2 } else { 1 };
        let mut draw = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as f32 - 128.0
        };
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let near_zero = gemma && !name.ends_with("proj.norm.weight");
            let norm = |x: f32| (x / 8.0).floor() / 64.0 + if near_zero { 0.0 } else { 1.0 };
            let value = |x: f32| if shape.len() == 2 { x / 128.0 } else { norm(x) };
            let bits = (0..shape.iter().product()).map(|_| half(value(draw()))).collect();
            (name, Tensor { shape, bits })
        });
        let tensors = tensors.collect();
        let modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")];
        let modules = modules.map(|(name, path, class)| {
            json!({"idx": 0, "name": name, "path": path, "type": format!("sentence_transformers.models.{class}")})
        });
        let pooling = json!({"word_embedding_dimension": HIDDEN, "pooling_mode_lasttoken": true});
        let mut folder = Folder { tensors, files: BTreeMap::new() };
        for (name, content) in [
            ("config.json", config(gemma, n_layers)),
            ("modules.json", json!(modules)),
            ("1_Pooling/config.json", pooling),
            ("tokenizer_config.json", json!({"eos_token": "<|end_of_text|>"})),
        ] {
            folder.files.insert(name.to_owned(), content.to_string().into());
        }
        let tokenizer = std::fs::read(repository("models/qwen3-group128/tokenizer.json")).unwrap();
        folder.files.insert("tokenizer.json".to_owned(), tokenizer);
        folder
    }

    /// The same with another content of a file of JSON.
    pub fn json(mut self, name: &str, edit: impl FnOnce(&mut Value)) -> Folder {
        let mut value = serde_json::from_slice(&self.files[name]).unwrap();
        edit(&mut value);
        self.files.insert(name.to_owned(), serde_json::to_vec(&value).unwrap());
        self
    }

    /// Writes it under a name that nobody has.
    pub fn write(&self) -> Written {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tritone-embedding-{}-{number}", std::process::id()));
        let written = Written(path);
        for (name, bytes) in &self.files {
            let path = written.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, tensor) in &self.tensors {
            let start = data.len();
            data.extend(tensor.bits.iter().flat_map(|bits| bits.to_le_bytes()));
            let offsets = [start, data.len()];
            header.insert(name.clone(), json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": offsets}));
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        std::fs::write(written.0.join("model.safetensors"), file).unwrap();
        written
    }
}

/// The upper half of a number that needs no more.
fn half(x: f32) -> u16 {
    assert_eq!(x.to_bits() & 0xffff, 0, "{x} is exact in bfloat16");
    (x.to_bits() >> 16) as u16
}

fn config(gemma: bool, n_layers: usize) -> Value {
    let mut config = json!({
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": n_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCAB,
        "bos_token_id": 0,
        "eos_token_id": 1,
    });
    let kind = |layer: usize| if (layer + 1).is_multiple_of(PERIOD) { "full_attention" } else { "sliding_attention" };
    let own = if gemma {
        json!({
            "architectures": ["Gemma3TextModel"],
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 50,
            "sliding_window": WINDOW,
            "layer_types": (0..n_layers).map(kind).collect::<Vec<_>>(),
            "rope_parameters": {
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            },
        })
    } else {
        json!({
            "architectures": ["Qwen3Model"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        })
    };
    config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    config
}

/// Loads a folder or a file, for two threads.
pub fn load(path: &Path) -> Result<Model, Error> {
    let options = LoadOptions { threads: Some(2), ..LoadOptions::default() };
    Model::load(Source::File(path.to_owned()), &options, &mut |_| {})
}

/// Writes what a folder holds as GGUF, matrices as I2_S, with other metadata where `edit` says so.
pub fn write_gguf(
    checkpoint: &Checkpoint,
    path: &Path,
    edit: impl Fn(&str, &checkpoint::Value) -> Option<checkpoint::Value>,
) {
    let mut writer = Writer::new();
    for (key, value) in checkpoint.metadata() {
        if let Some(value) = edit(key, value) {
            writer.key(key, value);
        }
    }
    let mut all = Vec::new();
    for tensor in checkpoint.tensors() {
        let mut bytes = Vec::new();
        let id = if tensor.is_ternary() {
            let ternary = tensor.ternary().unwrap();
            let (rows, cols) = (tensor.rows(), tensor.cols());
            let place = Place::file("memory");
            let mut encoder = TernaryEncoder::new(TernaryFormat::I2S, rows, cols, ScaleGrid::Tensor, place).unwrap();
            let mut trits = vec![0; cols];
            for row in 0..rows {
                ternary.row_trits(row, &mut trits).unwrap();
                encoder.push_row(&trits, &[ternary.tensor_scale().unwrap()], &mut bytes).unwrap();
            }
            encoder.finish(&mut bytes);
            TernaryFormat::I2S.type_id()
        } else {
            bytes.extend(tensor.to_f32().unwrap().iter().flat_map(|x| x.to_le_bytes()));
            0
        };
        writer.tensor(tensor.name(), tensor.dims(), id, bytes.len());
        all.push(bytes);
    }
    let mut data = writer.begin(std::fs::File::create(path).unwrap()).unwrap();
    all.iter().for_each(|bytes| data.write(bytes).unwrap());
    data.finish().unwrap();
}

/// A model as GGUF, in a folder that goes when the test ends.
pub fn as_gguf(kind: &str, edit: impl Fn(&str, &checkpoint::Value) -> Option<checkpoint::Value>) -> (Written, PathBuf) {
    let folder = Folder::new(kind).write();
    let path = folder.0.join("model.gguf");
    write_gguf(&safetensors::open(&folder.0).unwrap(), &path, edit);
    (folder, path)
}
