//! Matrix kernels against the sums by the definition.

use super::Random;
use crate::format::{Geometry, Layout, t5};
use crate::isa::Isa;
use crate::kernel::{Kernel, Operation};
use crate::line::Line;
use crate::matrix::MatrixPlan;
use core::array;

/// Most columns of a matrix here; that many products of 127 do not fit 16 bits.
pub(super) const MAX_COLS: usize = 384;
/// Bytes of the largest packed matrix here.
const MAX_DATA: usize = 24 << 10;
/// Different vectors; of more that are multiplied together, these come again from the first on.
const N_VECTORS: usize = 3;
/// So many that GEMMs of I2_S that take few another way (`few` of AVX2) do not take them so.
const MANY_VECTORS: usize = 51;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
const _: () = assert!(MANY_VECTORS > crate::gemm::avx2::MOST_FEW);
/// Vectors that a GEMV takes together where it does so, four at a time, and one more than twice as many.
const TOGETHER: [usize; 2] = [4, 9];
/// Lines of a prepared vector: four for each group of five columns are the most, and three blocks
/// of 128 columns have 26 groups each.
const MAX_LINES: usize = 4 * 3 * t5::groups(128);
/// Sums of a matrix here: vectors, padded rows, blocks. The most are those of [`TOGETHER`] with two tiles of C2; those of
/// [`MANY_VECTORS`] with 80 rows, and of [`N_VECTORS`] with 128 rows and six blocks, are fewer.
const MAX_SUMS: usize = TOGETHER[1] * 512;

/// Most rows: more than any kernel takes together, which are 256.
const MAX_ROWS: usize = 257;

/// Rows, columns, and columns that share a scale. I2_S takes the columns up to a multiple of 128
/// and has one scale, as C2 has.
const SHAPES: [(usize, usize, Option<usize>); 6] = [
    (70, MAX_COLS, None),
    (33, 131, None),
    (65, 320, Some(64)),
    (17, 7, None),
    (64, MAX_COLS, Some(128)),
    (MAX_ROWS, 20, None),
];

/// Whether a kernel gives the sums by the definition for all shapes.
pub(super) fn agrees(kernel: &'static Kernel, isa: Isa) -> bool {
    let mut random = Random(0x7472_6974_6f6e_6521);
    SHAPES.iter().all(|&(rows, cols, block)| {
        let (cols, block) = match (kernel.layout, block) {
            (Layout::I2S, _) => (cols.next_multiple_of(128), cols.next_multiple_of(128)),
            (Layout::C2, _) => (cols, cols),
            (_, block) => (cols, block.unwrap_or(cols)),
        };
        shape_agrees(kernel, isa, Geometry { layout: kernel.layout, rows, cols, block }, &mut random)
    })
}

/// Whether a kernel gives the sums by the definition for one shape, with random weights and with the largest sums there can be.
#[inline(never)]
fn shape_agrees(kernel: &'static Kernel, isa: Isa, geometry: Geometry, random: &mut Random) -> bool {
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
    let tall = geometry.rows == MAX_ROWS;
    let numbers: &[usize] = match (kernel.operation, kernel.layout) {
        (Operation::Gemv, _) if tall => &[1, TOGETHER[0], TOGETHER[1]],
        (Operation::Gemv, _) => &[1, N_VECTORS],
        (Operation::Gemm, Layout::I2S) if !tall => &[N_VECTORS, MANY_VECTORS],
        (Operation::Gemm, _) => &[N_VECTORS],
    };
    let all_agree = |data: &[u8]| {
        numbers.iter().all(|n| {
            matrix_agrees(kernel, isa, geometry, data, &codes, *n, &[])
                && (kernel.run_asking.is_none() || matrix_agrees(kernel, isa, geometry, data, &codes, *n, data))
        })
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
}

/// Whether a kernel gives the sums by the definition for one packed matrix, in rows that exist, while it asks for `next`.
#[inline(never)]
fn matrix_agrees(
    kernel: &'static Kernel,
    isa: Isa,
    geometry: Geometry,
    data: &[u8],
    codes: &[[i8; MAX_COLS]; N_VECTORS],
    n_vectors: usize,
    next: &[u8],
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
    let n_tiles = geometry.n_tiles();
    let mut sums = [0x5a5a_5a5a; MAX_SUMS];
    let sums = &mut sums[..plan.n_sums(n_tiles, n_vectors)];
    plan.sums_asking(kernel.operation, data, 0..n_tiles, prepared, n_vectors, next, sums);

    let rows = kernel.operation == Operation::Gemv && plan.has_row_sums();
    let listed = kernel.operation == Operation::Gemm && plan.has_listed_sums();
    (!rows || rows_agree(&plan, data, &prepared[..lines], sums))
        && (!listed || listed_agree(&plan, data, prepared, sums))
        && is_by_definition(&geometry, data, codes, n_vectors, sums)
}

/// Whether single rows with the first vector, the last one first, are those of the tiles.
#[inline(never)]
fn rows_agree(plan: &MatrixPlan, data: &[u8], prepared: &[Line], sums: &[i32]) -> bool {
    let n = plan.geometry().rows;
    let wanted: [u32; 5] = array::from_fn(|i| (n - 1 - i * (n / 7)) as u32);
    let mut single = [0x5a5a_5a5a; 5];
    plan.row_sums(data, &wanted, prepared, &mut single);
    let mut cached = [0x5a5a_5a5a; 5];
    plan.cached_row_sums(data, &wanted, prepared, &mut cached);
    wanted.iter().zip(single).all(|(row, sum)| sums[*row as usize] == sum) && cached == single
}

/// Whether all rows, each with the last of the different vectors and then the first one, are those of the tiles.
#[inline(never)]
fn listed_agree(plan: &MatrixPlan, data: &[u8], prepared: &[Line], sums: &[i32]) -> bool {
    let ends: [u32; MAX_ROWS] = array::from_fn(|row| 2 * (row as u32 + 1));
    let vectors: [u32; 2 * MAX_ROWS] = array::from_fn(|i| if i % 2 == 0 { N_VECTORS as u32 - 1 } else { 0 });
    let mut listed = [0x5a5a_5a5a; 2 * MAX_ROWS];
    let (n, per_vector) = (plan.geometry().rows, plan.n_sums(plan.geometry().n_tiles(), 1));
    plan.listed_sums(data, 0..n, &ends[..n], &vectors[..2 * n], prepared, &mut listed[..2 * n]);
    let whole = |row: usize| [sums[(N_VECTORS - 1) * per_vector + row], sums[row]];
    (0..n).all(|row| listed[2 * row..2 * row + 2] == whole(row))
}

/// Whether the sums of whole tiles are those by the definition.
#[inline(never)]
fn is_by_definition(
    geometry: &Geometry,
    data: &[u8],
    codes: &[[i8; MAX_COLS]; N_VECTORS],
    n_vectors: usize,
    sums: &[i32],
) -> bool {
    let (n_tiles, n_blocks, tile_rows) = (geometry.n_tiles(), geometry.n_blocks(), geometry.tile_rows());
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
