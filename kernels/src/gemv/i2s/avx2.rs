//! `gemv-i2s-avx2`: multiply-add on 2-bit codes.
//!
//! ```text
//! for 4 rows at once, for each 32 bytes of a row (128 weights):
//!     for shift in 6, 4, 2, 0: sum16 += maddubs(bytes >> shift & 3, activations)
//!     every 10 blocks: sum32 += madd(sum16, 1); sum16 = 0
//! row = sum32 - sum of the activations
//! ```
//!
//! * Codes are the trit plus one, so they are unsigned, as `vpmaddubsw` wants its first factor; the
//!   surplus is the sum of the activations, the same for all rows.
//! * Four rows share the loads of the activations.
//! * Memory is asked for two groups of rows ahead, in the order of addresses. Without that, one
//!   core of a virtual machine (Zen 3) read 4.3 GB/s, with it 9 to 11, of 15 that it reads at most.
//! * Bound: a pair of products is at most 2 * 3 * 128 = 768 in magnitude (code 3 included), four
//!   of them 3072, and ten blocks 30,720, which fits 16 bits.

use super::ahead::{Ahead, Listed};
use super::scalar::{activations, row_bytes};
use crate::ask::IntoL1;
use crate::format::Geometry;
use crate::format::i2s::{BLOCK, TILE_ROWS};
use crate::gemv::{sums_at, vector};
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Blocks whose sums fit 16 bits.
pub(crate) const BLOCKS_PER_WIDENING: usize = 10;

/// Rows that share the loads of the activations.
const TOGETHER: usize = 4;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn horizontal_sum(x: __m256i) -> i32 {
    let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x));
    _mm_cvtsi128_si32(x)
}

/// The products of 32 bytes of a row with 128 activations, in 16-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn products(bytes: __m256i, [a0, a1, a2, a3]: [__m256i; 4]) -> __m256i {
    let three = _mm256_set1_epi8(3);
    let c0 = _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), three);
    let c1 = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), three);
    let c2 = _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), three);
    let c3 = _mm256_and_si256(bytes, three);
    let p = _mm256_add_epi16(_mm256_maddubs_epi16(c0, a0), _mm256_maddubs_epi16(c1, a1));
    let q = _mm256_add_epi16(_mm256_maddubs_epi16(c2, a2), _mm256_maddubs_epi16(c3, a3));
    _mm256_add_epi16(p, q)
}

/// Sums of `N` rows of one length, code times activation.
#[inline]
#[target_feature(enable = "avx2")]
fn row_sums<const N: usize>(rows: [&[u8]; N], ahead: Ahead<N>, activations: &[[u8; BLOCK]]) -> [i32; N] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); N];
    for (part, activations) in activations.chunks(BLOCKS_PER_WIDENING).enumerate() {
        let start = part * BLOCKS_PER_WIDENING;
        let mut parts: [&[[u8; 32]]; N] = [&[]; N];
        for (part, row) in parts.iter_mut().zip(rows) {
            // All of one known length, so that the loop needs no bounds checks.
            *part = &row[start * 32..].as_chunks().0[..activations.len()];
        }
        let mut narrow = [_mm256_setzero_si256(); N];
        let mut add = |block: usize| {
            let (quarters, _) = activations[block].as_chunks::<32>();
            let a = [load(&quarters[0]), load(&quarters[1]), load(&quarters[2]), load(&quarters[3])];
            for i in 0..N {
                narrow[i] = _mm256_add_epi16(narrow[i], products(load(&parts[i][block]), a));
            }
        };
        // Two blocks of a row are a cache line.
        let mut block = 0;
        while block + 2 <= activations.len() {
            ahead.prefetch::<IntoL1>(rows[0], (start + block) / 2);
            add(block);
            add(block + 1);
            block += 2;
        }
        if block < activations.len() {
            add(block);
        }
        for i in 0..N {
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(narrow[i], ones));
        }
    }
    core::array::from_fn(|i| horizontal_sum(sums[i]))
}

/// A prepared vector's activations, block by block, and their sum.
fn blocks(vector: &[Line], cols: usize) -> (&[[u8; BLOCK]], i32) {
    let (activations, total) = activations(vector, cols);
    (bytemuck::cast_slice::<i8, u8>(activations).as_chunks().0, total)
}

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx2")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let row_bytes = geometry.cols / 4;
    let ahead = Ahead::After(2 * TOGETHER * row_bytes);
    for (t, tile) in tiles.clone().enumerate() {
        let range = geometry.rows_of(tile..tile + 1);
        let weights = &data[range.start * row_bytes..range.end * row_bytes];
        for v in 0..n_vectors {
            let (activations, total) = blocks(vector(prepared, n_vectors, v), geometry.cols);
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(0);
            let (fours, rest) = sums[..range.len()].as_chunks_mut::<TOGETHER>();
            for (four, weights) in fours.iter_mut().zip(weights.chunks_exact(TOGETHER * row_bytes)) {
                let (first, second) = weights.split_at(2 * row_bytes);
                let (a, b) = first.split_at(row_bytes);
                let (c, d) = second.split_at(row_bytes);
                *four = row_sums([a, b, c, d], ahead, activations).map(|sum| sum - total);
            }
            let weights = weights[fours.len() * TOGETHER * row_bytes..].chunks_exact(row_bytes);
            for (sum, weights) in rest.iter_mut().zip(weights) {
                let [products] = row_sums([weights], Ahead::After(row_bytes), activations);
                *sum = products - total;
            }
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
#[target_feature(enable = "avx2")]
pub(crate) fn run_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    let (activations, total) = blocks(prepared, geometry.cols);
    let bytes = |row: &u32| row_bytes(geometry, data, *row);
    let listed = Listed::begin::<IntoL1>(rows, geometry.cols / 4, bytes);
    let (fours, rest) = rows.as_chunks::<TOGETHER>();
    let (sums, sums_rest) = out.as_chunks_mut::<TOGETHER>();
    for (i, (four, sums)) in fours.iter().zip(sums).enumerate() {
        let later = core::array::from_fn(|r| bytes(listed.after(i * TOGETHER + r)));
        *sums = row_sums(four.each_ref().map(bytes), Ahead::Rows(later), activations).map(|sum| sum - total);
    }
    for (row, sum) in rest.iter().zip(sums_rest) {
        let row = bytes(row);
        // Asked for above, with the rows before it.
        let [products] = row_sums([row], Ahead::Rows([row]), activations);
        *sum = products - total;
    }
}
