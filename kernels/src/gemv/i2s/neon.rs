//! Multiply-add GEMV on two-bit codes with NEON: `gemv-i2s-neon`.
//!
//! ```text
//! for each row, each 32 bytes w (128 weights):
//!     for s in 6, 4, 2, 0:   sums += ((w >> s) & 3) * 32 codes      (smlal, 16-bit lanes)
//! result = sums - sum of all codes
//! ```
//!
//! 1. A stored code is trit + 1, so the products' sum is too large by the activations' sum, which
//!    `super::scalar::prepare` computes once. The unused code 3 thereby counts as +2, its total meaning.
//! 2. Byte `k` holds the weights `k`, `k+32`, `k+64`, `k+96`: one shift of a register gives sixteen
//!    consecutive weights, and the activations stay in their own order.
//! 3. A product is at most `3 * 128 = 384`. Each 16-bit lane takes eight products per 128 weights,
//!    and is widened after [`WIDEN`] = 8 times 128 weights: `8 * 8 * 384 = 24,576`.

use super::scalar::{activations, row_bytes};
use crate::format::Geometry;
use crate::format::i2s::TILE_ROWS;
use crate::gemv::{sums_at, vector};
use crate::line::Line;
use core::arch::aarch64::*;
use core::ops::Range;

/// Groups of 128 weights summed in 16 bits.
const WIDEN: usize = 8;

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
    for (t, tile) in tiles.clone().enumerate() {
        let rows = geometry.rows_of(tile..tile + 1);
        for v in 0..n_vectors {
            let (codes, total) = activations(vector(prepared, n_vectors, v), geometry.cols);
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(0);
            for (row, sum) in rows.clone().zip(sums) {
                *sum = row_sum(&data[row * row_bytes..][..row_bytes], codes) - total;
            }
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
#[target_feature(enable = "neon")]
pub(crate) fn run_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    let (codes, total) = activations(prepared, geometry.cols);
    for (row, sum) in rows.iter().zip(out) {
        *sum = row_sum(row_bytes(geometry, data, *row), codes) - total;
    }
}

/// One row times the activations, weights counting 0 to 3.
#[target_feature(enable = "neon")]
fn row_sum(weights: &[u8], codes: &[i8]) -> i32 {
    let (weights, _) = weights.as_chunks::<32>();
    let (codes, _) = codes.as_chunks::<128>();
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
    vaddvq_s32(total)
}

/// `sums += (weights & 3) * codes[at..at + 16]`
#[inline]
#[target_feature(enable = "neon")]
fn add_products(sums: [int16x8_t; 2], weights: uint8x16_t, codes: &[i8; 128], at: usize) -> [int16x8_t; 2] {
    let weights = vreinterpretq_s8_u8(vandq_u8(weights, vdupq_n_u8(3)));
    let codes = &codes[at..at + 16];
    // SAFETY: the load reads 16 bytes and needs no alignment; the slice above has 16 bytes.
    let codes = unsafe { vld1q_s8(codes.as_ptr()) };
    [vmlal_s8(sums[0], vget_low_s8(weights), vget_low_s8(codes)), vmlal_high_s8(sums[1], weights, codes)]
}

/// Sixteen bytes from `at`.
#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 32], at: usize) -> uint8x16_t {
    let bytes = &bytes[at..at + 16];
    // SAFETY: the load reads 16 bytes and needs no alignment; the slice above has 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}
