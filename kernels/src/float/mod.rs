//! Float operations with one defined order: RMSNorm, RoPE, gates, softmax, attention, dot
//! products with stored floats, and the float half of activation quantisation.
//!
//! Every operation gives the same bits on every instruction set and however its work is split
//! between calls. The products of long sums are fused, these sums run in 32 virtual lanes with a fixed
//! tree at the end, and `exp` is our own polynomial. Whether a result is NaN is defined too; the
//! sign and payload of a NaN are not, except in conversions between halves and `f32`.
//!
//! ```
//! use tritone_kernels::float::FloatKernels;
//! use tritone_kernels::isa::Isa;
//!
//! let kernels = FloatKernels::new(Isa::detect());
//! let mut out = [0.0; 2];
//! kernels.rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0, &mut out);
//! assert_eq!(out, [0.84852815, 2.2627418]);
//! ```

mod attention;
mod dot;
mod exp;
pub(crate) mod fused;
mod halves;
mod lanes;
mod norm;
mod quantize;
mod rope;
mod scalar;
mod select;

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;

#[cfg(test)]
mod tests;

use crate::ask::ask_here;
use crate::isa::Isa;
use core::marker::PhantomData;
use lanes::Operation;

#[cfg(target_endian = "big")]
compile_error!("stored floats are read as little-endian; big-endian targets are not supported");

/// Keys that lie side by side in one key block of the cache.
pub const KEY_LANES: usize = 32;

/// Keys whose softmax is taken at once; longer contexts are joined from blocks of this length.
pub const ATTENTION_BLOCK: usize = 256;

/// How the floats of a weight row are stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatFormat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl FloatFormat {
    /// Bytes of one value.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// What softmax leaves to be joined: the largest score and the sum of `exp(score - max)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Partial {
    /// Largest score; `-infinity` when every score is NaN.
    pub max: f32,
    /// Sum of `exp(score - max)`.
    pub sum: f32,
}

/// How a number of the cache is stored: `u16`, the bits of an IEEE half, or `f32`.
pub trait CacheElement: attention::Element {}

impl<E: attention::Element> CacheElement for E {}

/// One block of the cache of one key/value head, as [`FloatKernels::attention_block`] reads it.
#[derive(Clone, Copy, Debug)]
pub struct CachedBlock<'a, E = u16> {
    /// `[key block][dimension][KEY_LANES]`, at least as many key blocks as `n_keys` needs.
    pub keys: &'a [E],
    /// `[key][dimension]`, at least `n_keys` keys.
    pub values: &'a [E],
    /// Keys before this one are out of sight, as if they were not there: a sliding window begins with it.
    pub first_key: usize,
    /// Where the keys that count end, `first_key + 1` to [`ATTENTION_BLOCK`].
    pub n_keys: usize,
    /// Neighbouring positions that the queries are of, 1 or more: each sees a key more than the one before it, the first one
    /// `n_keys`. The block holds the last one's.
    pub n_positions: usize,
    /// Key blocks that are used next, or nothing: memory is asked for them while the last keys of this block are read.
    pub next: [&'a [E]; 2],
}

/// The float operations, compiled for the best instruction set that an [`Isa`] allows.
#[derive(Clone, Copy, Debug)]
pub struct FloatKernels {
    instance: Instance,
}

/// Which compiled instance runs; the SIMD ones carry the proof that they may.
#[derive(Clone, Copy, Debug)]
enum Instance {
    Scalar,
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    Avx2(avx2::Avx2),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    Avx512(avx512::Avx512),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Neon(neon::Neon),
}

/// Runs an operation on rows of any of the stored formats.
macro_rules! for_format {
    ($self:ident, $value:expr, $operation:ident $(<$ask:ident>)? { $($field:ident),* }) => {
        match $value {
            FloatFormat::F32 => $self.run(dot::$operation::<dot::F32 $(, $ask)?> { $($field,)* format: PhantomData }),
            FloatFormat::F16 => $self.run(dot::$operation::<dot::F16 $(, $ask)?> { $($field,)* format: PhantomData }),
            FloatFormat::Bf16 => $self.run(dot::$operation::<dot::Bf16 $(, $ask)?> { $($field,)* format: PhantomData }),
        }
    };
}

impl FloatKernels {
    /// The best instance that `isa` allows.
    #[must_use]
    pub fn new(isa: Isa) -> Self {
        let instance = None;
        #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
        let instance = instance
            .or_else(|| avx512::Avx512::new(isa).map(Instance::Avx512))
            .or_else(|| avx2::Avx2::new(isa).map(Instance::Avx2));
        #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
        let instance = instance.or_else(|| neon::Neon::new(isa).map(Instance::Neon));
        let _ = isa;
        Self { instance: instance.unwrap_or(Instance::Scalar) }
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.instance {
            Instance::Scalar => "scalar",
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Instance::Avx2(_) => "avx2",
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Instance::Avx512(_) => "avx512",
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Instance::Neon(_) => "neon",
        }
    }

    #[inline(always)]
    fn run<O: Operation>(&self, operation: O) -> O::Output {
        match self.instance {
            Instance::Scalar => scalar::run(operation),
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Instance::Avx2(proof) => avx2::run(proof, operation),
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Instance::Avx512(proof) => avx512::run(proof, operation),
            #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
            Instance::Neon(proof) => neon::run(proof, operation),
        }
    }

    /// RMSNorm: `out[i] = (x[i] * inv) * weight[i]`, `inv = 1 / sqrt(sum(x^2) / n + eps)`.
    ///
    /// # Panics
    /// If the three slices differ in length.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), weight.len(), "one weight for each element");
        assert_eq!(x.len(), out.len(), "one output for each element");
        self.run(norm::RmsNorm { x, weight, eps, out });
    }

    /// [`rms_norm`](Self::rms_norm) in place on each head of `x`, `n_heads x head_dim`, with one
    /// `weight` of `head_dim` elements for all. With a single head it normalises a whole vector.
    ///
    /// # Panics
    /// If `weight` is empty or `x` is not a whole number of heads.
    pub fn rms_norm_heads(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        assert!(!weight.is_empty(), "a head has at least one dimension");
        assert_eq!(x.len() % weight.len(), 0, "whole heads");
        self.run(norm::RmsNormHeads { x, weight, eps });
    }

    /// `x[i] += y[i]`.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn add_assign(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "one summand for each element");
        self.run(norm::AddAssign { x, y });
    }

    /// Dot product of `row`, `x.len()` stored floats at any alignment, with `x`.
    ///
    /// # Panics
    /// If `row` does not hold as many values as `x`.
    #[must_use]
    pub fn dot(&self, format: FloatFormat, row: &[u8], x: &[f32]) -> f32 {
        assert_eq!(Some(row.len()), x.len().checked_mul(format.size()), "one weight for each element");
        for_format!(self, format, Dot { row, x })
    }

    /// [`dot`](Self::dot) with a row of `f32`.
    ///
    /// # Panics
    /// If the slices differ in length.
    #[must_use]
    pub fn dot_f32(&self, row: &[f32], x: &[f32]) -> f32 {
        self.dot(FloatFormat::F32, bytemuck::cast_slice(row), x)
    }

    /// [`dot`](Self::dot) with a row of halves, given as their bits.
    ///
    /// # Panics
    /// If the slices differ in length.
    #[must_use]
    pub fn dot_f16(&self, row: &[u16], x: &[f32]) -> f32 {
        self.dot(FloatFormat::F16, bytemuck::cast_slice(row), x)
    }

    /// [`dot`](Self::dot) with a row of bfloat16, given as their bits.
    ///
    /// # Panics
    /// If the slices differ in length.
    #[must_use]
    pub fn dot_bf16(&self, row: &[u16], x: &[f32]) -> f32 {
        self.dot(FloatFormat::Bf16, bytemuck::cast_slice(row), x)
    }

    /// `out[r] = rows[r] . x`: a stored matrix `out.len() x x.len()`, row-major, at any alignment,
    /// times a vector. The bits are those of [`dot`](Self::dot) row by row.
    ///
    /// # Panics
    /// If `x` is empty or `rows` does not hold `out.len() * x.len()` values.
    pub fn rows_dot(&self, format: FloatFormat, rows: &[u8], x: &[f32], out: &mut [f32]) {
        self.rows_dot_multi(format, rows, x, 1, out);
    }

    /// [`rows_dot`](Self::rows_dot) with a matrix of halves, given as their bits.
    ///
    /// # Panics
    /// As [`rows_dot`](Self::rows_dot).
    pub fn rows_dot_f16(&self, rows: &[u16], x: &[f32], out: &mut [f32]) {
        self.rows_dot(FloatFormat::F16, bytemuck::cast_slice(rows), x, out);
    }

    /// A stored matrix `n_rows x cols` times several vectors: `vectors` is `n_vectors x cols`,
    /// `out` is `n_vectors x n_rows`. The bits are those of [`dot`](Self::dot) pair by pair.
    ///
    /// # Panics
    /// If `n_vectors` or `cols` is 0, or a slice does not have the size given here.
    pub fn rows_dot_multi(&self, format: FloatFormat, rows: &[u8], vectors: &[f32], n_vectors: usize, out: &mut [f32]) {
        assert!(n_vectors > 0 && !vectors.is_empty(), "at least one vector and one column");
        assert_eq!(vectors.len() % n_vectors, 0, "vectors of one length");
        assert_eq!(out.len() % n_vectors, 0, "as many outputs for each vector");
        let cols = vectors.len() / n_vectors;
        let n_rows = out.len() / n_vectors;
        let size = n_rows.checked_mul(cols).and_then(|n| n.checked_mul(format.size()));
        assert_eq!(Some(rows.len()), size, "n_rows x cols weights");
        ask_here!(A => for_format!(self, format, RowsDot<A> { rows, cols, vectors, out }));
    }

    /// [`rows_dot_multi`](Self::rows_dot_multi) with a matrix of halves, given as their bits.
    ///
    /// # Panics
    /// As [`rows_dot_multi`](Self::rows_dot_multi).
    pub fn rows_dot_f16_multi(&self, rows: &[u16], vectors: &[f32], n_vectors: usize, out: &mut [f32]) {
        let rows = bytemuck::cast_slice(rows);
        self.rows_dot_multi(FloatFormat::F16, rows, vectors, n_vectors, out);
    }

    /// Stored floats at any alignment as `f32`, exact: an embedding's row, say.
    ///
    /// # Panics
    /// If `stored` does not hold as many values as `out`.
    pub fn widen(&self, format: FloatFormat, stored: &[u8], out: &mut [f32]) {
        assert_eq!(Some(stored.len()), out.len().checked_mul(format.size()), "one output for each value");
        for_format!(self, format, Widen { stored, out });
    }

    /// Bits of the nearest halves, ties to even. NaNs keep sign and upper payload, made quiet.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn narrow_f16(&self, x: &[f32], out: &mut [u16]) {
        assert_eq!(x.len(), out.len(), "one half for each value");
        let out = bytemuck::cast_slice_mut(out);
        self.run(dot::NarrowF16 { x, out });
    }

    /// `out[i] = e^x[i]`, within one unit in the last place; 0 up to -104, infinity from 88.73 on.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn exp(&self, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "one output for each element");
        self.run(exp::Exp { x, out });
    }

    /// `out[i] = x[i] / (1 + e^-x[i])`.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn silu(&self, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "one output for each element");
        self.run(exp::Silu { x, out });
    }

    /// `out[i] = silu(gate[i]) * up[i]`.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn silu_gate(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), up.len(), "one gate for each element");
        assert_eq!(gate.len(), out.len(), "one output for each element");
        self.run(exp::SiluGate { gate, up, out });
    }

    /// `out[i] = gelu(gate[i]) * up[i]` with `gelu(x) = x / (1 + e^(-2u))`, `u = sqrt(2 / pi) * (x + 0.044715 x^3)`: the
    /// approximation by tanh, written as one exponential.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn gelu_gate(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), up.len(), "one gate for each element");
        assert_eq!(gate.len(), out.len(), "one output for each element");
        self.run(exp::GeluGate { gate, up, out });
    }

    /// `out[i] = (gate[i] * gate[i]) * up[i]` where the gate is positive, else `+0.0` whatever
    /// `up[i]` is. So a caller may leave `up` uncomputed where the gate is not positive, NaN
    /// included.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn relu2_gate(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), up.len(), "one gate for each element");
        assert_eq!(gate.len(), out.len(), "one output for each element");
        self.run(exp::Relu2Gate { gate, up, out });
    }

    /// Writes the indices of the positive elements of `x`, rising, to `out`, and returns how many there are; NaN is not
    /// positive. What stands in `out` behind them is anything.
    ///
    /// # Panics
    /// If the slices differ in length, or there are 2^32 elements or more.
    pub fn positive(&self, x: &[f32], out: &mut [u32]) -> usize {
        assert_eq!(x.len(), out.len(), "room for an index of each element");
        assert!(u32::try_from(x.len()).is_ok(), "indices of 32 bits");
        self.run(select::Positive { x, out })
    }

    /// How many elements of `x` are positive; NaN is not.
    #[must_use]
    pub fn count_positive(&self, x: &[f32]) -> usize {
        self.run(select::CountPositive(x))
    }

    /// How many elements of `x` are not 0; NaN counts as one that is not.
    #[must_use]
    pub fn count_nonzero(&self, x: &[f32]) -> usize {
        self.run(select::CountNonzero(x))
    }

    /// Softmax in place: `x[i] = e^(x[i] - max) / sum`. Returns `max` and `sum`, from which
    /// `ln(sum) + max - x[i]` gives the negative log-likelihood of element `i`.
    pub fn softmax(&self, x: &mut [f32]) -> Partial {
        self.run(exp::Softmax { x })
    }

    /// Largest magnitude in `x`; NaNs are passed over; 0 when nothing is left.
    #[must_use]
    pub fn absmax(&self, x: &[f32]) -> f32 {
        self.run(quantize::AbsMax { x })
    }

    /// `out[i] = clamp(round_half_even(x[i] * scale), -127, 127)`; NaN gives -127.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn quantize(&self, x: &[f32], scale: f32, out: &mut [i8]) {
        assert_eq!(x.len(), out.len(), "one code for each element");
        self.run(quantize::Quantize { x, scale, out });
    }

    /// `out[i] = f32(sums[i]) * factor`, each of the two rounded once.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn scale(&self, sums: &[i32], factor: f32, out: &mut [f32]) {
        assert_eq!(sums.len(), out.len(), "one output for each sum");
        self.run(quantize::Scale { sums, factor, out });
    }

    /// Rotates each head of `x`, `n_heads x head_dim`, in pairs `(i, i + cos.len())`:
    /// `(x0 * cos - x1 * sin, x0 * sin + x1 * cos)`. Dimensions from `2 * cos.len()` on stay.
    ///
    /// # Panics
    /// If `cos` and `sin` differ in length, a head is shorter than `2 * cos.len()` or empty, or
    /// `x` is not a whole number of heads.
    pub fn rope_neox(&self, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        check_rope(x.len(), head_dim, cos.len(), sin.len());
        self.run(rope::RopeNeox { x, head_dim, cos, sin });
    }

    /// As [`rope_neox`](Self::rope_neox), in pairs `(2i, 2i + 1)`.
    ///
    /// # Panics
    /// As [`rope_neox`](Self::rope_neox).
    pub fn rope_interleaved(&self, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        check_rope(x.len(), head_dim, cos.len(), sin.len());
        self.run(rope::RopeInterleaved { x, head_dim, cos, sin });
    }

    /// Attention of the queries that share one key/value head over one block of its cache.
    ///
    /// `queries` and `out` are `n_queries x head_dim`, with `n_queries = partials.len()`, those of each of
    /// `n_positions` after those of the one before. For each
    /// query, `score[j] = (query . key[j]) * scale`, `p[j] = e^(score[j] - max)`, `j` from `first_key` to
    /// the keys its position sees; `out` gets the sum of `p[j] * value[j]`, not yet divided, and `partials` gets `max` and
    /// the sum of `p`. The bits do not depend on which queries are passed together.
    ///
    /// # Panics
    /// If a slice does not have the size given here and in [`CachedBlock`], or there is no query
    /// or no dimension.
    pub fn attention_block<E: CacheElement>(
        &self,
        queries: &[f32],
        scale: f32,
        block: CachedBlock<'_, E>,
        out: &mut [f32],
        partials: &mut [Partial],
    ) {
        let CachedBlock { first_key, n_keys, n_positions, .. } = block;
        assert!((1..=ATTENTION_BLOCK).contains(&n_keys), "1 to 256 keys");
        assert!(first_key < n_keys, "at least one key counts");
        assert!((1..=ATTENTION_BLOCK + 1 - n_keys).contains(&n_positions), "1 position or more, and keys for the last");
        assert!(!partials.is_empty() && !queries.is_empty(), "at least one query and dimension");
        assert_eq!(partials.len() % n_positions, 0, "as many queries of each position");
        assert_eq!(queries.len() % partials.len(), 0, "queries of one length");
        assert_eq!(queries.len(), out.len(), "one output for each query");
        let head_dim = queries.len() / partials.len();
        let last = n_keys + n_positions - 1;
        assert!(block.keys.len() / last.next_multiple_of(KEY_LANES) >= head_dim, "whole key blocks");
        assert!(block.values.len() / last >= head_dim, "a value for each key");
        self.run(attention::AttentionBlock {
            queries,
            scale,
            keys: block.keys,
            values: block.values,
            first_key,
            n_keys,
            n_positions,
            next: block.next,
            head_dim,
            out,
            partials,
        });
    }

    /// Joins the blocks of a context in order:
    /// `out = sum_b(outs[b] * e^(max[b] - max)) / sum_b(sum[b] * e^(max[b] - max))`.
    ///
    /// `partials` is `[block][query]`, `outs` is `[block][query][head_dim]`, `out` is
    /// `[query][head_dim]`: [`attention_block`](Self::attention_block)'s results, one after the
    /// other.
    ///
    /// # Panics
    /// If `n_queries` is 0, `out` or `partials` is empty, or a slice does not have the size given
    /// here.
    pub fn attention_join(&self, partials: &[Partial], outs: &[f32], n_queries: usize, out: &mut [f32]) {
        assert!(n_queries > 0 && !out.is_empty(), "at least one query and dimension");
        assert!(!partials.is_empty(), "at least one block");
        assert_eq!(out.len() % n_queries, 0, "outputs of one length");
        assert_eq!(partials.len() % n_queries, 0, "as many blocks for each query");
        let size = (partials.len() / n_queries).checked_mul(out.len());
        assert_eq!(Some(outs.len()), size, "an output for each block and query");
        self.run(attention::AttentionJoin { partials, outs, n_queries, out });
    }

    /// Writes a key of `head_dim` elements into place `position` (below [`KEY_LANES`]) of one key
    /// block, `head_dim x KEY_LANES`, rounded to what the cache stores.
    ///
    /// # Panics
    /// If the block does not have that size or the position is too large.
    pub fn store_key<E: CacheElement>(&self, key: &[f32], position: usize, block: &mut [E]) {
        assert!(position < KEY_LANES, "a position within the key block");
        assert_eq!(Some(block.len()), key.len().checked_mul(KEY_LANES), "head_dim x 32 elements");
        let mut stored = [E::zeroed(); 64];
        for (key, lanes) in key.chunks(64).zip(block.chunks_mut(64 * KEY_LANES)) {
            let stored = &mut stored[..key.len()];
            E::narrow(self, key, stored);
            for (element, lanes) in stored.iter().zip(lanes.chunks_exact_mut(KEY_LANES)) {
                lanes[position] = *element;
            }
        }
    }

    /// Writes a value of `head_dim` elements, rounded to what the cache stores.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn store_value<E: CacheElement>(&self, value: &[f32], out: &mut [E]) {
        E::narrow(self, value, out);
    }
}

/// Cosines and sines of the rotary embedding at `position`: pair `i` of `d = 2 * cos.len()` rotated
/// dimensions turns by `position * base^(-2i / d) / factors[i]`. Computed in `f64`.
///
/// # Panics
/// If the slices differ in length.
pub fn rope_table(position: f64, base: f32, factors: Option<&[f32]>, cos: &mut [f32], sin: &mut [f32]) {
    assert_eq!(cos.len(), sin.len(), "a sine for each cosine");
    if let Some(factors) = factors {
        assert_eq!(cos.len(), factors.len(), "a factor for each pair");
    }
    rope::table(position, base, factors, cos, sin);
}

fn check_rope(len: usize, head_dim: usize, cos: usize, sin: usize) {
    assert_eq!(cos, sin, "a sine for each cosine");
    assert!(head_dim > 0 && cos <= head_dim / 2, "the rotated dimensions fit in a head");
    assert_eq!(len % head_dim, 0, "whole heads");
}
