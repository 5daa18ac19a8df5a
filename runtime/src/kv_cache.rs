//! Keys and values of the tokens seen so far, in half or single precision, in fixed blocks.
//!
//! One block holds [`ATTENTION_BLOCK`] positions of one key/value head of one layer, laid out as
//! the attention kernel reads it (`tritone_kernels::float`): keys in key blocks `[head_dim][32 keys]`, so that
//! keys are SIMD lanes, values as `[key][head_dim]`. Blocks begin at multiples of
//! [`ATTENTION_BLOCK`] from the first token, so a result never depends on how a prompt was cut.
//!
//! Blocks are counted references: a sequence that begins like another shares its blocks ([`KvCache::fork`]), and gets
//! a copy of one when it first writes to it.

use std::ops::Range;
use std::sync::Arc;
use tritone_kernels::ask;
use tritone_kernels::float::{ATTENTION_BLOCK, CacheElement, CachedBlock, FloatKernels, KEY_LANES, Partial};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// IEEE half precision, rounded to nearest even.
    #[default]
    F16,
    /// As computed; twice the memory.
    F32,
}

/// Keys and values of up to [`ATTENTION_BLOCK`] positions of one head.
#[derive(Clone, Debug)]
pub(crate) struct Pair<E> {
    keys: Box<[E]>,
    values: Box<[E]>,
}

impl<E: CacheElement> Pair<E> {
    fn new(head_dim: usize) -> Pair<E> {
        let zeros = || vec![E::zeroed(); ATTENTION_BLOCK * head_dim].into_boxed_slice();
        Pair { keys: zeros(), values: zeros() }
    }

    /// `within` is the position from the block's first.
    fn store(&mut self, float: &FloatKernels, within: usize, key: &[f32], value: &[f32]) {
        let head_dim = key.len();
        let key_block = KEY_LANES * head_dim;
        let start = within / KEY_LANES * key_block;
        float.store_key(key, within % KEY_LANES, &mut self.keys[start..start + key_block]);
        float.store_value(value, &mut self.values[within * head_dim..(within + 1) * head_dim]);
    }

    fn read<'a>(&'a self, keys: Range<usize>, n_positions: usize, next: [&'a [E]; 2]) -> CachedBlock<'a, E> {
        let (first_key, n_keys) = (keys.start, keys.end);
        CachedBlock { keys: &self.keys, values: &self.values, first_key, n_keys, n_positions, next }
    }

    /// The key block that holds key `within`.
    fn key_block(&self, within: usize) -> &[E] {
        let len = self.keys.len() / (ATTENTION_BLOCK / KEY_LANES);
        &self.keys[within / KEY_LANES * len..][..len]
    }
}

/// Keys that are used soon: a block and the place of one of its keys.
pub(crate) type Soon<'a> = Option<(&'a KvBlock, usize)>;

/// A block in one of the precisions.
#[derive(Clone, Debug)]
pub(crate) enum KvBlock {
    F16(Pair<u16>),
    F32(Pair<f32>),
}

impl KvBlock {
    /// Attention of neighbouring positions, the first of which sees `keys`; as [`FloatKernels::attention_block`]. Asks memory
    /// for what is used next.
    pub(crate) fn attend(
        &self,
        float: &FloatKernels,
        (keys, n_positions, next): (Range<usize>, usize, [Soon<'_>; 2]),
        scale: f32,
        queries: &[f32],
        out: &mut [f32],
        partials: &mut [Partial],
    ) {
        match self {
            KvBlock::F16(pair) => {
                let block = pair.read(keys, n_positions, next.map(|soon| key_block(soon, KvBlock::halves)));
                float.attention_block(queries, scale, block, out, partials);
            }
            KvBlock::F32(pair) => {
                let block = pair.read(keys, n_positions, next.map(|soon| key_block(soon, KvBlock::singles)));
                float.attention_block(queries, scale, block, out, partials);
            }
        }
    }

    fn halves(&self) -> Option<&Pair<u16>> {
        if let KvBlock::F16(pair) = self { Some(pair) } else { None }
    }

    fn singles(&self) -> Option<&Pair<f32>> {
        if let KvBlock::F32(pair) = self { Some(pair) } else { None }
    }
}

/// The key block of keys that are used soon; nothing if there is none, or none in this precision.
fn key_block<E: CacheElement>(soon: Soon<'_>, pair: impl Fn(&KvBlock) -> Option<&Pair<E>>) -> &[E] {
    soon.and_then(|(block, within)| Some(pair(block)?.key_block(within))).unwrap_or_default()
}

/// All blocks of one key/value head of one layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadCache {
    pub(crate) blocks: Vec<Arc<KvBlock>>,
}

impl HeadCache {
    /// What attention over some keys uses first: the block of the first one, and that in which the last one is stored.
    pub(crate) fn soon(&self, keys: &Range<usize>) -> [Soon<'_>; 2] {
        let [first, last] = [keys.start, keys.end - 1].map(|key| (key / ATTENTION_BLOCK, key % ATTENTION_BLOCK));
        let last = (first.0 != last.0 || first.1 / KEY_LANES != last.1 / KEY_LANES).then_some(last);
        [Some(first), last].map(|key| key.and_then(|(block, within)| Some((&**self.blocks.get(block)?, within))))
    }

    /// Asks memory for what storing the last of some keys and attention over them begin with.
    pub(crate) fn ask(&self, keys: &Range<usize>) {
        for (block, within) in self.soon(keys).into_iter().flatten() {
            match block {
                KvBlock::F16(pair) => ask::soon(pair.key_block(within)),
                KvBlock::F32(pair) => ask::soon(pair.key_block(within)),
            }
        }
    }

    /// Stores the key and the value (`head_dim` each) of `position`.
    pub(crate) fn store(&mut self, float: &FloatKernels, kind: CacheType, position: usize, key: &[f32], value: &[f32]) {
        let (block, within) = (position / ATTENTION_BLOCK, position % ATTENTION_BLOCK);
        if block == self.blocks.len() {
            self.blocks.push(Arc::new(match kind {
                CacheType::F16 => KvBlock::F16(Pair::new(key.len())),
                CacheType::F32 => KvBlock::F32(Pair::new(key.len())),
            }));
        }
        match Arc::make_mut(&mut self.blocks[block]) {
            KvBlock::F16(pair) => pair.store(float, within, key, value),
            KvBlock::F32(pair) => pair.store(float, within, key, value),
        }
    }
}

/// The heads of one layer.
pub(crate) type LayerCache = Vec<HeadCache>;

/// The cache of one sequence.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    head_dim: usize,
    kind: CacheType,
}

impl KvCache {
    /// An empty cache; blocks are allocated when their first position is stored.
    pub(crate) fn new(n_layers: usize, n_kv_heads: usize, head_dim: usize, kind: CacheType) -> KvCache {
        let layer = || (0..n_kv_heads).map(|_| HeadCache::default()).collect();
        KvCache { layers: (0..n_layers).map(|_| layer()).collect(), head_dim, kind }
    }

    /// Bytes of its blocks, shared ones included.
    pub(crate) fn bytes(&self) -> usize {
        self.pages().count() * self.page_bytes()
    }

    /// Bytes of the blocks of [`ATTENTION_BLOCK`] positions: those of all layers and heads.
    pub(crate) fn page_bytes(&self) -> usize {
        let element = match self.kind {
            CacheType::F16 => size_of::<u16>(),
            CacheType::F32 => size_of::<f32>(),
        };
        let heads: usize = self.layers.iter().map(Vec::len).sum();
        heads * 2 * ATTENTION_BLOCK * self.head_dim * element
    }

    /// What tells its pages from others: the same pages have the same number while anyone holds them.
    pub(crate) fn pages(&self) -> impl Iterator<Item = usize> {
        // Blocks of all layers and heads are shared, written and dropped together.
        let first = self.layers.first().and_then(|layer| layer.first());
        first.into_iter().flat_map(|head| &head.blocks).map(|block| Arc::as_ptr(block).addr())
    }

    /// A cache with the first `n` positions of this one, in the same blocks.
    pub(crate) fn fork(&self, n: usize) -> KvCache {
        let mut fork = KvCache { layers: self.layers.clone(), head_dim: self.head_dim, kind: self.kind };
        fork.truncate(n);
        fork
    }

    /// Frees the blocks that hold no position below `n`.
    pub(crate) fn truncate(&mut self, n: usize) {
        for head in self.layers.iter_mut().flatten() {
            head.blocks.truncate(n.div_ceil(ATTENTION_BLOCK));
        }
    }
}

/// Some positions of a sequence that go through the layers.
#[derive(Debug)]
pub(crate) struct Span {
    /// The sequence's keys and values.
    pub(crate) cache: KvCache,
    /// Of the first token.
    pub(crate) position: usize,
    pub(crate) n_tokens: usize,
}

impl Span {
    pub(crate) fn new(cache: KvCache) -> Span {
        Span { cache, position: 0, n_tokens: 0 }
    }
}
