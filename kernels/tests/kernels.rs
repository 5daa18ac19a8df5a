//! Every kernel of the registry that this processor can run against the naive oracle, exactly.
#![cfg(feature = "testing")]

use std::sync::LazyLock;

use proptest::prelude::*;
use tritone_kernels::format::c2::transpose_i2s;
use tritone_kernels::format::{Geometry, Layout};
use tritone_kernels::isa::Isa;
use tritone_kernels::kernel::Operation;
use tritone_kernels::line::Line;
use tritone_kernels::matrix::MatrixPlan;
use tritone_kernels::testing::{
    Random, any_bytes, check_kernel, naive_sums, on_each_processor, pack, runnable_kernels,
};

/// How much the tests try: everything on a processor, less on an emulated one, which is some fifty times slower
/// (`TRITONE_EMULATED=1` says so). Miri, slower by many thousands, runs `one_small_matrix` only.
struct Amount {
    cases: u32,
    most: usize,
    edges: &'static [usize],
    rows: &'static [usize],
    /// Columns of the longest row.
    longest: usize,
    /// Of the 64 alignments and the 256 byte values, every how many.
    step: usize,
}

static AMOUNT: LazyLock<Amount> = LazyLock::new(|| {
    if std::env::var_os("TRITONE_EMULATED").is_some() {
        let edges = &[5, 24, 64, 128, 240, 256, 512];
        Amount { cases: 8, most: 300, edges, rows: &[1, 15, 17, 32, 65], longest: 16384, step: 7 }
    } else {
        let edges = &[3, 5, 24, 32, 64, 120, 128, 240, 256, 480, 512, 880, 888, 896, 2560];
        let rows = &[1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257];
        Amount { cases: 48, most: 500, edges, rows, longest: 16384, step: 1 }
    }
});

/// A shape of this layout near `rows x cols`: I2_S wants 128 columns, blocks want whole ones.
fn shape(layout: Layout, rows: usize, cols: usize, block: Option<usize>) -> Geometry {
    let (cols, block) = match (layout, block) {
        (Layout::I2S, _) => (cols.next_multiple_of(128), cols.next_multiple_of(128)),
        (Layout::C2, _) => (cols, cols),
        (_, Some(block)) => (cols.next_multiple_of(block), block),
        (_, None) => (cols, cols),
    };
    Geometry::new(layout, rows, cols, block).unwrap()
}

fn check_all(rows: usize, cols: usize, block: Option<usize>, n_vectors: usize, seed: u64) {
    let mut random = Random::new(seed);
    for kernel in runnable_kernels() {
        let geometry = shape(kernel.layout, rows, cols, block);
        let vectors: Vec<_> = (0..n_vectors).map(|_| random.codes(geometry.cols)).collect();
        let trits = random.trits(geometry.rows * geometry.cols);
        for data in [pack(&geometry, &trits), any_bytes(&geometry, &mut random)] {
            let start = random.below(geometry.n_tiles());
            let end = start + 1 + random.below(geometry.n_tiles() - start);
            check_kernel(kernel, Isa::detect(), &geometry, &data, 0..geometry.n_tiles(), &vectors);
            // No tiles, behind the last one, are no sums.
            let none = geometry.n_tiles()..geometry.n_tiles();
            check_kernel(kernel, Isa::detect(), &geometry, &data, none, &vectors);
            check_kernel(kernel, Isa::detect(), &geometry, &data, start..end, &vectors);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: AMOUNT.cases, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn any_shape(rows in 1..AMOUNT.most / 2, cols in 1..AMOUNT.most, block in prop::option::of(prop::sample::select(vec![1usize, 5, 64, 128, 256])), n_vectors in 1usize..4, seed: u64) {
        check_all(rows, cols, block, n_vectors, seed);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn packing_round_trips(rows in 1..AMOUNT.most / 4, cols in 1..AMOUNT.most, block in prop::option::of(prop::sample::select(vec![1usize, 64, 128, 256])), seed: u64) {
        let mut random = Random::new(seed);
        for layout in Layout::ALL {
            let geometry = shape(layout, rows, cols, block);
            let trits = random.trits(geometry.rows * geometry.cols);
            let data = pack(&geometry, &trits);
            let mut row = vec![0; geometry.cols];
            for (r, expected) in trits.chunks(geometry.cols).enumerate() {
                geometry.unpack_row(&data, r, &mut row);
                prop_assert_eq!(&row[..], expected);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn every_length_around_the_edges() {
    for &edge in AMOUNT.edges {
        for cols in edge - 1..=edge + 1 {
            check_all(33, cols, None, 2, cols as u64);
        }
    }
    for &rows in AMOUNT.rows {
        check_all(rows, 130, None, 1, rows as u64);
    }
}

/// Every remainder of vectors that GEMM kernels take together, over more columns than they decode at
/// once and blocks that share none of their units, in a range of tiles whose rows they take together.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn every_number_of_vectors() {
    for n_vectors in (1..=17).chain([49, 54, 131]).step_by(AMOUNT.step) {
        for (cols, block) in [(1100, None), (384, Some(64)), (390, Some(130))] {
            check_all(120, cols, block, n_vectors, n_vectors as u64);
        }
    }
}

/// So many that no cache is expected to hold their columns of whole rows.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn many_vectors_and_long_rows() {
    check_all(34, 5120, None, 260_usize.div_ceil(AMOUNT.step), 5);
    // A number that kernels for few vectors take, in parts of these rows that are not of one length.
    check_all(34, 6912, None, 9, 6);
}

/// Single rows, in any order and more than once, have the sums that whole tiles give them.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn rows_alone_are_rows_of_tiles() {
    let mut random = Random::new(11);
    let mut seen = 0;
    for kernel in runnable_kernels() {
        for (rows, cols) in [(1, 128), (7, 384), (40, 1280), (33, 2560), (5, 16384)] {
            let geometry = shape(kernel.layout, rows, cols, None);
            let plan = MatrixPlan::new(geometry, Isa::detect()).unwrap().with_kernel(kernel).unwrap();
            if kernel.operation != Operation::Gemv || !plan.has_row_sums() {
                continue;
            }
            seen += 1;
            let data = any_bytes(&geometry, &mut random);
            let codes = random.codes(cols);
            let expected = naive_sums(&geometry, &data, 0..geometry.n_tiles(), std::slice::from_ref(&codes));
            let mut prepared = vec![Line([0xa5; 64]); plan.prepared_lines(Operation::Gemv)];
            plan.prepare(Operation::Gemv, &codes, &mut prepared);
            for n in [0, 1, 2, 3, 4, 5, 9, 30] {
                let wanted: Vec<u32> = (0..n).map(|_| random.below(rows) as u32).collect();
                let expected: Vec<i32> = wanted.iter().map(|row| expected[*row as usize]).collect();
                on_each_processor(|| {
                    let mut sums = vec![0x5a5a_5a5a; n];
                    plan.row_sums(&data, &wanted, &prepared, &mut sums);
                    assert_eq!(sums, expected, "{} {rows}x{cols} {wanted:?}", kernel.name);
                    sums.fill(0x5a5a_5a5a);
                    plan.cached_row_sums(&data, &wanted, &prepared, &mut sums);
                    assert_eq!(sums, expected, "{} {rows}x{cols} {wanted:?}, cached", kernel.name);
                });
            }
        }
    }
    assert!(seen > 0, "the scalar kernel of i2s has them");
}

/// Rows each with some vectors, in any order and more than once, have the sums of whole products.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn rows_with_listed_vectors_are_rows_of_tiles() {
    let mut random = Random::new(19);
    let mut seen = 0;
    for kernel in runnable_kernels() {
        for (rows, cols) in [(1, 128), (7, 384), (40, 1280), (33, 2560), (5, 16384)] {
            let geometry = shape(kernel.layout, rows, cols, None);
            let plan = MatrixPlan::new(geometry, Isa::detect()).unwrap().with_kernel(kernel).unwrap();
            if kernel.operation != Operation::Gemm || !plan.has_listed_sums() {
                continue;
            }
            seen += 1;
            let data = any_bytes(&geometry, &mut random);
            let n_vectors = 6;
            let vectors: Vec<Vec<i8>> = (0..n_vectors).map(|_| random.codes(cols)).collect();
            let expected = naive_sums(&geometry, &data, 0..geometry.n_tiles(), &vectors);
            let expected = |row: usize, v: u32| expected[v as usize * expected.len() / n_vectors + row];
            let lines = plan.prepared_lines(Operation::Gemm);
            let mut prepared = vec![Line([0xa5; 64]); n_vectors * lines];
            for (codes, out) in vectors.iter().zip(prepared.chunks_exact_mut(lines)) {
                plan.prepare(Operation::Gemm, codes, out);
            }
            for some in [0..rows, rows / 3..rows, 0..0, rows..rows] {
                let (mut ends, mut listed, mut sums_expected) = (Vec::new(), Vec::new(), Vec::new());
                for row in some.clone() {
                    for _ in 0..random.below(10) {
                        let v = random.below(n_vectors) as u32;
                        listed.push(v);
                        sums_expected.push(expected(row, v));
                    }
                    ends.push(listed.len() as u32);
                }
                let mut sums = vec![0x5a5a_5a5a; listed.len()];
                plan.listed_sums(&data, some, &ends, &listed, &prepared, &mut sums);
                assert_eq!(sums, sums_expected, "{} {rows}x{cols}", kernel.name);
            }
        }
    }
    assert!(seen > 0, "the scalar kernel of i2s has them");
}

/// All weights +1 or code 3 and all activations the largest, with which sums that are too narrow anywhere overflow.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn the_largest_products_of_listed_vectors_fit() {
    let mut seen = 0;
    for kernel in runnable_kernels() {
        let geometry = shape(kernel.layout, 3, 5120, None);
        let plan = MatrixPlan::new(geometry, Isa::detect()).unwrap().with_kernel(kernel).unwrap();
        if kernel.operation != Operation::Gemm || !plan.has_listed_sums() {
            continue;
        }
        seen += 1;
        for (byte, weight) in [(0xaa, 1), (0xff, 2), (0x00, -1)] {
            for activation in [-128, 127i8] {
                let data = vec![byte; geometry.data_len()];
                let mut prepared = vec![Line::ZERO; plan.prepared_lines(Operation::Gemm)];
                plan.prepare(Operation::Gemm, &vec![activation; geometry.cols], &mut prepared);
                let mut sums = [0; 15];
                plan.listed_sums(&data, 0..3, &[5, 10, 15], &[0; 15], &prepared, &mut sums);
                assert_eq!(sums, [weight * i32::from(activation) * 5120; 15], "{} {byte}", kernel.name);
            }
        }
    }
    assert!(seen > 0, "the scalar kernel of i2s has them");
}

/// Two rows of a scalar kernel with one vector, and these lists.
fn scalar_lists(ends: [u32; 2], vectors: &[u32]) {
    let geometry = shape(Layout::I2S, 2, 128, None);
    let scalar = tritone_kernels::registry::find("gemm-i2s-scalar").unwrap();
    let plan = MatrixPlan::new(geometry, Isa::detect()).unwrap().with_kernel(scalar).unwrap();
    let prepared = vec![Line::ZERO; plan.prepared_lines(Operation::Gemm)];
    let mut sums = vec![0; vectors.len()];
    plan.listed_sums(&vec![0; geometry.data_len()], 0..2, &ends, vectors, &prepared, &mut sums);
}

#[test]
#[should_panic(expected = "vectors that there are")]
fn a_listed_vector_that_does_not_exist_is_refused() {
    scalar_lists([1, 2], &[0, 1]);
}

#[test]
#[should_panic(expected = "all vectors have a row")]
fn lists_that_end_before_they_begin_are_refused() {
    scalar_lists([2, 1], &[0]);
}

/// A vector with few activations that are not 0, as `c2` is made for, and with none.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn few_activations() {
    let mut random = Random::new(13);
    for kernel in runnable_kernels() {
        let geometry = shape(kernel.layout, 300, 896, None);
        let data = any_bytes(&geometry, &mut random);
        let few = |n: usize, random: &mut Random| {
            let mut codes = vec![0i8; geometry.cols];
            for _ in 0..n {
                codes[random.below(geometry.cols)] = random.bits() as i8;
            }
            codes
        };
        let vectors: Vec<_> = [0, 1, 2, 3, 43, 84, 85, 170].into_iter().map(|n| few(n, &mut random)).collect();
        check_kernel(kernel, Isa::detect(), &geometry, &data, 0..geometry.n_tiles(), &vectors);
    }
}

/// Rows in `i2s` turned into `c2` mean the same, code 3 included.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn transposing_keeps_every_code() {
    let mut random = Random::new(17);
    for (rows, cols) in [(1, 128), (100, 128), (128, 256), (129, 384), (256, 128), (300, 640)] {
        let from = Geometry::new(Layout::I2S, rows, cols, cols).unwrap();
        let to = Geometry::new(Layout::C2, rows, cols, cols).unwrap();
        let data = any_bytes(&from, &mut random);
        let mut turned = vec![0xa5; to.data_len()];
        for (tile, body) in turned.chunks_exact_mut(to.tile_bytes()).enumerate() {
            let rows = to.rows_of(tile..tile + 1);
            transpose_i2s(&to, &data[rows.start * cols / 4..rows.end * cols / 4], body);
        }
        let (mut expected, mut got) = (vec![0; cols], vec![0; cols]);
        for row in 0..rows {
            from.unpack_row(&data, row, &mut expected);
            to.unpack_row(&turned, row, &mut got);
            assert_eq!(got, expected, "{rows}x{cols}, row {row}");
        }
        // Rows that do not exist are zeros.
        let whole = Geometry { rows: to.n_tiles() * to.tile_rows(), ..to };
        for row in rows..whole.rows {
            whole.unpack_row(&turned, row, &mut got);
            assert!(got.iter().all(|trit| *trit == 0), "{rows}x{cols}, row {row}");
        }
    }
}

/// Few rows and a last group that is not full: what Miri can run.
#[test]
fn one_small_matrix() {
    let mut random = Random::new(5);
    for kernel in runnable_kernels() {
        let geometry = shape(kernel.layout, 2, 6, None);
        let data = any_bytes(&geometry, &mut random);
        check_kernel(kernel, Isa::detect(), &geometry, &data, 0..geometry.n_tiles(), &[random.codes(geometry.cols)]);
    }
}

/// All activations at an extreme, all weights of one sign: what overflows 16 bits anywhere does so
/// here (2560 times 127 is 325,120; a row of 16,384 fills every widening step).
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn extremes_do_not_saturate() {
    let cols = AMOUNT.longest;
    for kernel in runnable_kernels() {
        let geometry = shape(kernel.layout, 65, cols, None);
        for trit in [-1i8, 1] {
            let data = pack(&geometry, &vec![trit; geometry.rows * cols]);
            let signs: Vec<i8> = (0..cols).map(|i| if i % 2 == 0 { 127 } else { -128 }).collect();
            let vectors = [vec![127; cols], vec![-127; cols], vec![-128; cols], signs];
            assert_eq!(naive_sums(&geometry, &data, 0..1, &vectors)[0], i32::from(trit) * 127 * cols as i32);
            check_kernel(kernel, Isa::detect(), &geometry, &data, 0..geometry.n_tiles(), &vectors);
        }
        // Every byte 0xff, 0x79, 0xf9, ...: the largest codes that a layout has, code 3 included.
        for byte in [0xffu8, 0x79, 0xf9, 0x55, 0xaa, 0x00, 0x80, 0xdd] {
            let mut data = any_bytes(&geometry, &mut Random::new(1));
            data[..geometry.trailer_offset()].fill(byte);
            if kernel.layout == Layout::T5 {
                let count = if byte >= 0x80 { geometry.groups() as u16 } else { 0 };
                for bytes in data[geometry.trailer_offset()..].chunks_exact_mut(2) {
                    bytes.copy_from_slice(&count.to_le_bytes());
                }
            }
            let vectors = [vec![127; cols], vec![-128; cols]];
            check_kernel(kernel, Isa::detect(), &geometry, &data, 0..geometry.n_tiles(), &vectors);
        }
    }
}

/// The same for more vectors than kernels for few of them take.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn extremes_of_many_vectors_do_not_saturate() {
    let cols = 2560;
    let mut seen = 0;
    for kernel in runnable_kernels() {
        if kernel.operation != Operation::Gemm || kernel.layout != Layout::I2S {
            continue;
        }
        seen += 1;
        let geometry = shape(kernel.layout, 33, cols, None);
        for byte in [0xffu8, 0xaa, 0x00] {
            let data = vec![byte; geometry.data_len()];
            // 53 leaves one vector over where four are taken together.
            let vectors: Vec<_> = (0..53).map(|v| vec![if v % 2 == 0 { 127 } else { -128 }; cols]).collect();
            check_kernel(kernel, Isa::detect(), &geometry, &data, 0..geometry.n_tiles(), &vectors);
        }
    }
    assert!(seen > 0, "the scalar kernel runs anywhere");
}

/// Mapped weights start anywhere.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn weights_at_every_alignment() {
    let mut random = Random::new(7);
    for kernel in runnable_kernels() {
        let geometry = shape(kernel.layout, 70, 260, None);
        let data = pack(&geometry, &random.trits(geometry.rows * geometry.cols));
        let vectors = [random.codes(geometry.cols)];
        let mut shifted = vec![0; data.len() + 64];
        for offset in (0..64).step_by(AMOUNT.step) {
            shifted[offset..offset + data.len()].copy_from_slice(&data);
            check_kernel(
                kernel,
                Isa::detect(),
                &geometry,
                &shifted[offset..offset + data.len()],
                0..geometry.n_tiles(),
                &vectors,
            );
        }
    }
}

/// Every byte value in every place of a tile, one at a time in a tile of zeros.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn all_byte_values() {
    let mut random = Random::new(3);
    for kernel in runnable_kernels() {
        let geometry = shape(kernel.layout, 64, 120, None);
        let vectors = [random.codes(geometry.cols)];
        for value in (0..=255u8).step_by(AMOUNT.step) {
            let mut data = any_bytes(&geometry, &mut Random::new(u64::from(value)));
            data[..geometry.trailer_offset()].fill(value);
            if kernel.layout == Layout::T5 {
                let count = if value >= 0x80 { geometry.groups() as u16 } else { 0 };
                for bytes in data[geometry.trailer_offset()..].chunks_exact_mut(2) {
                    bytes.copy_from_slice(&count.to_le_bytes());
                }
            }
            check_kernel(kernel, Isa::detect(), &geometry, &data, 0..geometry.n_tiles(), &vectors);
        }
    }
}

/// The oracle itself, by hand.
#[test]
fn the_oracle_is_right() {
    for layout in [Layout::T3, Layout::T5] {
        let geometry = Geometry::new(layout, 2, 4, 2).unwrap();
        let data = pack(&geometry, &[1, -1, 0, 1, -1, 0, 1, 1]);
        let sums = naive_sums(&geometry, &data, 0..1, &[vec![10, 20, 30, 40]]);
        let rows = geometry.tile_rows();
        assert_eq!((sums[0], sums[1], sums[rows], sums[rows + 1]), (-10, -10, 40, 70));
    }
}
