//! The output head: from the last hidden state to logits, all of them or those that matter.

use crate::checkpoint::{Tensor, TensorType};
use crate::config::Config;
use crate::error::Result;
use crate::forward::Forward;
use crate::linear::{Linear, LinearOptions, Skips};
use crate::profile::{Observer, Part};
use crate::scores::Need;
use crate::screen::{Chosen, Screen};
use crate::states::States;
use crate::threads::Pool;
use std::ops::Range;
use std::sync::Arc;
use tritone_kernels::float::{FloatFormat, FloatKernels};
use tritone_kernels::line::Line;

/// Rows that one work item computes.
const ROWS: usize = 64;

/// Rows out of order that one work item computes.
const CHOSEN_ROWS: usize = 16;

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

/// Vectors from the start of a cache line on: each load of one that goes over two lines would be two.
struct Vectors {
    lines: Vec<Line>,
    len: usize,
}

impl Vectors {
    fn new(floats: &[f32]) -> Vectors {
        let mut lines = vec![Line::ZERO; Line::count_for(size_of_val(floats))];
        bytemuck::cast_slice_mut(&mut lines)[..floats.len()].copy_from_slice(floats);
        Vectors { lines, len: floats.len() }
    }

    fn floats(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl Head {
    pub(crate) fn load(tensor: &Tensor, config: &Config, options: &mut LinearOptions) -> Result<Head> {
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

    /// One row.
    ///
    /// # Panics
    /// The head is ternary.
    pub(crate) fn row(&self, float: &FloatKernels, row: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Head::Float { tensor, format } => {
                let bytes = tensor.cols() * format.size();
                float.widen(*format, &tensor.data()[row * bytes..(row + 1) * bytes], out);
                Ok(())
            }
            Head::Widened(tensor) => tensor.dequantize_row(row, out),
            Head::Ternary(_) => unreachable!("a ternary head is a matrix product"),
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

impl Head {
    /// Logits of some tokens for one hidden state.
    ///
    /// # Panics
    /// The head is ternary.
    pub(crate) fn some_logits(
        self: &Arc<Head>,
        float: &FloatKernels,
        pool: &mut Pool,
        ids: &[u32],
        hidden: &[f32],
    ) -> Vec<f32> {
        let mut logits = vec![0.0; ids.len()];
        let float = *float;
        pool.run(
            (Arc::clone(self), hidden.to_vec(), ids.to_vec()),
            logits.len(),
            CHOSEN_ROWS,
            move |(head, hidden, ids), items, out: &mut Vec<f32>| {
                for &id in &ids[items] {
                    let row = id as usize;
                    out.push(0.0);
                    let at = out.len() - 1;
                    head.rows_dot(&float, row..row + 1, hidden, &mut out[at..]);
                }
            },
            |items, values| logits[items].copy_from_slice(values),
        );
        logits
    }
}

impl<O: Observer> Forward<'_, O> {
    /// The norm before the head, for each of some hidden states.
    pub(crate) fn output_norm(&mut self, mut hidden: Vec<f32>) -> Vec<f32> {
        self.observer.start();
        for x in hidden.chunks_mut(self.model.config.hidden) {
            let input = x.to_vec();
            self.model.float.rms_norm(&input, &self.model.weights.output_norm, self.model.config.rms_eps, x);
        }
        self.observer.lap(Part::Norms);
        hidden
    }

    /// Logits `[token][vocab_size]` of `n_tokens` hidden states after the norm.
    pub(crate) fn logits(&mut self, hidden: Vec<f32>, n_tokens: usize) -> Vec<f32> {
        let model = Arc::clone(self.model);
        if let Some(linear) = model.weights.head.as_linear() {
            let hidden = Arc::new(States::whole(hidden, model.config.hidden));
            let [logits] = self.project([linear], &hidden, None);
            self.observer.lap(Part::Head);
            return logits;
        }
        let vocab = model.config.vocab_size;
        let input = (model, Vectors::new(&hidden));
        let buffers = self.buffers();
        let (_, outputs) =
            self.pool.run_kept(buffers, input, vocab.div_ceil(ROWS), 1, move |(model, hidden), items, out| {
                for item in items {
                    let rows = item * ROWS..((item + 1) * ROWS).min(vocab);
                    let start = out.len();
                    out.resize(start + n_tokens * rows.len(), 0.0);
                    model.weights.head.rows_dot(&model.float, rows, hidden.floats(), &mut out[start..]);
                }
            });
        let mut logits = vec![0.0; n_tokens * vocab];
        let mut buffers = Vec::with_capacity(outputs.len());
        for mut output in outputs {
            let mut start = 0;
            for (items, end) in output.ranges {
                // One item is handed out at a time.
                let rows = items.start * ROWS..(items.end * ROWS).min(vocab);
                for (token, part) in output.values[start..end].chunks(rows.len()).enumerate() {
                    logits[token * vocab..][rows.clone()].copy_from_slice(part);
                }
                start = end;
            }
            output.values.clear();
            buffers.push(output.values);
        }
        self.give_all(buffers);
        self.observer.lap(Part::Head);
        logits
    }

    /// For each of some hidden states after the norm the tokens that can matter and their logits; nothing where
    /// all are needed.
    pub(crate) fn chosen_logits(&mut self, screen: &Arc<Screen>, hidden: &[f32], need: &Need) -> Vec<Option<Chosen>> {
        self.observer.start();
        let mut buffers = self.buffers();
        let chosen = screen.choose(self.pool, &mut buffers, hidden, need);
        self.give_all(buffers);
        for chosen in chosen.iter().flatten() {
            self.skipped.head(chosen.low_rows, chosen.rows, self.model.config.vocab_size);
        }
        self.observer.lap(Part::Head);
        chosen
    }
}
