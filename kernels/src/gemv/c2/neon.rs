//! `gemv-c2-neon`: one column at a time with `smlal`; rows are lanes.
//!
//! ```text
//! for each chunk of 84 listed columns, each 16 bytes of a line (64 rows):
//!     for each column c:
//!         for shift in 6, 4, 2, 0:   sum16[shift] += (bytes >> shift & 3) * q[c]
//!     sums += sum16
//! ```
//!
//! Bound: a product is at most `3 * 128 = 384`, and 84 of them 32,256, which fits 16 bits.

use super::{COLUMNS_PER_WIDENING, listed};
use crate::format::Geometry;
use crate::format::c2::{LINE, TILE_ROWS, tile_lines};
use crate::gemv::{sums_at, vector};
use crate::line::Line;
use core::arch::aarch64::*;
use core::ops::Range;

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
    for (t, tile) in tiles.clone().enumerate() {
        let lines = tile_lines(geometry, data, tile);
        for v in 0..n_vectors {
            let (columns, activations, total) = listed(vector(prepared, n_vectors, v));
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(-total);
            let chunks = columns.chunks(COLUMNS_PER_WIDENING).zip(activations.chunks(COLUMNS_PER_WIDENING));
            for (columns, activations) in chunks {
                for sixteen in 0..LINE / 16 {
                    add_columns(lines, sixteen, columns, activations, sums);
                }
            }
        }
    }
}

/// Adds the products of some columns to the sums of the 64 rows of bytes `16 * sixteen` and following.
#[inline]
#[target_feature(enable = "neon")]
fn add_columns(lines: &[[u8; LINE]], sixteen: usize, columns: &[u32], activations: &[i8], sums: &mut [i32]) {
    let three = vdupq_n_u8(3);
    let mut narrow = [[vdupq_n_s16(0); 2]; 4];
    for (&column, &activation) in columns.iter().zip(activations) {
        let bytes = load(&lines[column as usize].as_chunks::<16>().0[sixteen]);
        let activation = vdupq_n_s8(activation);
        let codes = [vshrq_n_u8::<6>(bytes), vshrq_n_u8::<4>(bytes), vshrq_n_u8::<2>(bytes), bytes];
        for (codes, [low, high]) in codes.into_iter().zip(&mut narrow) {
            let codes = vreinterpretq_s8_u8(vandq_u8(codes, three));
            *low = vmlal_s8(*low, vget_low_s8(codes), vget_low_s8(activation));
            *high = vmlal_high_s8(*high, codes, activation);
        }
    }
    // Rows of the half tile, 32 for each shift, of which these bytes hold 16.
    let first = sixteen / 2 * (TILE_ROWS / 2) + sixteen % 2 * 16;
    for (quarter, [low, high]) in narrow.into_iter().enumerate() {
        let (fours, _) = sums[first + 32 * quarter..][..16].as_chunks_mut::<4>();
        add(&mut fours[0], vmovl_s16(vget_low_s16(low)));
        add(&mut fours[1], vmovl_high_s16(low));
        add(&mut fours[2], vmovl_s16(vget_low_s16(high)));
        add(&mut fours[3], vmovl_high_s16(high));
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the load reads 16 bytes, which `bytes` has, and needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn add(sums: &mut [i32; 4], more: int32x4_t) {
    // SAFETY: the load reads and the store writes 16 bytes, which `sums` has; neither needs alignment.
    unsafe { vst1q_s32(sums.as_mut_ptr(), vaddq_s32(vld1q_s32(sums.as_ptr()), more)) }
}
