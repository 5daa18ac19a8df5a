//! `gemm-*-neon`: decoded rows times activations with `smull` and `smlal`.
//!
//! Codes (trit plus one) are below 4, so they are the same number as signed bytes. Bound: a product
//! is at most 3 * 128 = 384 (I2_S has a code 3), and a chunk of 256 columns gives each 16-bit lane 16
//! of them, 6144.

use super::{Chunk, STRIDE, drive};
use crate::format::Geometry;
use crate::line::Line;
use core::arch::aarch64::*;
use core::ops::Range;

#[target_feature(enable = "neon")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    drive(geometry, data, tiles, prepared, n_vectors, out, |codes, activations, sums| {
        dot(codes, activations, sums);
    });
}

/// Adds each row's product to its sum.
#[target_feature(enable = "neon")]
fn dot(codes: &[[u8; STRIDE]], activations: &Chunk, sums: &mut [i32]) {
    let (activations, _) = activations.as_chunks::<16>();
    for (row, sum) in codes.iter().zip(sums) {
        let (row, _) = bytemuck::cast_ref::<[u8; STRIDE], Chunk>(row).as_chunks::<16>();
        let mut low = vdupq_n_s16(0);
        let mut high = vdupq_n_s16(0);
        for (codes, activations) in row.iter().zip(activations) {
            let (codes, activations) = (load(codes), load(activations));
            low = vmlal_s8(low, vget_low_s8(codes), vget_low_s8(activations));
            high = vmlal_high_s8(high, codes, activations);
        }
        *sum += vaddlvq_s16(low) + vaddlvq_s16(high);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[i8; 16]) -> int8x16_t {
    // SAFETY: the load reads 16 bytes, which `bytes` has, and needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr()) }
}
