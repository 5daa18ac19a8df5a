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
//!    [`bytes_ahead`] on, as [`Ask`] says how; loading a line of codes for each row costs less than reading at four places. One loop does
//!    so (`products`).
//! 6. What is done for each group of rows is written in loops: closures inherit the instruction set, which the
//!    functions that take them lack, so they would be calls, as long as a tenth of a group's products.
//! 7. Several vectors: weights are shifted down instead, which four vectors share, and all positions of a
//!    row have the same sums: 16 of them for four rows and four vectors. A group of rows meets all vectors
//!    before the next one is read, so memory is read once.
//! 8. With eight vectors the products take longer than memory to bring the weights, so there is time to ask for what the
//!    caller reads next ([`run_asking`]). They ask into the first cache on every processor: a Zen 4 took 690 us for eight vectors from
//!    memory, 730 to 800 into the second.
//! 9. Rows from a list go side by side, four rows by four positions: they were asked for one by one anyway, a line of codes
//!    is loaded once for all four, and 16 sums do not wait for each other. Where the processor wants it ([`Ask::GATHER`]), a group's rows
//!    are read from while the one before is multiplied. Rows that are in the cache already are not asked for ([`run_cached_rows`]).

use super::ahead::{Ahead, Listed, prefetch_lines};
use super::avx512::{BLOCK, LINES, prepared_lines};
use super::scalar::row_bytes;
use crate::ask::avx512::touch;
use crate::ask::{Ask, IntoL1, IntoL2, Nothing, ask_here, bytes_ahead};
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
    ask_here!(A => run_tiles::<A>(geometry, data, tiles, prepared, n_vectors, next, out));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn run_tiles<A: Ask>(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    next: &[u8],
    out: &mut [i32],
) {
    let row_bytes = geometry.cols / 4;
    let lines = prepared_lines(geometry);
    let n_outputs = tiles.len() * ROWS;
    assert_eq!(Some(prepared.len()), n_vectors.checked_mul(lines));
    assert_eq!(Some(out.len()), n_vectors.checked_mul(n_outputs));
    let first = tiles.start * ROWS;
    let present = geometry.rows.saturating_sub(first).min(n_outputs);
    for sums in out.chunks_exact_mut(n_outputs.max(1)) {
        sums[present..].fill(0);
    }
    let data = data.get(first * row_bytes..).unwrap_or_default();
    let factors = Factors { data, row_bytes, prepared, lines, ahead: bytes_ahead(), next };
    let groups = present / TOGETHER * TOGETHER;
    let passes = n_vectors / TOGETHER;
    let together = match n_vectors {
        1 => groups.max(1),
        TOGETHER..=IN_CACHE => TOGETHER,
        _ => ROWS,
    };
    for block in (0..groups).step_by(together) {
        let block = block..(block + together).min(groups);
        for pass in 0..passes {
            let out = &mut out[pass * TOGETHER * n_outputs..][..TOGETHER * n_outputs];
            // All that a group asks for, in one pass or evenly in two or four: all at once, others wait for memory meanwhile.
            match (passes, pass) {
                (1, _) => several_products::<4>(&factors, block.clone(), pass, out),
                (2 | 3, 0..2) => several_products::<2>(&factors, block.clone(), pass, out),
                (4.., 0..4) => several_products::<1>(&factors, block.clone(), pass, out),
                _ => several_products::<0>(&factors, block.clone(), pass, out),
            }
        }
        for v in passes * TOGETHER..n_vectors {
            let out = &mut out[v * n_outputs..][..n_outputs];
            if v == 0 {
                products::<A>(&factors, block.clone(), v, out);
            } else {
                products::<Nothing>(&factors, block.clone(), v, out);
            }
        }
    }
    for i in groups..present {
        for v in 0..n_vectors {
            let [row] = factors.rows(i);
            out[v * n_outputs + i] = row_sum(row, factors.vector(v));
        }
    }
}

/// Rows and prepared vectors.
struct Factors<'a> {
    /// From the first row of the tiles on.
    data: &'a [u8],
    row_bytes: usize,
    prepared: &'a [Line],
    lines: usize,
    /// How far behind the rows in use memory is asked for, in bytes.
    ahead: usize,
    /// What the caller reads next.
    next: &'a [u8],
}

impl<'a> Factors<'a> {
    #[inline]
    fn rows<const N: usize>(&self, first: usize) -> [&'a [u8]; N] {
        let mut rows: [&[u8]; N] = [&[]; N];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &self.data[(first + i) * self.row_bytes..][..self.row_bytes];
        }
        rows
    }

    #[inline]
    fn vector(&self, v: usize) -> &'a [Line] {
        &self.prepared[v * self.lines..][..self.lines]
    }
}

/// The rows of `block`, whole fours, times vector `v`, to `out`, a sum for each row. Asks for what is behind.
///
/// One loop goes through all rows: hardware foresees what one instruction reads, and four that take a row each in turns it does not
/// follow as well. On two cores of a Zen 5 that was 10 to 20% of the bandwidth.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn products<A: Ask>(factors: &Factors<'_>, block: Range<usize>, v: usize, out: &mut [i32]) {
    let (codes, last) = factors.vector(v).as_chunks::<LINES>();
    let activations = _mm_set1_epi32(activations(last));
    let mut totals = [_mm512_setzero_si512(); TOGETHER];
    for i in block {
        let [row] = factors.rows(i);
        totals[i % TOGETHER] = row_total::<A>(row, factors.ahead, codes);
        if i % TOGETHER == TOGETHER - 1 {
            let sums: [i32; TOGETHER] = bytemuck::cast(_mm_sub_epi32(four_sums(totals), activations));
            out[i + 1 - TOGETHER..=i].copy_from_slice(&sums);
        }
    }
}

/// Four rows after the other of `block`, times the four vectors of a pass, to `out`, `[vector][row]`. Asks for `ASKED` lines behind a group
/// for each line of a row, and for as many of what is read next.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn several_products<const ASKED: usize>(factors: &Factors<'_>, block: Range<usize>, pass: usize, out: &mut [i32]) {
    let v = pass * TOGETHER;
    let vectors = [factors.vector(v), factors.vector(v + 1), factors.vector(v + 2), factors.vector(v + 3)];
    let n_outputs = out.len() / TOGETHER;
    // Passes before this one have asked for what is in front of that.
    let asked = pass * ASKED * factors.row_bytes.next_multiple_of(64);
    for i in block.step_by(TOGETHER) {
        let rows = factors.rows(i);
        let behind = rows[0].as_ptr().wrapping_add(factors.ahead + asked);
        let next = i * factors.row_bytes + asked;
        let next = (next < factors.next.len()).then(|| factors.next.as_ptr().wrapping_add(next));
        let sums = several_sums::<ASKED>(rows, behind, next, vectors);
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(n_outputs)) {
            out[i..i + TOGETHER].copy_from_slice(sums);
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn run_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    ask_here!(A => run_listed::<A>(geometry, data, rows, prepared, out));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn run_listed<A: Ask>(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    let row = |row: &u32| row_bytes(geometry, data, *row);
    let listed = Listed::begin::<A>(rows, geometry.cols / 4, row);
    let (groups, rest) = rows.as_chunks::<TOGETHER>();
    let (sums, sums_rest) = out.as_chunks_mut::<TOGETHER>();
    for (i, (group, sums)) in groups.iter().zip(sums).enumerate() {
        let (mut now, mut later): ([&[u8]; TOGETHER], [&[u8]; TOGETHER]) = ([&[]; TOGETHER], [&[]; TOGETHER]);
        for r in 0..TOGETHER {
            (now[r], later[r]) = (row(&group[r]), row(listed.after(i * TOGETHER + r)));
            if A::GATHER
                && let Some(soon) = rows.get((i + 1) * TOGETHER + r)
            {
                touch(row(soon).as_chunks().0);
            }
        }
        *sums = listed_sums::<A>(now, later, prepared);
    }
    for (at, sum) in rest.iter().zip(sums_rest) {
        *sum = row_sum(row(at), prepared);
    }
}

/// The same, without asking for the rows. Where they end within a group its last row takes the others' places: one row alone
/// takes more than half as long.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn run_cached_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    for (group, sums) in rows.chunks(TOGETHER).zip(out.chunks_mut(TOGETHER)) {
        let mut bytes: [&[u8]; TOGETHER] = [&[]; TOGETHER];
        for (r, bytes) in bytes.iter_mut().enumerate() {
            *bytes = row_bytes(geometry, data, group[r.min(group.len() - 1)]);
        }
        sums.copy_from_slice(&listed_sums::<Nothing>(bytes, bytes, prepared)[..group.len()]);
    }
}

/// One row times one prepared vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn row_sum(row: &[u8], prepared: &[Line]) -> i32 {
    let (codes, last) = prepared.as_chunks::<LINES>();
    _mm512_reduce_add_epi32(row_total::<Nothing>(row, 0, codes)) - activations(last)
}

/// A row's products, added up in lanes. Asks for what is `ahead` bytes on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn row_total<A: Ask>(row: &[u8], ahead: usize, codes: &[[Line; LINES]]) -> __m512i {
    let (whole, rest) = row.as_chunks::<64>();
    let (whole_codes, last_codes) = codes.split_at(whole.len());
    let mut sums = [_mm512_setzero_si512(); LINES];
    for (at, (bytes, codes)) in whole.iter().zip(whole_codes).enumerate() {
        prefetch_lines::<A, 1>(row.as_ptr().wrapping_add(ahead), at);
        sums = add_products(sums, load(bytes), codes);
    }
    if let [codes] = last_codes {
        sums = add_products(sums, half(rest), codes);
    }
    joined(sums)
}

/// Four rows from a list, side by side. Asks for others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn listed_sums<A: Ask>(rows: [&[u8]; TOGETHER], later: [&[u8]; TOGETHER], prepared: &[Line]) -> [i32; TOGETHER] {
    let (codes, last) = prepared.as_chunks::<LINES>();
    let activations = _mm_set1_epi32(activations(last));
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
        Ahead::Rows(later).prefetch::<A>(rows[0], at);
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
    bytemuck::cast(_mm_sub_epi32(four_sums(totals), activations))
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

/// Four rows times four prepared vectors: `[vector][row]`. For each line of a row asks for `ASKED` lines from `behind` on, and from `next`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn several_sums<const ASKED: usize>(
    rows: [&[u8]; TOGETHER],
    behind: *const u8,
    next: Option<*const u8>,
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
        prefetch_lines::<IntoL1, ASKED>(behind, at);
        if let Some(next) = next {
            prefetch_lines::<IntoL2, ASKED>(next, at);
        }
        let bytes = [load(&whole[0][at]), load(&whole[1][at]), load(&whole[2][at]), load(&whole[3][at])];
        add_several(&mut sums, bytes, [&fours[0][at], &fours[1][at], &fours[2][at], &fours[3][at]]);
    }
    if n < n_fours {
        let bytes = [half(rest[0]), half(rest[1]), half(rest[2]), half(rest[3])];
        add_several(&mut sums, bytes, [&fours[0][n], &fours[1][n], &fours[2][n], &fours[3][n]]);
    }
    let [a, b, c, d] = sums;
    let parts = [part_sums(a), part_sums(b), part_sums(c), part_sums(d)];
    // Parts are the vectors' now; they change places with the quarters of their sums.
    let low = [_mm512_shuffle_i32x4::<0x88>(parts[0], parts[1]), _mm512_shuffle_i32x4::<0x88>(parts[2], parts[3])];
    let high = [_mm512_shuffle_i32x4::<0xDD>(parts[0], parts[1]), _mm512_shuffle_i32x4::<0xDD>(parts[2], parts[3])];
    let [first, second] = [_mm512_add_epi32(low[0], high[0]), _mm512_add_epi32(low[1], high[1])];
    let low = _mm512_shuffle_i32x4::<0x88>(first, second);
    let high = _mm512_shuffle_i32x4::<0xDD>(first, second);
    let totals = _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
        _mm512_castsi128_si512(bytemuck::cast(totals)),
    );
    bytemuck::cast(_mm512_sub_epi32(_mm512_add_epi32(low, high), totals))
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
fn four_sums(sums: [__m512i; 4]) -> __m128i {
    let parts = part_sums(sums);
    let halves = _mm256_add_epi32(_mm512_castsi512_si256(parts), _mm512_extracti64x4_epi64::<1>(parts));
    _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves))
}

/// Of four registers the sums of each 128 bits, those of the four side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn part_sums([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}
