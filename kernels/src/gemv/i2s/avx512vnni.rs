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
//! 5. Rows go through the codes one after the other, in the order of memory, which is asked for
//!    [`bytes_ahead`] on; loading a line of codes for each row costs less than reading at four places.
//! 6. What is done for each group of rows is written in loops: closures inherit the instruction set, which the
//!    functions that take them lack, so they would be calls, as long as a tenth of a group's products.
//! 7. Several vectors: weights are shifted down instead, which four vectors share, and all positions of a
//!    row have the same sums: 16 of them for four rows and four vectors. A group of rows meets all vectors
//!    before the next one is read, so memory is read once.
//! 8. With eight vectors the products take longer than memory to bring the weights, so there is time to ask for what the
//!    caller reads next ([`run_asking`]).
//! 9. Rows from a list go side by side, four rows by four positions: they were asked for one by one anyway, a line of codes
//!    is loaded once for all four, and 16 sums do not wait for each other.

use super::ahead::{Ahead, Listed, Spread};
use super::avx512::{BLOCK, LINES, prepared_lines};
use super::scalar::row_bytes;
use crate::cpu::bytes_ahead;
use crate::format::Geometry;
use crate::format::i2s::TILE_ROWS as ROWS;
use crate::gemv::avx512::load;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Rows whose sums are added up together, and vectors that share weights shifted down; divides [`ROWS`].
const TOGETHER: usize = 4;

/// So many vectors stay in the first cache while rows come and go; of more, rows of a tile stay there and vectors come and go.
const IN_CACHE: usize = 16;

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
    run_asking(geometry, data, tiles, prepared, n_vectors, &[], out);
}

/// See [`crate::kernel::RunAskingFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn run_asking(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    next: &[u8],
    out: &mut [i32],
) {
    let row_bytes = geometry.cols / 4;
    let distance = bytes_ahead();
    let lines = prepared_lines(geometry);
    let n_outputs = tiles.len() * ROWS;
    assert_eq!(prepared.len(), n_vectors * lines);
    assert_eq!(out.len(), n_vectors * n_outputs);
    let row = |at: usize| &data[at * row_bytes..][..row_bytes];
    let vector = |v: usize| &prepared[v * lines..][..lines];
    let first = tiles.start * ROWS;
    let present = geometry.rows.saturating_sub(first).min(n_outputs);
    for sums in out.chunks_exact_mut(n_outputs.max(1)) {
        sums[present..].fill(0);
    }
    let groups = present / TOGETHER * TOGETHER;
    // Each group of rows asks for what is behind it and for its share of what the caller reads next, evenly with all vectors
    // that share its weights: all of it with some would be faster than memory is, and they would wait.
    let n_groups = (groups / TOGETHER).max(1);
    let passes = n_vectors / TOGETHER;
    let steps = row_bytes.div_ceil(64);
    let together = if n_vectors > IN_CACHE { ROWS } else { TOGETHER };
    for block in (0..groups).step_by(together) {
        let block = block..(block + together).min(groups);
        for pass in 0..passes {
            let v = pass * TOGETHER;
            let vectors = [vector(v), vector(v + 1), vector(v + 2), vector(v + 3)];
            for i in block.clone().step_by(TOGETHER) {
                let at = first + i;
                let rows = [row(at), row(at + 1), row(at + 2), row(at + 3)];
                let behind = rows[0].as_ptr().wrapping_add(distance);
                let behind = Spread::new(behind, TOGETHER * row_bytes, (pass, passes), steps);
                let group = (i / TOGETHER * passes + pass, n_groups * passes);
                let next = Spread::new(next.as_ptr(), next.len(), group, steps);
                let sums = several_sums(rows, [behind, next], vectors);
                for (sums, v) in sums.iter().zip(v..) {
                    out[v * n_outputs + i..][..TOGETHER].copy_from_slice(sums);
                }
            }
        }
        for v in passes * TOGETHER..n_vectors {
            for i in block.clone().step_by(TOGETHER) {
                let at = first + i;
                let rows = [row(at), row(at + 1), row(at + 2), row(at + 3)];
                let ahead = if v == 0 { Ahead::After(distance) } else { Ahead::Nothing };
                out[v * n_outputs + i..][..TOGETHER].copy_from_slice(&row_sums(rows, ahead, vector(v)));
            }
        }
    }
    for i in groups..present {
        for v in 0..n_vectors {
            [out[v * n_outputs + i]] = row_sums([row(first + i)], Ahead::Nothing, vector(v));
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn run_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    let row = |row: &u32| row_bytes(geometry, data, *row);
    let listed = Listed::begin(rows, geometry.cols / 4, row);
    let (groups, rest) = rows.as_chunks::<TOGETHER>();
    let (sums, sums_rest) = out.as_chunks_mut::<TOGETHER>();
    for (i, (group, sums)) in groups.iter().zip(sums).enumerate() {
        let (mut now, mut later): ([&[u8]; TOGETHER], [&[u8]; TOGETHER]) = ([&[]; TOGETHER], [&[]; TOGETHER]);
        for r in 0..TOGETHER {
            (now[r], later[r]) = (row(&group[r]), row(listed.after(i * TOGETHER + r)));
        }
        *sums = listed_sums(now, later, prepared);
    }
    for (at, sum) in rest.iter().zip(sums_rest) {
        [*sum] = row_sums([row(at)], Ahead::Nothing, prepared);
    }
}

/// `N` rows times one prepared vector, one row after the other: hardware foresees what is read in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn row_sums<const N: usize>(rows: [&[u8]; N], ahead: Ahead<N>, prepared: &[Line]) -> [i32; N] {
    let (codes, last) = prepared.as_chunks::<LINES>();
    let activations = activations(last);
    let mut totals = [_mm512_setzero_si512(); N];
    for (r, total) in totals.iter_mut().enumerate() {
        let (whole, rest) = rows[r].as_chunks::<64>();
        let (whole_codes, last_codes) = codes.split_at(whole.len());
        let mut sums = [_mm512_setzero_si512(); LINES];
        for (at, (bytes, codes)) in whole.iter().zip(whole_codes).enumerate() {
            ahead.prefetch_row(rows[r], r, at);
            sums = add_products(sums, load(bytes), codes);
        }
        if let [codes] = last_codes {
            sums = add_products(sums, half(rest), codes);
        }
        *total = joined(sums);
    }
    let mut out = lane_sums(totals);
    for sum in &mut out {
        *sum -= activations;
    }
    out
}

/// Four rows from a list, side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn listed_sums(rows: [&[u8]; TOGETHER], later: [&[u8]; TOGETHER], prepared: &[Line]) -> [i32; TOGETHER] {
    let (codes, last) = prepared.as_chunks::<LINES>();
    let activations = activations(last);
    let n = rows[0].len() / 64;
    let mut whole: [&[[u8; 64]]; TOGETHER] = [&[]; TOGETHER];
    let mut rest: [&[u8]; TOGETHER] = [&[]; TOGETHER];
    for r in 0..TOGETHER {
        let (some, last) = rows[r].as_chunks::<64>();
        (whole[r], rest[r]) = (&some[..n], last);
    }
    let (whole_codes, last_codes) = codes.split_at(n);
    let mut sums = [[_mm512_setzero_si512(); LINES]; TOGETHER];
    for at in 0..n {
        Ahead::Rows(later).prefetch(rows[0], at);
        for r in 0..TOGETHER {
            sums[r] = add_products(sums[r], load(&whole[r][at]), &whole_codes[at]);
        }
    }
    let mut totals = [_mm512_setzero_si512(); TOGETHER];
    for r in 0..TOGETHER {
        if let [codes] = last_codes {
            sums[r] = add_products(sums[r], half(rest[r]), codes);
        }
        totals[r] = joined(sums[r]);
    }
    let mut out = lane_sums(totals);
    for sum in &mut out {
        *sum -= activations;
    }
    out
}

/// The sums of all positions of the weights in their bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined([first, second, third, fourth]: [__m512i; LINES]) -> __m512i {
    let first = _mm512_add_epi32(first, _mm512_srai_epi32::<2>(second));
    let third = _mm512_add_epi32(_mm512_srai_epi32::<4>(third), _mm512_srai_epi32::<6>(fourth));
    _mm512_add_epi32(first, third)
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

/// Four rows times four prepared vectors: `[vector][row]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn several_sums(
    rows: [&[u8]; TOGETHER],
    [behind, next]: [Spread; 2],
    vectors: [&[Line]; TOGETHER],
) -> [[i32; TOGETHER]; TOGETHER] {
    let (n, n_fours) = (rows[0].len() / 64, vectors[0].len() / LINES);
    let mut whole: [&[[u8; 64]]; TOGETHER] = [&[]; TOGETHER];
    let mut rest: [&[u8]; TOGETHER] = [&[]; TOGETHER];
    let mut fours: [&[[Line; LINES]]; TOGETHER] = [&[]; TOGETHER];
    let mut totals = [0; TOGETHER];
    for i in 0..TOGETHER {
        let (some, last) = rows[i].as_chunks::<64>();
        (whole[i], rest[i]) = (&some[..n], last);
        let (some, last) = vectors[i].as_chunks::<LINES>();
        (fours[i], totals[i]) = (&some[..n_fours], activations(last));
    }
    let mut sums = [[_mm512_setzero_si512(); TOGETHER]; TOGETHER];
    for at in 0..n {
        behind.prefetch::<_MM_HINT_T0>(at);
        next.prefetch::<_MM_HINT_T1>(at);
        let bytes = [load(&whole[0][at]), load(&whole[1][at]), load(&whole[2][at]), load(&whole[3][at])];
        add_several(&mut sums, bytes, [&fours[0][at], &fours[1][at], &fours[2][at], &fours[3][at]]);
    }
    if n < n_fours {
        let bytes = [half(rest[0]), half(rest[1]), half(rest[2]), half(rest[3])];
        add_several(&mut sums, bytes, [&fours[0][n], &fours[1][n], &fours[2][n], &fours[3][n]]);
    }
    let mut out = [[0; TOGETHER]; TOGETHER];
    for i in 0..TOGETHER {
        out[i] = lane_sums(sums[i]);
        for sum in &mut out[i] {
            *sum -= totals[i];
        }
    }
    out
}

/// Adds 256 products of four rows with four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_several(
    sums: &mut [[__m512i; TOGETHER]; TOGETHER],
    bytes: [__m512i; TOGETHER],
    codes: [&[Line; LINES]; TOGETHER],
) {
    let three = _mm512_set1_epi8(3);
    let mut bytes = bytes;
    for line in 0..LINES {
        let mut weights = bytes;
        for (weights, bytes) in weights.iter_mut().zip(&mut bytes) {
            *weights = _mm512_and_si512(*bytes, three);
            // What comes in from the neighbouring byte is above the two bits that the mask keeps.
            *bytes = _mm512_srli_epi32::<2>(*bytes);
        }
        for (sums, codes) in sums.iter_mut().zip(codes) {
            let codes = load(&codes[line].0);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm512_dpbusd_epi32(*sum, weights, codes);
            }
        }
    }
}

/// 32 bytes, and zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn half(bytes: &[u8]) -> __m512i {
    let mut padded = [0; 64];
    padded[..BLOCK].copy_from_slice(bytes);
    load(&padded)
}

/// The sum of the activations, from the line after them.
#[inline]
fn activations(last: &[Line]) -> i32 {
    let [a, b, c, d, ..] = last[0].0;
    i32::from_le_bytes([a, b, c, d])
}

/// The sum of each register's lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn lane_sums<const N: usize>(sums: [__m512i; N]) -> [i32; N] {
    let mut out = [0; N];
    let (fours, rest) = sums.as_chunks::<4>();
    let (out_fours, out_rest) = out.as_chunks_mut::<4>();
    // Four at a time share their additions.
    for ([a, b, c, d], out) in fours.iter().zip(out_fours) {
        let ab = _mm256_hadd_epi32(halves_added(*a), halves_added(*b));
        let all = _mm256_hadd_epi32(ab, _mm256_hadd_epi32(halves_added(*c), halves_added(*d)));
        *out = lanes(_mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all)));
    }
    for (sum, out) in rest.iter().zip(out_rest) {
        *out = _mm512_reduce_add_epi32(*sum);
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves_added(sum: __m512i) -> __m256i {
    _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum))
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn lanes(x: __m128i) -> [i32; 4] {
    [_mm_extract_epi32::<0>(x), _mm_extract_epi32::<1>(x), _mm_extract_epi32::<2>(x), _mm_extract_epi32::<3>(x)]
}
