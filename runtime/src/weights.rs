//! All weights of a model, found by name; `inventory.rs` has which there are and their shapes.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::{Activation, Config};
use crate::error::{Error, Result};
use crate::head::Head;
use crate::inventory::has_input_norms;
use crate::linear::{Linear, LinearOptions, Skips};
use crate::packed::move_to_large_pages;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The weights of one transformer block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Arc<[f32]>,
    pub(crate) q: Arc<Linear>,
    pub(crate) k: Arc<Linear>,
    pub(crate) v: Arc<Linear>,
    /// Norms of each query and key head.
    pub(crate) qk_norms: Option<QkNorms>,
    pub(crate) attn_sub_norm: Option<Arc<[f32]>>,
    pub(crate) output: Arc<Linear>,
    /// Behind attention, before the sum.
    pub(crate) post_attn_norm: Option<Arc<[f32]>>,
    pub(crate) ffn_norm: Arc<[f32]>,
    pub(crate) gate: Arc<Linear>,
    pub(crate) up: Arc<Linear>,
    pub(crate) ffn_sub_norm: Option<Arc<[f32]>>,
    pub(crate) down: Arc<Linear>,
    /// Behind the feed-forward block, before the sum.
    pub(crate) post_ffn_norm: Option<Arc<[f32]>>,
}

impl Layer {
    /// Moves weights that lie in a mapped file to large pages.
    pub(crate) fn move_to_large_pages(&self) {
        let linears = [&self.q, &self.k, &self.v, &self.output, &self.gate, &self.up, &self.down];
        move_to_large_pages(&linears.map(|linear| linear.weights()));
    }
}

/// Norms of the heads of queries and keys, `head_dim` each.
#[derive(Debug)]
pub(crate) struct QkNorms {
    pub(crate) q: Arc<[f32]>,
    pub(crate) k: Arc<[f32]>,
}

/// Everything a forward pass reads.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Embedding,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Arc<[f32]>,
    pub(crate) head: Arc<Head>,
    pub(crate) rope_factors: Option<Arc<[f32]>>,
    /// The first layer whose weights are yet to move to large pages.
    to_move: AtomicUsize,
}

/// A vector for each token, as the file holds it.
#[derive(Debug)]
pub(crate) struct Embedding {
    tensor: Tensor,
    /// Multiplies what is read of it.
    scale: f32,
}

impl Embedding {
    /// Bytes of all rows.
    pub(crate) fn bytes(&self) -> usize {
        self.tensor.data().len()
    }

    /// Bytes of one row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.bytes() / self.tensor.rows()
    }

    /// The vectors of some tokens, `[token][hidden]`.
    ///
    /// # Errors
    /// A ternary row with a code or a scale that is none.
    pub(crate) fn rows(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let hidden = self.tensor.cols();
        let mut out = vec![0.0; tokens.len() * hidden];
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
            self.tensor.dequantize_row(*token as usize, out)?;
            if self.scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= self.scale);
            }
        }
        Ok(out)
    }
}

impl Weights {
    /// No weights move.
    pub(crate) fn stay(&self) {
        self.to_move.store(self.layers.len(), Ordering::Relaxed);
    }

    /// At most so many layers, which the caller has to move to large pages: nobody else is told of them.
    pub(crate) fn next_to_move(&self, n: usize) -> Range<usize> {
        let all = self.layers.len();
        if self.to_move.load(Ordering::Relaxed) >= all {
            return 0..0;
        }
        let first = self.to_move.fetch_add(n, Ordering::Relaxed).min(all);
        first..(first + n).min(all)
    }

    /// Whether head and embedding are the same bytes.
    pub(crate) fn head_is_embedding(&self) -> bool {
        match &*self.head {
            Head::Float { tensor, .. } | Head::Widened(tensor) => {
                tensor.data().as_ptr() == self.embedding.tensor.data().as_ptr()
            }
            Head::Ternary(_) => false,
        }
    }

    /// Loads all tensors; `loaded(bytes)` is called after each one.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        options: &mut LinearOptions,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<Weights> {
        let c = config;
        c.expect_tensors(checkpoint)?;
        let mut loader =
            Loader { checkpoint, options, loaded, input_norms: has_input_norms(checkpoint), eps: c.rms_eps };
        let embedding = checkpoint.tensor("token_embd.weight")?.clone();
        // relu^2 is 0 where the gate is not positive, and most of what it lets through is 0 after
        // rounding. SiLU has no such zeros.
        let (up_skips, down_skips) = match c.activation {
            Activation::ReluSquared => (Skips::Rows, Skips::Columns),
            Activation::Silu | Activation::Gelu => (Skips::Nothing, Skips::Nothing),
        };
        let mut layers = Vec::new();
        for i in 0..c.n_layers {
            let name = |part: &str| format!("blk.{i}.{part}");
            let mut norm = |has: bool, part: &str| -> Result<Option<Arc<[f32]>>> {
                has.then(|| loader.vector(&name(part))).transpose()
            };
            let attn_sub_norm = norm(c.has_sub_norms(), "attn_sub_norm")?;
            let ffn_sub_norm = norm(c.has_sub_norms(), "ffn_sub_norm")?;
            let post_attn_norm = norm(c.has_post_norms(), "post_attention_norm")?;
            let post_ffn_norm = norm(c.has_post_norms(), "post_ffw_norm")?;
            let qk_norms = if c.has_qk_norms() {
                Some(QkNorms { q: loader.vector(&name("attn_q_norm"))?, k: loader.vector(&name("attn_k_norm"))? })
            } else {
                None
            };
            layers.push(Layer {
                attn_norm: loader.vector(&name("attn_norm"))?,
                q: loader.linear(&name("attn_q"), Skips::Nothing)?,
                k: loader.linear(&name("attn_k"), Skips::Nothing)?,
                v: loader.linear(&name("attn_v"), Skips::Nothing)?,
                qk_norms,
                attn_sub_norm,
                output: loader.linear(&name("attn_output"), Skips::Nothing)?,
                post_attn_norm,
                ffn_norm: loader.vector(&name("ffn_norm"))?,
                gate: loader.linear(&name("ffn_gate"), Skips::Nothing)?,
                up: loader.linear(&name("ffn_up"), up_skips)?,
                ffn_sub_norm,
                down: loader.linear(&name("ffn_down"), down_skips)?,
                post_ffn_norm,
            });
        }
        let output_norm = loader.vector("output_norm")?;
        let rope_factors = match checkpoint.find_tensor("rope_freqs.weight") {
            Some(_) => Some(loader.vector("rope_freqs")?),
            None => None,
        };
        // Without a head of its own the model uses its embedding.
        let head = checkpoint.find_tensor("output.weight").unwrap_or(&embedding);
        let head = Arc::new(Head::load(head, c, loader.options)?);
        (loader.loaded)(embedding.data().len() as u64);
        let embedding = Embedding { tensor: embedding, scale: c.embedding_scale };
        Ok(Weights { embedding, layers, output_norm, head, rope_factors, to_move: AtomicUsize::new(0) })
    }
}

struct Loader<'a, 'p> {
    checkpoint: &'a Checkpoint,
    options: &'a mut LinearOptions<'p>,
    loaded: &'a mut dyn FnMut(u64),
    input_norms: bool,
    /// What norms add to the mean square.
    eps: f32,
}

impl Loader<'_, '_> {
    fn vector(&mut self, name: &str) -> Result<Arc<[f32]>> {
        let tensor = self.checkpoint.tensor(&format!("{name}.weight"))?;
        let values = tensor.to_f32()?;
        if let Some(i) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::Malformed {
                at: Box::new(tensor.place()),
                what: format!("element {i} is {}", values[i]),
                fix: "the file is damaged, download it again",
            });
        }
        Ok(values.into())
    }

    fn linear(&mut self, name: &str, skips: Skips) -> Result<Arc<Linear>> {
        let tensor = self.checkpoint.tensor(&format!("{name}.weight"))?;
        // Some converters keep trits of size one and put the multiplier into a tensor of its own.
        let scale_name = format!("{name}.scale");
        self.options.factor = match self.checkpoint.find_tensor(&scale_name) {
            Some(_) => self.scale(&scale_name)?,
            None => 1.0,
        };
        let mut linear = Linear::load(tensor, (tensor.rows(), tensor.cols()), skips, self.options)?;
        (self.loaded)(tensor.data().len() as u64);
        if self.input_norms {
            linear.set_norm(self.vector(&format!("{name}_norm_in"))?, self.eps);
        }
        Ok(Arc::new(linear))
    }

    fn scale(&self, name: &str) -> Result<f32> {
        let tensor = self.checkpoint.tensor(name)?;
        match tensor.to_f32()?[..] {
            [scale] if scale.is_finite() => Ok(scale),
            _ => Err(Error::Malformed {
                at: Box::new(tensor.place()),
                what: "the scale is not a finite number".to_owned(),
                fix: "the file is damaged, download it again",
            }),
        }
    }
}
