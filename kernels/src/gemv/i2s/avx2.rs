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
//! * Bound: a pair of products is at most 2 * 3 * 128 = 768 in magnitude (code 3 included), four
//!   of them 3072, and ten blocks 30,720, which fits 16 bits.

use super::scalar::activations;
use crate::format::Geometry;
use crate::format::i2s::{BLOCK, TILE_ROWS};
use crate::gemv::{sums_at, vector};
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Blocks whose sums fit 16 bits.
const BLOCKS_PER_WIDENING: usize = 10;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn horizontal_sum(x: __m256i) -> i32 {
    let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x));
    _mm_cvtsi128_si32(x)
}

/// Sums of `N` rows of `row_bytes`, one after the other, code times activation.
#[inline]
#[target_feature(enable = "avx2")]
fn rows<const N: usize>(weights: &[u8], activations: &[i8]) -> [i32; N] {
    let row_bytes = activations.len() / 4;
    let rows: [&[[u8; 32]]; N] =
        core::array::from_fn(|i| weights[i * row_bytes..(i + 1) * row_bytes].as_chunks::<32>().0);
    let activations = bytemuck::cast_slice::<i8, u8>(activations).as_chunks::<BLOCK>().0;
    let n_blocks = activations.len();
    let three = _mm256_set1_epi8(3);
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); N];
    let mut start = 0;
    while start < n_blocks {
        let end = (start + BLOCKS_PER_WIDENING).min(n_blocks);
        let mut narrow = [_mm256_setzero_si256(); N];
        for block in start..end {
            let [a0, a1, a2, a3] = {
                let (parts, _) = activations[block].as_chunks::<32>();
                [load(&parts[0]), load(&parts[1]), load(&parts[2]), load(&parts[3])]
            };
            for i in 0..N {
                let bytes = load(&rows[i][block]);
                let c0 = _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), three);
                let c1 = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), three);
                let c2 = _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), three);
                let c3 = _mm256_and_si256(bytes, three);
                let p = _mm256_add_epi16(_mm256_maddubs_epi16(c0, a0), _mm256_maddubs_epi16(c1, a1));
                let q = _mm256_add_epi16(_mm256_maddubs_epi16(c2, a2), _mm256_maddubs_epi16(c3, a3));
                narrow[i] = _mm256_add_epi16(narrow[i], _mm256_add_epi16(p, q));
            }
        }
        for i in 0..N {
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(narrow[i], ones));
        }
        start = end;
    }
    core::array::from_fn(|i| horizontal_sum(sums[i]))
}

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
    for (t, tile) in tiles.clone().enumerate() {
        let range = geometry.rows_of(tile..tile + 1);
        let weights = &data[range.start * row_bytes..range.end * row_bytes];
        for v in 0..n_vectors {
            let (activations, total) = activations(vector(prepared, n_vectors, v), geometry.cols);
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(0);
            let (fours, rest) = sums[..range.len()].as_chunks_mut::<4>();
            for (four, weights) in fours.iter_mut().zip(weights.chunks(4 * row_bytes)) {
                *four = rows::<4>(weights, activations).map(|sum| sum - total);
            }
            let weights = weights[fours.len() * 4 * row_bytes..].chunks_exact(row_bytes);
            for (sum, weights) in rest.iter_mut().zip(weights) {
                let [products] = rows::<1>(weights, activations);
                *sum = products - total;
            }
        }
    }
}
