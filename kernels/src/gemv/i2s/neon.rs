//! Multiply-add GEMV on two-bit codes with NEON: `gemv-i2s-neon`.
//!
//! ```text
//! for each row, each 32 bytes w (128 weights):
//!     for s in 6, 4, 2, 0:   sums += ((w >> s) & 3) * 32 codes      (smlal, 16-bit lanes)
//! result = sums - sum of all codes
//! ```
//!
//! 1. A stored code is trit + 1, so the products' sum is too large by the activations' sum, which
//!    `prepare` computes once. The unused code 3 thereby counts as +2, its total meaning.
//! 2. Byte `k` holds the weights `k`, `k+32`, `k+64`, `k+96`: one shift of a register gives sixteen
//!    consecutive weights, and the activations stay in their own order.
//! 3. A product is at most `3 * 128 = 384`. Each 16-bit lane takes eight products per 128 weights,
//!    and is widened after [`WIDEN`] = 8 times 128 weights: `8 * 8 * 384 = 24,576`.

use crate::format::Geometry;
use crate::line::Line;
use core::arch::aarch64::*;
use core::ops::Range;

/// Rows of a tile.
const ROWS: usize = 16;
/// Groups of 128 weights summed in 16 bits.
const WIDEN: usize = 8;

/// The codes, and one line whose first four bytes are their sum.
pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    geometry.cols / 64 + 1
}

/// Copies the codes and adds them up.
#[target_feature(enable = "neon")]
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
#[target_feature(enable = "neon")]
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
        for row in 0..ROWS {
            let at = tile * ROWS + row;
            let weights = (at < geometry.rows).then(|| &data[at * row_bytes..][..row_bytes]);
            for vector in 0..n_vectors {
                let codes = &prepared[vector * lines..][..lines];
                out[(vector * n_tiles + index) * ROWS + row] =
                    weights.map_or(0, |weights| row_sum(weights, codes));
            }
        }
    }
}

/// One row times one prepared vector.
#[target_feature(enable = "neon")]
fn row_sum(weights: &[u8], prepared: &[Line]) -> i32 {
    let (weights, _) = weights.as_chunks::<32>();
    let (codes, last) = bytemuck::cast_slice::<Line, i8>(prepared).as_chunks::<128>();
    let mut total = vdupq_n_s32(0);
    for (weights, codes) in weights.chunks(WIDEN).zip(codes.chunks(WIDEN)) {
        let mut sums = [vdupq_n_s16(0); 2];
        for (weights, codes) in weights.iter().zip(codes) {
            let (first, second) = (load(weights, 0), load(weights, 16));
            sums = add_products(sums, vshrq_n_u8::<6>(first), codes, 0);
            sums = add_products(sums, vshrq_n_u8::<6>(second), codes, 16);
            sums = add_products(sums, vshrq_n_u8::<4>(first), codes, 32);
            sums = add_products(sums, vshrq_n_u8::<4>(second), codes, 48);
            sums = add_products(sums, vshrq_n_u8::<2>(first), codes, 64);
            sums = add_products(sums, vshrq_n_u8::<2>(second), codes, 80);
            sums = add_products(sums, first, codes, 96);
            sums = add_products(sums, second, codes, 112);
        }
        total = vpadalq_s16(vpadalq_s16(total, sums[0]), sums[1]);
    }
    let activations = i32::from_le_bytes([0, 1, 2, 3].map(|i| last[i].cast_unsigned()));
    vaddvq_s32(total) - activations
}

/// `sums += (weights & 3) * codes[at..at + 16]`
#[inline]
#[target_feature(enable = "neon")]
fn add_products(
    sums: [int16x8_t; 2],
    weights: uint8x16_t,
    codes: &[i8; 128],
    at: usize,
) -> [int16x8_t; 2] {
    let weights = vreinterpretq_s8_u8(vandq_u8(weights, vdupq_n_u8(3)));
    let codes = &codes[at..at + 16];
    // SAFETY: the load reads 16 bytes and needs no alignment; the slice above has 16 bytes.
    let codes = unsafe { vld1q_s8(codes.as_ptr()) };
    [
        vmlal_s8(sums[0], vget_low_s8(weights), vget_low_s8(codes)),
        vmlal_high_s8(sums[1], weights, codes),
    ]
}

/// Sixteen bytes from `at`.
#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 32], at: usize) -> uint8x16_t {
    let bytes = &bytes[at..at + 16];
    // SAFETY: the load reads 16 bytes and needs no alignment; the slice above has 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}
