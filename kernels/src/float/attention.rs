//! Attention of one position or of neighbouring ones over a cache of halves or singles, in blocks of 256 keys.
//!
//! **Algorithm.** A block of keys yields, for one query, the maximum `m` of its scores, the sum of
//! `p[j] = exp(score[j] - m)` and the sum of `p[j] * value[j]`. Blocks are then joined in order,
//! each scaled by `exp(m - M)`, `M` being the largest maximum. Blocks are cut by position in the
//! sequence, never by thread or batch, so who computed a block leaves no trace in the bits.
//! Source: the block-wise softmax of Milakov and Gimelshein, "Online normalizer calculation for
//! softmax", 2018.
//!
//! **Order.** Keys are stored as `[dimension][32 keys]`, so that lanes are different scores:
//! `score[j] = sum over d of query[d] * key[d][j]`, in order from `+0.0`, then times the scale.
//! Values are stored as `[key][dimension]`, so that lanes are different dimensions:
//! `out[d] = sum over j of p[j] * value[j][d]`, in order from `+0.0`. Neither needs a tree. The
//! sum of `p` and the maximum run in 32 lanes (see `lanes`). Where a sliding window hides the first keys of
//! a block, `j` and the lanes count from the first key in sight: what is hidden is not there.
//!
//! **Several queries.** Query heads that share a key head share the conversion of keys and values
//! to `f32`, and so do those of neighbouring positions, of which each sees a key more than the one before: what all see
//! is read for all together, the few keys behind it for each. Four queries by 16 lanes, two by 32 and one by 32 are
//! compiled apart: eight AVX2 registers of sums, or four; with AVX-512 sixteen by 16 and eight by 32 too. As lanes are
//! independent, all give the same bits.

use super::exp::{exp, exponentials};
use super::lanes::{Operation, Simd, UNIT, Unit, larger};
use super::{ATTENTION_BLOCK, FloatKernels, KEY_LANES, Partial};
use crate::ask::{Ask, IntoL1};

/// How one number of the cache is stored; [`super::CacheElement`] is its public face.
pub trait Element: bytemuck::Pod {
    /// Sixteen of them as `f32`.
    #[allow(private_interfaces, private_bounds)]
    fn widen<S: Simd>(simd: S, unit: &[Self; UNIT]) -> S::Vector;

    /// Rounds to nearest even.
    fn narrow(kernels: &FloatKernels, x: &[f32], out: &mut [Self]);
}

/// IEEE half precision, as bits.
impl Element for u16 {
    #[allow(private_interfaces, private_bounds)]
    #[inline(always)]
    fn widen<S: Simd>(simd: S, unit: &[u16; UNIT]) -> S::Vector {
        simd.widen_f16(bytemuck::cast_ref(unit))
    }

    fn narrow(kernels: &FloatKernels, x: &[f32], out: &mut [u16]) {
        kernels.narrow_f16(x, out);
    }
}

impl Element for f32 {
    #[allow(private_interfaces, private_bounds)]
    #[inline(always)]
    fn widen<S: Simd>(simd: S, unit: &Unit) -> S::Vector {
        simd.load(unit)
    }

    fn narrow(_: &FloatKernels, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
    }
}

/// All queries against one block of keys.
pub(super) struct AttentionBlock<'a, E> {
    /// `n_queries x head_dim`.
    pub queries: &'a [f32],
    pub scale: f32,
    /// `[key block][dimension][32]`.
    pub keys: &'a [E],
    /// `[key][dimension]`.
    pub values: &'a [E],
    /// The first key that counts.
    pub first_key: usize,
    /// Keys that the queries of the first position see.
    pub n_keys: usize,
    /// Positions, as many queries of each.
    pub n_positions: usize,
    /// What memory is asked for beside these.
    pub next: [&'a [E]; 2],
    pub head_dim: usize,
    /// `n_queries x head_dim`.
    pub out: &'a mut [f32],
    /// One for each query.
    pub partials: &'a mut [Partial],
}

impl<E: Element> Operation for AttentionBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let n = self.partials.len();
        let mut first = 0;
        while S::MANY_SUMS && n - first >= 16 {
            self.group::<S, 16, 1>(simd, first);
            first += 16;
        }
        while S::MANY_SUMS && n - first >= 8 {
            self.group::<S, 8, 2>(simd, first);
            first += 8;
        }
        while n - first >= 4 {
            if S::MANY_SUMS {
                self.group::<S, 4, 2>(simd, first);
            } else {
                self.group::<S, 4, 1>(simd, first);
            }
            first += 4;
        }
        if n - first >= 2 {
            self.group::<S, 2, 2>(simd, first);
            first += 2;
        }
        if n - first == 1 {
            self.group::<S, 1, 2>(simd, first);
        }
    }
}

impl<E: Element> AttentionBlock<'_, E> {
    /// Where the keys end that query `q` sees.
    #[inline(always)]
    fn end(&self, q: usize) -> usize {
        self.n_keys + q / (self.partials.len() / self.n_positions)
    }

    /// `QUERIES` queries from `first` on, `UNITS` units of lanes at a time.
    #[inline(always)]
    fn group<S: Simd, const QUERIES: usize, const UNITS: usize>(&mut self, simd: S, first: usize) {
        let dim = self.head_dim;
        let mut queries: [&[f32]; QUERIES] = [&[]; QUERIES];
        for (q, query) in queries.iter_mut().enumerate() {
            *query = &self.queries[(first + q) * dim..(first + q + 1) * dim];
        }
        let mut weights = [[0.0f32; ATTENTION_BLOCK]; QUERIES];
        let ends: [usize; QUERIES] = core::array::from_fn(|q| self.end(first + q));
        self.scores::<S, QUERIES, UNITS>(simd, queries, ends[QUERIES - 1], &mut weights);

        for (q, weights) in weights.iter_mut().enumerate() {
            let weights = &mut weights[self.first_key..ends[q]];
            for score in weights.iter_mut() {
                *score *= self.scale;
            }
            self.partials[first + q] = exponentials(simd, weights);
        }

        let whole = dim / UNIT;
        let mut unit = 0;
        while unit + UNITS <= whole {
            self.weighted_sum::<S, QUERIES, UNITS>(simd, &weights, &ends, first, unit);
            unit += UNITS;
        }
        while unit < whole {
            self.weighted_sum::<S, QUERIES, 1>(simd, &weights, &ends, first, unit);
            unit += 1;
        }
        if !dim.is_multiple_of(UNIT) {
            self.weighted_sum_tail(simd, &weights, &ends, first);
        }
    }

    /// Unscaled scores of the keys before `n_keys`; lanes before the first key and past the last hold whatever the cache
    /// holds there, or nothing.
    #[inline(always)]
    fn scores<S: Simd, const QUERIES: usize, const UNITS: usize>(
        &self,
        simd: S,
        queries: [&[f32]; QUERIES],
        n_keys: usize,
        scores: &mut [[f32; ATTENTION_BLOCK]; QUERIES],
    ) {
        let dim = self.head_dim;
        let units: &[[E; UNIT]] = self.keys.as_chunks().0;
        let in_sight = self.first_key / KEY_LANES..n_keys.div_ceil(KEY_LANES);
        let blocks = units.as_chunks::<{ KEY_LANES / UNIT }>().0[in_sight.start * dim..].chunks_exact(dim);
        for (b, block) in in_sight.zip(blocks) {
            // Lines of the values of these keys, which come next, and of the next 32 keys: as many halves as there are lines.
            let values = self.values.as_ptr().wrapping_add(b * KEY_LANES * dim);
            let behind = self.keys.as_ptr().wrapping_add((b + 1) * KEY_LANES * dim);
            let next = self.next.map(|next| (!next.is_empty()).then_some(next.as_ptr()));
            let next = if b + 1 < n_keys.div_ceil(KEY_LANES) { [Some(behind), None] } else { next };
            for part in (0..KEY_LANES / UNIT).step_by(UNITS) {
                let mut sums = [[simd.splat(0.0); UNITS]; QUERIES];
                for d in 0..dim {
                    if part == 0 {
                        IntoL1::ask(values.wrapping_add(d * KEY_LANES));
                    }
                    // With several parts in the last of them, else all at once.
                    if part + UNITS == KEY_LANES / UNIT {
                        for next in next.into_iter().flatten() {
                            IntoL1::ask(next.wrapping_add(d * KEY_LANES));
                        }
                    }
                    for u in 0..UNITS {
                        let keys = E::widen(simd, &block[d][part + u]);
                        for q in 0..QUERIES {
                            let query = simd.splat(queries[q][d]);
                            sums[q][u] = simd.add_product(sums[q][u], query, keys);
                        }
                    }
                }
                for q in 0..QUERIES {
                    let from = b * KEY_LANES + part * UNIT;
                    put(simd, &sums[q], &mut scores[q][from..from + UNITS * UNIT]);
                }
            }
        }
    }

    /// `UNITS` units of dimensions of the outputs.
    #[inline(always)]
    fn weighted_sum<S: Simd, const QUERIES: usize, const UNITS: usize>(
        &mut self,
        simd: S,
        weights: &[[f32; ATTENTION_BLOCK]; QUERIES],
        ends: &[usize; QUERIES],
        first: usize,
        unit: usize,
    ) {
        let dim = self.head_dim;
        let lanes = UNIT * unit..UNIT * (unit + UNITS);
        let mut sums = [[simd.splat(0.0); UNITS]; QUERIES];
        let mut rows = (self.first_key..ends[QUERIES - 1]).zip(self.values[self.first_key * dim..].chunks_exact(dim));
        for (j, row) in rows.by_ref().take(ends[0] - self.first_key) {
            let units: &[[E; UNIT]] = row[lanes.clone()].as_chunks().0;
            for u in 0..UNITS {
                let values = E::widen(simd, &units[u]);
                for q in 0..QUERIES {
                    let weight = simd.splat(weights[q][j]);
                    sums[q][u] = simd.add_product(sums[q][u], weight, values);
                }
            }
        }
        // Keys that only later positions see.
        for (j, row) in rows {
            let units: &[[E; UNIT]] = row[lanes.clone()].as_chunks().0;
            for u in 0..UNITS {
                let values = E::widen(simd, &units[u]);
                for q in 0..QUERIES {
                    if j < ends[q] {
                        sums[q][u] = simd.add_product(sums[q][u], simd.splat(weights[q][j]), values);
                    }
                }
            }
        }
        for (q, sums) in sums.iter().enumerate() {
            let from = (first + q) * dim + unit * UNIT;
            put(simd, sums, &mut self.out[from..from + UNITS * UNIT]);
        }
    }

    /// The last dimensions, fewer than a unit.
    #[inline(always)]
    fn weighted_sum_tail<S: Simd, const QUERIES: usize>(
        &mut self,
        simd: S,
        weights: &[[f32; ATTENTION_BLOCK]; QUERIES],
        ends: &[usize; QUERIES],
        first: usize,
    ) {
        let dim = self.head_dim;
        let from = dim - dim % UNIT;
        let mut sums = [simd.splat(0.0); QUERIES];
        let rows = self.values[self.first_key * dim..].chunks_exact(dim);
        for (j, row) in (self.first_key..ends[QUERIES - 1]).zip(rows) {
            let mut padded = [E::zeroed(); UNIT];
            padded[..dim - from].copy_from_slice(&row[from..]);
            let values = E::widen(simd, &padded);
            for q in 0..QUERIES {
                if j < ends[q] {
                    sums[q] = simd.add_product(sums[q], simd.splat(weights[q][j]), values);
                }
            }
        }
        for (q, &sums) in sums.iter().enumerate() {
            let out = &mut self.out[(first + q) * dim..(first + q + 1) * dim];
            out[from..].copy_from_slice(&simd.store(sums)[..dim - from]);
        }
    }
}

/// Writes vectors one after the other.
#[inline(always)]
fn put<S: Simd>(simd: S, vectors: &[S::Vector], out: &mut [f32]) {
    let (units, _): (&mut [Unit], _) = out.as_chunks_mut();
    for (unit, &vector) in units.iter_mut().zip(vectors) {
        *unit = simd.store(vector);
    }
}

/// Joins the blocks of each query.
pub(super) struct AttentionJoin<'a> {
    /// `[block][query]`.
    pub partials: &'a [Partial],
    /// `[block][query][head_dim]`.
    pub outs: &'a [f32],
    pub n_queries: usize,
    /// `[query][head_dim]`.
    pub out: &'a mut [f32],
}

impl Operation for AttentionJoin<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let n = self.n_queries;
        let dim = self.out.len() / n;
        for (q, out) in self.out.chunks_exact_mut(dim).enumerate() {
            let partials = self.partials[q..].iter().step_by(n);
            let max = partials.clone().fold(f32::NEG_INFINITY, |max, partial| larger(max, partial.max));
            let mut total = 0.0;
            out.fill(0.0);
            let blocks = self.outs.chunks_exact(dim).skip(q).step_by(n);
            for (partial, block) in partials.zip(blocks) {
                let factor = exp(partial.max - max);
                total += partial.sum * factor;
                for (out, &x) in out.iter_mut().zip(block) {
                    *out += x * factor;
                }
            }
            for out in out.iter_mut() {
                *out /= total;
            }
        }
    }
}
