//! `gemv-c2-avx512vnni`: four columns at a time with `vpdpbusd`; rows are lanes.
//!
//! ```text
//! for each four (a, b, c, d) of listed columns:
//!     quads = bytes of a, b, c, d, interleaved        (four registers; a lane is one byte of each column)
//!     for each quad, for s in 0, 2, 4, 6:
//!         sums[quad][s] += (quad & (3 << s)) . (q[a], q[b], q[c], q[d])      (vpdpbusd, i32 lanes)
//! result = sums[s] >> s - sum of q
//! ```
//!
//! 1. `vpdpbusd` adds the products of a lane's four bytes: those of one row with four columns. No sum runs across
//!    lanes, and all 256 rows of a tile have their sums in 16 registers.
//! 2. The two bits are multiplied where they stand, as 1, 4, 16 or 64 times the code: an unsigned byte holds `3 * 64`.
//!    Every product in a position's sums is a multiple of its weight, so the last shift is exact. It saves the
//!    shifts of unpacking.
//! 3. A product is at most `192 * 128`, so a 32-bit lane takes 2^16 columns ([`COLUMNS_PER_FOLD`]: `2^16 * 24,576 <
//!    2^31`) before its sums are shifted and added to the result.
//! 4. The lines of a column lie anywhere, so no hardware foresees them: they are asked for [`Ask::LINES_APART`] columns before
//!    they are used, those of the next tile included, which takes the same columns. Several vectors take longer for a tile
//!    and find more of its lines in the second cache, so they ask for more ([`AHEAD_OF_SEVERAL`]). Where the processor wants it
//!    ([`Ask::GATHER`]), lines are also read from [`TOUCHED`] columns before their use.

use super::{List, end, listed};
use crate::ask::avx2::touch_lines;
use crate::ask::{Ask, ask_here};
use crate::format::Geometry;
use crate::format::c2::{LINE, TILE_ROWS, tile_lines};
use crate::gemv::avx512::{load, store};
use crate::gemv::{sums_at, vector};
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// How many columns ahead several vectors ask for memory; one does so [`Ask::LINES_APART`]. On a Zen 5 eight of which a third is not 0
/// took 9.2, 6.8, 5.3 and 4.8 ms for 30 matrices with 32, 64, 128 and 256 columns, a tenth 4.5, 2.7, 2.2 and 2.2; with 192 it is
/// 5.1 and 2.2.
const AHEAD_OF_SEVERAL: usize = 192;

/// How many columns before their use lines are read from where [`Ask::GATHER`] says so.
const TOUCHED: usize = 16;

/// Where less than one column in so many is listed, lines have too few neighbours for hardware to foresee any: a Zen 4 took 8 us for 4% and
/// 13 for 8% of the columns of 2560 x 6912 without reading from them first, 10 and 15 with; for 15% 27 and 26, for a third 133 and 60.
const SPARSE: usize = 8;

/// Columns that are summed before sums are shifted; a multiple of 4.
const COLUMNS_PER_FOLD: usize = 1 << 16;

/// Bytes of a column that become one quad.
const QUADS: usize = 4;

/// Where two bits stand in a byte.
const POSITIONS: usize = 4;

type Sums = [[__m512i; QUADS]; POSITIONS];

/// The list that [`super::prepare`] makes, sixteen columns at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    const SOME: usize = 16;
    let mut list = List::new(geometry, out);
    let numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let (sixteens, rest) = codes.as_chunks::<SOME>();
    let mut totals = _mm512_setzero_si512();
    for (i, sixteen) in sixteens.iter().enumerate() {
        let codes = _mm512_cvtepi8_epi32(bytemuck::cast(*sixteen));
        let which = _mm512_test_epi32_mask(codes, codes);
        if which == 0 {
            continue;
        }
        totals = _mm512_add_epi32(totals, codes);
        // As many columns as these were looked at before at least, so there is room for sixteen.
        let columns = _mm512_add_epi32(numbers, _mm512_set1_epi32((i * SOME) as i32));
        let columns: [u32; SOME] = bytemuck::cast(_mm512_maskz_compress_epi32(which, columns));
        list.columns[list.n..][..SOME].copy_from_slice(&columns);
        let codes = _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(which, codes));
        list.activations[list.n..][..SOME].copy_from_slice(&bytemuck::cast::<__m128i, [i8; SOME]>(codes));
        list.n += which.count_ones() as usize;
    }
    list.push(sixteens.len() * SOME, rest);
    let rest: i32 = rest.iter().map(|code| i32::from(*code)).sum();
    let n = list.n;
    end(geometry, out, n, _mm512_reduce_add_epi32(totals) + rest);
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
    ask_here!(A => run_tiles::<A>(geometry, data, tiles, prepared, n_vectors, out));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn run_tiles<A: Ask>(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let ahead = if n_vectors == 1 { A::LINES_APART } else { AHEAD_OF_SEVERAL };
    for (t, tile) in tiles.clone().enumerate() {
        let lines = tile_lines(geometry, data, tile);
        let behind = &data.as_chunks().0[(tile + 1) * geometry.cols..];
        for v in 0..n_vectors {
            let (columns, activations, total) = listed(vector(prepared, n_vectors, v));
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(-total);
            let (sums, _) = sums.as_chunks_mut::<16>();
            if t == 0 {
                columns.iter().take(ahead).for_each(|column| prefetch::<A>(lines, *column as usize));
            }
            for start in (0..columns.len()).step_by(COLUMNS_PER_FOLD) {
                let some = start..(start + COLUMNS_PER_FOLD).min(columns.len());
                let activations = &activations[some.clone()];
                if n_vectors == 1 {
                    add_columns::<A, false>(behind, lines, columns, activations, some, sums);
                } else {
                    add_columns::<A, true>(behind, lines, columns, activations, some, sums);
                }
            }
        }
    }
}

/// Asks for the line `at` of a tile, or of what follows it in memory.
#[inline(always)]
fn prefetch<A: Ask>(lines: &[[u8; LINE]], at: usize) {
    A::ask(lines.as_ptr().wrapping_add(at));
}

/// Adds the products of the columns `some` of the list `columns` to the sums of a tile; for `SEVERAL` vectors or
/// for one. `behind` are the lines of the next tiles, which are read from early.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_columns<A: Ask, const SEVERAL: bool>(
    behind: &[[u8; LINE]],
    lines: &[[u8; LINE]],
    columns: &[u32],
    activations: &[i8],
    some: Range<usize>,
    out: &mut [[i32; 16]],
) {
    let mut sums = [[_mm512_setzero_si512(); QUADS]; POSITIONS];
    let (fours, rest) = columns[some.clone()].as_chunks::<4>();
    let (factors, rest_factors) = activations.as_chunks::<4>();
    let touched = A::GATHER && columns.len() * SPARSE >= lines.len();
    for (i, (four, factors)) in fours.iter().zip(factors).enumerate() {
        let later = some.start + 4 * i + if SEVERAL { AHEAD_OF_SEVERAL } else { A::LINES_APART };
        for later in later..later + 4 {
            match columns.get(later) {
                Some(column) => prefetch::<A>(lines, *column as usize),
                // The next tile's lines stand behind this one's.
                None => prefetch::<A>(lines, lines.len() + columns[(later - columns.len()) % columns.len()] as usize),
            }
        }
        if touched {
            touch(behind, lines, columns, some.start + 4 * i + TOUCHED);
        }
        sums = add_four(sums, four.map(|column| &lines[column as usize]), *factors);
    }
    if let (&[j, k], &[first, second]) = (rest, rest_factors) {
        let (j, k) = (&lines[j as usize], &lines[k as usize]);
        sums = add_four(sums, [j, k, j, k], [first, second, 0, 0]);
    }
    fold(sums, out);
}

/// Reads from the lines of four columns of the list, which may run on into the next tile.
#[inline]
#[target_feature(enable = "avx2")]
fn touch(behind: &[[u8; LINE]], lines: &[[u8; LINE]], columns: &[u32], at: usize) {
    let (lines, at) = if at < columns.len() { (lines, at) } else { (behind, at - columns.len()) };
    if let Some(four) = columns.get(at..).and_then(|columns| columns.first_chunk()) {
        touch_lines(lines, four);
    }
}

/// Adds the products of four columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_four(sums: Sums, columns: [&[u8; LINE]; 4], factors: [i8; 4]) -> Sums {
    let [a, b, c, d] = columns.map(|column| load(column));
    let factors = _mm512_set1_epi32(i32::from_le_bytes(factors.map(i8::cast_unsigned)));
    let ab = [_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)];
    let cd = [_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d)];
    let quads = [
        _mm512_unpacklo_epi16(ab[0], cd[0]),
        _mm512_unpackhi_epi16(ab[0], cd[0]),
        _mm512_unpacklo_epi16(ab[1], cd[1]),
        _mm512_unpackhi_epi16(ab[1], cd[1]),
    ];
    let mut sums = sums;
    for (position, sums) in sums.iter_mut().enumerate() {
        let mask = _mm512_set1_epi8((3_u8 << (2 * position)).cast_signed());
        for (sums, quad) in sums.iter_mut().zip(quads) {
            *sums = _mm512_dpbusd_epi32(*sums, _mm512_and_si512(quad, mask), factors);
        }
    }
    sums
}

/// Adds sums to those of the tile's rows, sixteen by sixteen.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fold(sums: Sums, out: &mut [[i32; 16]]) {
    let [first, second, third, fourth] = sums;
    let shifted = [
        first,
        second.map(|sums| _mm512_srai_epi32::<2>(sums)),
        third.map(|sums| _mm512_srai_epi32::<4>(sums)),
        fourth.map(|sums| _mm512_srai_epi32::<6>(sums)),
    ];
    for (position, [a, b, c, d]) in shifted.into_iter().enumerate() {
        // Quad q holds the bytes 4 q to 4 q + 3 of each 16, so the 128-bit parts of four quads are turned.
        let low = [_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d)];
        let high = [_mm512_shuffle_i32x4::<0xEE>(a, b), _mm512_shuffle_i32x4::<0xEE>(c, d)];
        let sixteens = [
            _mm512_shuffle_i32x4::<0x88>(low[0], low[1]),
            _mm512_shuffle_i32x4::<0xDD>(low[0], low[1]),
            _mm512_shuffle_i32x4::<0x88>(high[0], high[1]),
            _mm512_shuffle_i32x4::<0xDD>(high[0], high[1]),
        ];
        for (bytes, sums) in sixteens.into_iter().enumerate() {
            // Rows of bytes 0-15, 16-31 of the first half and then of the second; the top bits are the first quarter.
            let at = bytes / 2 * 8 + (POSITIONS - 1 - position) * 2 + bytes % 2;
            let out: &mut [u8; 64] = bytemuck::cast_mut(&mut out[at]);
            store(out, _mm512_add_epi32(load(out), sums));
        }
    }
}
