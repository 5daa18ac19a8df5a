//! All weights of a model, found by name, checked against its configuration.

use crate::checkpoint::{Checkpoint, Tensor, TensorType};
use crate::config::{Activation, Config};
use crate::error::{Error, Result};
use crate::linear::{Linear, LinearOptions, Skips};
use std::ops::Range;
use std::sync::Arc;
use tritone_kernels::float::{FloatFormat, FloatKernels};

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
    pub(crate) ffn_norm: Arc<[f32]>,
    pub(crate) gate: Arc<Linear>,
    pub(crate) up: Arc<Linear>,
    pub(crate) ffn_sub_norm: Option<Arc<[f32]>>,
    pub(crate) down: Arc<Linear>,
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
    pub(crate) head: Head,
    pub(crate) rope_factors: Option<Arc<[f32]>>,
}

/// A vector for each token, as the file holds it.
#[derive(Debug)]
pub(crate) struct Embedding {
    tensor: Tensor,
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
        }
        Ok(out)
    }
}

/// What turns the last hidden state into logits.
#[derive(Debug)]
pub(crate) enum Head {
    /// Rows of stored floats.
    Float { tensor: Tensor, format: FloatFormat },
    /// Rows in a format that is widened to f32 before use.
    Widened(Tensor),
    /// Ternary rows.
    Ternary(Arc<Linear>),
}

impl Head {
    fn load(tensor: &Tensor, config: &Config, options: &mut LinearOptions) -> Result<Head> {
        tensor.expect_dims(&[config.hidden, config.vocab_size])?;
        let tensor = tensor.clone();
        let format = match tensor.tensor_type() {
            TensorType::F32 => FloatFormat::F32,
            TensorType::F16 => FloatFormat::F16,
            TensorType::BF16 => FloatFormat::Bf16,
            _ if tensor.is_ternary() => {
                let linear = Linear::load(&tensor, (config.vocab_size, config.hidden), Skips::Nothing, options)?;
                return Ok(Head::Ternary(Arc::new(linear)));
            }
            _ => return Ok(Head::Widened(tensor)),
        };
        Ok(Head::Float { tensor, format })
    }

    /// Bytes of all rows.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Head::Float { tensor, .. } | Head::Widened(tensor) => tensor.data().len(),
            Head::Ternary(linear) => linear.bytes(),
        }
    }

    /// The matrix, if the head is ternary.
    pub(crate) fn as_linear(&self) -> Option<&Arc<Linear>> {
        match self {
            Head::Ternary(linear) => Some(linear),
            Head::Float { .. } | Head::Widened(_) => None,
        }
    }

    /// Products of some rows with some vectors: `out` is `[vector][row]`.
    ///
    /// # Panics
    /// The head is ternary.
    pub(crate) fn rows_dot(&self, float: &FloatKernels, rows: Range<usize>, vectors: &[f32], out: &mut [f32]) {
        let n_vectors = out.len() / rows.len();
        match self {
            Head::Float { tensor, format } => {
                let row_bytes = tensor.cols() * format.size();
                let bytes = &tensor.data()[rows.start * row_bytes..rows.end * row_bytes];
                float.rows_dot_multi(*format, bytes, vectors, n_vectors, out);
            }
            Head::Widened(tensor) => {
                let mut row = vec![0.0; tensor.cols()];
                for (i, index) in rows.clone().enumerate() {
                    tensor.dequantize_row(index, &mut row).expect("types that are not ternary always decode");
                    for (v, x) in vectors.chunks_exact(row.len()).enumerate() {
                        out[v * rows.len() + i] = float.dot_f32(&row, x);
                    }
                }
            }
            Head::Ternary(_) => unreachable!("a ternary head is a matrix product"),
        }
    }
}

impl Weights {
    /// Whether head and embedding are the same bytes.
    pub(crate) fn head_is_embedding(&self) -> bool {
        match &self.head {
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
        let mut loader = Loader { checkpoint, options, loaded };
        let c = config;
        let (q_rows, kv_rows) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let embedding = checkpoint.tensor("token_embd.weight")?.clone();
        embedding.expect_dims(&[c.hidden, c.vocab_size])?;
        // relu^2 is 0 where the gate is not positive, and most of what it lets through is 0 after
        // rounding. SiLU has no such zeros.
        let (up_skips, down_skips) = match c.activation {
            Activation::ReluSquared => (Skips::Rows, Skips::Columns),
            Activation::Silu => (Skips::Nothing, Skips::Nothing),
        };
        let mut layers = Vec::new();
        for i in 0..c.n_layers {
            let name = |part: &str| format!("blk.{i}.{part}");
            let mut sub_norm = |part: &str, width| -> Result<Option<Arc<[f32]>>> {
                c.has_sub_norms().then(|| loader.vector(&name(part), width)).transpose()
            };
            let attn_sub_norm = sub_norm("attn_sub_norm", q_rows)?;
            let ffn_sub_norm = sub_norm("ffn_sub_norm", c.ffn)?;
            let qk_norms = if c.has_qk_norms() {
                Some(QkNorms {
                    q: loader.vector(&name("attn_q_norm"), c.head_dim)?,
                    k: loader.vector(&name("attn_k_norm"), c.head_dim)?,
                })
            } else {
                None
            };
            layers.push(Layer {
                attn_norm: loader.vector(&name("attn_norm"), c.hidden)?,
                q: loader.linear(&name("attn_q"), (q_rows, c.hidden), Skips::Nothing)?,
                k: loader.linear(&name("attn_k"), (kv_rows, c.hidden), Skips::Nothing)?,
                v: loader.linear(&name("attn_v"), (kv_rows, c.hidden), Skips::Nothing)?,
                qk_norms,
                attn_sub_norm,
                output: loader.linear(&name("attn_output"), (c.hidden, q_rows), Skips::Nothing)?,
                ffn_norm: loader.vector(&name("ffn_norm"), c.hidden)?,
                gate: loader.linear(&name("ffn_gate"), (c.ffn, c.hidden), Skips::Nothing)?,
                up: loader.linear(&name("ffn_up"), (c.ffn, c.hidden), up_skips)?,
                ffn_sub_norm,
                down: loader.linear(&name("ffn_down"), (c.hidden, c.ffn), down_skips)?,
            });
        }
        let output_norm = loader.vector("output_norm", c.hidden)?;
        let rope_factors = match checkpoint.find_tensor("rope_freqs.weight") {
            Some(_) => Some(loader.vector("rope_freqs", c.rope_dim / 2)?),
            None => None,
        };
        // Without a head of its own the model uses its embedding.
        let head = checkpoint.find_tensor("output.weight").unwrap_or(&embedding);
        let head = Head::load(head, c, loader.options)?;
        (loader.loaded)(embedding.data().len() as u64);
        Ok(Weights { embedding: Embedding { tensor: embedding }, layers, output_norm, head, rope_factors })
    }
}

struct Loader<'a, 'p> {
    checkpoint: &'a Checkpoint,
    options: &'a mut LinearOptions<'p>,
    loaded: &'a mut dyn FnMut(u64),
}

impl Loader<'_, '_> {
    fn vector(&mut self, name: &str, width: usize) -> Result<Arc<[f32]>> {
        let tensor = self.checkpoint.tensor(&format!("{name}.weight"))?;
        tensor.expect_dims(&[width])?;
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

    fn linear(&mut self, name: &str, shape: (usize, usize), skips: Skips) -> Result<Arc<Linear>> {
        let tensor = self.checkpoint.tensor(&format!("{name}.weight"))?;
        // Some converters keep trits of size one and put the multiplier into a tensor of its own.
        let scale_name = format!("{name}.scale");
        self.options.factor = match self.checkpoint.find_tensor(&scale_name) {
            Some(_) => self.scale(&scale_name)?,
            None => 1.0,
        };
        let linear = Linear::load(tensor, shape, skips, self.options)?;
        (self.loaded)(tensor.data().len() as u64);
        Ok(Arc::new(linear))
    }

    fn scale(&self, name: &str) -> Result<f32> {
        let tensor = self.checkpoint.tensor(name)?;
        tensor.expect_dims(&[1])?;
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
