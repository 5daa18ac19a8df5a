//! Multiply-add GEMV on two-bit codes with AVX-512 BW: `gemv-i2s-avx512`.
//!
//! ```text
//! for each row, each 64 bytes w (256 weights):
//!     for s in 0, 2, 4, 6:   sums += ((w >> s) & 3) * 64 codes       (vpmaddubsw, i16 lanes)
//! result = sums - sum of all codes
//! ```
//!
//! 1. A stored code is trit + 1, so the products' sum is too large by the activations' sum, which
//!    `prepare` computes once. The unused code 3 thereby counts as +2, its total meaning.
//! 2. `vpmaddubsw` adds two products, at most `2 * 3 * 128 = 768`: its saturation never acts. A
//!    16-bit lane takes four such results for 256 weights, and is widened after [`WIDEN`] = 10
//!    times: `10 * 4 * 768 = 30,720`.
//! 3. Byte `k` of 32 holds the weights `k`, `k+32`, `k+64`, `k+96`. `prepare` lays the codes out so
//!    that a line holds 32 of one block of 128 and 32 of the next, in the order of the shifted
//!    bytes. A last single block is padded with zero codes and zero bytes.
//! 4. [`TOGETHER`] rows go through the codes together, so that a line is loaded once for all, and memory is
//!    asked for ahead ([`super::ahead`]).

use super::ahead::{Ahead, Listed};
use super::scalar::row_bytes;
use crate::ask::IntoL1;
use crate::format::Geometry;
use crate::format::i2s::TILE_ROWS as ROWS;
use crate::gemv::avx512::load;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Rows that share a load of the codes; divides [`ROWS`].
const TOGETHER: usize = 4;
/// Bytes of 128 weights.
pub(super) const BLOCK: usize = 32;
/// Lines of 256 codes.
pub(super) const LINES: usize = 4;
/// Times 256 weights that are summed in 16 bits.
const WIDEN: usize = 10;

/// The codes, and one line whose first four bytes are their sum.
pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    geometry.cols.div_ceil(256) * LINES + 1
}

/// Arranges the codes as in item 3, and adds them up.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    assert_eq!(codes.len(), geometry.cols);
    assert_eq!(out.len(), prepared_lines(geometry));
    out.fill(Line::ZERO);
    let (last, lines) = out.split_last_mut().expect("a prepared vector ends with its sum");
    let (fours, _) = lines.as_chunks_mut::<LINES>();
    for (codes, four) in codes.chunks(256).zip(fours) {
        for (i, quarter) in codes.chunks_exact(BLOCK).enumerate() {
            // The first weights of 128 stand in the top bits, hence in the last of four lines.
            let (half, line) = (i / 4, LINES - 1 - i % 4);
            four[line].0[half * BLOCK..][..BLOCK].copy_from_slice(bytemuck::cast_slice(quarter));
        }
    }
    let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
    last.0[..4].copy_from_slice(&sum.to_le_bytes());
}

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
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
        let (groups, rest) = out.as_chunks_mut::<TOGETHER>();
        for (i, group) in groups.iter_mut().enumerate() {
            let at = first + i * TOGETHER;
            *group = row_sums(
                [row(at), row(at + 1), row(at + 2), row(at + 3)],
                Ahead::After(2 * TOGETHER * row_bytes),
                codes,
            );
        }
        let at = first + groups.len() * TOGETHER;
        for (i, sum) in rest.iter_mut().enumerate() {
            [*sum] = row_sums([row(at + i)], Ahead::Nothing, codes);
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn run_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    let row = |row: &u32| row_bytes(geometry, data, *row);
    let listed = Listed::begin::<IntoL1>(rows, geometry.cols / 4, row);
    let (groups, rest) = rows.as_chunks::<TOGETHER>();
    let (sums, sums_rest) = out.as_chunks_mut::<TOGETHER>();
    for (i, (group, sums)) in groups.iter().zip(sums).enumerate() {
        let later = core::array::from_fn(|r| row(listed.after(i * TOGETHER + r)));
        *sums = row_sums(group.each_ref().map(row), Ahead::Rows(later), prepared);
    }
    for (at, sum) in rest.iter().zip(sums_rest) {
        [*sum] = row_sums([row(at)], Ahead::Nothing, prepared);
    }
}

/// `N` rows times one prepared vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn row_sums<const N: usize>(rows: [&[u8]; N], ahead: Ahead<N>, prepared: &[Line]) -> [i32; N] {
    let zero = _mm512_setzero_si512();
    let (codes, last) = prepared.as_chunks::<LINES>();
    let parts = rows.map(|row| row.as_chunks::<64>());
    let n = parts[0].0.len();
    let whole = parts.map(|(whole, _)| &whole[..n]);
    let mut totals = [zero; N];
    let mut from = 0;
    while from < n {
        let to = n.min(from + WIDEN);
        let mut sums = [zero; N];
        for at in from..to {
            ahead.prefetch::<IntoL1>(rows[0], at);
            for i in 0..N {
                sums[i] = add_products(sums[i], load(&whole[i][at]), &codes[at]);
            }
        }
        for i in 0..N {
            totals[i] = add_words(totals[i], sums[i]);
        }
        from = to;
    }
    if let [codes] = &codes[n..] {
        for i in 0..N {
            let mut padded = [0; 64];
            padded[..BLOCK].copy_from_slice(parts[i].1);
            totals[i] = add_words(totals[i], add_products(zero, load(&padded), codes));
        }
    }
    let [a, b, c, d, ..] = last[0].0;
    let activations = i32::from_le_bytes([a, b, c, d]);
    totals.map(|total| _mm512_reduce_add_epi32(total) - activations)
}

/// Adds 256 products to 16-bit sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn add_products(sums: __m512i, bytes: __m512i, codes: &[Line; LINES]) -> __m512i {
    let mask = _mm512_set1_epi8(3);
    let weights = [bytes, _mm512_srli_epi16::<2>(bytes), _mm512_srli_epi16::<4>(bytes), _mm512_srli_epi16::<6>(bytes)];
    let mut sums = sums;
    for (weights, codes) in weights.into_iter().zip(codes) {
        let weights = _mm512_and_si512(weights, mask);
        sums = _mm512_add_epi16(sums, _mm512_maddubs_epi16(weights, load(&codes.0)));
    }
    sums
}

/// Adds 16-bit sums, in pairs, to 32-bit ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_words(totals: __m512i, sums: __m512i) -> __m512i {
    _mm512_add_epi32(totals, _mm512_madd_epi16(sums, _mm512_set1_epi16(1)))
}
