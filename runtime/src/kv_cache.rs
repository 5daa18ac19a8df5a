//! Keys and values of the tokens seen so far, in half precision, in fixed blocks.
//!
//! One block holds [`ATTENTION_BLOCK`] positions of one key/value head of one layer, laid out as
//! the attention kernel reads it (`tritone_kernels::float`): keys in key blocks `[head_dim][32 keys]`, so that
//! keys are SIMD lanes, values as `[key][head_dim]`. Blocks begin at multiples of
//! [`ATTENTION_BLOCK`] from the first token, so a result never depends on how a prompt was cut.

use tritone_kernels::float::{ATTENTION_BLOCK, FloatKernels, KEY_LANES};

/// Keys and values of up to [`ATTENTION_BLOCK`] positions of one head.
#[derive(Debug)]
pub(crate) struct KvBlock {
    pub(crate) keys: Box<[u16]>,
    pub(crate) values: Box<[u16]>,
}

/// All blocks of one key/value head of one layer.
#[derive(Debug, Default)]
pub(crate) struct HeadCache {
    pub(crate) blocks: Vec<KvBlock>,
}

/// The heads of one layer.
pub(crate) type LayerCache = Vec<HeadCache>;

/// The cache of one sequence.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    head_dim: usize,
}

impl KvCache {
    /// An empty cache; blocks are allocated when their first position is stored.
    pub(crate) fn new(n_layers: usize, n_kv_heads: usize, head_dim: usize) -> KvCache {
        let layer = || (0..n_kv_heads).map(|_| HeadCache::default()).collect();
        KvCache { layers: (0..n_layers).map(|_| layer()).collect(), head_dim }
    }

    /// Stores the key and the value (`head_dim` each) of `position` of one head.
    pub(crate) fn store(
        &mut self,
        float: &FloatKernels,
        (layer, head): (usize, usize),
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let head_dim = self.head_dim;
        let blocks = &mut self.layers[layer][head].blocks;
        let (block, within) = (position / ATTENTION_BLOCK, position % ATTENTION_BLOCK);
        if block == blocks.len() {
            let zeros = || vec![0u16; ATTENTION_BLOCK * head_dim].into_boxed_slice();
            blocks.push(KvBlock { keys: zeros(), values: zeros() });
        }
        let KvBlock { keys, values } = &mut blocks[block];
        let key_block = KEY_LANES * head_dim;
        let start = within / KEY_LANES * key_block;
        float.store_key(key, within % KEY_LANES, &mut keys[start..start + key_block]);
        float.store_value(value, &mut values[within * head_dim..(within + 1) * head_dim]);
    }

    /// Bytes allocated now.
    pub(crate) fn bytes(&self) -> usize {
        let blocks: usize = self.layers.iter().flatten().map(|head| head.blocks.len()).sum();
        blocks * 2 * ATTENTION_BLOCK * self.head_dim * size_of::<u16>()
    }

    /// Frees the blocks that hold no position below `n`.
    pub(crate) fn truncate(&mut self, n: usize) {
        for head in self.layers.iter_mut().flatten() {
            head.blocks.truncate(n.div_ceil(ATTENTION_BLOCK));
        }
    }
}
