//! `gemv-c2-avx2`: two columns at a time with `vpmaddubsw`; rows are lanes.
//!
//! ```text
//! for each chunk of 42 pairs of listed columns, each half of 128 rows:
//!     for each pair (j, k):
//!         lo, hi = unpack(bytes of j, bytes of k)            (neighbouring bytes: the same rows)
//!         for shift in 6, 4, 2, 0:
//!             sum16[shift] += maddubs(lo, hi >> shift & 3, (q[j], q[k]))
//!     sums += sum16
//! ```
//!
//! * `vpmaddubsw` adds the products of two neighbouring bytes: those of a row with the two columns. No sum
//!   runs across lanes.
//! * Eight registers of sums serve 128 rows, so the other registers are free for codes.
//! * Bound: a pair of products is at most `2 * 3 * 128 = 768`, and 42 of them 32,256, which fits 16
//!   bits.
//! * The lines of a column lie anywhere, so no hardware foresees them: they are asked for
//!   [`AHEAD`] columns before they are used.

use super::{COLUMNS_PER_WIDENING, List, end, listed};
use crate::format::Geometry;
use crate::format::c2::{LINE, TILE_ROWS, tile_lines};
use crate::gemv::{sums_at, vector};
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// How many columns ahead memory is asked for.
const AHEAD: usize = 32;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(line: &[u8; LINE]) {
    _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
}

/// Adds eight 16-bit sums to 32-bit ones.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(sums: &mut [i32; 8], narrow: __m128i) {
    let bytes: &mut [u8; 32] = bytemuck::cast_mut(sums);
    let wide = _mm256_add_epi32(load(bytes), _mm256_cvtepi16_epi32(narrow));
    // SAFETY: the reference is to 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), wide) }
}

/// The list that [`super::prepare`] makes; of 32 columns at a time only those are looked at that are listed.
#[target_feature(enable = "avx2")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    let mut list = List::new(geometry, out);
    let (parts, rest) = codes.as_chunks::<32>();
    let mut total = 0;
    for (i, codes) in parts.iter().enumerate() {
        let zeros = _mm256_cmpeq_epi8(load(bytemuck::cast_ref(codes)), _mm256_setzero_si256());
        let mut which = !_mm256_movemask_epi8(zeros).cast_unsigned();
        while which != 0 {
            let c = which.trailing_zeros() as usize;
            list.columns[list.n] = (32 * i + c) as u32;
            list.activations[list.n] = codes[c];
            total += i32::from(codes[c]);
            list.n += 1;
            which &= which - 1;
        }
    }
    list.push(32 * parts.len(), rest);
    total += rest.iter().map(|code| i32::from(*code)).sum::<i32>();
    let n = list.n;
    end(geometry, out, n, total);
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
    for (t, tile) in tiles.clone().enumerate() {
        let lines = tile_lines(geometry, data, tile);
        for v in 0..n_vectors {
            let (columns, activations, total) = listed(vector(prepared, n_vectors, v));
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(-total);
            let (halves, _) = sums.as_chunks_mut::<{ TILE_ROWS / 2 }>();
            for start in (0..columns.len()).step_by(COLUMNS_PER_WIDENING) {
                let end = (start + COLUMNS_PER_WIDENING).min(columns.len());
                if start == 0 {
                    for column in columns.iter().take(AHEAD) {
                        prefetch(&lines[*column as usize]);
                    }
                }
                let mut later = columns[(start + AHEAD).min(columns.len())..].as_chunks().0;
                let columns = columns[start..end].as_chunks().0;
                let activations = activations[start..end].as_chunks().0;
                for (half, sums) in halves.iter_mut().enumerate() {
                    add_columns(lines, half, columns, activations, later, sums);
                    // One half has asked for whole lines.
                    later = &[];
                }
            }
        }
    }
}

/// Adds the products of some pairs of columns, at most [`COLUMNS_PER_WIDENING`] columns, to the sums of half a tile.
/// Meanwhile the lines of as many of the columns `later` are asked for.
#[inline]
#[target_feature(enable = "avx2")]
fn add_columns(
    lines: &[[u8; LINE]],
    half: usize,
    columns: &[[u32; 2]],
    activations: &[[i8; 2]],
    later: &[[u32; 2]],
    sums: &mut [i32; TILE_ROWS / 2],
) {
    let three = _mm256_set1_epi8(3);
    let mut narrow = [[_mm256_setzero_si256(); 2]; 4];
    for (i, (&[j, k], &activations)) in columns.iter().zip(activations).enumerate() {
        if let Some(later) = later.get(i) {
            prefetch(&lines[later[0] as usize]);
            prefetch(&lines[later[1] as usize]);
        }
        let [first, second] = [j, k].map(|column| &lines[column as usize].as_chunks::<32>().0[half]);
        let (first, second) = (load(first), load(second));
        let both = _mm256_set1_epi16(i16::from_le_bytes(activations.map(i8::cast_unsigned)));
        let pairs = [_mm256_unpacklo_epi8(first, second), _mm256_unpackhi_epi8(first, second)];
        for i in 0..2 {
            let codes = [
                _mm256_srli_epi16::<6>(pairs[i]),
                _mm256_srli_epi16::<4>(pairs[i]),
                _mm256_srli_epi16::<2>(pairs[i]),
                pairs[i],
            ];
            for quarter in 0..4 {
                let products = _mm256_maddubs_epi16(_mm256_and_si256(codes[quarter], three), both);
                narrow[quarter][i] = _mm256_add_epi16(narrow[quarter][i], products);
            }
        }
    }
    let (eights, _) = sums.as_chunks_mut::<8>();
    for (eights, [low, high]) in eights.as_chunks_mut::<4>().0.iter_mut().zip(narrow) {
        // Unpacking took bytes 0-7 and 16-23 into the first, 8-15 and 24-31 into the second.
        widen(&mut eights[0], _mm256_castsi256_si128(low));
        widen(&mut eights[1], _mm256_castsi256_si128(high));
        widen(&mut eights[2], _mm256_extracti128_si256::<1>(low));
        widen(&mut eights[3], _mm256_extracti128_si256::<1>(high));
    }
}
