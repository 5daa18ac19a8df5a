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
    pub(super) hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    hidden_act: Option<String>,
    /// Gemma's name for it.
    hidden_activation: Option<String>,
    max_position_embeddings: u32,
    #[serde(deserialize_with = "single")]
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    /// The newer place of `rope_theta` and of the scaling.
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    /// Of layers with a sliding window, in older files.
    rope_local_base_freq: Option<f32>,
    sliding_window: Option<u32>,
    /// For each layer whether it has a window.
    layer_types: Option<Vec<String>>,
    sliding_window_pattern: Option<u32>,
    #[serde(rename = "_sliding_window_pattern")]
    newer_sliding_window_pattern: Option<u32>,
    query_pre_attn_scalar: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    #[serde(default, deserialize_with = "or_default")]
    use_bidirectional_attention: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) tie_word_embeddings: bool,
    #[serde(default, deserialize_with = "or_default")]
    attention_bias: bool,
    #[serde(default, deserialize_with = "or_default")]
    mlp_bias: bool,
    #[serde(default, deserialize_with = "or_default")]
    use_sliding_window: bool,
    quantization_config: Option<Quantization>,
    pub(super) bos_token_id: Option<Ids>,
    pub(super) eos_token_id: Option<Ids>,
}

/// Ids of tokens: a file has one or a list of them. Some write a negative number for none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "OneOrMore")]
pub(super) struct Ids(pub(super) Vec<u32>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(i64),
    More(Vec<i64>),
}

impl TryFrom<OneOrMore> for Ids {
    type Error = String;

    fn try_from(ids: OneOrMore) -> std::result::Result<Ids, String> {
        let ids = match ids {
            OneOrMore::One(id) => vec![id],
            OneOrMore::More(ids) => ids,
        };
        let id = |id: i64| u32::try_from(id).map_err(|_| format!("no token has the id {id}"));
        ids.into_iter().filter(|&id| id >= 0).map(id).collect::<std::result::Result<_, _>>().map(Ids)
    }
}

/// What is not there and what is null is the default.
fn or_default<'de, T, D>(value: D) -> std::result::Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Option::deserialize(value).map(Option::unwrap_or_default)
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
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    attention_factor: Option<f32>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
    truncate: Option<bool>,
    /// One for each kind of layers, in models with sliding windows.
    full_attention: Option<Box<Rope>>,
    sliding_attention: Option<Box<Rope>>,
}

/// A number of any size; one that is too large is infinite, and refused with the other settings of its kind. What the parser
/// itself says of it depends on features that other crates switch on.
fn single<'de, D: serde::Deserializer<'de>>(number: D) -> std::result::Result<f32, D::Error> {
    <f64 as serde::Deserialize>::deserialize(number).map(|number| number as f32)
}

impl Rope {
    /// What layers without a window have.
    fn full(&self) -> &Rope {
        self.full_attention.as_deref().unwrap_or(self)
    }
}

#[derive(Debug, Deserialize)]
struct Quantization {
    quant_method: String,
    linear_class: Option<String>,
    quantization_mode: Option<String>,
    /// Whether a norm with weights of its own stands before each matrix.
    #[serde(default, deserialize_with = "or_default")]
    use_rms_norm: bool,
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
        let act = self.hidden_activation.as_deref().or(self.hidden_act.as_deref()).unwrap_or("silu");
        let (name, expected) = match &*self.model_type {
            _ if self.is_bitnet() && act == "relu2" => ("bitnet-b1.58", "relu2"),
            _ if self.is_bitnet() => ("bitnet", "silu"),
            "llama" => ("llama", "silu"),
            "qwen3" => ("qwen3", "silu"),
            "gemma3_text" => ("gemma3", "gelu_pytorch_tanh"),
            other => {
                return Err(self.refused(
                    "model_type",
                    format!("the model's architecture is '{}'", shown(other)),
                    "the ones that run here are bitnet, llama, qwen3 and gemma3_text",
                ));
            }
        };
        if act != expected {
            let what = format!("the gate function '{}' in a model of type '{}'", shown(act), shown(&self.model_type));
            return Err(self.refused(
                "hidden_act",
                what,
                "relu2 (bitnet), silu and gelu_pytorch_tanh (gemma3_text) run here",
            ));
        }
        for (key, set) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("use_sliding_window", self.use_sliding_window),
            ("use_bidirectional_attention", self.use_bidirectional_attention),
            ("attn_logit_softcapping", self.attn_logit_softcapping.is_some_and(|cap| cap != 0.0)),
            ("final_logit_softcapping", self.final_logit_softcapping.is_some_and(|cap| cap != 0.0)),
        ] {
            if set {
                return Err(self.refused(key, "the model uses it".to_owned(), "models without it run here"));
            }
        }
        Ok(name)
    }

    /// How the matrices are stored. `input_norms` says whether a norm stands before each of them.
    pub(super) fn scheme(&self, input_norms: bool) -> Result<Scheme> {
        let Some(quantization) = &self.quantization_config else {
            // Models of the first BitNet papers are plain master weights, and so are those with BitNet's norms.
            let bitnet = input_norms || self.is_bitnet();
            return Ok(if bitnet { Scheme::BitNet { divides: false } } else { Scheme::Plain });
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
        if quantization.use_rms_norm && !input_norms {
            let what = "use_rms_norm is true, but no tensor is a norm before a matrix (q_proj.norm.weight)".to_owned();
            return Err(self.refused("quantization_config", what, "models whose norms lie under such names run here"));
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
        if let Some((kind @ ("linear" | "yarn"), rope)) = self.scaling()? {
            put("rope.scaling.type", Value::String(kind.into()));
            put("rope.scaling.factor", Value::F32(self.number("factor", rope.factor)?));
            if kind == "yarn" {
                self.yarn(rope)?.into_iter().for_each(|(key, value)| put(key, value));
            }
        }
        if architecture == "gemma3" {
            if let Some((tokens, period)) = self.window()? {
                put("attention.sliding_window", Value::U32(tokens));
                put("attention.sliding_window_pattern", Value::U32(period));
                put("rope.freq_base_swa", Value::F32(self.window_rope_theta()?));
            }
            if let Some(scalar) = self.query_pre_attn_scalar {
                put("attention.scale", Value::F32(1.0 / scalar.sqrt()));
            }
        }
        Ok(metadata)
    }

    fn rope_theta(&self) -> f32 {
        let newer = self.rope_parameters.as_ref().and_then(|rope| rope.full().rope_theta);
        self.rope_theta.or(newer).unwrap_or(10000.0)
    }

    /// How many tokens a layer with a sliding window sees, and of how many layers the last has none.
    fn window(&self) -> Result<Option<(u32, u32)>> {
        const FULL: &str = "full_attention";
        let Some(tokens) = self.sliding_window.filter(|tokens| *tokens > 0) else { return Ok(None) };
        let Some(kinds) = &self.layer_types else {
            return Ok(Some((tokens, self.sliding_window_pattern.or(self.newer_sliding_window_pattern).unwrap_or(6))));
        };
        let period = kinds.iter().position(|kind| kind == FULL).map_or(kinds.len() + 1, |first| first + 1);
        let expected = |layer: usize| if (layer + 1).is_multiple_of(period) { FULL } else { "sliding_attention" };
        if kinds.len() != self.num_hidden_layers as usize
            || kinds.iter().enumerate().any(|(layer, kind)| kind != expected(layer))
        {
            let what = "layers with and without a sliding window follow each other in no order".to_owned();
            return Err(self.refused("layer_types", what, "models in which every n-th layer has none run here"));
        }
        Ok(Some((tokens, u32::try_from(period).unwrap_or(u32::MAX))))
    }

    /// The base of the rotary frequencies in layers with a window.
    fn window_rope_theta(&self) -> Result<f32> {
        let rope = self.rope_parameters.as_ref().and_then(|rope| rope.sliding_attention.as_deref());
        if let Some(kind) = rope.and_then(|rope| rope.rope_type.as_deref()).filter(|kind| *kind != "default") {
            let what = format!("RoPE scaling of type '{}' in layers with a sliding window", shown(kind));
            return Err(self.refused("rope_parameters", what, "layers without it run here"));
        }
        Ok(self.rope_local_base_freq.or(rope.and_then(|rope| rope.rope_theta)).unwrap_or(10000.0))
    }

    /// The kind of scaling and its numbers, if there is any.
    fn scaling(&self) -> Result<Option<(&'static str, &Rope)>> {
        for (key, rope) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let Some(rope) = rope.as_ref().map(Rope::full) else { continue };
            return match rope.rope_type.as_deref() {
                None | Some("default") => continue,
                Some("linear") => Ok(Some(("linear", rope))),
                Some("llama3") => Ok(Some(("llama3", rope))),
                Some("yarn") => Ok(Some(("yarn", rope))),
                Some(other) => {
                    let what = format!("RoPE scaling of type '{}'", shown(other));
                    Err(self.refused(key, what, "none, linear, llama3 and yarn run here"))
                }
            };
        }
        Ok(None)
    }

    /// What YaRN has beside a factor; what is not said has the same default in GGUF.
    fn yarn(&self, rope: &Rope) -> Result<Vec<(&'static str, Value)>> {
        if rope.truncate == Some(false) {
            let what = "YaRN whose ramp begins and ends between two frequencies".to_owned();
            return Err(self.refused("truncate", what, "YaRN without this setting runs here"));
        }
        let mut keys = Vec::new();
        if let Some(context) = rope.original_max_position_embeddings {
            let context = self.number("original_max_position_embeddings", Some(context))?;
            keys.push(("rope.scaling.original_context_length", Value::U32(context as u32)));
        }
        for (key, name, value) in [
            ("rope.scaling.yarn_beta_fast", "beta_fast", rope.beta_fast),
            ("rope.scaling.yarn_beta_slow", "beta_slow", rope.beta_slow),
        ] {
            if value.is_some() {
                keys.push((key, Value::F32(self.number(name, value)?)));
            }
        }
        // Here the whole length of rotated vectors, in GGUF what multiplies the usual one.
        let usual = |mscale: f32| 0.1 * mscale * libm::logf(rope.factor.unwrap_or(1.0)) + 1.0;
        let length = match (rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
            (Some(length), ..) => Some(self.number("attention_factor", Some(length))?),
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => Some(usual(one) / usual(all)),
            _ => None,
        };
        if let Some(length) = length {
            keys.push(("rope.scaling.attn_factor", Value::F32(length / usual(1.0))));
        }
        Ok(keys)
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
