//! `gemm-*-avx2`: four decoded rows at a time with `vpmaddubsw`.
//!
//! Codes are unsigned bytes (trit plus one), activations signed, as the instruction wants them.
//! Bound: a pair of products is at most 2 * 3 * 128 = 768 (I2_S has a code 3), and the eight
//! vectors of a chunk of 256 columns at most 6144 in each 16-bit lane.

use super::{Chunk, STRIDE, drive};
use crate::format::Geometry;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    super::prepare(geometry, codes, out);
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
    drive(geometry, data, tiles, prepared, n_vectors, out, |codes, activations, sums| dot(codes, activations, sums));
}

#[target_feature(enable = "avx2")]
fn dot(codes: &[[u8; STRIDE]], activations: &Chunk, sums: &mut [i32]) {
    let activations = bytemuck::cast_ref::<Chunk, [u8; STRIDE]>(activations).as_chunks::<32>().0;
    let (quads, rest) = codes.as_chunks::<4>();
    let (sum_quads, sum_rest) = sums.as_chunks_mut::<4>();
    for (rows, sums) in quads.iter().zip(sum_quads) {
        let products = rows_dot(rows, activations);
        for (sum, product) in sums.iter_mut().zip(products) {
            *sum += product;
        }
    }
    for (row, sum) in rest.iter().zip(sum_rest) {
        let [product, ..] = rows_dot(&[*row, *row, *row, *row], activations);
        *sum += product;
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn rows_dot(rows: &[[u8; STRIDE]; 4], activations: &[[u8; 32]]) -> [i32; 4] {
    let rows = rows.each_ref().map(|row| row.as_chunks::<32>().0);
    let mut narrow = [_mm256_setzero_si256(); 4];
    for (i, activations) in activations.iter().enumerate() {
        let a = load(activations);
        for (narrow, row) in narrow.iter_mut().zip(rows) {
            *narrow = _mm256_add_epi16(*narrow, _mm256_maddubs_epi16(load(&row[i]), a));
        }
    }
    let ones = _mm256_set1_epi16(1);
    let [s0, s1, s2, s3] = narrow.map(|narrow| _mm256_madd_epi16(narrow, ones));
    // Two horizontal additions leave each row's sum of a half in one lane.
    let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(s0, s1), _mm256_hadd_epi32(s2, s3));
    let sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    bytemuck::cast(sums)
}
