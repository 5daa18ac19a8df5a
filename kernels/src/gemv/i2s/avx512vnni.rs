//! Multiply-add GEMV on two-bit codes with AVX-512 VNNI: `gemv-i2s-avx512vnni`.
//!
//! ```text
//! for each row, each 64 bytes w (256 weights):
//!     for s in 0, 2, 4, 6:   sums[s] += (w & (3 << s)) * 64 codes     (vpdpbusd, i32 lanes)
//! result = sums[0] + sums[2] / 4 + sums[4] / 16 + sums[6] / 64 - sum of all codes
//! ```
//!
//! 1. A stored code is trit + 1, so the products' sum is too large by the activations' sum, which
//!    `super::avx512::prepare` computes once. The unused code 3 thereby counts as +2, its total meaning.
//! 2. The two bits are multiplied where they stand, as 1, 4, 16 or 64 times the code: an unsigned
//!    byte holds `3 * 64`, and `vpdpbusd` takes an unsigned and a signed factor. Each position has
//!    sums of its own, every product in them is a multiple of the position's weight, so the last
//!    shift is exact. That saves three shifts of four instructions of unpacking.
//! 3. Byte `k` of 32 holds the weights `k`, `k+32`, `k+64`, `k+96`. `super::avx512::prepare` lays the codes out so that
//!    a line holds 32 of one block of 128 and 32 of the next, in the order of the masked
//!    bytes. A last single block is padded with zero codes and zero bytes.
//! 4. A lane takes four products of at most `192 * 128` for every 256 columns: below 2^31 for
//!    up to 5 million columns, the same limit that the i32 result has.
//! 5. [`TOGETHER`] rows go through the codes together, so that a line is loaded once for all.

use super::avx512::{BLOCK, LINES, prepared_lines};
use super::scalar::row_bytes;
use crate::format::Geometry;
use crate::format::i2s::TILE_ROWS as ROWS;
use crate::gemv::avx512::load;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Rows that share a load of the codes; divides [`ROWS`].
const TOGETHER: usize = 4;
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
    let row_bytes = geometry.cols / 4;
    let lines = prepared_lines(geometry);
    assert_eq!(prepared.len(), n_vectors * lines);
    assert_eq!(out.len(), n_vectors * tiles.len() * ROWS);
    let row = |at: usize| &data[at * row_bytes..][..row_bytes];
    let n_outputs = tiles.len() * ROWS;
    let first = tiles.start * ROWS;
    let present = geometry.rows.saturating_sub(first).min(n_outputs);
    for vector in 0..n_vectors {
        let codes = &prepared[vector * lines..][..lines];
        let out = &mut out[vector * n_outputs..][..n_outputs];
        let (out, missing) = out.split_at_mut(present);
        missing.fill(0);
        let (groups, rest) = out.as_chunks_mut::<TOGETHER>();
        for (i, group) in groups.iter_mut().enumerate() {
            let at = first + i * TOGETHER;
            *group = row_sums([row(at), row(at + 1), row(at + 2), row(at + 3)], codes);
        }
        let at = first + groups.len() * TOGETHER;
        for (i, sum) in rest.iter_mut().enumerate() {
            [*sum] = row_sums([row(at + i)], codes);
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn row_sums<const N: usize>(rows: [&[u8]; N], prepared: &[Line]) -> [i32; N] {
    let (codes, last) = prepared.as_chunks::<LINES>();
    let rows = rows.map(|row| row.as_chunks::<64>());
    let n = rows[0].0.len();
    let whole = rows.map(|(whole, _)| &whole[..n]);
    let mut sums = [[_mm512_setzero_si512(); LINES]; N];
    for (at, codes) in codes[..n].iter().enumerate() {
        for i in 0..N {
            sums[i] = add_products(sums[i], load(&whole[i][at]), codes);
        }
    }
    if let [codes] = &codes[n..] {
        for i in 0..N {
            let mut padded = [0; 64];
            padded[..BLOCK].copy_from_slice(rows[i].1);
            sums[i] = add_products(sums[i], load(&padded), codes);
        }
    }
    let [a, b, c, d, ..] = last[0].0;
    let activations = i32::from_le_bytes([a, b, c, d]);
    sums.map(|[first, second, third, fourth]| {
        let first = _mm512_add_epi32(first, _mm512_srai_epi32::<2>(second));
        let third = _mm512_srai_epi32::<4>(third);
        let fourth = _mm512_srai_epi32::<6>(fourth);
        let sum = _mm512_add_epi32(first, _mm512_add_epi32(third, fourth));
        _mm512_reduce_add_epi32(sum) - activations
    })
}

/// Adds 256 products, by the position of the weight in its byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_products(sums: [__m512i; LINES], bytes: __m512i, codes: &[Line; LINES]) -> [__m512i; LINES] {
    let mut sums = sums;
    for i in 0..LINES {
        let mask = _mm512_set1_epi8((3_u8 << (2 * i)).cast_signed());
        let weights = _mm512_and_si512(bytes, mask);
        sums[i] = _mm512_dpbusd_epi32(sums[i], weights, load(&codes[i].0));
    }
    sums
}
