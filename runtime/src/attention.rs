//! Attention over the cache, shared out among threads.
//!
//! Each block of the cache is attended to alone and the blocks are then joined in order, so it does
//! not matter who computes which. A prompt has work for all threads in its tokens and heads; a single
//! token after a long context has it in the blocks.

use crate::config::Config;
use crate::forward::Forward;
use crate::kv_cache::HeadCache;
use crate::model::Inner;
use crate::profile::Observer;
use std::ops::Range;
use std::sync::Arc;
use tritone_kernels::float::{ATTENTION_BLOCK, Partial};

/// Floats of a partial result beside the weighted sum of values: the largest score and the sum of exponentials.
const PARTIAL: usize = 2;

impl<O: Observer> Forward<'_, O> {
    /// Attention of the queries `[token][head][head_dim]`; the same shape comes back.
    pub(crate) fn attention(&mut self, layer: usize, q: Vec<f32>) -> Vec<f32> {
        if let [span] = self.spans.as_slice()
            && span.n_tokens == 1
        {
            let keys = keys(&self.model.config, layer, span.position);
            return self.attention_by_blocks(layer, keys, q);
        }
        self.attention_by_tokens(layer, q)
    }

    /// A work item is a token and a key/value head.
    fn attention_by_tokens(&mut self, layer: usize, q: Vec<f32>) -> Vec<f32> {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.model.config;
        let group = n_heads / n_kv_heads;
        let mut out = self.scratch.take(q.len());
        // The cache of each token, and which keys it sees.
        let mut tokens = Vec::with_capacity(q.len() / (n_heads * head_dim));
        let mut caches = Vec::with_capacity(self.spans.len());
        for (i, span) in self.spans.iter_mut().enumerate() {
            let positions = span.position..span.position + span.n_tokens;
            tokens.extend(positions.map(|position| (i, keys(&self.model.config, layer, position))));
            caches.push(std::mem::take(&mut span.cache.layers[layer]));
        }
        let n_tokens = tokens.len();
        let input = (Arc::clone(self.model), caches, tokens, q);
        let buffers = self.buffers();
        let ((_, caches, _, q), buffers) = self.pool.run_in(
            buffers,
            input,
            n_tokens * n_kv_heads,
            1,
            move |(model, caches, tokens, q), items, out: &mut Vec<f32>| {
                for item in items {
                    let (token, kv_head) = (item / n_kv_heads, item % n_kv_heads);
                    let (sequence, keys) = &tokens[token];
                    let first = (token * n_heads + kv_head * group) * head_dim;
                    let start = out.len();
                    out.resize(start + group * head_dim, 0.0);
                    let queries = &q[first..first + group * head_dim];
                    attend(model, &caches[*sequence][kv_head], keys, queries, &mut out[start..]);
                }
            },
            |items, values| {
                for (item, part) in items.zip(values.chunks(group * head_dim)) {
                    let first = (item / n_kv_heads * n_heads + item % n_kv_heads * group) * head_dim;
                    out[first..first + part.len()].copy_from_slice(part);
                }
            },
        );
        self.give_all(buffers);
        self.scratch.give(q);
        for (span, cache) in self.spans.iter_mut().zip(caches) {
            span.cache.layers[layer] = cache;
        }
        out
    }

    /// For one token: a work item is a key/value head and a block.
    fn attention_by_blocks(&mut self, layer: usize, keys: Range<usize>, q: Vec<f32>) -> Vec<f32> {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.model.config;
        let group = n_heads / n_kv_heads;
        let width = group * head_dim;
        let blocks = blocks(&keys);
        let (first_block, n_blocks) = (blocks.start, blocks.len());
        // Of each head: `[block][query][head_dim]` and `[block][query]`.
        let mut outs = vec![0.0; n_kv_heads * n_blocks * width];
        let mut partials = vec![Partial::default(); n_kv_heads * n_blocks * group];
        let cache = std::mem::take(&mut self.spans[0].cache.layers[layer]);
        let input = (Arc::clone(self.model), cache, q);
        let (_, cache, mut q) = self.pool.run(
            input,
            n_kv_heads * n_blocks,
            1,
            move |(model, cache, q), items, out: &mut Vec<f32>| {
                let mut partials = vec![Partial::default(); group];
                for item in items {
                    let (kv_head, b) = (item / n_blocks, first_block + item % n_blocks);
                    let start = out.len();
                    out.resize(start + width, 0.0);
                    let queries = &q[kv_head * width..(kv_head + 1) * width];
                    attend_block(model, &cache[kv_head], b, &keys, queries, &mut out[start..], &mut partials);
                    out.extend(partials.iter().flat_map(|partial| [partial.max, partial.sum]));
                }
            },
            |items, values| {
                for (item, part) in items.zip(values.chunks(width + PARTIAL * group)) {
                    let (out, rest) = part.split_at(width);
                    outs[item * width..(item + 1) * width].copy_from_slice(out);
                    let places = &mut partials[item * group..(item + 1) * group];
                    for (place, pair) in places.iter_mut().zip(rest.as_chunks::<PARTIAL>().0) {
                        *place = Partial { max: pair[0], sum: pair[1] };
                    }
                }
            },
        );
        self.spans[0].cache.layers[layer] = cache;
        let heads = outs.chunks_exact(n_blocks * width).zip(partials.chunks_exact(n_blocks * group));
        for ((outs, partials), out) in heads.zip(q.chunks_exact_mut(width)) {
            self.model.float.attention_join(partials, outs, group, out);
        }
        q
    }
}

/// The positions that the token at `position` sees in a layer.
fn keys(config: &Config, layer: usize, position: usize) -> Range<usize> {
    let end = position + 1;
    end.saturating_sub(config.window_of(layer).unwrap_or(end))..end
}

/// The blocks in which some keys lie.
fn blocks(keys: &Range<usize>) -> Range<usize> {
    keys.start / ATTENTION_BLOCK..keys.end.div_ceil(ATTENTION_BLOCK)
}

/// Attention of a few query heads that share one key/value head over some of its keys: each block alone, then joined
/// in order.
fn attend(model: &Inner, cache: &HeadCache, keys: &Range<usize>, queries: &[f32], out: &mut [f32]) {
    let n_queries = queries.len() / model.config.head_dim;
    let blocks = blocks(keys);
    let mut outs = vec![0.0; blocks.len() * queries.len()];
    let mut partials = vec![Partial::default(); blocks.len() * n_queries];
    let per_block = outs.chunks_exact_mut(queries.len()).zip(partials.chunks_exact_mut(n_queries));
    for (b, (out, partials)) in blocks.zip(per_block) {
        attend_block(model, cache, b, keys, queries, out, partials);
    }
    model.float.attention_join(&partials, &outs, n_queries, out);
}

/// Attention over those of some keys that lie in block `b`.
fn attend_block(
    model: &Inner,
    cache: &HeadCache,
    b: usize,
    keys: &Range<usize>,
    queries: &[f32],
    out: &mut [f32],
    partials: &mut [Partial],
) {
    let first = b * ATTENTION_BLOCK;
    let within = keys.start.max(first) - first..(keys.end - first).min(ATTENTION_BLOCK);
    cache.blocks[b].attend(&model.float, within, model.config.attention_scale, queries, out, partials);
}
