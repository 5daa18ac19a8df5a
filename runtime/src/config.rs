//! The shape and the rules of a model, read from a checkpoint.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Place, Result, shown};
use std::fmt;

mod rope_scaling;

pub use rope_scaling::{RopeScaling, Yarn};

/// The architectures that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// `bitnet-b1.58` and `bitnet-25`: BitNet-b1.58-2B-4T and its fine-tunes.
    BitnetB158,
    /// `bitnet`: bitnet_b1_58-large and -3B.
    Bitnet,
    /// `llama`: Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E, TriLM.
    Llama,
    /// `qwen3`: Ternary-Bonsai, BitNet-embedding-0.6B.
    Qwen3,
    /// `gemma3`: BitNet-embedding-270M.
    Gemma3,
}

impl Architecture {
    /// What `general.architecture` may say.
    pub const NAMES: [&'static str; 6] = ["bitnet-b1.58", "bitnet-25", "bitnet", "llama", "qwen3", "gemma3"];

    /// The architecture that `general.architecture` names.
    #[must_use]
    pub fn named(name: &str) -> Option<Architecture> {
        Some(match name {
            "bitnet-b1.58" | "bitnet-25" => Architecture::BitnetB158,
            "bitnet" => Architecture::Bitnet,
            "llama" => Architecture::Llama,
            "qwen3" => Architecture::Qwen3,
            "gemma3" => Architecture::Gemma3,
            _ => return None,
        })
    }

    fn parse(checkpoint: &Checkpoint, name: &str) -> Result<Architecture> {
        Architecture::named(name).ok_or_else(|| Error::Unsupported {
            at: Box::new(Place::file(checkpoint.file()).key("general.architecture")),
            what: format!("the model's architecture is '{}'", shown(name)),
            fix: format!("the ones that run here are {}", Architecture::NAMES.join(", ")),
        })
    }

    /// What stands between gate and up in models of so many layers, with hidden states and feed-forward blocks of these sizes.
    #[must_use]
    pub fn activation(self, layers: usize, hidden: usize, ffn: usize) -> Activation {
        // Converters of the older name wrote BitNet-b1.58-2B-4T as `bitnet`; its shape gives it
        // away, and its gate is relu^2 (formats: a perplexity near 100 where 17 is right).
        let is_2b_4t = (layers, hidden, ffn) == (30, 2560, 6912);
        match self {
            Architecture::BitnetB158 => Activation::ReluSquared,
            Architecture::Bitnet if is_2b_4t => Activation::ReluSquared,
            Architecture::Bitnet | Architecture::Llama | Architecture::Qwen3 => Activation::Silu,
            Architecture::Gemma3 => Activation::Gelu,
        }
    }
}

/// What stands between gate and up in the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `relu(gate)^2 * up`
    ReluSquared,
    /// `silu(gate) * up`
    Silu,
    /// `gelu(gate) * up`, GELU by its approximation with tanh
    Gelu,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::ReluSquared => "relu^2",
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
        })
    }
}

/// Which elements of a head the rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` with element `i + n/2`.
    Neox,
    /// Element `2i` with element `2i + 1`.
    Interleaved,
}

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all.
    Mean,
    /// The first one.
    First,
    /// The last one, that of the end token.
    Last,
}

impl Pooling {
    /// The number that `<architecture>.pooling_type` has for it in GGUF.
    #[must_use]
    pub fn gguf_number(self) -> u32 {
        match self {
            Pooling::Mean => 1,
            Pooling::First => 2,
            Pooling::Last => 3,
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pooling::Mean => "mean",
            Pooling::First => "first token",
            Pooling::Last => "last token",
        })
    }
}

/// What layers with a sliding window see, and which layers these are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// How many tokens are in sight, the one that looks included.
    pub tokens: usize,
    /// Of so many layers the last has no window.
    pub period: usize,
    /// Base of the rotary frequencies in layers with a window; these know no RoPE scaling.
    pub rope_theta: f32,
}

/// The metadata key with which a converted file says what shares a scale among its activations, `token` or `block`: its weights
/// no longer tell.
pub const ACTIVATIONS_KEY: &str = "tritone.activations";

/// How activations are scaled to int8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationScales {
    /// One scale for a whole vector: what models trained as BitNet expect.
    Token,
    /// One scale for each of the weights' own blocks: what other ternary models need.
    Block,
}

impl ActivationScales {
    /// What a model was trained for. A file that was converted here says so. Of others, those of BitNet's architectures have one
    /// scale for a token; the rest have it unless most of the matrices in their layers have scales for blocks: a single matrix
    /// that differs changes nothing.
    ///
    /// # Errors
    /// The file says something that is neither.
    pub fn expected(checkpoint: &Checkpoint, config: &Config) -> Result<ActivationScales> {
        match checkpoint.find::<&str>(ACTIVATIONS_KEY)? {
            Some("token") => return Ok(ActivationScales::Token),
            Some("block") => return Ok(ActivationScales::Block),
            Some(other) => {
                return Err(Error::Metadata {
                    at: Box::new(Place::file(checkpoint.file()).key(ACTIVATIONS_KEY)),
                    found: format!("'{}'", shown(other)),
                    expected: "'token' or 'block'".to_owned(),
                });
            }
            None => {}
        }
        let trained_as_bitnet = matches!(config.architecture, Architecture::BitnetB158 | Architecture::Bitnet);
        let layers = checkpoint.tensors().iter().filter(|tensor| tensor.name().starts_with("blk."));
        let (one_scale, blocks): (Vec<_>, Vec<_>) =
            layers.filter(|tensor| tensor.is_ternary()).partition(|tensor| tensor.has_one_scale());
        let mostly_one = !one_scale.is_empty() && one_scale.len() >= blocks.len();
        Ok(if trained_as_bitnet || mostly_one { ActivationScales::Token } else { ActivationScales::Block })
    }
}

impl fmt::Display for ActivationScales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ActivationScales::Token => "token",
            ActivationScales::Block => "block",
        })
    }
}

/// The hyperparameters of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which family the model is of.
    pub architecture: Architecture,
    /// `general.architecture` as the file spells it.
    pub architecture_name: String,
    /// `general.name`, or empty.
    pub name: String,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// How many elements of a head are rotated.
    pub rope_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// What stretches the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Which elements are rotated together.
    pub rope_style: RopeStyle,
    /// The sliding window of most layers, if there is one.
    pub window: Option<Window>,
    /// Multiplies the product of a query and a key.
    pub attention_scale: f32,
    /// Multiplies a token's vector of the embedding.
    pub embedding_scale: f32,
    /// Added to the mean square in every norm.
    pub rms_eps: f32,
    /// Tokens the model was made for.
    pub context_length: usize,
    /// Gate function of the feed-forward block.
    pub activation: Activation,
    /// How many logits there are; taken from the embedding.
    pub vocab_size: usize,
    /// How a text's tokens become one vector, in a model that is made for that and generates nothing.
    pub pooling: Option<Pooling>,
}

/// No published model comes near; more is a damaged file.
const MAX_DIM: usize = 1 << 20;

impl Config {
    /// Reads the hyperparameters; tensors are not looked at, except the embedding's number of rows.
    ///
    /// # Errors
    /// An unknown architecture, a missing key, or numbers that contradict each other.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Config> {
        let name = checkpoint.str("general.architecture")?;
        let architecture = Architecture::parse(checkpoint, name)?;
        let key = |suffix: &str| format!("{name}.{suffix}");
        let size = |suffix: &str| -> Result<usize> {
            let key = key(suffix);
            bounded(checkpoint, &key, checkpoint.get::<u64>(&key)?)
        };
        let optional = |suffix: &str| -> Result<Option<usize>> {
            let key = key(suffix);
            checkpoint.find::<u64>(&key)?.map(|value| bounded(checkpoint, &key, value)).transpose()
        };

        let n_layers = size("block_count")?;
        let hidden = size("embedding_length")?;
        let ffn = size("feed_forward_length")?;
        let n_heads = size("attention.head_count")?;
        let n_kv_heads = optional("attention.head_count_kv")?.unwrap_or(n_heads);
        let head_dim = match optional("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
            None => {
                return Err(invalid(
                    checkpoint,
                    format!(
                        "the width {hidden} can't be divided among {n_heads} heads, and '{}' does not say how wide a head is",
                        key("attention.key_length")
                    ),
                ));
            }
        };
        if optional("attention.value_length")?.is_some_and(|length| length != head_dim) {
            return Err(invalid(
                checkpoint,
                format!("keys of {head_dim} elements with values of another length are not supported"),
            ));
        }
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(invalid(
                checkpoint,
                format!("{n_heads} query heads can't share {n_kv_heads} key/value heads evenly"),
            ));
        }
        let rope_dim = optional("rope.dimension_count")?.unwrap_or(head_dim);
        if rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
            return Err(invalid(
                checkpoint,
                format!(
                    "{rope_dim} elements of a head of {head_dim} are to be rotated; that must be an even number of at most {head_dim}"
                ),
            ));
        }

        let float = |suffix: &str, default: f32| positive(checkpoint, &key(suffix), default);
        let rms_eps = float("attention.layer_norm_rms_epsilon", 1e-5)?;
        let rope_theta = float("rope.freq_base", 10000.0)?;
        let context_length = optional("context_length")?.unwrap_or(2048);
        let rope_scaling = RopeScaling::read(checkpoint, name, context_length)?;
        if matches!(rope_scaling, RopeScaling::Yarn(_)) && rope_theta <= 1.0 {
            return Err(invalid(checkpoint, format!("YaRN with a base of {rope_theta}; it must be greater than 1")));
        }
        let window = match (architecture, checkpoint.find::<u64>(&key("attention.sliding_window"))?) {
            // Files of other architectures name windows that nobody uses.
            (Architecture::Gemma3, Some(1..)) => Some(Window {
                tokens: size("attention.sliding_window")?,
                period: optional("attention.sliding_window_pattern")?.unwrap_or(GEMMA3_PERIOD),
                rope_theta: float("rope.freq_base_swa", 10000.0)?,
            }),
            _ => None,
        };
        let attention_scale = float("attention.scale", 1.0 / (head_dim as f32).sqrt())?;
        refuse_what_is_missing_here(checkpoint, name)?;
        let vocab_size = checkpoint.tensor("token_embd.weight")?.rows();

        Ok(Config {
            architecture,
            architecture_name: name.to_owned(),
            name: checkpoint.find::<&str>("general.name")?.unwrap_or_default().to_owned(),
            n_layers,
            hidden,
            ffn,
            n_heads,
            n_kv_heads,
            head_dim,
            rope_dim,
            rope_theta,
            rope_scaling,
            rope_style: match architecture {
                Architecture::Llama => RopeStyle::Interleaved,
                _ => RopeStyle::Neox,
            },
            window,
            attention_scale,
            embedding_scale: if architecture == Architecture::Gemma3 { (hidden as f32).sqrt() } else { 1.0 },
            rms_eps,
            context_length,
            activation: architecture.activation(n_layers, hidden, ffn),
            vocab_size,
            pooling: pooling(checkpoint, &key("pooling_type"))?,
        })
    }

    /// How many tokens a layer sees, the one that looks included; all where it has no window.
    #[must_use]
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|window| !(layer + 1).is_multiple_of(window.period)).map(|window| window.tokens)
    }

    /// Whether norms stand before the output projection and before down.
    #[must_use]
    pub fn has_sub_norms(&self) -> bool {
        matches!(self.architecture, Architecture::BitnetB158 | Architecture::Bitnet)
    }

    /// Whether each query and key head is normed before it is rotated.
    #[must_use]
    pub fn has_qk_norms(&self) -> bool {
        matches!(self.architecture, Architecture::Qwen3 | Architecture::Gemma3)
    }

    /// Whether norms stand behind attention and behind the feed-forward block.
    #[must_use]
    pub fn has_post_norms(&self) -> bool {
        self.architecture == Architecture::Gemma3
    }
}

/// Gemma 3 has a layer without a window after five with one.
const GEMMA3_PERIOD: usize = 6;

/// What a model of a known architecture may ask for in its metadata and would not get.
fn refuse_what_is_missing_here(checkpoint: &Checkpoint, name: &str) -> Result<()> {
    let refused = |suffix: &str, what: &str| Error::Unsupported {
        at: Box::new(Place::file(checkpoint.file()).key(format!("{name}.{suffix}"))),
        what: what.to_owned(),
        fix: "models without it run here".to_owned(),
    };
    if checkpoint.find::<bool>(&format!("{name}.attention.causal"))? == Some(false) {
        return Err(refused("attention.causal", "every token sees the tokens after it too"));
    }
    if checkpoint.find::<bool>(&format!("{name}.use_parallel_residual"))? == Some(true) {
        return Err(refused("use_parallel_residual", "attention and feed-forward blocks stand side by side"));
    }
    for (suffix, neutral, what) in MISSING_HERE {
        if checkpoint.find::<f32>(&format!("{name}.{suffix}"))?.is_some_and(|value| !neutral.contains(&value)) {
            return Err(refused(suffix, what));
        }
    }
    Ok(())
}

/// Numbers that ask for arithmetic which is not here, and the values with which they ask for nothing. Other engines take 0 for
/// "not set".
const MISSING_HERE: [(&str, &[f32], &str); 8] = [
    ("attention.clamp_kqv", &[0.0], "queries, keys and values are clamped"),
    ("attention.max_alibi_bias", &[0.0], "scores fall with the distance of tokens"),
    ("attn_logit_softcapping", &[0.0], "scores are capped"),
    ("embedding_scale", &[0.0, 1.0], "the embedding is scaled"),
    ("expert_count", &[0.0], "feed-forward blocks are made of experts"),
    ("final_logit_softcapping", &[0.0], "logits are capped"),
    ("logit_scale", &[0.0, 1.0], "logits are scaled"),
    ("residual_scale", &[0.0, 1.0], "what blocks add is scaled"),
];

/// How an embedding model pools; nothing if it is none.
fn pooling(checkpoint: &Checkpoint, key: &str) -> Result<Option<Pooling>> {
    let refused = |what: String| Error::Unsupported {
        at: Box::new(Place::file(checkpoint.file()).key(key)),
        what,
        fix: "1 (mean), 2 (first token) and 3 (last token) are pooled here".to_owned(),
    };
    match checkpoint.find::<u64>(key)? {
        None | Some(0) => Ok(None),
        Some(1) => Ok(Some(Pooling::Mean)),
        Some(2) => Ok(Some(Pooling::First)),
        Some(3) => Ok(Some(Pooling::Last)),
        Some(4) => Err(refused("the model ranks pairs of texts".to_owned())),
        Some(other) => Err(refused(format!("the type of pooling is {other}"))),
    }
}

fn invalid(checkpoint: &Checkpoint, what: String) -> Error {
    Error::Malformed {
        at: Box::new(Place::file(checkpoint.file())),
        what,
        fix: "the metadata is damaged, download or convert the model again",
    }
}

/// A number that may be missing, but is positive and finite where it is not.
fn positive(checkpoint: &Checkpoint, key: &str, default: f32) -> Result<f32> {
    let value = checkpoint.find::<f32>(key)?.unwrap_or(default);
    if !value.is_finite() || value <= 0.0 {
        return Err(invalid(checkpoint, format!("'{key}' is {value}, but it must be a positive number")));
    }
    Ok(value)
}

fn bounded(checkpoint: &Checkpoint, key: &str, value: u64) -> Result<usize> {
    match usize::try_from(value) {
        Ok(size) if (1..=MAX_DIM).contains(&size) => Ok(size),
        _ => Err(invalid(checkpoint, format!("'{key}' is {value}, but it must be from 1 to {MAX_DIM}"))),
    }
}
