//! Shapes of models: four by name, any other from a file.

use super::vocabulary;
use crate::failure::{Result, Stop};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use tritone_runtime::config::{Activation, Architecture};

/// Which control tokens and which rule for words a vocabulary has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama3,
    Qwen,
}

/// What a model's tensors follow from.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub name: String,
    /// As `general.architecture` has it.
    pub architecture: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
    pub rope_theta: f32,
    /// YaRN's factor and how many positions the model was first trained with.
    pub yarn: Option<(f32, usize)>,
    pub rms_eps: f32,
    /// Whether the embedding is also the output head.
    pub tied: bool,
    /// Whether embedding and head are ternary unless the command line says otherwise.
    pub ternary_embedding: bool,
    /// Columns that share a scale in formats that can; 0: one scale for a tensor.
    pub block: usize,
    pub family: Family,
}

/// A config of a real model has a few KB.
const MAX_FILE: u64 = 1 << 20;

impl Shape {
    /// The shape of this name, or that of the file of this name.
    pub fn find(name: &str) -> Result<Shape> {
        let bitnet = Shape {
            name: name.to_owned(),
            architecture: "bitnet-b1.58",
            layers: 30,
            hidden: 2560,
            ffn: 6912,
            heads: 20,
            kv_heads: 5,
            head_dim: 128,
            vocab: 128_256,
            context: 4096,
            rope_theta: 500_000.0,
            yarn: None,
            rms_eps: 1e-5,
            tied: true,
            ternary_embedding: false,
            block: 0,
            family: Family::Llama3,
        };
        Ok(match name {
            "bitnet-2b-4t" => bitnet,
            "story" => Shape {
                layers: 4,
                hidden: 256,
                ffn: 768,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                vocab: 4096,
                context: 1024,
                rope_theta: 10_000.0,
                ..bitnet
            },
            "llama3-8b" => Shape {
                architecture: "llama",
                layers: 32,
                hidden: 4096,
                ffn: 14_336,
                heads: 32,
                kv_heads: 8,
                context: 8192,
                tied: false,
                ..bitnet
            },
            "bonsai-8b" => Shape {
                architecture: "qwen3",
                layers: 36,
                hidden: 4096,
                ffn: 12_288,
                heads: 32,
                kv_heads: 8,
                vocab: 151_936,
                context: 65_536,
                rope_theta: 1_000_000.0,
                yarn: Some((4.0, 16_384)),
                rms_eps: 1e-6,
                tied: false,
                ternary_embedding: true,
                block: 128,
                family: Family::Qwen,
                ..bitnet
            },
            file if file.ends_with(".json") => Shape::read(Path::new(file))?,
            other => {
                return Err(Stop::usage(
                    format_args!("there is no shape '{other}'"),
                    "the shapes are bitnet-2b-4t, bonsai-8b, llama3-8b, story, or a FILE.json",
                ));
            }
        })
    }

    /// What stands between gate and up, as the model will be read.
    pub fn activation(&self) -> Activation {
        let architecture = Architecture::named(self.architecture).expect("shapes are of architectures that run");
        architecture.activation(self.layers, self.hidden, self.ffn)
    }

    /// Whether norms stand before the output projection and before down.
    pub fn has_sub_norms(&self) -> bool {
        self.architecture.starts_with("bitnet")
    }

    fn read(path: &Path) -> Result<Shape> {
        let name = path.display();
        let failed = |error: std::io::Error| Stop::runtime(format_args!("cannot read {name}: {error}"));
        let mut text = String::new();
        File::open(path).map_err(failed)?.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
        let json: Value =
            serde_json::from_str(&text).map_err(|error| Stop::runtime(format_args!("{name} is not JSON: {error}")))?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let shape = Shape::from_json(&json, stem).map_err(|what| Stop::runtime(format_args!("{name}: {what}")))?;
        Ok(shape)
    }

    /// The keys are those of a Hugging Face `config.json`.
    fn from_json(json: &Value, name: String) -> std::result::Result<Shape, String> {
        let optional = |key: &str| -> std::result::Result<Option<usize>, String> {
            match json.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                    Some(n) if (1..=1 << 20).contains(&n) => Ok(Some(n)),
                    _ => Err(format!("'{key}' is {value}, but it must be a whole number from 1 to {}", 1 << 20)),
                },
            }
        };
        let size = |key: &str| optional(key)?.ok_or_else(|| format!("'{key}' is missing"));
        let float = |key: &str, default: f32| match json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if number > 0.0 && number < 1e9 => Ok(number as f32),
                _ => Err(format!("'{key}' is {value}, but it must be a positive number")),
            },
        };
        let text = |key: &str| json.get(key).and_then(Value::as_str).unwrap_or_default();
        let (architecture, family) = match (text("model_type"), text("hidden_act")) {
            ("bitnet", "relu2") => ("bitnet-b1.58", Family::Llama3),
            ("bitnet", "silu" | "") => ("bitnet", Family::Llama3),
            ("llama", "silu" | "") => ("llama", Family::Llama3),
            ("qwen3", "silu" | "") => ("qwen3", Family::Qwen),
            (model, act) => {
                return Err(format!(
                    "'model_type' \"{}\" with 'hidden_act' \"{}\" is not known; there are bitnet with relu2 or silu, \
                     llama and qwen3 with silu",
                    model.escape_debug(),
                    act.escape_debug()
                ));
            }
        };
        let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        let shape = Shape {
            name,
            architecture,
            layers: size("num_hidden_layers")?,
            hidden,
            ffn: size("intermediate_size")?,
            heads,
            kv_heads: optional("num_key_value_heads")?.unwrap_or(heads),
            head_dim: optional("head_dim")?.unwrap_or(hidden / heads),
            vocab: size("vocab_size")?,
            context: optional("max_position_embeddings")?.unwrap_or(2048),
            rope_theta: float("rope_theta", 10_000.0)?,
            yarn: None,
            rms_eps: float("rms_norm_eps", 1e-5)?,
            tied: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
            ternary_embedding: false,
            block: 0,
            family,
        };
        shape.check()?;
        Ok(shape)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.layers > 4096 {
            return Err(format!("{} layers are more than 4096", self.layers));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} heads of {} with {} key/value heads do not fit together: the heads are shared evenly, \
                 and their size is even",
                self.heads, self.head_dim, self.kv_heads
            ));
        }
        let fewest = vocabulary::fewest(self.family);
        if self.vocab < fewest {
            return Err(format!("'vocab_size' is {}, but the bytes and control tokens alone are {fewest}", self.vocab));
        }
        if (self.heads * self.head_dim).max(self.hidden).max(self.ffn) > 1 << 18 {
            return Err(format!("rows of more than {} weights are not supported", 1 << 18));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_shapes_hold_together() {
        for name in ["bitnet-2b-4t", "bonsai-8b", "llama3-8b", "story"] {
            Shape::find(name).unwrap().check().unwrap();
        }
        assert!(Shape::find("gpt-5").is_err());
    }

    #[test]
    fn files_are_config_json() {
        let mut json = serde_json::json!({
            "model_type": "bitnet", "hidden_act": "relu2", "num_hidden_layers": 2, "hidden_size": 256,
            "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
            "rope_theta": 5e5, "tie_word_embeddings": true
        });
        let shape = Shape::from_json(&json, "x".into()).unwrap();
        assert_eq!((shape.architecture, shape.head_dim, shape.context), ("bitnet-b1.58", 64, 2048));
        assert!(shape.tied);
        for (key, value, says) in [
            ("num_attention_heads", serde_json::json!(0), "from 1"),
            ("num_key_value_heads", serde_json::json!(3), "fit together"),
            ("vocab_size", serde_json::json!(100), "control tokens"),
            ("hidden_act", serde_json::json!("gelu"), "gelu"),
            ("hidden_size", serde_json::json!(null), "missing"),
            ("rope_theta", serde_json::json!(-1), "positive"),
        ] {
            let mut bad = json.clone();
            bad[key] = value;
            let error = Shape::from_json(&bad, "x".into()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        json["model_type"] = serde_json::json!("qwen3");
        json["hidden_act"] = serde_json::json!("silu");
        assert_eq!(Shape::from_json(&json, "x".into()).unwrap().family, Family::Qwen);
    }
}
