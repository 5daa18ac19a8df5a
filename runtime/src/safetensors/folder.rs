//! A folder as one checkpoint.

use super::config::{HfConfig, Scheme};
use super::header::{self, Dtype, Entry};
use super::names::{self, Meaning};
use super::pooling;
use super::tokenizer::{self, Files};
use super::{from_json, malformed};
use crate::checkpoint::{Bytes, Checkpoint, Tensor, TensorType, Ternarise, Value};
use crate::error::{Error, Place, Result, shown};
use half::{bf16, f16};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Elements of the longest norm that is looked at.
const LONGEST_NORM: usize = 1 << 20;

/// The file in which each tensor is.
type WeightMap = HashMap<String, String>;

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Opens the model in the folder at `path`. Weights are mapped, not read.
///
/// # Errors
/// A file that is missing, damaged, or of a model that does not run here, each by name.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let folder = path.display().to_string();
    let config_path = path.join("config.json");
    let config = HfConfig::parse(&config_path.display().to_string(), &small(&config_path)?)?;
    let (shards, map) = shards(path)?;

    let mut entries = Vec::new();
    let mut size = 0;
    for shard in &shards {
        let bytes = Bytes::open(shard)?;
        size += bytes.len() as u64;
        let file: Arc<str> = shard.display().to_string().into();
        for entry in header::read(&file, &bytes)? {
            entries.push((Arc::clone(&file), bytes.clone(), entry));
        }
    }
    if let Some(map) = map {
        let held: std::collections::HashSet<&str> = entries.iter().map(|(_, _, entry)| &*entry.name).collect();
        if let Some(name) = map.keys().find(|name| !held.contains(name.as_str())) {
            let at = Place::file(path.join(INDEX).display().to_string()).tensor(name.clone());
            return Err(malformed(at, "the index names this tensor, but no file holds it".to_owned()));
        }
    }
    let architecture = config.architecture()?;
    let pooling = pooling::read(path, config.hidden_size)?;
    let input_norms = entries.iter().any(|(_, _, entry)| names::is_input_norm(&entry.name));
    let scheme = config.scheme(input_norms)?;
    let tensors = Tensors { folder: &folder, config: &config, architecture, scheme, embeds: pooling.is_some() };
    let tensors = tensors.collect(entries)?;
    let embedding = tensors.iter().find(|tensor| tensor.name() == "token_embd.weight");
    let Some(vocab_size) = embedding.map(Tensor::rows) else {
        return Err(Error::MissingTensor { at: Box::new(Place::file(&*folder).tensor("model.embed_tokens.weight")) });
    };

    let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let mut metadata = config.metadata(&name.unwrap_or_default())?;
    if let Some(pooling) = pooling {
        metadata.push((format!("{architecture}.pooling_type"), Value::U32(pooling.gguf_number())));
    }
    let read = |name: &str| -> Result<Option<(String, Bytes)>> {
        let path = path.join(name);
        Ok(if path.exists() { Some((path.display().to_string(), small(&path)?)) } else { None })
    };
    let Some((tokenizer_name, tokenizer_json)) = read("tokenizer.json")? else {
        return Err(Error::Tokenizer {
            what: format!("{folder} has no tokenizer.json"),
            fix: "download it into the folder".to_owned(),
        });
    };
    let (named, generation) = (read("tokenizer_config.json")?, read("generation_config.json")?);
    let template = read("chat_template.jinja")?;
    let files = Files {
        tokenizer: (&tokenizer_name, &tokenizer_json),
        config: named.as_ref().map(|(name, bytes)| (&**name, &**bytes)),
        generation: generation.as_ref().map(|(name, bytes)| (&**name, &**bytes)),
        template: template.as_ref().map(|(name, bytes)| (&**name, &**bytes)),
    };
    tokenizer::metadata(&files, &config, pooling, vocab_size, &mut metadata)?;
    let format = match shards.len() {
        1 => "safetensors".to_owned(),
        n => format!("safetensors in {n} files"),
    };
    Checkpoint::new(folder.into(), format, size, metadata, tensors)
}

/// A file of text; none that belongs to a model is larger.
pub(super) fn small(path: &Path) -> Result<Bytes> {
    const MAX_TEXT: usize = 64 << 20;
    let bytes = Bytes::open(path)?;
    if bytes.len() > MAX_TEXT {
        let what = format!("the file has {} bytes, the limit is {MAX_TEXT}", bytes.len());
        return Err(malformed(Place::file(path.display().to_string()), what));
    }
    Ok(bytes)
}

/// The files with weights, in the order of their names, and what the index says is in them.
fn shards(folder: &Path) -> Result<(Vec<PathBuf>, Option<WeightMap>)> {
    let index = folder.join(INDEX);
    if !index.exists() {
        let single = folder.join(SINGLE);
        if !single.exists() {
            return Err(Error::Unsupported {
                at: Box::new(Place::file(folder.display().to_string())),
                what: format!("the folder has neither {SINGLE} nor {INDEX}"),
                fix: "give a GGUF file, or the folder of a model with its safetensors".into(),
            });
        }
        return Ok((vec![single], None));
    }
    let file = index.display().to_string();
    let Index { weight_map } = from_json(&file, &small(&index)?)?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    let mut paths = Vec::with_capacity(names.len());
    for name in names {
        // One plain name: what the index says must not lead out of the folder.
        let parts: Vec<Component<'_>> = Path::new(name).components().collect();
        if !matches!(parts[..], [Component::Normal(_)]) || name.contains(['/', '\\', '\0']) {
            let what = format!("the file '{}' does not lie in the model's folder", shown(name));
            return Err(malformed(Place::file(&*file), what));
        }
        paths.push(folder.join(name));
    }
    if paths.is_empty() {
        return Err(malformed(Place::file(&*file), "the index names no files".to_owned()));
    }
    Ok((paths, Some(weight_map)))
}

/// Turns the files' tensors into those of a checkpoint.
struct Tensors<'c> {
    folder: &'c str,
    config: &'c HfConfig,
    /// GGUF's name.
    architecture: &'static str,
    scheme: Scheme,
    /// Whether it makes embeddings and needs no output head.
    embeds: bool,
}

impl Tensors<'_> {
    fn collect(&self, entries: Vec<(Arc<str>, Bytes, Entry)>) -> Result<Vec<Tensor>> {
        let mut scales = HashMap::new();
        let mut tensors = Vec::new();
        for (file, bytes, entry) in entries {
            match names::meaning(self.architecture, &entry.name) {
                Meaning::Tensor(name) => {
                    // The head of a tied model is its embedding, whatever else is in the file.
                    if name != "output.weight" || !(self.config.tie_word_embeddings || self.embeds) {
                        tensors.push((file, bytes, entry, name));
                    }
                }
                Meaning::ScaleOf(name) => {
                    let scale = self.scale(&file, &bytes, &entry)?;
                    scales.insert(name, scale);
                }
                Meaning::Redundant => {}
                Meaning::Unknown => {
                    return Err(Error::Unsupported {
                        at: Box::new(Place::file(&*file).tensor(entry.name)),
                        what: "the tensor has no place in the models that run here".to_owned(),
                        fix: "models of the architectures bitnet, llama, qwen3 and gemma3 are read".to_owned(),
                    });
                }
            }
        }
        let has_head = tensors.iter().any(|(_, _, _, name)| name == "output.weight");
        if !self.config.tie_word_embeddings && !self.embeds && !has_head {
            return Err(Error::MissingTensor { at: Box::new(Place::file(self.folder).tensor("lm_head.weight")) });
        }
        let mut all = Vec::with_capacity(tensors.len() + 1);
        for (file, bytes, entry, name) in tensors {
            let scale = scales.get(&name).copied();
            all.push(self.tensor(&file, &bytes, entry, name, scale)?);
        }
        if let Some(factors) = self.config.rope_factors()? {
            all.push(made(self.folder.into(), "rope_freqs.weight".into(), 0, &factors));
        }
        Ok(all)
    }

    /// The multiplier that `weight_scale` stands for.
    fn scale(&self, file: &Arc<str>, bytes: &Bytes, entry: &Entry) -> Result<f32> {
        let place = || Place::file(&**file).tensor(entry.name.clone());
        let data = &bytes[entry.range.clone()];
        let value = match (entry.dtype, data) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => return Err(malformed(place(), format!("a scale is one number, not {:?}", entry.shape))),
        };
        let multiplier = match self.scheme {
            Scheme::BitNet { divides: true } => 1.0 / value,
            Scheme::BitNet { divides: false } => value,
            Scheme::Plain => {
                return Err(malformed(place(), "packed weights, but config.json names no quantization".to_owned()));
            }
        };
        if !multiplier.is_finite() {
            return Err(malformed(place(), format!("the scale is {value}")));
        }
        Ok(multiplier)
    }

    fn tensor(&self, file: &Arc<str>, bytes: &Bytes, entry: Entry, name: String, scale: Option<f32>) -> Result<Tensor> {
        let place = || Place::file(&**file).tensor(entry.name.clone());
        let ternary = names::is_ternary(&name);
        let mut dims: Vec<usize> = entry.shape.iter().rev().copied().collect();
        let tensor_type = match entry.dtype {
            Dtype::F32 => TensorType::F32,
            Dtype::F16 => TensorType::F16,
            Dtype::Bf16 => TensorType::BF16,
            Dtype::U8 => TensorType::PackedRows,
        };
        let ternarise = match (tensor_type, scale) {
            (TensorType::PackedRows, Some(multiplier)) if ternary && dims.len() == 2 => {
                dims[1] = dims[1].checked_mul(4).ok_or_else(|| malformed(place(), "too many rows".to_owned()))?;
                Some(Ternarise::Packed { multiplier })
            }
            (TensorType::PackedRows, None) if ternary => {
                return Err(Error::MissingTensor { at: Box::new(place().tensor(format!("{}_scale", entry.name))) });
            }
            (TensorType::PackedRows, _) => {
                return Err(malformed(place(), "packed weights where floats belong".to_owned()));
            }
            (_, Some(_)) => return Err(malformed(place(), "a scale for weights that are not packed".to_owned())),
            (_, None) if !ternary => None,
            (_, None) => Some(match self.scheme {
                Scheme::BitNet { .. } => Ternarise::AbsMean,
                Scheme::Plain => Ternarise::Exact,
            }),
        };
        let view = bytes.view(entry.range.clone()).expect("the range was checked against the file");
        let (offset, span) = (entry.range.start as u64, entry.range.len());
        let mut tensor = Tensor::new(Arc::clone(file), name, tensor_type, dims, offset, span, view);
        tensor.set_ternarise(ternarise);
        // Longer ones belong to no model, and are refused by their shape.
        if names::adds_one(self.architecture, tensor.name()) && tensor.rows() == 1 && tensor.cols() <= LONGEST_NORM {
            return plus_one(file, &tensor);
        }
        // Llama's own RoPE turns neighbours; the published halves are brought beside each other.
        let turned = tensor.name().ends_with("attn_q.weight") || tensor.name().ends_with("attn_k.weight");
        if turned && self.architecture == "llama" {
            let head_dim = self.config.head_dim() as usize;
            if head_dim == 0 || !head_dim.is_multiple_of(2) || !tensor.rows().is_multiple_of(head_dim) {
                let what = format!("{} rows are no whole number of heads of {head_dim}", tensor.rows());
                return Err(malformed(place(), what));
            }
            tensor.set_interleaved_heads(head_dim);
        }
        Ok(tensor)
    }
}

/// A vector that is in no file as it is; `offset` is where it comes from.
fn made(file: Arc<str>, name: String, offset: u64, values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (dims, span) = (vec![values.len().max(1)], data.len());
    let data = Bytes::from(data);
    let view = data.view(0..span).expect("all of it");
    Tensor::new(file, name, TensorType::F32, dims, offset, span, view)
}

/// The norm that multiplies by `1 + w`, as GGUF has it.
fn plus_one(file: &Arc<str>, tensor: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = tensor.to_f32()?.iter().map(|w| 1.0 + w).collect();
    Ok(made(Arc::clone(file), tensor.name().to_owned(), tensor.offset(), &values))
}
