//! Attention over the cache, shared out among threads.
//!
//! Each block of the cache is attended to alone and the blocks are then joined in order, so it does
//! not matter who computes which. A prompt has work for all threads in its tokens and heads; a single
//! token after a long context has it in the blocks.
//!
//! Queries and keys come as they were multiplied. Who attends norms and rotates its queries first; who stores a key
//! does the same with it. On one thread that would take as long as attention itself, while all others wait.

use crate::config::Config;
use crate::forward::Forward;
use crate::kv_cache::HeadCache;
use crate::model::Inner;
use crate::profile::{Observer, Part};
use crate::rope::RopeTables;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tritone_kernels::float::{ATTENTION_BLOCK, Partial};

/// Floats of a partial result beside the weighted sum of values: the largest score and the sum of exponentials.
const PARTIAL: usize = 2;

thread_local! {
    /// A key, or the queries of a key/value head, after norm and rotation.
    static ROTATED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What the blocks of a token's keys yield.
    static BLOCKS: RefCell<(Vec<f32>, Vec<Partial>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// What work on a layer's attention shares beside queries, keys and values.
struct Around {
    model: Arc<Inner>,
    rope: Arc<RopeTables>,
    layer: usize,
    /// That norms, rotating and storing, and attention took on all threads, if anyone wants to know.
    nanos: [AtomicU64; 3],
}

/// The caches of a layer, `[span][key/value head]`, while threads share them.
type Caches = Vec<Vec<RwLock<HeadCache>>>;

impl<O: Observer> Forward<'_, O> {
    /// Attention with what a layer's three matrices made of its input: queries, keys and values,
    /// `[token][head][head_dim]`. Keys and values are stored; the shape of the queries comes back.
    pub(crate) fn attention(&mut self, layer: usize, projected: [Vec<f32>; 3]) -> Vec<f32> {
        let nanos = [const { AtomicU64::new(0) }; 3];
        let around = Around { model: Arc::clone(self.model), rope: Arc::clone(self.rope), layer, nanos };
        let single = self.spans.iter().all(|span| span.n_tokens == 1);
        let (around, out) = match self.spans.as_slice() {
            [span] if single && blocks(&keys(&self.model.config, layer, span.position)).len() > 1 => {
                let (around, [q, k, v]) = self.store(around, projected);
                self.give_all(vec![k, v]);
                self.attention_by_blocks(around, q)
            }
            // No token sees a key of this step but its own.
            _ if single => self.attention_by_tokens(around, projected, true),
            _ => {
                let (around, projected) = self.store(around, projected);
                self.attention_by_tokens(around, projected, false)
            }
        };
        let [norms, rope, attention] = around.nanos.map(AtomicU64::into_inner);
        self.observer.lap_shared([(Part::Norms, norms), (Part::Rope, rope), (Part::Attention, attention)]);
        out
    }

    /// Stores all keys and values. A work item is a span and a key/value head.
    fn store(&mut self, around: Around, projected: [Vec<f32>; 3]) -> (Around, [Vec<f32>; 3]) {
        let Config { n_kv_heads, head_dim, .. } = self.model.config;
        let mut spans = Vec::with_capacity(self.spans.len());
        let mut first = 0;
        for span in &self.spans {
            spans.push((first, span.position..span.position + span.n_tokens));
            first += span.n_tokens;
        }
        let caches = self.take_caches(around.layer);
        let n_items = spans.len() * n_kv_heads;
        // A single token is stored before another thread has heard of it.
        let grain = if first == 1 { n_items } else { 1 };
        let (around, projected, caches, _) = self.pool.run(
            (around, projected, caches, spans),
            n_items,
            grain,
            move |(around, [_, k, v], caches, spans), items, _: &mut Vec<f32>| {
                for item in items {
                    let (span, kv_head) = (item / n_kv_heads, item % n_kv_heads);
                    let (first, positions) = &spans[span];
                    let mut cache = caches[span][kv_head].write().unwrap_or_else(PoisonError::into_inner);
                    for (token, position) in (*first..).zip(positions.clone()) {
                        let at = (token * n_kv_heads + kv_head) * head_dim;
                        around.store::<O>(&mut cache, position, &k[at..at + head_dim], &v[at..at + head_dim]);
                    }
                }
            },
            |_, _| {},
        );
        self.put_caches(around.layer, caches);
        (around, projected)
    }

    /// A work item is a token and a key/value head. If it `stores`, the token's own key and value are stored before.
    fn attention_by_tokens(&mut self, around: Around, projected: [Vec<f32>; 3], stores: bool) -> (Around, Vec<f32>) {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.model.config;
        let width = n_heads / n_kv_heads * head_dim;
        let mut out = self.scratch.take(projected[0].len());
        // The cache of each token, and where it stands.
        let mut tokens = Vec::with_capacity(out.len() / (n_heads * head_dim));
        for (i, span) in self.spans.iter().enumerate() {
            tokens.extend((span.position..span.position + span.n_tokens).map(|position| (i, position)));
        }
        let caches = self.take_caches(around.layer);
        let n_items = tokens.len() * n_kv_heads;
        let buffers = self.buffers();
        let ((around, projected, caches, _), buffers) = self.pool.run_in(
            buffers,
            (around, projected, caches, tokens),
            n_items,
            1,
            move |(around, [q, k, v], caches, tokens), items, out: &mut Vec<f32>| {
                for item in items {
                    let (sequence, position) = tokens[item / n_kv_heads];
                    let cache = &caches[sequence][item % n_kv_heads];
                    if stores {
                        let at = item * head_dim..(item + 1) * head_dim;
                        let mut cache = cache.write().unwrap_or_else(PoisonError::into_inner);
                        around.store::<O>(&mut cache, position, &k[at.clone()], &v[at]);
                    }
                    let start = out.len();
                    out.resize(start + width, 0.0);
                    let cache = cache.read().unwrap_or_else(PoisonError::into_inner);
                    around.attend::<O>(&cache, position, &q[item * width..(item + 1) * width], &mut out[start..]);
                }
            },
            // Heads that share a key/value head are neighbours, so items are in the order of the outputs.
            |items, values| out[items.start * width..items.end * width].copy_from_slice(values),
        );
        self.give_all(buffers);
        self.give_all(projected.into());
        self.put_caches(around.layer, caches);
        (around, out)
    }

    /// For one token: a work item is a key/value head and a block.
    fn attention_by_blocks(&mut self, around: Around, q: Vec<f32>) -> (Around, Vec<f32>) {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.model.config;
        let group = n_heads / n_kv_heads;
        let width = group * head_dim;
        let position = self.spans[0].position;
        let keys = keys(&self.model.config, around.layer, position);
        let blocks = blocks(&keys);
        let (first_block, n_blocks) = (blocks.start, blocks.len());
        // Of each head: `[block][query][head_dim]` and `[block][query]`.
        let mut outs = vec![0.0; n_kv_heads * n_blocks * width];
        let mut partials = vec![Partial::default(); n_kv_heads * n_blocks * group];
        let cache = std::mem::take(&mut self.spans[0].cache.layers[around.layer]);
        let (around, cache, mut q) = self.pool.run(
            (around, cache, q),
            n_kv_heads * n_blocks,
            1,
            move |(around, cache, q), items, out: &mut Vec<f32>| {
                let mut partials = vec![Partial::default(); group];
                for item in items {
                    let (kv_head, b) = (item / n_blocks, first_block + item % n_blocks);
                    let start = out.len();
                    out.resize(start + width, 0.0);
                    let queries = &q[kv_head * width..(kv_head + 1) * width];
                    around.with_rotated::<O>(false, position, queries, |queries| {
                        let began = O::now();
                        let model = &around.model;
                        attend_block(model, &cache[kv_head], b, &keys, queries, &mut out[start..], &mut partials);
                        around.took::<O>(2, began);
                    });
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
        self.spans[0].cache.layers[around.layer] = cache;
        let heads = outs.chunks_exact(n_blocks * width).zip(partials.chunks_exact(n_blocks * group));
        for ((outs, partials), out) in heads.zip(q.chunks_exact_mut(width)) {
            self.model.float.attention_join(partials, outs, group, out);
        }
        (around, q)
    }

    fn take_caches(&mut self, layer: usize) -> Caches {
        let taken = self.spans.iter_mut().map(|span| std::mem::take(&mut span.cache.layers[layer]));
        taken.map(|heads| heads.into_iter().map(RwLock::new).collect()).collect()
    }

    fn put_caches(&mut self, layer: usize, caches: Caches) {
        for (span, heads) in self.spans.iter_mut().zip(caches) {
            let heads = heads.into_iter().map(|head| head.into_inner().unwrap_or_else(PoisonError::into_inner));
            span.cache.layers[layer] = heads.collect();
        }
    }
}

impl Around {
    /// Calls `then` with a key, or with queries that share one, after the layer's norm of heads and rotated.
    fn with_rotated<O: Observer>(&self, is_key: bool, position: usize, heads: &[f32], then: impl FnOnce(&[f32])) {
        let Inner { config, weights, float, .. } = &*self.model;
        ROTATED.with_borrow_mut(|rotated| {
            rotated.clear();
            rotated.extend_from_slice(heads);
            if let Some(norms) = &weights.layers[self.layer].qk_norms {
                let began = O::now();
                let weight = if is_key { &norms.k } else { &norms.q };
                float.rms_norm_heads(rotated, weight, config.rms_eps);
                self.took::<O>(0, began);
            }
            let began = O::now();
            let rope = self.rope.of(config.window_of(self.layer).is_some());
            rope.rotate(float, position, rotated, config.head_dim);
            self.took::<O>(1, began);
            then(rotated);
        });
    }

    /// Stores a token's key and value of one head.
    fn store<O: Observer>(&self, cache: &mut HeadCache, position: usize, key: &[f32], value: &[f32]) {
        self.with_rotated::<O>(true, position, key, |key| {
            let began = O::now();
            cache.store(&self.model.float, self.model.cache_type, position, key, value);
            self.took::<O>(1, began);
        });
    }

    /// Attention of a token's queries that share a key/value head: each block alone, then joined in order.
    fn attend<O: Observer>(&self, cache: &HeadCache, position: usize, queries: &[f32], out: &mut [f32]) {
        let model = &*self.model;
        let n_queries = queries.len() / model.config.head_dim;
        self.with_rotated::<O>(false, position, queries, |queries| {
            let began = O::now();
            BLOCKS.with_borrow_mut(|(outs, partials)| {
                let keys = keys(&model.config, self.layer, position);
                let blocks = blocks(&keys);
                outs.resize(blocks.len() * queries.len(), 0.0);
                partials.resize(blocks.len() * n_queries, Partial::default());
                let per_block = outs.chunks_exact_mut(queries.len()).zip(partials.chunks_exact_mut(n_queries));
                for (b, (out, partials)) in blocks.zip(per_block) {
                    attend_block(model, cache, b, &keys, queries, out, partials);
                }
                model.float.attention_join(partials, outs, n_queries, out);
            });
            self.took::<O>(2, began);
        });
    }

    /// Time that one of [`Around::nanos`] took.
    fn took<O: Observer>(&self, what: usize, began: O::Moment) {
        self.nanos[what].fetch_add(O::nanos_since(began), Ordering::Relaxed);
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
