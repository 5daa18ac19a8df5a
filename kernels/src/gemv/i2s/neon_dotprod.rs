//! Multiply-add GEMV on two-bit codes with `sdot`: `gemv-i2s-neon-dotprod`.
//!
//! ```text
//! for each four rows, each 32 bytes w of a row (128 weights):
//!     for s in 6, 4, 2, 0:   sums[row] += ((w >> s) & 3) * 32 codes      (sdot, 32-bit lanes)
//! result = sums - sum of all codes
//! ```
//!
//! 1. `sdot` multiplies signed bytes; the codes 0..=3 are the same number signed or not. They are
//!    trit + 1, so the activations' sum, computed once by `prepare`, is taken off at the end; the
//!    unused code 3 thereby counts as +2, its total meaning.
//! 2. Four products of at most `3 * 128` are added to a 32-bit lane: exact for every row
//!    length below five million, and beyond it modulo 2^32, where the true sum still fits.
//! 3. Four rows share each load of activations. Rows past the matrix's last one are not read.
//!
//! `sdot` is written in assembly because its intrinsic is not stable yet.

use crate::format::Geometry;
use crate::line::Line;
use core::arch::aarch64::*;
use core::arch::asm;
use core::ops::Range;

/// Rows of a tile.
const ROWS: usize = 16;
/// Rows that share a pass over the activations.
const TOGETHER: usize = 4;

/// The codes, and one line whose first four bytes are their sum.
pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    geometry.cols / 64 + 1
}

/// Copies the codes and adds them up.
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    assert_eq!(codes.len(), geometry.cols);
    assert_eq!(out.len(), prepared_lines(geometry));
    let (copy, last) = bytemuck::cast_slice_mut::<Line, i8>(out).split_at_mut(codes.len());
    copy.copy_from_slice(codes);
    last.fill(0);
    let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
    last[..4].copy_from_slice(&sum.to_le_bytes().map(u8::cast_signed));
}

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
    let lines = prepared_lines(geometry);
    assert_eq!(prepared.len(), n_vectors * lines);
    assert_eq!(out.len(), n_vectors * tiles.len() * ROWS);
    let n_tiles = tiles.len();
    for (index, tile) in tiles.enumerate() {
        for row in (0..ROWS).step_by(TOGETHER) {
            let at = tile * ROWS + row;
            let present = geometry.rows.saturating_sub(at).min(TOGETHER);
            let weights = &data[at.min(geometry.rows) * row_bytes..][..present * row_bytes];
            for vector in 0..n_vectors {
                let codes = &prepared[vector * lines..][..lines];
                let sums = &mut out[(vector * n_tiles + index) * ROWS + row..][..TOGETHER];
                if present == TOGETHER {
                    let rows = [0, 1, 2, 3].map(|i| &weights[i * row_bytes..][..row_bytes]);
                    sums.copy_from_slice(&row_sums(rows, codes));
                } else {
                    sums.fill(0);
                    for (sum, row) in sums.iter_mut().zip(weights.chunks_exact(row_bytes)) {
                        [*sum] = row_sums([row], codes);
                    }
                }
            }
        }
    }
}

/// `N` rows times one prepared vector.
#[target_feature(enable = "neon,dotprod")]
fn row_sums<const N: usize>(rows: [&[u8]; N], prepared: &[Line]) -> [i32; N] {
    let rows = rows.map(|row| row.as_chunks::<32>().0);
    let (codes, last) = bytemuck::cast_slice::<Line, i8>(prepared).as_chunks::<128>();
    let mut sums = [[vdupq_n_s32(0); 2]; N];
    for (i, codes) in codes.iter().enumerate() {
        let (codes, _) = codes.as_chunks::<16>();
        for (row, sums) in rows.iter().zip(&mut sums) {
            for half in 0..2 {
                let weights = load(&row[i], 16 * half);
                let shifted = [
                    vshrq_n_u8::<6>(weights),
                    vshrq_n_u8::<4>(weights),
                    vshrq_n_u8::<2>(weights),
                    weights,
                ];
                for (s, weights) in shifted.into_iter().enumerate() {
                    let weights = vreinterpretq_s8_u8(vandq_u8(weights, vdupq_n_u8(3)));
                    sums[half] = sdot(sums[half], weights, load_codes(&codes[2 * s + half]));
                }
            }
        }
    }
    let activations = i32::from_le_bytes([0, 1, 2, 3].map(|i| last[i].cast_unsigned()));
    let mut out = [0; N];
    for (out, [first, second]) in out.iter_mut().zip(sums) {
        *out = vaddvq_s32(vaddq_s32(first, second)) - activations;
    }
    out
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
