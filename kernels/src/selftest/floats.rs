//! Float operations, written so that one can be run on any instruction set.

use super::Random;
use crate::float::{CacheElement, CachedBlock, FloatFormat, FloatKernels, KEY_LANES, Partial};
use core::array;
use half::f16;

/// Elements of a vector: whole lanes, then a few.
const N: usize = 259;
/// Elements of a head: two and a half units of lanes.
const HEAD: usize = 40;
const N_HEADS: usize = 3;
/// Queries that share a key head, some and many: the kernels take sixteen, eight, four, two and one at a time.
const FEW_QUERIES: usize = 7;
const MANY_QUERIES: usize = 29;
/// Queries of [`POSITIONS`] neighbouring positions, so many of each that some are taken together with another position's.
const POSITION_QUERIES: usize = 30;
const POSITIONS: usize = 3;
const N_KEYS: usize = 37;
/// Rows of a stored matrix.
const ROWS: usize = 6;
/// Rows, columns and vectors of products of what the stored matrix holds: more rows than are taken together, with eight vectors, four,
/// two and one; one vector; rows so long that eight and four vectors take them in parts.
const PRODUCTS: [(usize, usize, usize); 4] = [(37, 42, 15), (37, 42, 1), (5, 310, 8), (2, 777, 4)];
/// Values of all vectors of one of these.
const MAX_VECTORS: usize = 4 * 777;
/// Room for the results of every operation.
pub(super) const OUT: usize = POSITION_QUERIES * (HEAD + 2);

/// What the operations work on.
pub(super) struct Inputs {
    x: [f32; N],
    y: [f32; N],
    /// `ROWS x N` values, each format's bits.
    singles: [f32; ROWS * N],
    halves: [u16; ROWS * N],
    bfloats: [u16; ROWS * N],
}

impl Inputs {
    pub(super) fn new() -> Inputs {
        let mut random = Random(0x7374_6f72_7921);
        // Between -4 and 4.
        let mut value = || (random.next() >> 40) as f32 / (1 << 18) as f32 - 4.0;
        let (x, y) = (array::from_fn(|_| value()), array::from_fn(|_| value()));
        let singles: [f32; ROWS * N] = array::from_fn(|_| value());
        let halves = singles.map(|value| f16::from_f32(value).to_bits());
        let bfloats = singles.map(|value| (value.to_bits() >> 16) as u16);
        Inputs { x, y, singles, halves, bfloats }
    }

    /// The stored matrix in one of the formats.
    fn stored(&self, format: FloatFormat) -> &[u8] {
        match format {
            FloatFormat::F32 => bytemuck::cast_slice(&self.singles),
            FloatFormat::F16 => bytemuck::cast_slice(&self.halves),
            FloatFormat::Bf16 => bytemuck::cast_slice(&self.bfloats),
        }
    }
}

pub(super) type Run = fn(&FloatKernels, &Inputs, &mut [f32; OUT]);

pub(super) const OPERATIONS: [(&str, Run); 16] = [
    ("float-rms-norm", |float, inputs, out| float.rms_norm(&inputs.x, &inputs.y, 1e-5, &mut out[..N])),
    ("float-rms-norm-heads", |float, inputs, out| {
        out[..N_HEADS * HEAD].copy_from_slice(&inputs.x[..N_HEADS * HEAD]);
        float.rms_norm_heads(&mut out[..N_HEADS * HEAD], &inputs.y[..HEAD], 1e-5);
    }),
    ("float-add", |float, inputs, out| {
        out[..N].copy_from_slice(&inputs.x);
        float.add_assign(&mut out[..N], &inputs.y);
    }),
    ("float-positive", |float, inputs, out| {
        let mut indices = [0; N];
        let n = float.positive(&inputs.x, &mut indices);
        out[..n].iter_mut().zip(indices).for_each(|(out, i)| *out = i as f32);
        out[N - 2] = float.count_positive(&inputs.x) as f32;
        out[N - 1] = float.count_nonzero(&inputs.x) as f32;
    }),
    ("float-widen-f16", |float, inputs, out| widen(float, inputs, FloatFormat::F16, out)),
    ("float-widen-bf16", |float, inputs, out| widen(float, inputs, FloatFormat::Bf16, out)),
    ("float-narrow-f16", |float, inputs, out| {
        let mut bits = [0; N];
        float.narrow_f16(&inputs.x, &mut bits);
        for (out, bits) in out.iter_mut().zip(bits) {
            *out = f32::from(bits);
        }
    }),
    ("float-exp", |float, inputs, out| float.exp(&inputs.x, &mut out[..N])),
    ("float-silu-gate", |float, inputs, out| float.silu_gate(&inputs.x, &inputs.y, &mut out[..N])),
    ("float-gelu-gate", |float, inputs, out| float.gelu_gate(&inputs.x, &inputs.y, &mut out[..N])),
    ("float-relu2-gate", |float, inputs, out| float.relu2_gate(&inputs.x, &inputs.y, &mut out[..N])),
    ("float-softmax", |float, inputs, out| {
        out[..N].copy_from_slice(&inputs.x);
        let Partial { max, sum } = float.softmax(&mut out[..N]);
        out[N..N + 2].copy_from_slice(&[max, sum]);
    }),
    ("float-quantize", |float, inputs, out| {
        let largest = float.absmax(&inputs.x);
        let mut codes = [0; N];
        float.quantize(&inputs.x, 127.0 / largest, &mut codes);
        for (out, code) in out.iter_mut().zip(codes) {
            *out = f32::from(code);
        }
        out[N] = largest;
    }),
    ("float-rope-neox", |float, inputs, out| {
        out[..N_HEADS * HEAD].copy_from_slice(&inputs.x[..N_HEADS * HEAD]);
        float.rope_neox(&mut out[..N_HEADS * HEAD], HEAD, &inputs.y[..18], &inputs.y[18..36]);
    }),
    ("float-rope-interleaved", |float, inputs, out| {
        out[..N_HEADS * HEAD].copy_from_slice(&inputs.x[..N_HEADS * HEAD]);
        float.rope_interleaved(&mut out[..N_HEADS * HEAD], HEAD, &inputs.y[..18], &inputs.y[18..36]);
    }),
    ("float-attention-join", |float, inputs, out| {
        let partial = |i: usize| Partial { max: inputs.y[i], sum: 1.0 + inputs.y[i].abs() };
        let partials = [partial(0), partial(1), partial(2), partial(3), partial(4), partial(5)];
        float.attention_join(&partials, &inputs.x[..6 * HEAD], 2, &mut out[..2 * HEAD]);
    }),
];

/// Operations that take several rows, vectors or queries together, and the same with each alone, which must give the same bits.
pub(super) const TOGETHER: [(&str, Run, Run); 8] = [
    (
        "float-dot-f32",
        |float, inputs, out| rows_dot(float, inputs, FloatFormat::F32, out),
        |float, inputs, out| dots(float, inputs, FloatFormat::F32, out),
    ),
    (
        "float-dot-f16",
        |float, inputs, out| rows_dot(float, inputs, FloatFormat::F16, out),
        |float, inputs, out| dots(float, inputs, FloatFormat::F16, out),
    ),
    (
        "float-dot-bf16",
        |float, inputs, out| rows_dot(float, inputs, FloatFormat::Bf16, out),
        |float, inputs, out| dots(float, inputs, FloatFormat::Bf16, out),
    ),
    (
        "float-attention-f16",
        |float, inputs, out| attention::<u16, false>(float, inputs, [FEW_QUERIES, 1], 0, out),
        |float, inputs, out| attention::<u16, true>(float, inputs, [FEW_QUERIES, 1], 0, out),
    ),
    (
        "float-attention-f32",
        |float, inputs, out| attention::<f32, false>(float, inputs, [FEW_QUERIES, 1], 0, out),
        |float, inputs, out| attention::<f32, true>(float, inputs, [FEW_QUERIES, 1], 0, out),
    ),
    (
        "float-attention-window",
        |float, inputs, out| attention::<u16, false>(float, inputs, [FEW_QUERIES, 1], N_KEYS / 2 + 3, out),
        |float, inputs, out| attention::<u16, true>(float, inputs, [FEW_QUERIES, 1], N_KEYS / 2 + 3, out),
    ),
    (
        "float-attention-many",
        |float, inputs, out| attention::<u16, false>(float, inputs, [MANY_QUERIES, 1], 0, out),
        |float, inputs, out| attention::<u16, true>(float, inputs, [MANY_QUERIES, 1], 0, out),
    ),
    (
        "float-attention-positions",
        |float, inputs, out| attention::<u16, false>(float, inputs, [POSITION_QUERIES, POSITIONS], 5, out),
        |float, inputs, out| attention::<u16, true>(float, inputs, [POSITION_QUERIES, POSITIONS], 5, out),
    ),
];

fn vectors(inputs: &Inputs) -> [f32; MAX_VECTORS] {
    let mut vectors = [0.0; MAX_VECTORS];
    vectors.iter_mut().zip(inputs.singles.iter().rev().cycle()).for_each(|(out, value)| *out = *value);
    vectors
}

fn rows_dot(float: &FloatKernels, inputs: &Inputs, format: FloatFormat, out: &mut [f32; OUT]) {
    let (stored, vectors) = (inputs.stored(format), vectors(inputs));
    let mut out = out.as_mut_slice();
    for (rows, cols, n_vectors) in PRODUCTS {
        let (products, rest) = out.split_at_mut(rows * n_vectors);
        let stored = &stored[..rows * cols * format.size()];
        float.rows_dot_multi(format, stored, &vectors[..n_vectors * cols], n_vectors, products);
        out = rest;
    }
}

fn dots(float: &FloatKernels, inputs: &Inputs, format: FloatFormat, out: &mut [f32; OUT]) {
    let (stored, vectors) = (inputs.stored(format), vectors(inputs));
    let mut out = out.iter_mut();
    for (rows, cols, n_vectors) in PRODUCTS {
        for vector in vectors.chunks_exact(cols).take(n_vectors) {
            for (row, out) in stored.chunks_exact(cols * format.size()).take(rows).zip(&mut out) {
                *out = float.dot(format, row, vector);
            }
        }
    }
}

fn widen(float: &FloatKernels, inputs: &Inputs, format: FloatFormat, out: &mut [f32; OUT]) {
    float.widen(format, &inputs.stored(format)[..N * format.size()], &mut out[..N]);
}

/// Fills a cache and attends to it from a key on, with so many queries of so many positions, all together or each alone.
fn attention<E: CacheElement, const ALONE: bool>(
    float: &FloatKernels,
    inputs: &Inputs,
    [n_queries, n_positions]: [usize; 2],
    first_key: usize,
    out: &mut [f32; OUT],
) {
    const KEY_BLOCK: usize = HEAD * KEY_LANES;
    let mut keys = [E::zeroed(); N_KEYS.div_ceil(KEY_LANES) * KEY_BLOCK];
    let mut values = [E::zeroed(); N_KEYS * HEAD];
    for (j, value) in values.chunks_exact_mut(HEAD).enumerate() {
        let key_block = &mut keys[j / KEY_LANES * KEY_BLOCK..][..KEY_BLOCK];
        float.store_key(&inputs.singles[j * HEAD..][..HEAD], j % KEY_LANES, key_block);
        float.store_value(&inputs.singles[j..][..HEAD], value);
    }
    let mut queries = [0.0; POSITION_QUERIES * HEAD];
    queries.iter_mut().zip(inputs.singles.iter().rev()).for_each(|(out, value)| *out = *value);
    let mut partials = [Partial::default(); POSITION_QUERIES];
    let partials = &mut partials[..n_queries];
    let first_keys = N_KEYS + 1 - n_positions;
    let block =
        CachedBlock { keys: &keys, values: &values, first_key, n_keys: first_keys, n_positions, next: [&[]; 2] };
    let (attended, joined) = out.split_at_mut(n_queries * HEAD);
    let queries = &queries[..n_queries * HEAD];
    if ALONE {
        let each = queries.chunks_exact(HEAD).zip(attended.chunks_exact_mut(HEAD)).zip(partials.chunks_exact_mut(1));
        for (q, ((query, attended), partial)) in each.enumerate() {
            let n_keys = first_keys + q / (n_queries / n_positions);
            float.attention_block(query, 0.05, CachedBlock { n_keys, n_positions: 1, ..block }, attended, partial);
        }
    } else {
        float.attention_block(queries, 0.05, block, attended, partials);
    }
    for (out, partial) in joined.chunks_exact_mut(2).zip(partials) {
        out.copy_from_slice(&[partial.max, partial.sum]);
    }
}
