//! `config.json`, as the metadata that a converter would write into a GGUF file.

use super::from_json;
use crate::checkpoint::Value;
use crate::error::{Error, Place, Result, shown};
use serde::Deserialize;

/// What of `config.json` decides anything.
#[derive(Debug, Deserialize)]
pub(super) struct HfConfig {
    #[serde(skip)]
    file: String,
    model_type: String,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    hidden_act: Option<String>,
    max_position_embeddings: u32,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    /// The newer place of `rope_theta` and of the scaling.
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    #[serde(default)]
    pub(super) tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    quantization_config: Option<Quantization>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<OneOrMore>,
}

/// An id, or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl OneOrMore {
    pub(super) fn ids(&self) -> &[u32] {
        match self {
            OneOrMore::One(id) => std::slice::from_ref(id),
            OneOrMore::More(ids) => ids,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Rope {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

#[derive(Debug, Deserialize)]
struct Quantization {
    quant_method: String,
    linear_class: Option<String>,
    quantization_mode: Option<String>,
}

/// How the matrices of the folder are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Packed, or master weights to be ternarised; whether a packed matrix is divided by its scale.
    BitNet { divides: bool },
    /// Floats that are ternary as they are.
    Plain,
}

impl HfConfig {
    pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<HfConfig> {
        let config: HfConfig = from_json(file, bytes)?;
        Ok(HfConfig { file: file.to_owned(), ..config })
    }

    fn refused(&self, key: &str, what: String, fix: &str) -> Error {
        Error::Unsupported { at: Box::new(Place::file(&*self.file).key(key)), what, fix: fix.to_owned() }
    }

    fn is_bitnet(&self) -> bool {
        let named = |name: &String| name.to_ascii_lowercase().starts_with("bitnet");
        named(&self.model_type) || self.architectures.iter().flatten().any(named)
    }

    /// `general.architecture`.
    pub(super) fn architecture(&self) -> Result<&'static str> {
        let act = self.hidden_act.as_deref().unwrap_or("silu");
        let (name, expected) = match &*self.model_type {
            _ if self.is_bitnet() && act == "relu2" => ("bitnet-b1.58", "relu2"),
            _ if self.is_bitnet() => ("bitnet", "silu"),
            "llama" => ("llama", "silu"),
            "qwen3" => ("qwen3", "silu"),
            other => {
                return Err(self.refused(
                    "model_type",
                    format!("the model's architecture is '{}'", shown(other)),
                    "the ones that run here are bitnet, llama and qwen3",
                ));
            }
        };
        if act != expected {
            let what = format!("the gate function '{}' in a model of type '{}'", shown(act), shown(&self.model_type));
            return Err(self.refused("hidden_act", what, "relu2 (bitnet) and silu run here"));
        }
        for (key, set) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("use_sliding_window", self.use_sliding_window),
        ] {
            if set {
                return Err(self.refused(key, "the model uses it".to_owned(), "models without it run here"));
            }
        }
        Ok(name)
    }

    /// How the matrices are stored.
    pub(super) fn scheme(&self) -> Result<Scheme> {
        let Some(quantization) = &self.quantization_config else {
            // Models of the first BitNet papers are plain master weights.
            return Ok(if self.is_bitnet() { Scheme::BitNet { divides: false } } else { Scheme::Plain });
        };
        if quantization.quant_method != "bitnet" {
            let what = format!("weights quantised by '{}'", shown(&quantization.quant_method));
            return Err(self.refused("quantization_config", what, "bitnet, or none at all, is read"));
        }
        if let Some(mode) = quantization.quantization_mode.as_deref()
            && !["online", "offline"].contains(&mode)
        {
            let what = format!("the quantization mode '{}'", shown(mode));
            return Err(self.refused("quantization_config", what, "online and offline are read"));
        }
        match quantization.linear_class.as_deref() {
            None | Some("bitlinear") => Ok(Scheme::BitNet { divides: true }),
            Some("autobitlinear") => Ok(Scheme::BitNet { divides: false }),
            Some(other) => {
                let what = format!("the linear class '{}'", shown(other));
                Err(self.refused("quantization_config", what, "bitlinear and autobitlinear are read"))
            }
        }
    }

    /// Elements of a head.
    pub(super) fn head_dim(&self) -> u32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Keys and values as GGUF has them; tokenizer not included.
    pub(super) fn metadata(&self, name: &str) -> Result<Vec<(String, Value)>> {
        let architecture = self.architecture()?;
        let mut metadata = vec![
            ("general.architecture".to_owned(), Value::String(architecture.into())),
            ("general.name".to_owned(), Value::String(name.into())),
        ];
        let mut put = |key: &str, value: Value| metadata.push((format!("{architecture}.{key}"), value));
        put("context_length", Value::U32(self.max_position_embeddings));
        put("embedding_length", Value::U32(self.hidden_size));
        put("block_count", Value::U32(self.num_hidden_layers));
        put("feed_forward_length", Value::U32(self.intermediate_size));
        put("attention.head_count", Value::U32(self.num_attention_heads));
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        put("attention.head_count_kv", Value::U32(kv_heads));
        put("attention.key_length", Value::U32(self.head_dim()));
        put("attention.value_length", Value::U32(self.head_dim()));
        put("attention.layer_norm_rms_epsilon", Value::F32(self.rms_norm_eps));
        put("rope.dimension_count", Value::U32(self.head_dim()));
        put("rope.freq_base", Value::F32(self.rope_theta()));
        if let Some(("linear", rope)) = self.scaling()? {
            put("rope.scaling.type", Value::String("linear".into()));
            put("rope.scaling.factor", Value::F32(self.number("factor", rope.factor)?));
        }
        Ok(metadata)
    }

    fn rope_theta(&self) -> f32 {
        let newer = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        self.rope_theta.or(newer).unwrap_or(10000.0)
    }

    /// The kind of scaling and its numbers, if there is any.
    fn scaling(&self) -> Result<Option<(&'static str, &Rope)>> {
        for (key, rope) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let Some(rope) = rope else { continue };
            return match rope.rope_type.as_deref() {
                None | Some("default") => continue,
                Some("linear") => Ok(Some(("linear", rope))),
                Some("llama3") => Ok(Some(("llama3", rope))),
                Some(other) => {
                    let what = format!("RoPE scaling of type '{}'", shown(other));
                    Err(self.refused(key, what, "none, linear and llama3 run here"))
                }
            };
        }
        Ok(None)
    }

    fn number(&self, key: &str, value: Option<f32>) -> Result<f32> {
        value.filter(|value| value.is_finite() && *value > 0.0).ok_or_else(|| {
            self.refused(key, "RoPE scaling without this positive number".to_owned(), "download the file again")
        })
    }

    /// What divides each rotary frequency, `head_dim / 2` numbers, in models with the scaling of
    /// Llama 3.1: frequencies whose wave is longer than the original context are divided by the
    /// factor, those with many waves in it are kept, and between the two the share moves linearly.
    pub(super) fn rope_factors(&self) -> Result<Option<Vec<f32>>> {
        let Some(("llama3", rope)) = self.scaling()? else {
            return Ok(None);
        };
        let factor = f64::from(self.number("factor", rope.factor)?);
        let low = f64::from(self.number("low_freq_factor", rope.low_freq_factor)?);
        let high = f64::from(self.number("high_freq_factor", rope.high_freq_factor)?);
        let context =
            f64::from(self.number("original_max_position_embeddings", rope.original_max_position_embeddings)?);
        let (theta, dim) = (f64::from(self.rope_theta()), f64::from(self.head_dim()));
        // A head that is wider than the model is refused with the other numbers, later.
        let n = self.head_dim().min(self.hidden_size.min(1 << 20)) / 2;
        let factors = (0..n).map(|i| {
            let wave = 2.0 * std::f64::consts::PI * libm::pow(theta, 2.0 * f64::from(i) / dim);
            let waves = context / wave;
            if waves > high {
                1.0
            } else if waves < low {
                factor as f32
            } else {
                let kept = (waves - low) / (high - low);
                (1.0 / ((1.0 - kept) / factor + kept)) as f32
            }
        });
        Ok(Some(factors.collect()))
    }
}
