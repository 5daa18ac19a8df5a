//! A self-test for users: every kernel that a processor can run against the definition, and the
//! float operations of its best level against the portable ones, bit for bit.
//!
//! It takes a few milliseconds and about 100 KiB of stack. It is no replacement for the tests of
//! this crate: it finds a processor, an emulator or a compiler that does not do what its features
//! promise, with a handful of shapes that are a multiple of nothing.

use crate::float::{CacheElement, CachedBlock, FloatFormat, FloatKernels, KEY_LANES, Partial};
use crate::format::{Geometry, Layout, t5};
use crate::isa::Isa;
use crate::kernel::{Kernel, Operation};
use crate::line::Line;
use crate::matrix::MatrixPlan;
use crate::registry;
use core::array;
use half::f16;

/// What became of one kernel or one float operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The kernel's name in the registry, or that of the float operation.
    pub name: &'static str,
    /// The instruction set it was compiled for.
    pub level: &'static str,
    /// Whether it is what this processor uses by default.
    pub preferred: bool,
    /// Whether every result was right.
    pub agrees: bool,
}

/// Multiplies small seeded matrices with every kernel of the registry that `isa` allows, and
/// compares with the sums by the definition. Calls `each` once for every kernel.
pub fn integers(isa: Isa, each: &mut dyn FnMut(Outcome)) {
    for kernel in registry::all().iter().filter(|kernel| isa.supports(kernel.level)) {
        each(Outcome {
            name: kernel.name,
            level: kernel.level.name(),
            preferred: registry::select(isa, kernel.layout, kernel.operation).name == kernel.name,
            agrees: agrees(kernel, isa),
        });
    }
}

/// Runs every float operation as compiled for `isa` and as portable code, and compares the bits.
/// Calls `each` once for every operation.
pub fn floats(isa: Isa, each: &mut dyn FnMut(Outcome)) {
    let (best, portable) = (FloatKernels::new(isa), FloatKernels::new(Isa::scalar()));
    let inputs = Inputs::new();
    for (name, run) in OPERATIONS {
        let (mut got, mut expected) = ([0.0; OUT], [0.0; OUT]);
        run(&best, &inputs, &mut got);
        run(&portable, &inputs, &mut expected);
        let agrees = got.iter().zip(&expected).all(|(got, expected)| got.to_bits() == expected.to_bits());
        each(Outcome { name, level: best.name(), preferred: true, agrees });
    }
}

/// Most columns of a matrix here; that many products of 127 do not fit 16 bits.
const MAX_COLS: usize = 384;
/// Bytes of the largest packed matrix here.
const MAX_DATA: usize = 24 << 10;
/// Vectors multiplied together.
const N_VECTORS: usize = 3;
/// So many that GEMMs of I2_S that take few another way (`few` of AVX2) do not take them so.
const MANY_VECTORS: usize = 51;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
const _: () = assert!(MANY_VECTORS > crate::gemm::avx2::MOST_FEW);
/// Lines of a prepared vector: four for each group of five columns are the most, and three blocks
/// of 128 columns have 26 groups each.
const MAX_LINES: usize = 4 * 3 * t5::groups(128);
/// Sums of a matrix here: vectors, padded rows, blocks. Those of [`N_VECTORS`] with 128 rows and six blocks are fewer.
const MAX_SUMS: usize = MANY_VECTORS * MAX_ROWS.next_multiple_of(16);

/// Most rows.
const MAX_ROWS: usize = 70;

/// Rows, columns, and columns that share a scale. I2_S takes the columns up to a multiple of 128
/// and has one scale, as C2 has.
const SHAPES: [(usize, usize, Option<usize>); 5] =
    [(MAX_ROWS, 384, None), (33, 131, None), (65, 320, Some(64)), (17, 7, None), (64, MAX_COLS, Some(128))];

/// Whether a kernel gives the sums by the definition for all shapes.
fn agrees(kernel: &'static Kernel, isa: Isa) -> bool {
    let mut random = Random(0x7472_6974_6f6e_6521);
    SHAPES.iter().all(|&(rows, cols, block)| {
        let (cols, block) = match (kernel.layout, block) {
            (Layout::I2S, _) => (cols.next_multiple_of(128), cols.next_multiple_of(128)),
            (Layout::C2, _) => (cols, cols),
            (_, block) => (cols, block.unwrap_or(cols)),
        };
        let geometry = Geometry { layout: kernel.layout, rows, cols, block };
        let mut data = [0u8; MAX_DATA];
        let data = &mut data[..geometry.data_len()];
        let mut codes = [[0i8; MAX_COLS]; N_VECTORS];
        // Every byte has a meaning in every layout; only the trailer of `t5` has to fit the body.
        data.fill_with(|| random.next() as u8);
        codes[..2].as_flattened_mut().fill_with(|| random.next() as i8);
        codes[2].fill(127);
        if kernel.layout == Layout::T5 {
            let (bodies, trailer) = data.split_at_mut(geometry.trailer_offset());
            let trailers = trailer.chunks_exact_mut(geometry.tile_trailer_bytes());
            for (body, trailer) in bodies.chunks_exact(geometry.tile_bytes()).zip(trailers) {
                t5::negatives(&geometry, body, trailer);
            }
        }
        let many = kernel.operation == Operation::Gemm && kernel.layout == Layout::I2S;
        let all_agree = |data: &[u8]| {
            matrix_agrees(kernel, isa, geometry, data, &codes, N_VECTORS)
                && (!many || matrix_agrees(kernel, isa, geometry, data, &codes, MANY_VECTORS))
        };
        let random_agrees = all_agree(data);
        // All weights +1 times all activations 127: what is too narrow anywhere overflows.
        let body = geometry.trailer_offset();
        match kernel.layout {
            Layout::I2S | Layout::C2 => data.fill(0xaa),
            Layout::T3 => data.fill(0xdd),
            Layout::T5 => {
                data[..body].fill(t5::MAX_VALUE);
                data[body..].fill(0);
            }
        }
        random_agrees && all_agree(data)
    })
}

/// Whether a kernel gives the sums by the definition for one packed matrix, in rows that exist. Vectors come again from the first on
/// until there are `n_vectors`.
fn matrix_agrees(
    kernel: &'static Kernel,
    isa: Isa,
    geometry: Geometry,
    data: &[u8],
    codes: &[[i8; MAX_COLS]; N_VECTORS],
    n_vectors: usize,
) -> bool {
    let Ok(plan) = MatrixPlan::new(geometry, isa).and_then(|plan| plan.with_kernel(kernel)) else {
        return false;
    };
    let lines = plan.prepared_lines(kernel.operation);
    // What a kernel leaves unwritten shows.
    let mut prepared = [Line([0xa5; 64]); MAX_LINES * N_VECTORS];
    let prepared = &mut prepared[..lines * n_vectors];
    for (codes, out) in codes.iter().cycle().zip(prepared.chunks_exact_mut(lines)) {
        plan.prepare(kernel.operation, &codes[..geometry.cols], out);
    }
    let (n_tiles, n_blocks, tile_rows) = (geometry.n_tiles(), geometry.n_blocks(), geometry.tile_rows());
    let mut sums = [0x5a5a_5a5a; MAX_SUMS];
    let sums = &mut sums[..plan.n_sums(n_tiles, n_vectors)];
    plan.sums(kernel.operation, data, 0..n_tiles, prepared, n_vectors, sums);

    // Single rows, the last one first, are those of the tiles.
    if kernel.operation == Operation::Gemv && plan.has_row_sums() {
        let wanted: [u32; 5] = array::from_fn(|i| (geometry.rows - 1 - i * (geometry.rows / 7)) as u32);
        let mut single = [0x5a5a_5a5a; 5];
        plan.row_sums(data, &wanted, &prepared[..lines], &mut single);
        let mut cached = [0x5a5a_5a5a; 5];
        plan.cached_row_sums(data, &wanted, &prepared[..lines], &mut cached);
        let at = |row: u32| row as usize;
        if wanted.iter().zip(single).any(|(row, sum)| sums[at(*row)] != sum) || cached != single {
            return false;
        }
    }

    // So are those of all rows with the last vector, then the first one.
    if kernel.operation == Operation::Gemm && plan.has_listed_sums() {
        let ends: [u32; MAX_ROWS] = array::from_fn(|row| 2 * (row as u32 + 1));
        let vectors: [u32; 2 * MAX_ROWS] = array::from_fn(|i| if i % 2 == 0 { N_VECTORS as u32 - 1 } else { 0 });
        let mut listed = [0x5a5a_5a5a; 2 * MAX_ROWS];
        let (n, per_vector) = (geometry.rows, plan.n_sums(n_tiles, 1));
        plan.listed_sums(data, 0..n, &ends[..n], &vectors[..2 * n], prepared, &mut listed[..2 * n]);
        let whole = |row: usize| [sums[(N_VECTORS - 1) * per_vector + row], sums[row]];
        if (0..n).any(|row| listed[2 * row..2 * row + 2] != whole(row)) {
            return false;
        }
    }

    let mut row = [0i8; MAX_COLS];
    let row = &mut row[..geometry.cols];
    (0..geometry.rows).all(|r| {
        geometry.unpack_row(data, r, row);
        codes.iter().cycle().take(n_vectors).enumerate().all(|(v, codes)| {
            row.chunks_exact(geometry.block).zip(codes.chunks_exact(geometry.block)).enumerate().all(
                |(b, (weights, codes))| {
                    let products = weights.iter().zip(codes).map(|(w, a)| i32::from(*w) * i32::from(*a));
                    let at = ((v * n_tiles + r / tile_rows) * n_blocks + b) * tile_rows + r % tile_rows;
                    sums[at] == products.sum::<i32>()
                },
            )
        })
    })
}

/// Elements of a vector: whole lanes, then a few.
const N: usize = 259;
/// Elements of a head: two and a half units of lanes.
const HEAD: usize = 40;
const N_HEADS: usize = 3;
/// Queries that share a key head: the kernels take four, two and one at a time.
const N_QUERIES: usize = 7;
const N_KEYS: usize = 37;
/// Rows of a stored matrix.
const ROWS: usize = 6;
/// Room for the results of every operation.
const OUT: usize = 512;

/// What the operations work on.
struct Inputs {
    x: [f32; N],
    y: [f32; N],
    /// `ROWS x N` values, each format's bits.
    singles: [f32; ROWS * N],
    halves: [u16; ROWS * N],
    bfloats: [u16; ROWS * N],
}

impl Inputs {
    fn new() -> Inputs {
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

type Run = fn(&FloatKernels, &Inputs, &mut [f32; OUT]);

const OPERATIONS: [(&str, Run); 22] = [
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
    ("float-dot-f32", |float, inputs, out| rows_dot(float, inputs, FloatFormat::F32, out)),
    ("float-dot-f16", |float, inputs, out| rows_dot(float, inputs, FloatFormat::F16, out)),
    ("float-dot-bf16", |float, inputs, out| rows_dot(float, inputs, FloatFormat::Bf16, out)),
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
    ("float-attention-f16", |float, inputs, out| attention::<u16>(float, inputs, 0, out)),
    ("float-attention-f32", |float, inputs, out| attention::<f32>(float, inputs, 0, out)),
    ("float-attention-window", |float, inputs, out| attention::<u16>(float, inputs, N_KEYS / 2 + 3, out)),
    ("float-attention-join", |float, inputs, out| {
        let partial = |i: usize| Partial { max: inputs.y[i], sum: 1.0 + inputs.y[i].abs() };
        let partials = [partial(0), partial(1), partial(2), partial(3), partial(4), partial(5)];
        float.attention_join(&partials, &inputs.x[..6 * HEAD], 2, &mut out[..2 * HEAD]);
    }),
];

fn rows_dot(float: &FloatKernels, inputs: &Inputs, format: FloatFormat, out: &mut [f32; OUT]) {
    let mut vectors = [0.0; 2 * N];
    vectors[..N].copy_from_slice(&inputs.x);
    vectors[N..].copy_from_slice(&inputs.y);
    float.rows_dot_multi(format, inputs.stored(format), &vectors, 2, &mut out[..2 * ROWS]);
}

fn widen(float: &FloatKernels, inputs: &Inputs, format: FloatFormat, out: &mut [f32; OUT]) {
    float.widen(format, &inputs.stored(format)[..N * format.size()], &mut out[..N]);
}

/// Fills a cache and attends to it from a key on.
fn attention<E: CacheElement>(float: &FloatKernels, inputs: &Inputs, first_key: usize, out: &mut [f32; OUT]) {
    const KEY_BLOCK: usize = HEAD * KEY_LANES;
    let mut keys = [E::zeroed(); N_KEYS.div_ceil(KEY_LANES) * KEY_BLOCK];
    let mut values = [E::zeroed(); N_KEYS * HEAD];
    for (j, value) in values.chunks_exact_mut(HEAD).enumerate() {
        let key_block = &mut keys[j / KEY_LANES * KEY_BLOCK..][..KEY_BLOCK];
        float.store_key(&inputs.singles[j * HEAD..][..HEAD], j % KEY_LANES, key_block);
        float.store_value(&inputs.singles[j..][..HEAD], value);
    }
    let mut queries = [0.0; N_QUERIES * HEAD];
    let (first, rest) = queries.split_at_mut(N);
    first.copy_from_slice(&inputs.x);
    rest.copy_from_slice(&inputs.y[..rest.len()]);
    let mut partials = [Partial::default(); N_QUERIES];
    let block = CachedBlock { keys: &keys, values: &values, first_key, n_keys: N_KEYS, n_positions: 1, next: [&[]; 2] };
    let (attended, joined) = out.split_at_mut(N_QUERIES * HEAD);
    float.attention_block(&queries, 0.15, block, attended, &mut partials);
    for (out, partial) in joined.chunks_exact_mut(2).zip(partials) {
        out.copy_from_slice(&[partial.max, partial.sum]);
    }
}

/// A small generator (xorshift64, Marsaglia 2003): the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemv;
    use crate::isa::Level;
    use crate::kernel::Family;
    use core::ops::Range;
    use std::vec::Vec;

    fn outcomes(isa: Isa, test: fn(Isa, &mut dyn FnMut(Outcome))) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        test(isa, &mut |outcome| outcomes.push(outcome));
        outcomes
    }

    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn this_processor_agrees_with_the_definition() {
        for isa in [Isa::scalar(), Isa::detect()] {
            let integers = outcomes(isa, integers);
            let supported = registry::all().iter().filter(|kernel| isa.supports(kernel.level)).count();
            assert_eq!(integers.len(), supported);
            let preferred = integers.iter().filter(|outcome| outcome.preferred).count();
            assert_eq!(preferred, 2 * Layout::ALL.len(), "one for each layout and operation");
            for outcome in integers.into_iter().chain(outcomes(isa, floats)) {
                assert!(outcome.agrees, "{outcome:?}");
            }
        }
    }

    /// The definition, summed in 16 bits.
    fn wraps(geo: &Geometry, data: &[u8], tiles: Range<usize>, prepared: &[Line], n: usize, out: &mut [i32]) {
        let mut row = [0i8; MAX_COLS];
        let row = &mut row[..geo.cols];
        for (v, lines) in prepared.chunks_exact(prepared.len() / n).enumerate() {
            let codes: &[i8] = bytemuck::cast_slice(lines);
            for r in geo.rows_of(tiles.clone()) {
                geo.unpack_row(data, r, row);
                let products = row.iter().zip(codes).map(|(w, a)| i16::from(*w) * i16::from(*a));
                let sum = products.fold(0, i16::wrapping_add);
                out[v * tiles.len() * geo.tile_rows() + r - tiles.start * geo.tile_rows()] = i32::from(sum);
            }
        }
    }

    static WRAPS: Kernel = Kernel {
        name: "gemv-i2s-wraps",
        layout: Layout::I2S,
        operation: Operation::Gemv,
        family: Family::MultiplyAdd,
        level: Level::Scalar,
        prepared_lines: gemv::i2s::scalar::prepared_lines,
        prepare: gemv::i2s::scalar::prepare,
        run: wraps,
        run_asking: None,
        run_rows: None,
        run_cached_rows: None,
        run_listed: None,
        skips_columns: false,
        gemm_from: 4,
    };

    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn a_kernel_that_overflows_is_found() {
        assert!(!agrees(&WRAPS, Isa::scalar()));
    }

    /// An operation that forgets its result leaves zeros, which would agree with zeros.
    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn every_float_operation_has_a_result() {
        let inputs = Inputs::new();
        for (name, run) in OPERATIONS {
            let mut out = [0.0; OUT];
            run(&FloatKernels::new(Isa::scalar()), &inputs, &mut out);
            assert!(out.iter().all(|value| value.is_finite()), "{name}");
            assert!(out.iter().filter(|value| **value != 0.0).count() >= 10, "{name}");
        }
    }
}
