//! The byte budget: what decoding a token reads, by part, and how fast a kernel is that reads nothing
//! from memory.

use crate::kv_cache::CacheType;
use crate::linear::Linear;
use crate::model::Model;
use crate::prepared::PreparedInput;
use crate::screen::Screen;
use crate::skipped::Density;
use crate::weights::{Layer, Weights};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tritone_kernels::kernel::Operation;
use tritone_kernels::line::Line;

/// Bytes that the forward pass of one token reads, as the layouts in use have them.
///
/// Weights, their scales, and the cache; activations stay in the processor's caches and are not
/// counted. Every byte that is read at least once counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenBytes {
    /// Queries, keys, values and the product after attention.
    pub attention: u64,
    /// The gate of the feed-forward blocks.
    pub gate: u64,
    /// Up.
    pub up: u64,
    /// Down.
    pub down: u64,
    /// The output head.
    pub head: u64,
    /// The token's row of the embedding.
    pub embedding: u64,
    /// All norms.
    pub norms: u64,
    /// Keys and values of the tokens before it.
    pub cache: u64,
}

impl TokenBytes {
    /// Names and bytes of all parts.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("attention", self.attention),
            ("gate", self.gate),
            ("up", self.up),
            ("down", self.down),
            ("head", self.head),
            ("embedding", self.embedding),
            ("norms", self.norms),
            ("cache", self.cache),
        ]
    }

    /// The sum of all parts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// How fast one thread multiplies when the weights are in its cache.
#[derive(Clone, Copy, Debug)]
pub struct KernelRate {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Multiplications of a weight with an activation, per second.
    pub macs_per_second: f64,
    /// Packed weights read, per second.
    pub weight_bytes_per_second: f64,
}

/// Packed weights that any processor keeps in its second-level cache.
const IN_CACHE: usize = 128 << 10;

impl Model {
    /// What decoding a token reads when `context` tokens stand before it and `density` is what is needed of
    /// up and down (see [`crate::session::Session::skipped`]; by default all of them).
    #[must_use]
    pub fn bytes_per_token(&self, context: usize, density: Density) -> TokenBytes {
        let weights = &self.inner.weights;
        let mut bytes = TokenBytes {
            head: self.head_bytes(density),
            embedding: weights.embedding.row_bytes() as u64,
            norms: weights.norm_bytes(),
            cache: self.cache_bytes_in_sight(context),
            ..TokenBytes::default()
        };
        for layer in &weights.layers {
            let attention = [&layer.q, &layer.k, &layer.v, &layer.output];
            bytes.attention += attention.iter().map(|linear| linear.bytes() as u64).sum::<u64>();
            bytes.gate += layer.gate.bytes() as u64;
            bytes.up += share(layer.up.bytes(), density.up_rows.filter(|_| layer.up.skips_rows()));
            bytes.down +=
                share(layer.down.bytes(), density.down_columns.filter(|_| layer.down.skips_columns(Operation::Gemv)));
        }
        bytes
    }

    /// What a token reads of the output head: with a copy all high nibbles and shares of the low ones and of the head's own
    /// rows; without it, or without shares, all of it.
    fn head_bytes(&self, density: Density) -> u64 {
        let head = self.inner.weights.head.bytes();
        match (self.head_copy(), density.head_rows) {
            (Some(copy), Some(_)) => {
                let low = share(copy.low_bytes(), density.head_low_rows);
                copy.high_bytes() as u64 + low + share(head, density.head_rows)
            }
            _ => head as u64,
        }
    }

    /// The head's 8-bit copy, where there is one (yet).
    fn head_copy(&self) -> Option<&Screen> {
        self.inner.screen.get()?.as_deref()
    }

    /// Bytes of that copy, 0 where there is none.
    fn head_copy_bytes(&self) -> u64 {
        self.head_copy().map_or(0, |copy| (copy.high_bytes() + copy.low_bytes()) as u64)
    }

    /// Bytes of all weights in the layouts in use; an embedding that is also the head counts once, the
    /// head's 8-bit copy once it is there.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        let weights = &self.inner.weights;
        let per_token = self.bytes_per_token(0, Density::default());
        let embedding = if weights.head_is_embedding() { 0 } else { weights.embedding.bytes() as u64 };
        per_token.total() - per_token.embedding + embedding + self.head_copy_bytes()
    }

    /// Bytes of keys and values of `context` tokens.
    #[must_use]
    pub fn cache_bytes(&self, context: usize) -> u64 {
        let config = &self.inner.config;
        let element = match self.inner.cache_type {
            CacheType::F16 => size_of::<u16>(),
            CacheType::F32 => size_of::<f32>(),
        };
        (config.n_layers * config.n_kv_heads * 2 * config.head_dim * element) as u64 * context as u64
    }

    /// Bytes of those keys and values of `context` tokens that the next token looks at.
    fn cache_bytes_in_sight(&self, context: usize) -> u64 {
        let config = &self.inner.config;
        let per_layer = self.cache_bytes(1) / config.n_layers as u64;
        // The next token is in its own window.
        let in_sight = |layer| config.window_of(layer).map_or(context, |window| context.min(window - 1));
        (0..config.n_layers).map(|layer| per_layer * in_sight(layer) as u64).sum()
    }

    /// Multiplies a few tiles of the first layer's gate, again and again for about `time`, on the
    /// calling thread: the rate of the kernel for `n_vectors` vectors where memory is no limit.
    ///
    /// # Panics
    /// `n_vectors` is 0.
    #[must_use]
    pub fn kernel_rate(&self, n_vectors: usize, time: Duration) -> KernelRate {
        assert!(n_vectors > 0, "a product has at least one vector");
        let linear = &self.inner.weights.layers[0].gate;
        let tile_bytes = (linear.bytes() / linear.n_tiles()).max(1);
        let n_tiles = (IN_CACHE / tile_bytes).clamp(1, linear.n_tiles());
        let n_rows = (n_tiles * linear.tile_rows()).min(linear.rows());
        // Any values will do: no kernel looks at them before it multiplies.
        let x: Vec<f32> = (0..linear.cols()).map(|i| (i % 255) as f32 - 127.0).collect();
        let operation = linear.operation(n_vectors);
        let mut lines = vec![Line::ZERO; PreparedInput::n_lines(linear, n_vectors, operation)];
        let vectors = lines.chunks_exact_mut(linear.vector_lines(operation));
        let notes: Vec<_> =
            vectors.map(|lines| linear.prepare_vector(&self.inner.float, &x, operation, lines)).collect();
        let mut input = PreparedInput::new(linear, n_vectors, operation, lines);
        for (i, notes) in notes.iter().enumerate() {
            input.set_scales(i, notes);
        }
        let mut out = Vec::new();
        // The first product brings the weights into the cache.
        linear.product_in(0..n_tiles, &input, &mut out);
        let (began, mut products) = (Instant::now(), 0u64);
        let seconds = loop {
            for _ in 0..4 {
                linear.product_in(0..n_tiles, std::hint::black_box(&input), &mut out);
                std::hint::black_box(&mut out);
            }
            products += 4;
            let elapsed = began.elapsed();
            if elapsed >= time {
                break elapsed.as_secs_f64().max(1e-9);
            }
        };
        let macs = products as f64 * (n_rows * linear.cols() * n_vectors) as f64;
        KernelRate {
            kernel: linear.kernel_name(input.operation()),
            macs_per_second: macs / seconds,
            weight_bytes_per_second: products as f64 * (n_tiles * tile_bytes) as f64 / seconds,
        }
    }
}

/// A share of some bytes, all of them where none is given.
fn share(bytes: usize, share: Option<f64>) -> u64 {
    (bytes as f64 * share.unwrap_or(1.0)).round() as u64
}

impl Weights {
    fn norm_bytes(&self) -> u64 {
        let of_layers = self.layers.iter().flat_map(Layer::norms).map(|norm| norm.len());
        let of_matrices: usize = self.layers.iter().flat_map(Layer::linears).map(|linear| linear.norm_bytes()).sum();
        ((of_layers.sum::<usize>() + self.output_norm.len()) * size_of::<f32>() + of_matrices) as u64
    }
}

impl Layer {
    fn norms(&self) -> impl Iterator<Item = &Arc<[f32]>> {
        let heads = self.qk_norms.iter().flat_map(|norms| [&norms.q, &norms.k]);
        let others = [&self.attn_sub_norm, &self.ffn_sub_norm, &self.post_attn_norm, &self.post_ffn_norm];
        [&self.attn_norm, &self.ffn_norm].into_iter().chain(heads).chain(others.into_iter().flatten())
    }

    fn linears(&self) -> [&Arc<Linear>; 7] {
        [&self.q, &self.k, &self.v, &self.output, &self.gate, &self.up, &self.down]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LayoutChoice, LoadOptions, Source};
    use std::path::PathBuf;

    fn model(name: &str, options: LoadOptions) -> Model {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
        Model::load(Source::File(path), &options, &mut |_| {}).unwrap()
    }

    #[test]
    fn bytes_follow_from_the_layout() {
        let options = LoadOptions { layout: LayoutChoice::I2s, ..LoadOptions::default() };
        let model = model("bitnet-relu2/model-i2_s.gguf", options);
        let config = model.config().clone();
        let bytes = model.bytes_per_token(0, Density::default());
        let two_bits = |rows: usize, cols: usize| (rows * cols / 4) as u64;
        // Each matrix has one scale of four bytes beside its trits.
        let scales = config.n_layers as u64 * 4;
        assert_eq!(bytes.gate, two_bits(config.n_layers * config.ffn, config.hidden) + scales);
        assert_eq!(bytes.up, bytes.gate);
        assert_eq!(bytes.down, bytes.gate);
        let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let attention = two_bits(config.n_layers * (2 * q + 2 * kv), config.hidden) + 4 * scales;
        assert_eq!(bytes.attention, attention);
        assert_eq!(bytes.cache, 0);
        assert_eq!(bytes.total(), bytes.parts().iter().map(|part| part.1).sum::<u64>());

        let deep = model.bytes_per_token(100, Density::default());
        assert_eq!(deep.cache, 100 * (config.n_layers * kv * 2 * 2) as u64);
        assert_eq!(deep.total() - deep.cache, bytes.total());
        let some = Some(0.5);
        let half = Density { up_rows: some, down_columns: some, head_low_rows: some, head_rows: some };
        // The layout was asked for, and I2_S can skip rows only.
        let half = model.bytes_per_token(0, half);
        assert_eq!((half.up, half.down), (bytes.up / 2, bytes.down));
        // There is no copy of the head yet.
        assert_eq!(half.head, bytes.head);
        // The head of this model is its embedding.
        assert_eq!(model.weight_bytes(), bytes.total() - bytes.embedding);
    }

    #[test]
    fn a_cache_in_single_precision_is_twice_as_large() {
        let name = "qwen3-group128/model-q2_0.gguf";
        let half = model(name, LoadOptions::default());
        let single = model(name, LoadOptions { cache_type: CacheType::F32, ..LoadOptions::default() });
        assert_eq!(2 * half.cache_bytes(33), single.cache_bytes(33));
    }

    #[test]
    fn rates_name_the_kernels_in_use() {
        let model = model("bitnet-relu2/model-i2_s.gguf", LoadOptions::default());
        let one = model.kernel_rate(1, Duration::from_millis(1));
        assert_eq!(one.kernel, model.gemv_kernel());
        assert!(one.macs_per_second > 0.0 && one.weight_bytes_per_second > 0.0);
        assert_eq!(model.kernel_rate(256, Duration::from_millis(1)).kernel, model.gemm_kernel());
    }
}
