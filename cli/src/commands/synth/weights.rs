//! Random weights with which activations stay in a sane range.
//!
//! Norms hand vectors of mean square 1 to the matrices. A row of `n` trits of which the share `p` is
//! not 0, with the scale `g / sqrt(n p)`, then gives numbers of variance `g^2`. Embeddings have
//! variance 1, and each of the `2 L` blocks adds variance `w` to the residual stream. `w` is chosen
//! so that the cosine between the last hidden state and the embedding of the token it came from is
//! `9 / sqrt(hidden)`: with a tied head that token's logit stands 9 standard deviations out of the
//! others, about as far as the best rows of trained models do. Tokens come in groups of 16 whose
//! embeddings share a part, so the neighbours stand out too, less far. A head of its own is the
//! embedding with the tokens shifted by one, so that texts go on instead of repeating a token.
//!
//! For relu^2 gates a few channels of the residual stream are a bias: every embedding has the same
//! number there, the blocks hardly write to them, and every row of `gate` takes some of them
//! with -1. How many follows from the share of gates that are to be positive, for each layer, as
//! the residual stream grows: the gate is nearly normal, so its mean has to lie `z` standard
//! deviations below 0 with `Phi(-z)` = the share.

use super::random::Random;
use super::shape::Shape;
use tritone_runtime::config::Activation;

/// The same number in the bias channels of all embeddings, other channels having variance 1.
const BIAS: f64 = 2.0;

/// Share of zeros in the rows that write to bias channels.
const QUIET_ZEROS: f64 = 0.95;

/// Standard deviation of logits, as trained models have it.
const LOGIT_DEVIATION: f64 = 1.6;

/// How many standard deviations the best token stands out.
const STANDS_OUT: f64 = 9.0;

/// Tokens whose embeddings share a part.
const GROUP: usize = 16;

/// The share of the variance that a group has in common.
const COMMON: f32 = 0.6;

/// Mean square of `silu(a) * b` for independent normal numbers `a`, `b`.
const SILU_GATE_SQUARE: f64 = 0.3557;

/// What a tensor holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Norm weights around this number.
    Norm(f32),
    /// A matrix of trits.
    Matrix(Matrix),
    /// A vector for each token.
    Embedding,
    /// The vectors of the embedding, those of other tokens.
    Head,
}

/// A matrix whose trits are drawn one by one.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub scale: f32,
    /// First columns that are -1 in every row.
    pub bias_columns: usize,
    /// First rows that are mostly zeros.
    pub quiet_rows: usize,
}

/// A tensor of the model.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub content: Content,
}

/// Settings that all tensors share.
pub struct Weights {
    shape: Shape,
    seed: u64,
    zeros: f64,
    /// Channels that are a bias.
    n_bias: usize,
    pub specs: Vec<Spec>,
}

impl Weights {
    /// Plans the tensors. `density` is the share of positive gates, for relu^2.
    ///
    /// # Errors
    /// A density that would take too many channels, in words.
    pub fn plan(shape: &Shape, seed: u64, zeros: f64, density: f64) -> Result<Weights, String> {
        let hidden = shape.hidden as f64;
        let share = 1.0 - zeros;
        let cosine = (STANDS_OUT / hidden.sqrt()).min(0.9);
        let writes = 2.0 * shape.layers as f64;
        let write = (1.0 / (cosine * cosine) - 1.0) / writes;
        let mut biases = vec![0; shape.layers];
        if shape.activation() == Activation::ReluSquared {
            let z = -normal_quantile(density);
            for (layer, n) in biases.iter_mut().enumerate() {
                // The feed-forward block comes after the layer's attention.
                let before = (2 * layer + 1) as f64 * write;
                *n = bias_columns(shape.hidden, share, before, z)
                    .ok_or_else(|| format!("a share of {density} of positive gates cannot be reached at this width"))?;
            }
        }
        let n_bias = biases.iter().copied().max().unwrap_or(0);

        let scale = |gain: f64, cols: usize| (gain / (cols as f64 * share).sqrt()) as f32;
        let matrix = |gain: f64, cols: usize| Matrix { scale: scale(gain, cols), bias_columns: 0, quiet_rows: 0 };
        let gain = write.sqrt();
        // Without a norm before it, down sees what the gates give.
        let down_gain = if shape.has_sub_norms() { gain } else { gain / SILU_GATE_SQUARE.sqrt() };
        let (q_rows, kv_rows) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut specs = Vec::new();
        let mut add = |name: String, rows: usize, cols: usize, content: Content| {
            specs.push(Spec { name: format!("{name}.weight"), rows, cols, content });
        };
        add("token_embd".into(), shape.vocab, shape.hidden, Content::Embedding);
        for (i, &bias_columns) in biases.iter().enumerate() {
            let name = |part: &str| format!("blk.{i}.{part}");
            let plain = |rows: usize, cols: usize, gain: f64| (rows, cols, Content::Matrix(matrix(gain, cols)));
            let writing = |cols: usize, gain: f64| {
                (shape.hidden, cols, Content::Matrix(Matrix { quiet_rows: n_bias, ..matrix(gain, cols) }))
            };
            let norm = |width: usize| (1, width, Content::Norm(1.0));
            let gate = Matrix { bias_columns, ..matrix(1.0, shape.hidden) };
            let mut parts = vec![
                ("attn_norm", norm(shape.hidden)),
                ("attn_q", plain(q_rows, shape.hidden, 1.0)),
                ("attn_k", plain(kv_rows, shape.hidden, 1.0)),
                ("attn_v", plain(kv_rows, shape.hidden, 1.0)),
            ];
            if shape.architecture == "qwen3" {
                parts.push(("attn_q_norm", norm(shape.head_dim)));
                parts.push(("attn_k_norm", norm(shape.head_dim)));
            }
            if shape.has_sub_norms() {
                parts.push(("attn_sub_norm", norm(q_rows)));
            }
            parts.push(("attn_output", writing(q_rows, gain)));
            parts.push(("ffn_norm", norm(shape.hidden)));
            parts.push(("ffn_gate", (shape.ffn, shape.hidden, Content::Matrix(gate))));
            parts.push(("ffn_up", plain(shape.ffn, shape.hidden, 1.0)));
            if shape.has_sub_norms() {
                parts.push(("ffn_sub_norm", norm(shape.ffn)));
            }
            parts.push(("ffn_down", writing(shape.ffn, down_gain)));
            for (part, (rows, cols, content)) in parts {
                add(name(part), rows, cols, content);
            }
        }
        let logit_scale = LOGIT_DEVIATION / hidden.sqrt();
        add("output_norm".into(), 1, shape.hidden, Content::Norm(logit_scale as f32));
        if !shape.tied {
            add("output".into(), shape.vocab, shape.hidden, Content::Head);
        }
        Ok(Weights { shape: shape.clone(), seed, zeros, n_bias, specs })
    }

    /// The stream of random numbers of a row.
    fn random(&self, tensor: usize, row: usize) -> Random {
        Random::new(self.seed, tensor as u64, row as u64)
    }

    /// Norm weights, within a tenth of `around`.
    pub fn norm(&self, tensor: usize, around: f32, out: &mut [f32]) {
        let mut random = self.random(tensor, 0);
        for (i, weight) in out.iter_mut().enumerate() {
            let factor = 0.9 + 0.2 * random.uniform();
            // Bias channels keep what the plan counts on.
            *weight = around * if i < self.n_bias { 1.0 } else { factor };
        }
    }

    /// A row of a matrix.
    pub fn matrix_row(&self, tensor: usize, row: usize, matrix: &Matrix, out: &mut [i8]) {
        let zeros = if row < matrix.quiet_rows { self.zeros.max(QUIET_ZEROS) } else { self.zeros };
        self.random(tensor, row).trits(zeros, out);
        out[..matrix.bias_columns].fill(-1);
    }

    /// Scales of a row's blocks, within a fifth of `around` and exact in half precision.
    pub fn block_scales(&self, tensor: usize, row: usize, around: f32, out: &mut [f32]) {
        let mut random = self.random(tensor + self.specs.len(), row);
        for scale in out {
            let exact = around * (0.8 + 0.4 * random.uniform());
            // A half has 11 significant bits, 13 fewer than an f32.
            *scale = f32::from_bits((exact.to_bits() + (1 << 12)) & !((1 << 13) - 1));
        }
    }

    /// The token whose embedding is a row of the head.
    fn token(&self, content: &Content, row: usize) -> usize {
        match content {
            Content::Head => (row + self.shape.vocab - 1) % self.shape.vocab,
            _ => row,
        }
    }

    /// A row of the embedding or the head in floats.
    pub fn embedding_row(&self, content: &Content, row: usize, out: &mut [f32]) {
        let token = self.token(content, row);
        let mut own = self.random(0, token);
        let mut group = self.random(usize::MAX, token / GROUP);
        let (common, rest) = (COMMON.sqrt(), (1.0 - COMMON).sqrt());
        for value in out.iter_mut() {
            *value = common * group.normal() + rest * own.normal();
        }
        out[..self.n_bias].fill(BIAS as f32);
    }

    /// The same in trits: a trit is the group's with the probability that makes as much common.
    pub fn embedding_trits(&self, content: &Content, row: usize, out: &mut [i8]) {
        let token = self.token(content, row);
        let mut own = self.random(0, token);
        let mut common = vec![0; out.len()];
        self.random(usize::MAX, token / GROUP).trits(self.zeros, &mut common);
        own.trits(self.zeros, out);
        // A byte of random bits for each trit is below this as often as the trit is to be common.
        const BELOW: u8 = (COMMON * 256.0) as u8;
        for (trits, common) in out.chunks_mut(8).zip(common.chunks(8)) {
            for ((trit, common), byte) in trits.iter_mut().zip(common).zip(own.next().to_le_bytes()) {
                *trit = if byte < BELOW { *common } else { *trit };
            }
        }
    }

    /// The scale that gives ternary embeddings variance 1.
    pub fn embedding_scale(&self) -> f32 {
        (1.0 / (1.0 - self.zeros).sqrt()) as f32
    }
}

/// How many of `hidden` channels have to be taken with -1 for a gate whose mean lies `z` deviations
/// below 0; `share` of the other trits are not 0, and the blocks so far have added the variance
/// `added` to each channel. None if it takes more than a quarter of all.
fn bias_columns(hidden: usize, share: f64, added: f64, z: f64) -> Option<usize> {
    let width = hidden as f64;
    // Quiet rows write less to the bias channels.
    let added_to_bias = added * ((1.0 - QUIET_ZEROS) / share).min(1.0);
    let mut best = (f64::INFINITY, 0);
    for n in 0..=hidden / 4 {
        let biased = n as f64;
        // All bias channels of the model are not known yet; those of this layer are most of them.
        let energy = width * (1.0 + added) + biased * (BIAS * BIAS + added_to_bias - 1.0 - added);
        let mean_square = energy / width;
        let mean = biased * BIAS / mean_square.sqrt();
        let rest = share * (width - biased) * (1.0 + added) / mean_square;
        let deviation = (rest + biased * added_to_bias / mean_square).sqrt();
        let miss = (mean / deviation - z).abs();
        if miss < best.0 {
            best = (miss, n);
        }
    }
    (best.0 < 0.1 || (z < 0.0 && best.1 == 0)).then_some(best.1)
}

/// Where the normal distribution has this share below it, by bisection.
fn normal_quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if normal_share(middle) < share { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// The normal distribution's share below `x`, by Simpson's rule from 0.
fn normal_share(x: f64) -> f64 {
    const STEPS: usize = 200;
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let step = x / STEPS as f64;
    let sum: f64 = (0..=STEPS)
        .map(|i| {
            let weight = match i {
                0 | STEPS => 1.0,
                i if i % 2 == 1 => 4.0,
                _ => 2.0,
            };
            weight * density(i as f64 * step)
        })
        .sum();
    0.5 + sum * step / 3.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_the_normal_distribution() {
        for (share, x) in [(0.5, 0.0), (0.15, -1.036_433), (0.975, 1.959_964), (0.001, -3.090_232)] {
            assert!((normal_quantile(share) - x).abs() < 1e-5, "{share}");
        }
    }

    /// The first layer's gates see the embedding alone: their share of positive ones is what was
    /// asked for.
    #[test]
    fn gates_of_the_first_layer_have_the_density() {
        let shape = Shape::find("story").unwrap();
        for density in [0.05, 0.15, 0.4] {
            let weights = Weights::plan(&shape, 3, 0.42, density).unwrap();
            let tensor = weights.specs.iter().position(|spec| spec.name == "blk.0.ffn_gate.weight").unwrap();
            let Content::Matrix(matrix) = &weights.specs[tensor].content else { unreachable!("gate is a matrix") };
            let mut embeddings = vec![vec![0.0; shape.hidden]; 32];
            for (token, embedding) in embeddings.iter_mut().enumerate() {
                weights.embedding_row(&Content::Embedding, token * 100, embedding);
            }
            let (mut positive, mut all) = (0, 0);
            let mut trits = vec![0; shape.hidden];
            for row in 0..shape.ffn {
                weights.matrix_row(tensor, row, matrix, &mut trits);
                for x in &embeddings {
                    let gate: f32 = trits.iter().zip(x).map(|(&t, x)| f32::from(t) * x).sum();
                    positive += usize::from(gate > 0.0);
                    all += 1;
                }
            }
            let share = positive as f64 / all as f64;
            // The plan counts on the attention block having written already.
            assert!((share - density).abs() < 0.2 * density + 0.01, "{density}: {share}");
        }
    }

    #[test]
    fn impossible_densities_are_refused() {
        let shape = Shape::find("story").unwrap();
        assert!(Weights::plan(&shape, 0, 0.0, 1e-9).is_err());
    }

    #[test]
    fn a_head_is_the_embedding_of_the_token_before() {
        let mut shape = Shape::find("story").unwrap();
        shape.tied = false;
        let weights = Weights::plan(&shape, 0, 0.42, 0.15).unwrap();
        let (mut a, mut b) = (vec![0.0; 256], vec![0.0; 256]);
        weights.embedding_row(&Content::Embedding, 7, &mut a);
        weights.embedding_row(&Content::Head, 8, &mut b);
        assert_eq!(a, b);
        weights.embedding_row(&Content::Head, 0, &mut b);
        assert_ne!(a, b);
    }

    #[test]
    fn ternary_embeddings_of_a_group_are_alike() {
        let mut shape = Shape::find("story").unwrap();
        shape.hidden = 4096;
        let weights = Weights::plan(&shape, 0, 0.42, 0.15).unwrap();
        let row = |token| {
            let mut trits = vec![9; 4096];
            weights.embedding_trits(&Content::Embedding, token, &mut trits);
            trits
        };
        let same = |a: Vec<i8>, b: Vec<i8>| a.iter().zip(&b).filter(|(a, b)| a == b).count() as f64 / 4096.0;
        // Trits drawn alone agree with the probability 0.42^2 + 2 * 0.29^2; 0.36 of all are common.
        let alone = 0.42 * 0.42 + 2.0 * 0.29 * 0.29;
        assert!((same(row(32), row(33)) - (0.36 + 0.64 * alone)).abs() < 0.04);
        assert!((same(row(32), row(64)) - alone).abs() < 0.04);
    }
}
