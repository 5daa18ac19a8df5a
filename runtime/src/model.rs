//! A loaded model: where it comes from, how it is loaded, what it can be asked.

use crate::checkpoint::{Bytes, Checkpoint, I2sLayout};
use crate::config::{Activation, ActivationScales, Config};
use crate::error::{Error, Place, Result};
use crate::gguf::Gguf;
use crate::linear::LinearOptions;
use crate::pages;
use crate::safetensors;
use crate::screen::Screen;
use crate::session::Session;
use crate::template::{ChatTemplate, Message};
use crate::threads::{Pool, default_threads};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tritone_kernels::cpu::request_amx;
use tritone_kernels::float::FloatKernels;
use tritone_kernels::format::Layout;
use tritone_kernels::isa::{Detected, Isa, Level};
use tritone_kernels::kernel::Operation;
use tritone_kernels::registry;

pub use crate::kv_cache::CacheType;

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A GGUF file, or a folder with safetensors; weights are mapped.
    File(PathBuf),
    /// A GGUF file inside the binary.
    Static {
        /// What errors call it.
        name: &'static str,
        /// The file.
        bytes: &'static [u8],
    },
}

impl Source {
    /// Opens the model: its metadata and where its tensors are, no weights yet.
    ///
    /// # Errors
    /// As [`Gguf::open`] and [`safetensors::open`].
    pub fn open(&self) -> Result<Checkpoint> {
        let gguf = match self {
            Source::File(path) if path.is_dir() => return safetensors::open(path),
            Source::File(path) => Gguf::open(path)?,
            Source::Static { name, bytes } => Gguf::from_bytes(Bytes::from(*bytes), name)?,
        };
        Ok(gguf.into_checkpoint())
    }
}

/// How weights lie in memory; it changes speed and size, never a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayoutChoice {
    /// I2_S and T5 in place; everything else in the layout that this processor prefers.
    #[default]
    Auto,
    /// Two bits a weight. Weights with scales per block can't have it and keep the automatic one.
    I2s,
    /// Three trits in a nibble and a sign.
    T3,
    /// Five trits in a byte.
    T5,
}

impl FromStr for LayoutChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<LayoutChoice> {
        Ok(match name {
            "auto" => LayoutChoice::Auto,
            "i2s" => LayoutChoice::I2s,
            "t3" => LayoutChoice::T3,
            "t5" => LayoutChoice::T5,
            other => {
                return Err(Error::InvalidOption {
                    option: "--layout",
                    value: other.to_owned(),
                    rule: "it must be auto, i2s, t3 or t5".to_owned(),
                });
            }
        })
    }
}

/// How a model is loaded. The first six are about speed and change no result, the others do.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The instruction-set level; `None`: what the environment variable `TRITONE_ISA` names, else
    /// the best of this processor.
    pub level: Option<Level>,
    /// How many threads work; `None`: as many as there are physical cores.
    pub threads: Option<usize>,
    /// How weights lie in memory.
    pub layout: LayoutChoice,
    /// A kernel of the registry to use in place of the preferred one.
    pub kernel: Option<String>,
    /// Reads the whole output head for every token, and keeps no copy of it that tells which rows matter.
    pub full_head: bool,
    /// Leaves weights in the mapped file, whose memory processes share, where they would move to large pages.
    pub in_place: bool,
    /// How keys and values are stored. Rounding them to halves moves the logits of a BitNet model
    /// by a few percent of their size, because it flips some int8 codes of later activations.
    pub cache_type: CacheType,
    /// The byte layout of I2_S tensors, which the file does not tell.
    pub i2s_layout: I2sLayout,
    /// The gate function; `None`: the one that belongs to the architecture.
    pub activation: Option<Activation>,
    /// What shares a scale among int8 activations; `None`: what the model was trained for.
    pub activations: Option<ActivationScales>,
}

/// How far loading is.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress {
    /// Bytes of tensors taken into use.
    pub done_bytes: u64,
    /// Bytes of all tensors.
    pub total_bytes: u64,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) weights: Weights,
    pub(crate) float: FloatKernels,
    pub(crate) n_threads: usize,
    pub(crate) cache_type: CacheType,
    activations: ActivationScales,
    pub(crate) tokenizer: Tokenizer,
    template: ChatTemplate,
    pub(crate) isa: Isa,
    /// Whether every step reads the whole output head.
    pub(crate) full_head: bool,
    /// The output head's 8-bit copy, made when it is first worth it; nothing where there can be none.
    pub(crate) screen: OnceLock<Option<Arc<Screen>>>,
    load_seconds: f64,
}

/// A model ready to run. Cloning copies a pointer.
#[derive(Clone)]
pub struct Model {
    pub(crate) inner: Arc<Inner>,
}

impl Inner {
    /// How many tokens go through the layers at once if `asked` is 0.
    pub(crate) fn chunk(&self, asked: usize) -> usize {
        if asked == 0 { registry::prompt_chunk(self.isa) } else { asked }
    }

    /// Refuses a model that makes embeddings where logits are wanted.
    pub(crate) fn has_logits(&self) -> Result<()> {
        if self.config.pooling.is_none() {
            return Ok(());
        }
        Err(Error::Unsupported {
            at: Box::default(),
            what: "it turns texts into vectors and has no output head, so it says nothing".to_owned(),
            fix: "use it with `tritone embed`".to_owned(),
        })
    }
}

impl Model {
    /// Opens a model and brings its weights into the layout of the chosen kernels.
    ///
    /// # Errors
    /// Everything that can be wrong with the file or the options, in one sentence.
    pub fn load(source: Source, options: &LoadOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<Model> {
        let began = Instant::now();
        let isa = choose_isa(options.level)?;
        let kernel = options.kernel.as_deref().map(|name| find_kernel(name, isa)).transpose()?;
        let n_threads = options.threads.unwrap_or_else(default_threads);
        let mut pool = Pool::new(n_threads)?;
        let mut checkpoint = source.open()?;
        checkpoint.set_i2s_layout(options.i2s_layout);
        let mut config = Config::from_checkpoint(&checkpoint)?;
        config.activation = options.activation.unwrap_or(config.activation);
        let activations = options.activations.unwrap_or_else(|| ActivationScales::expected(&checkpoint, &config));
        let tokenizer = Tokenizer::from_checkpoint(&checkpoint)?;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::Malformed {
                at: Box::new(Place::file(checkpoint.file()).tensor("token_embd.weight")),
                what: format!(
                    "the tokenizer has {} tokens but the embedding only {} rows",
                    tokenizer.vocab_size(),
                    config.vocab_size
                ),
                fix: "tokenizer and weights are of different models, convert the model again",
            });
        }
        let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer)?;
        let total_bytes = checkpoint.tensors().iter().map(|tensor| tensor.data().len() as u64).sum();
        let mut done_bytes = 0;
        let layout = match options.layout {
            LayoutChoice::Auto => kernel.map(|kernel| kernel.layout),
            LayoutChoice::I2s => Some(Layout::I2S),
            LayoutChoice::T3 => Some(Layout::T3),
            LayoutChoice::T5 => Some(Layout::T5),
        };
        let mut linear_options = LinearOptions { isa, layout, kernel, activations, factor: 1.0, pool: &mut pool };
        let weights = Weights::load(&checkpoint, &config, &mut linear_options, &mut |bytes| {
            done_bytes += bytes;
            progress(LoadProgress { done_bytes, total_bytes });
        })?;
        if options.in_place || !pages::are_given() {
            weights.stay();
        }
        let float = FloatKernels::new(isa);
        let load_seconds = began.elapsed().as_secs_f64();
        let cache_type = options.cache_type;
        let inner = Inner {
            config,
            weights,
            float,
            n_threads,
            cache_type,
            activations,
            tokenizer,
            template,
            isa,
            full_head: options.full_head,
            screen: OnceLock::new(),
            load_seconds,
        };
        Ok(Model { inner: Arc::new(inner) })
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Model {
        Model { inner }
    }

    /// The hyperparameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The chat template.
    #[must_use]
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.inner.template
    }

    /// The tokens of a conversation; with `add_generation_prompt` they end where the assistant's answer begins. Control
    /// tokens come from the template alone: their names in a message are only text.
    ///
    /// # Errors
    /// What [`ChatTemplate::render`] refuses, and a message in which a name cannot be told from the token.
    pub fn chat_tokens(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        // No text has more tokens than can be counted.
        Ok(self.chat_tokens_within(messages, add_generation_prompt, usize::MAX)?.unwrap_or_default())
    }

    /// As [`chat_tokens`](Self::chat_tokens), but nothing where that would be more than `most` tokens. What is seen to be
    /// longer is not cut to its end.
    ///
    /// # Errors
    /// As [`chat_tokens`](Self::chat_tokens).
    pub fn chat_tokens_within(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        most: usize,
    ) -> Result<Option<Vec<u32>>> {
        let tokenizer = self.tokenizer();
        let marked = messages.iter().enumerate().map(|(i, message)| {
            let content = tokenizer.mark_controls(&message.content).ok_or_else(|| Error::Template {
                what: format!("message {i} has a character that cannot be told from a control token or is none at all"),
                fix: "leave out U+FDD0, and characters that are control tokens of this model".to_owned(),
            })?;
            Ok(Message::new(message.role.as_str(), content))
        });
        let text = self.chat_template().render(&marked.collect::<Result<Vec<_>>>()?, add_generation_prompt)?;
        Ok(tokenizer.encode_marked(&text, tokenizer.adds_bos(), most))
    }

    /// What shares a scale among int8 activations.
    #[must_use]
    pub fn activation_scales(&self) -> ActivationScales {
        self.inner.activations
    }

    /// The instruction sets in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.inner.isa
    }

    /// How many threads a session has.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.inner.n_threads
    }

    /// The name of the kernel that decodes.
    #[must_use]
    pub fn gemv_kernel(&self) -> &'static str {
        self.inner.weights.layers[0].q.kernel_name(Operation::Gemv)
    }

    /// The name of the kernel that reads prompts.
    #[must_use]
    pub fn gemm_kernel(&self) -> &'static str {
        self.inner.weights.layers[0].q.kernel_name(Operation::Gemm)
    }

    /// How long loading took.
    #[must_use]
    pub fn load_seconds(&self) -> f64 {
        self.inner.load_seconds
    }

    /// A new, empty sequence for up to `context_length` tokens (`None`: all that the model was
    /// made for), with threads of its own.
    ///
    /// # Errors
    /// A context length that the model does not have, no threads, or an embedding model (see
    /// [`crate::embedding::Embedder`]).
    pub fn session(&self, context_length: Option<usize>) -> Result<Session> {
        Session::new(Arc::clone(&self.inner), context_length)
    }
}

/// The level that was asked for, in the option or the environment, or the best.
fn choose_isa(level: Option<Level>) -> Result<Isa> {
    request_amx();
    let detected = Detected::here();
    let level = match (level, std::env::var("TRITONE_ISA")) {
        (Some(level), _) => Some(level),
        (None, Ok(name)) if !name.is_empty() => Some(name.parse().map_err(|error| Error::Isa {
            what: format!("TRITONE_ISA is '{}', {error}", name.escape_debug()),
            fix: "name one of them or unset it".to_owned(),
        })?),
        (None, _) => None,
    };
    match level {
        None => Ok(Isa::best(detected)),
        Some(level) => Isa::with_level(level, detected).map_err(|error| Error::Isa {
            what: error.to_string(),
            fix: "name one of these with --isa or TRITONE_ISA, or leave it out".to_owned(),
        }),
    }
}

fn find_kernel(name: &str, isa: Isa) -> Result<&'static tritone_kernels::kernel::Kernel> {
    registry::find(name).filter(|kernel| isa.supports(kernel.level)).ok_or_else(|| Error::InvalidOption {
        option: "--kernel",
        value: name.escape_debug().to_string(),
        rule: format!(
            "it must be one of those that run here: {}",
            registry::all()
                .iter()
                .filter(|kernel| isa.supports(kernel.level))
                .map(|kernel| kernel.name)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    })
}
