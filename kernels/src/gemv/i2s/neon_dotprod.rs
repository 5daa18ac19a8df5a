//! Multiply-add GEMV on two-bit codes with `sdot`: `gemv-i2s-neon-dotprod`.
//!
//! ```text
//! for each four rows, each 32 bytes w of a row (128 weights):
//!     for s in 6, 4, 2, 0:   sums[row] += ((w >> s) & 3) * 32 codes      (sdot, 32-bit lanes)
//! result = sums - sum of all codes
//! ```
//!
//! 1. `sdot` multiplies signed bytes; the codes 0..=3 are the same number signed or not. They are
//!    trit + 1, so the activations' sum, computed once by `super::scalar::prepare`, is taken off at the end; the
//!    unused code 3 thereby counts as +2, its total meaning.
//! 2. Four products of at most `3 * 128` are added to a 32-bit lane: with at most 2^18
//!    columns (`format::MAX_COLS`) the sum is below 2^27.
//! 3. Four rows share each load of activations. Rows past the matrix's last one are not read.
//!
//! `sdot` is written in assembly because its intrinsic is not stable yet.

use super::scalar::{activations, row_bytes};
use crate::format::Geometry;
use crate::format::i2s::TILE_ROWS;
use crate::gemv::{sums_at, vector};
use crate::line::Line;
use core::arch::aarch64::*;
use core::arch::asm;
use core::ops::Range;

/// Rows that share a pass over the activations.
const TOGETHER: usize = 4;

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "neon,dotprod")]
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
        let rows = geometry.rows_of(tile..tile + 1);
        let weights = &data[rows.start * row_bytes..rows.end * row_bytes];
        for v in 0..n_vectors {
            let (codes, total) = activations(vector(prepared, n_vectors, v), geometry.cols);
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(0);
            let fours = weights.chunks(TOGETHER * row_bytes);
            for (weights, sums) in fours.zip(sums.as_chunks_mut::<TOGETHER>().0) {
                if weights.len() == TOGETHER * row_bytes {
                    let rows = [0, 1, 2, 3].map(|i| &weights[i * row_bytes..][..row_bytes]);
                    *sums = row_sums(rows, codes).map(|sum| sum - total);
                } else {
                    for (row, sum) in weights.chunks_exact(row_bytes).zip(sums) {
                        let [products] = row_sums([row], codes);
                        *sum = products - total;
                    }
                }
            }
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn run_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    let (codes, total) = activations(prepared, geometry.cols);
    let row = |row: u32| row_bytes(geometry, data, row);
    let (groups, rest) = rows.as_chunks::<TOGETHER>();
    let (sums, sums_rest) = out.as_chunks_mut::<TOGETHER>();
    for (group, sums) in groups.iter().zip(sums) {
        *sums = row_sums(group.map(row), codes).map(|sum| sum - total);
    }
    for (at, sum) in rest.iter().zip(sums_rest) {
        let [products] = row_sums([row(*at)], codes);
        *sum = products - total;
    }
}

/// `N` rows times the activations, weights counting 0 to 3.
#[target_feature(enable = "neon,dotprod")]
fn row_sums<const N: usize>(rows: [&[u8]; N], codes: &[i8]) -> [i32; N] {
    let rows = rows.map(|row| row.as_chunks::<32>().0);
    let (codes, _) = codes.as_chunks::<128>();
    let mut sums = [[vdupq_n_s32(0); 2]; N];
    for (i, codes) in codes.iter().enumerate() {
        let (codes, _) = codes.as_chunks::<16>();
        for (row, sums) in rows.iter().zip(&mut sums) {
            for half in 0..2 {
                let weights = load(&row[i], 16 * half);
                let shifted = [vshrq_n_u8::<6>(weights), vshrq_n_u8::<4>(weights), vshrq_n_u8::<2>(weights), weights];
                for (s, weights) in shifted.into_iter().enumerate() {
                    let weights = vreinterpretq_s8_u8(vandq_u8(weights, vdupq_n_u8(3)));
                    sums[half] = sdot(sums[half], weights, load_codes(&codes[2 * s + half]));
                }
            }
        }
    }
    sums.map(|[first, second]| vaddvq_s32(vaddq_s32(first, second)))
}

/// `sums[i] += a[4i] * b[4i] + .. + a[4i + 3] * b[4i + 3]`
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction needs `dotprod`, which this function's attribute demands of its
    // callers; it reads and writes nothing but the three registers named here.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Sixteen bytes from `at`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load(bytes: &[u8; 32], at: usize) -> uint8x16_t {
    let bytes = &bytes[at..at + 16];
    // SAFETY: the load reads 16 bytes and needs no alignment; the slice above has 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load_codes(codes: &[i8; 16]) -> int8x16_t {
    // SAFETY: the load reads 16 bytes, which `codes` has, and needs no alignment.
    unsafe { vld1q_s8(codes.as_ptr()) }
}
