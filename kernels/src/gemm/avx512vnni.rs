//! `gemm-*-avx512vnni`: eight decoded rows at a time with `vpdpbusd`.
//!
//! Codes are unsigned bytes (trit plus one, I2_S has a code 3), activations signed, as the
//! instruction wants them. It adds four products to a 32-bit lane without saturating; a chunk of 256
//! columns gives at most `16 * 3 * 128 = 6144` in a lane. A chunk of activations is four registers,
//! held while all rows of the tile pass by; eight rows' sums are then joined by one transposing
//! tree, so that a row costs four multiplications and three and a half other instructions.

use super::{Chunk, STRIDE, drive};
use crate::format::Geometry;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Rows whose sums are joined together.
const TOGETHER: usize = 8;

pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    super::prepare(geometry, codes, out);
}

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
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

/// Adds each row's product to its sum.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot(codes: &[[u8; STRIDE]], activations: &Chunk, sums: &mut [i32]) {
    let activations = quarters(bytemuck::cast_ref(activations)).map(|codes| load(codes));
    let (groups, rest) = codes.as_chunks::<TOGETHER>();
    let (sum_groups, sum_rest) = sums.as_chunks_mut::<TOGETHER>();
    for (rows, sums) in groups.iter().zip(sum_groups) {
        let products = join(rows.each_ref().map(|row| row_products(row, activations)));
        for (sum, product) in sums.iter_mut().zip(products) {
            *sum += product;
        }
    }
    for (row, sum) in rest.iter().zip(sum_rest) {
        *sum += _mm512_reduce_add_epi32(row_products(row, activations));
    }
}

/// The four registers' worth of a row.
#[inline]
fn quarters(row: &[u8; STRIDE]) -> [&[u8; 64]; 4] {
    let (quarters, _) = row.as_chunks::<64>();
    core::array::from_fn(|i| &quarters[i])
}

/// One row's products, in 16 partial sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn row_products(row: &[u8; STRIDE], activations: [__m512i; 4]) -> __m512i {
    let mut sums = [_mm512_setzero_si512(); 2];
    for (i, (codes, activations)) in quarters(row).into_iter().zip(activations).enumerate() {
        sums[i % 2] = _mm512_dpbusd_epi32(sums[i % 2], load(codes), activations);
    }
    _mm512_add_epi32(sums[0], sums[1])
}

/// The sum of all lanes of each of eight registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn join(rows: [__m512i; TOGETHER]) -> [i32; TOGETHER] {
    let [a, b, c, d, e, f, g, h] = rows.map(|row| {
        let (low, high) = (_mm512_castsi512_si256(row), _mm512_extracti64x4_epi64::<1>(row));
        _mm256_add_epi32(low, high)
    });
    // Two horizontal additions leave a row's sum of each half in one lane of that half.
    let first = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let second = _mm256_hadd_epi32(_mm256_hadd_epi32(e, f), _mm256_hadd_epi32(g, h));
    let low = _mm256_permute2x128_si256::<0x20>(first, second);
    let high = _mm256_permute2x128_si256::<0x31>(first, second);
    bytemuck::cast(_mm256_add_epi32(low, high))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
