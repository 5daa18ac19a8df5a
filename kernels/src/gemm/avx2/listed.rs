//! Some rows of I2_S, each with those of many vectors that want it.
//!
//! ```text
//! for each row, each part of it:
//!     codes = trit + 1, unsigned bytes                                   (once)
//!     for each four of its vectors, each run of 10 blocks:
//!         for each 32 codes, vector: sum16[vector] += maddubs(codes, activations)
//!         sum32 += madd(sum16, 1)
//! ```
//!
//! * A row is unpacked once for all its vectors instead of once for each, and one load of codes serves four of them.
//! * The codes of a part stay in the first cache; the vectors should fit the second.
//! * Bound: a pair of products is at most 2 * 3 * 128 = 768 in magnitude (code 3 included), four of them, which a block adds to a
//!   lane, 3072, and ten blocks 30,720, which fits 16 bits.

use super::{load, store};
use crate::format::Geometry;
use crate::format::i2s::BLOCK;
use crate::gemm::{Prepared, listed};
use crate::gemv::i2s::avx2::horizontal_sum;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Blocks whose sums fit 16 bits.
const BLOCKS_PER_WIDENING: usize = 10;

/// The codes of a block in the order of its columns.
type Codes = [[u8; 32]; BLOCK / 32];

/// Blocks that are unpacked at a time at most: 3,840 codes.
const PART: usize = 3 * BLOCKS_PER_WIDENING;

#[repr(C, align(64))]
struct Part([Codes; PART]);

/// See [`crate::kernel::RunListedFn`].
#[target_feature(enable = "avx2")]
pub(crate) fn run_listed(
    geometry: &Geometry,
    data: &[u8],
    rows: Range<usize>,
    ends: &[u32],
    vectors: &[u32],
    prepared: &[Line],
    out: &mut [i32],
) {
    let prepared = Prepared::new(geometry, prepared);
    let row_bytes = geometry.cols / 4;
    let mut part = Part([[[0; 32]; BLOCK / 32]; PART]);
    for (row, vectors, sums) in listed(rows, ends, vectors, out) {
        if vectors.is_empty() {
            continue;
        }
        for (sum, v) in sums.iter_mut().zip(vectors) {
            *sum = -prepared.total(*v as usize, 0);
        }
        let packed = data[row * row_bytes..][..row_bytes].as_chunks::<32>().0;
        let mut first = 0;
        for packed in packed.chunks(packed.len().div_ceil(packed.len().div_ceil(PART)).max(1)) {
            let codes = &mut part.0[..packed.len()];
            unpack(packed, codes);
            let activations = |v: &u32| &blocks(&prepared, *v as usize)[first..][..packed.len()];
            let (fours, rest) = vectors.as_chunks::<4>();
            let (four_sums, rest_sums) = sums.as_chunks_mut::<4>();
            for (four, sums) in fours.iter().zip(four_sums) {
                add(codes, four.each_ref().map(activations), sums);
            }
            for (one, sum) in rest.iter().zip(rest_sums) {
                add(codes, [activations(one)], core::array::from_mut(sum));
            }
            first += packed.len();
        }
    }
}

/// A vector's activations.
fn blocks<'a>(prepared: &Prepared<'a>, v: usize) -> &'a [[u8; BLOCK]] {
    bytemuck::cast_slice::<i8, u8>(prepared.activations(v, 0)).as_chunks().0
}

/// Packed blocks as codes.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack(packed: &[[u8; 32]], codes: &mut [Codes]) {
    let three = _mm256_set1_epi8(3);
    for (bytes, codes) in packed.iter().zip(codes) {
        let bytes = load(bytes);
        let quarters =
            [_mm256_srli_epi16::<6>(bytes), _mm256_srli_epi16::<4>(bytes), _mm256_srli_epi16::<2>(bytes), bytes];
        for (quarter, codes) in quarters.into_iter().zip(codes) {
            store(codes, _mm256_and_si256(quarter, three));
        }
    }
}

/// Adds the products of a part of a row with that of `N` vectors to their sums.
#[inline]
#[target_feature(enable = "avx2")]
fn add<const N: usize>(codes: &[Codes], vectors: [&[[u8; BLOCK]]; N], sums: &mut [i32; N]) {
    let ones = _mm256_set1_epi16(1);
    let mut wide = [_mm256_setzero_si256(); N];
    for (run, codes) in codes.chunks(BLOCKS_PER_WIDENING).enumerate() {
        let mut activations: [&[[u8; BLOCK]]; N] = [&[]; N];
        for (activations, vector) in activations.iter_mut().zip(vectors) {
            // All of one known length, so that the loop needs no bounds checks.
            *activations = &vector[run * BLOCKS_PER_WIDENING..][..codes.len()];
        }
        let mut narrow = [_mm256_setzero_si256(); N];
        for (block, codes) in codes.iter().enumerate() {
            for (quarter, codes) in codes.iter().enumerate() {
                let codes = load(codes);
                for i in 0..N {
                    let activations = load(&activations[i][block].as_chunks::<32>().0[quarter]);
                    narrow[i] = _mm256_add_epi16(narrow[i], _mm256_maddubs_epi16(codes, activations));
                }
            }
        }
        for i in 0..N {
            wide[i] = _mm256_add_epi32(wide[i], _mm256_madd_epi16(narrow[i], ones));
        }
    }
    for (sum, wide) in sums.iter_mut().zip(wide) {
        *sum += horizontal_sum(wide);
    }
}
