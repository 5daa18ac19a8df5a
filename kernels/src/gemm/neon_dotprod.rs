//! `gemm-*-neon-dotprod`: four decoded rows at a time with `sdot`.
//!
//! Codes (trit plus one) are below 4, so they are the same number as signed bytes; products are
//! summed in 32 bits, `256 * 384` at most in a chunk. `sdot` is written in assembly because its
//! intrinsic is not stable yet.

use super::{Chunk, STRIDE, drive};
use crate::format::Geometry;
use crate::line::Line;
use core::arch::aarch64::*;
use core::arch::asm;
use core::ops::Range;

#[target_feature(enable = "neon,dotprod")]
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
#[target_feature(enable = "neon,dotprod")]
fn dot(codes: &[[u8; STRIDE]], activations: &Chunk, sums: &mut [i32]) {
    let (quads, rest) = codes.as_chunks::<4>();
    let (sum_quads, sum_rest) = sums.as_chunks_mut::<4>();
    for (rows, sums) in quads.iter().zip(sum_quads) {
        add_rows(rows, activations, sums);
    }
    for (row, sum) in rest.iter().zip(sum_rest) {
        add_rows(&[*row], activations, core::array::from_mut(sum));
    }
}

/// `N` rows share each load of activations.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_rows<const N: usize>(rows: &[[u8; STRIDE]; N], activations: &Chunk, sums: &mut [i32; N]) {
    let rows = rows.each_ref().map(|row| {
        let row: &Chunk = bytemuck::cast_ref(row);
        row.as_chunks::<16>().0
    });
    let mut lanes = [vdupq_n_s32(0); N];
    for (i, activations) in activations.as_chunks().0.iter().enumerate() {
        let activations = load(activations);
        for (lanes, row) in lanes.iter_mut().zip(rows) {
            *lanes = sdot(*lanes, load(&row[i]), activations);
        }
    }
    for (sum, lanes) in sums.iter_mut().zip(lanes) {
        *sum += vaddvq_s32(lanes);
    }
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

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load(bytes: &[i8; 16]) -> int8x16_t {
    // SAFETY: the load reads 16 bytes, which `bytes` has, and needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr()) }
}
