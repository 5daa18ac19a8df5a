//! Attention over the cache, shared out among threads.
//!
//! Each block of the cache is attended to alone and the blocks are then joined in order, so it does
//! not matter who computes which. A prompt has work for all threads in its tokens and heads; a single
//! token after a long context has it in the blocks.
//!
//! Queries and keys come as they were multiplied. Who attends norms and rotates its queries first; who stores a key
//! does the same with it. On one thread that would take as long as attention itself, while all others wait.
//!
//! Neighbouring tokens of a prompt attend together, so that keys and values are converted once for all of them.

use crate::config::Config;
use crate::forward::Forward;
use crate::kv_cache::{HeadCache, Soon};
use crate::model::Inner;
use crate::profile::{Observer, Part};
use crate::rope::RopeTables;
use crate::states::States;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tritone_kernels::float::{ATTENTION_BLOCK, Partial};

/// Floats of a partial result beside the weighted sum of values: the largest score and the sum of exponentials.
const PARTIAL: usize = 2;

/// Queries that attend together at most: as many as the AVX-512 kernel of [`tritone_kernels::float`] has sums for. The others
/// take four after four of them.
const TOGETHER: usize = 16;

/// Work items for each thread at least, as later tokens have more keys to attend to.
const ITEMS_PER_THREAD: usize = 4;

thread_local! {
    /// A key, or the queries of a key/value head, after norm and rotation.
    static ROTATED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// A value that lies in two pieces.
    static VALUE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What the blocks of a token's keys yield.
    static BLOCKS: RefCell<(Vec<f32>, Vec<Partial>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    /// Queries of several tokens.
    static QUERIES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What work on a layer's attention shares beside queries, keys and values.
struct Around {
    model: Arc<Inner>,
    rope: Arc<RopeTables>,
    layer: usize,
    /// That norms, rotating and storing, and attention took on all threads, if anyone wants to know.
    nanos: [AtomicU64; 3],
}

/// Neighbouring tokens of a span whose keys begin with the same one and end in the same block.
struct Run {
    span: usize,
    /// Among all tokens of the step.
    tokens: Range<usize>,
    /// Of the first one.
    position: usize,
}

/// The caches of a layer, `[span][key/value head]`, while threads share them.
type Caches = Vec<Vec<RwLock<HeadCache>>>;

impl<O: Observer> Forward<'_, O> {
    /// Attention with what a layer's three matrices made of its input: for each token its queries, keys and values, each
    /// `[head][head_dim]`. Keys and values are stored; the shape of the queries comes back.
    pub(crate) fn attention(&mut self, layer: usize, projected: States) -> States {
        let nanos = [const { AtomicU64::new(0) }; 3];
        let around = Around { model: Arc::clone(self.model), rope: Arc::clone(self.rope), layer, nanos };
        let single = self.spans.iter().all(|span| span.n_tokens == 1);
        let (around, out) = match self.spans.as_slice() {
            [span] if single && blocks(&keys(&self.model.config, layer, span.position)).len() > 1 => {
                let (around, projected) = self.store(around, projected);
                self.attention_by_blocks(around, projected)
            }
            // No token sees a key of this step but its own.
            _ if single => self.attention_by_tokens(around, projected),
            _ => {
                let (around, projected) = self.store(around, projected);
                self.attention_by_runs(around, projected)
            }
        };
        let [norms, rope, attention] = around.nanos.map(AtomicU64::into_inner);
        self.observer.lap_shared([(Part::Norms, norms), (Part::Rope, rope), (Part::Attention, attention)]);
        out
    }

    /// Stores all keys and values. A work item is a span and a key/value head.
    fn store(&mut self, around: Around, projected: States) -> (Around, States) {
        let n_kv_heads = self.model.config.n_kv_heads;
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
            move |(around, projected, caches, spans), items, _: &mut Vec<f32>| {
                for item in items {
                    let (span, kv_head) = (item / n_kv_heads, item % n_kv_heads);
                    let (first, positions) = &spans[span];
                    let mut cache = caches[span][kv_head].write().unwrap_or_else(PoisonError::into_inner);
                    for (token, position) in (*first..).zip(positions.clone()) {
                        around.store::<O>(&mut cache, position, projected, (token, kv_head));
                    }
                }
            },
            |_, _| {},
        );
        self.put_caches(around.layer, caches);
        (around, projected)
    }

    /// For one token of each span, whose own key and value are stored before: a work item is a token and a key/value head.
    fn attention_by_tokens(&mut self, around: Around, projected: States) -> (Around, States) {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.model.config;
        let width = n_heads / n_kv_heads * head_dim;
        let n_tokens = projected.n_tokens();
        let positions: Vec<usize> = self.spans.iter().map(|span| span.position).collect();
        let caches = self.take_caches(around.layer);
        let buffers = self.buffers();
        let ((around, projected, caches, _), outputs) = self.pool.run_kept(
            buffers,
            (around, projected, caches, positions),
            n_tokens * n_kv_heads,
            1,
            move |(around, projected, caches, positions), items, out: &mut Vec<f32>| {
                for item in items {
                    let (token, kv_head) = (item / n_kv_heads, item % n_kv_heads);
                    let position = positions[token];
                    let cache = &caches[token][kv_head];
                    {
                        let mut cache = cache.write().unwrap_or_else(PoisonError::into_inner);
                        cache.ask(&around.keys(position));
                        around.store::<O>(&mut cache, position, projected, (token, kv_head));
                    }
                    let start = out.len();
                    out.resize(start + width, 0.0);
                    let cache = cache.read().unwrap_or_else(PoisonError::into_inner);
                    let (following, next_head) = ((item + 1) / n_kv_heads, (item + 1) % n_kv_heads);
                    let following = caches.get(following).zip(positions.get(following).copied());
                    // Whoever stores there now has it in his cache.
                    let following = following.and_then(|(heads, at)| Some((heads[next_head].try_read().ok()?, at)));
                    let next = following.as_ref().map_or([None; 2], |(cache, at)| cache.soon(&around.keys(*at)));
                    around.attend::<O>((&cache, next), position, projected, (token, kv_head), &mut out[start..]);
                }
            },
        );
        self.give_all(projected.into_buffers());
        self.put_caches(around.layer, caches);
        // Heads that share a key/value head are neighbours, so items are in the order of the outputs.
        (around, States::of_tokens(outputs, n_tokens, n_heads * head_dim, width, |item| [item]))
    }

    /// For prompts, whose keys and values are stored: a work item is a run of tokens and a key/value head.
    fn attention_by_runs(&mut self, around: Around, projected: States) -> (Around, States) {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.model.config;
        let width = n_heads / n_kv_heads * head_dim;
        let n_tokens = projected.n_tokens();
        let runs = self.runs(around.layer, n_tokens);
        let n_items = runs.len() * n_kv_heads;
        let caches = self.take_caches(around.layer);
        let buffers = self.buffers();
        let ((around, projected, caches, runs), outputs) = self.pool.run_kept(
            buffers,
            (around, projected, caches, runs),
            n_items,
            1,
            move |(around, projected, caches, runs), items, out: &mut Vec<f32>| {
                for item in items {
                    let (run, kv_head) = (&runs[item / n_kv_heads], item % n_kv_heads);
                    let (following, next_head) = ((item + 1) / n_kv_heads, (item + 1) % n_kv_heads);
                    let following = runs.get(following).and_then(|run| {
                        Some((caches[run.span][next_head].try_read().ok()?, around.keys(run.position)))
                    });
                    let next = following.as_ref().map_or([None; 2], |(cache, keys)| cache.soon(keys));
                    let start = out.len();
                    out.resize(start + run.tokens.len() * width, 0.0);
                    let cache = caches[run.span][kv_head].read().unwrap_or_else(PoisonError::into_inner);
                    around.attend_run::<O>((&cache, next), run, projected, kv_head, &mut out[start..]);
                }
            },
        );
        self.give_all(projected.into_buffers());
        self.put_caches(around.layer, caches);
        let pieces = |item: usize| {
            let (run, kv_head) = (&runs[item / n_kv_heads], item % n_kv_heads);
            run.tokens.clone().map(move |token| token * n_kv_heads + kv_head)
        };
        (around, States::of_tokens(outputs, n_tokens, n_heads * head_dim, width, pieces))
    }

    /// All tokens of the step in runs.
    fn runs(&self, layer: usize, n_tokens: usize) -> Vec<Run> {
        let config = &self.model.config;
        let most = TOGETHER / (config.n_heads / config.n_kv_heads);
        let most = most.min(n_tokens * config.n_kv_heads / (ITEMS_PER_THREAD * self.pool.n_threads())).max(1);
        let mut runs: Vec<Run> = Vec::new();
        let mut token = 0;
        for (i, span) in self.spans.iter().enumerate() {
            for position in span.position..span.position + span.n_tokens {
                match runs.last_mut() {
                    Some(run)
                        if run.span == i
                            && run.tokens.len() < most
                            && keys(config, layer, run.position).start == keys(config, layer, position).start
                            && run.position / ATTENTION_BLOCK == position / ATTENTION_BLOCK =>
                    {
                        run.tokens.end += 1;
                    }
                    _ => runs.push(Run { span: i, tokens: token..token + 1, position }),
                }
                token += 1;
            }
        }
        runs
    }

    /// For one token: a work item is a key/value head and a block.
    fn attention_by_blocks(&mut self, around: Around, projected: States) -> (Around, States) {
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
        let (around, cache, projected) = self.pool.run(
            (around, cache, projected),
            n_kv_heads * n_blocks,
            1,
            move |(around, cache, projected), items, out: &mut Vec<f32>| {
                let mut partials = vec![Partial::default(); group];
                for item in items {
                    let (kv_head, b) = (item / n_blocks, first_block + item % n_blocks);
                    let start = out.len();
                    out.resize(start + width, 0.0);
                    around.with_queries::<O>(position, projected, (0, kv_head), |queries| {
                        let began = O::now();
                        let model = &around.model;
                        let (following, block) = ((item + 1) / n_blocks, first_block + (item + 1) % n_blocks);
                        let next = cache.get(following).map(|head| (&*head.blocks[block], 0));
                        let cache = (&cache[kv_head], [next, None]);
                        attend_block(model, cache, b, (&keys, 1), queries, &mut out[start..], &mut partials);
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
        self.give_all(projected.into_buffers());
        let mut joined = self.scratch.take(n_heads * head_dim);
        let heads = outs.chunks_exact(n_blocks * width).zip(partials.chunks_exact(n_blocks * group));
        for ((outs, partials), out) in heads.zip(joined.chunks_exact_mut(width)) {
            self.model.float.attention_join(partials, outs, group, out);
        }
        (around, States::whole(joined, n_heads * head_dim))
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
    /// Calls `then` with some columns of a token, a key or queries that share one, after the layer's norm of heads and
    /// rotated.
    fn with_rotated<O: Observer>(
        &self,
        is_key: bool,
        position: usize,
        (projected, token, columns): (&States, usize, Range<usize>),
        then: impl FnOnce(&[f32]),
    ) {
        let Inner { config, weights, float, .. } = &*self.model;
        ROTATED.with_borrow_mut(|rotated| {
            rotated.clear();
            projected.append(token, columns, rotated);
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

    /// The same with the queries of a token that share a key/value head.
    fn with_queries<O: Observer>(
        &self,
        position: usize,
        projected: &States,
        (token, kv_head): (usize, usize),
        then: impl FnOnce(&[f32]),
    ) {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.model.config;
        let width = n_heads / n_kv_heads * head_dim;
        let columns = kv_head * width..(kv_head + 1) * width;
        self.with_rotated::<O>(false, position, (projected, token, columns), then);
    }

    /// Stores a token's key and value of one head.
    fn store<O: Observer>(
        &self,
        cache: &mut HeadCache,
        position: usize,
        projected: &States,
        (token, kv_head): (usize, usize),
    ) {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.model.config;
        let [key, value] = [n_heads, n_heads + n_kv_heads].map(|first| {
            let head = first + kv_head;
            head * head_dim..(head + 1) * head_dim
        });
        self.with_rotated::<O>(true, position, (projected, token, key), |key| {
            let began = O::now();
            VALUE.with_borrow_mut(|room| {
                let value = projected.columns(token, value, room);
                cache.store(&self.model.float, self.model.cache_type, position, key, value);
            });
            self.took::<O>(1, began);
        });
    }

    /// Attention of a token's queries that share a key/value head.
    fn attend<O: Observer>(
        &self,
        cache: (&HeadCache, [Soon<'_>; 2]),
        position: usize,
        projected: &States,
        head: (usize, usize),
        out: &mut [f32],
    ) {
        self.with_queries::<O>(position, projected, head, |queries| {
            self.attend_queries::<O>(cache, (position, 1), queries, out);
        });
    }

    /// Attention of all queries of a run that share a key/value head.
    fn attend_run<O: Observer>(
        &self,
        cache: (&HeadCache, [Soon<'_>; 2]),
        run: &Run,
        projected: &States,
        kv_head: usize,
        out: &mut [f32],
    ) {
        QUERIES.with_borrow_mut(|queries| {
            queries.clear();
            for (token, position) in run.tokens.clone().zip(run.position..) {
                self.with_queries::<O>(position, projected, (token, kv_head), |of_one| {
                    queries.extend_from_slice(of_one);
                });
            }
            self.attend_queries::<O>(cache, (run.position, run.tokens.len()), queries, out);
        });
    }

    /// Attention of the queries of neighbouring positions, the first and how many: each block alone, then joined in order.
    fn attend_queries<O: Observer>(
        &self,
        (cache, next): (&HeadCache, [Soon<'_>; 2]),
        (position, n_positions): (usize, usize),
        queries: &[f32],
        out: &mut [f32],
    ) {
        let model = &*self.model;
        let n_queries = queries.len() / model.config.head_dim;
        let began = O::now();
        BLOCKS.with_borrow_mut(|(outs, partials)| {
            let keys = self.keys(position);
            let blocks = blocks(&keys);
            let end = blocks.end;
            outs.resize(blocks.len() * queries.len(), 0.0);
            partials.resize(blocks.len() * n_queries, Partial::default());
            let per_block = outs.chunks_exact_mut(queries.len()).zip(partials.chunks_exact_mut(n_queries));
            for (b, (out, partials)) in blocks.zip(per_block) {
                let next = if b + 1 < end { [Some((&*cache.blocks[b + 1], 0)), None] } else { next };
                attend_block(model, (cache, next), b, (&keys, n_positions), queries, out, partials);
            }
            model.float.attention_join(partials, outs, n_queries, out);
        });
        self.took::<O>(2, began);
    }

    /// The positions that the token at `position` sees.
    fn keys(&self, position: usize) -> Range<usize> {
        keys(&self.model.config, self.layer, position)
    }

    /// Time that one of [`Around::nanos`] took.
    fn took<O: Observer>(&self, what: usize, began: O::Moment) {
        let nanos = O::nanos_since(began);
        if nanos > 0 {
            self.nanos[what].fetch_add(nanos, Ordering::Relaxed);
        }
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

/// Attention of neighbouring positions, the first of which sees `keys`, over those that lie in block `b`; `next` is used after it.
/// The keys of all end in the same block.
fn attend_block(
    model: &Inner,
    (cache, next): (&HeadCache, [Soon<'_>; 2]),
    b: usize,
    (keys, n_positions): (&Range<usize>, usize),
    queries: &[f32],
    out: &mut [f32],
    partials: &mut [Partial],
) {
    let first = b * ATTENTION_BLOCK;
    let within = keys.start.max(first) - first..(keys.end - first).min(ATTENTION_BLOCK);
    // All see all keys of the blocks before the last.
    let n_positions = if keys.end > first + ATTENTION_BLOCK { 1 } else { n_positions };
    let sight = (within, n_positions, next);
    cache.blocks[b].attend(&model.float, sight, model.config.attention_scale, queries, out, partials);
}
