//! Multiply-add GEMV on two-bit codes with AVX-VNNI (256 bits): `gemv-i2s-avxvnni`.
//!
//! ```text
//! for each row, each 32 bytes w (128 weights):
//!     for s in 6, 4, 2, 0:   sums[s] += (w & (3 << s)) * 32 codes     (vpdpbusd, i32 lanes)
//! result = sums[0] + sums[2] / 4 + sums[4] / 16 + sums[6] / 64 - sum of all codes
//! ```
//!
//! 1. A stored code is trit + 1, so the products' sum is too large by the activations' sum, which
//!    `super::scalar::prepare` computes once. The unused code 3 thereby counts as +2, its total meaning.
//! 2. The two bits are multiplied where they stand, as 1, 4, 16 or 64 times the code: an unsigned
//!    byte holds `3 * 64`, and `vpdpbusd` takes an unsigned and a signed factor. Each position has
//!    sums of its own, every product in them is a multiple of the position's weight, so the last
//!    shift is exact. That saves three shifts of four instructions of unpacking.
//! 3. Byte `k` holds the weights `k`, `k+32`, `k+64`, `k+96`: one mask of a register gives 32
//!    consecutive weights, and the activations stay in their own order.
//! 4. A lane takes four products of at most `192 * 128` for every 128 columns: below 2^31 for
//!    up to 2.7 million columns.
//! 5. [`TOGETHER`] rows go through the codes together: with their 8 sums and the 4 masks, 16
//!    registers are enough.

use super::scalar::{activations, prepared_lines, row_bytes};
use crate::format::Geometry;
use crate::format::i2s::TILE_ROWS as ROWS;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Rows that share a load of the codes; divides [`ROWS`].
const TOGETHER: usize = 2;
/// Bytes of 128 weights.
const BLOCK: usize = 32;

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx2,avxvnni")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let row_bytes = geometry.cols / 4;
    let lines = prepared_lines(geometry);
    assert_eq!(Some(prepared.len()), n_vectors.checked_mul(lines));
    assert_eq!(Some(out.len()), n_vectors.checked_mul(tiles.len() * ROWS));
    let row = |at: usize| &data[at * row_bytes..][..row_bytes];
    let n_outputs = tiles.len() * ROWS;
    let first = tiles.start * ROWS;
    let present = geometry.rows.saturating_sub(first).min(n_outputs);
    for vector in 0..n_vectors {
        let codes = &prepared[vector * lines..][..lines];
        let out = &mut out[vector * n_outputs..][..n_outputs];
        let (out, missing) = out.split_at_mut(present);
        missing.fill(0);
        let (pairs, rest) = out.as_chunks_mut::<TOGETHER>();
        for (i, pair) in pairs.iter_mut().enumerate() {
            let at = first + i * TOGETHER;
            *pair = row_sums([row(at), row(at + 1)], codes);
        }
        let at = first + pairs.len() * TOGETHER;
        for (i, sum) in rest.iter_mut().enumerate() {
            [*sum] = row_sums([row(at + i)], codes);
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
#[target_feature(enable = "avx2,avxvnni")]
pub(crate) fn run_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    let row = |row: u32| row_bytes(geometry, data, row);
    let (groups, rest) = rows.as_chunks::<TOGETHER>();
    let (sums, sums_rest) = out.as_chunks_mut::<TOGETHER>();
    for (group, sums) in groups.iter().zip(sums) {
        *sums = row_sums(group.map(row), prepared);
    }
    for (at, sum) in rest.iter().zip(sums_rest) {
        [*sum] = row_sums([row(*at)], prepared);
    }
}

/// `N` rows times one prepared vector.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn row_sums<const N: usize>(rows: [&[u8]; N], prepared: &[Line]) -> [i32; N] {
    let columns = rows[0].len() * 4;
    let (codes, activations) = activations(prepared, columns);
    let (codes, _) = bytemuck::cast_slice::<i8, u8>(codes).as_chunks::<BLOCK>();
    let (codes, _) = codes.as_chunks::<4>();
    let rows = rows.map(|row| &row.as_chunks::<BLOCK>().0[..codes.len()]);
    let mut sums = [[_mm256_setzero_si256(); 4]; N];
    for (at, codes) in codes.iter().enumerate() {
        for i in 0..N {
            let bytes = load(&rows[i][at]);
            for (s, codes) in codes.iter().rev().enumerate() {
                let mask = _mm256_set1_epi8((3_u8 << (2 * s)).cast_signed());
                let weights = _mm256_and_si256(bytes, mask);
                sums[i][s] = _mm256_dpbusd_avx_epi32(sums[i][s], weights, load(codes));
            }
        }
    }
    sums.map(|[first, second, third, fourth]| {
        let first = _mm256_add_epi32(first, _mm256_srai_epi32::<2>(second));
        let third = _mm256_srai_epi32::<4>(third);
        let fourth = _mm256_srai_epi32::<6>(fourth);
        let sum = _mm256_add_epi32(first, _mm256_add_epi32(third, fourth));
        let mut lanes = [0; 8];
        store(bytemuck::cast_mut(&mut lanes), sum);
        lanes.iter().sum::<i32>() - activations
    })
}

#[inline]
#[target_feature(enable = "avx")]
fn load(bytes: &[u8; BLOCK]) -> __m256i {
    // SAFETY: the load reads 32 bytes and needs no alignment; `bytes` is a reference to 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn store(bytes: &mut [u8; BLOCK], value: __m256i) {
    // SAFETY: the store writes 32 bytes and needs no alignment; `bytes` is 32 bytes that we borrow
    // mutably.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) }
}
