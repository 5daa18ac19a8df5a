//! `gemm-*-scalar`: the chunk's products in portable Rust, and the definition of the others.

use super::{Chunk, Prepared, STRIDE, drive, listed};
use crate::format::{Geometry, i2s};
use crate::line::Line;
use core::ops::Range;

pub(crate) unsafe fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    drive(
        geometry,
        data,
        tiles,
        prepared,
        n_vectors,
        out,
        |codes: &[[u8; STRIDE]], activations: &Chunk, sums: &mut [i32]| {
            for (sum, codes) in sums.iter_mut().zip(codes) {
                *sum += codes.iter().zip(activations).map(|(c, a)| i32::from(*c) * i32::from(*a)).sum::<i32>();
            }
        },
    );
}

/// See [`crate::kernel::RunListedFn`].
pub(crate) unsafe fn run_listed(
    geometry: &Geometry,
    data: &[u8],
    rows: Range<usize>,
    ends: &[u32],
    vectors: &[u32],
    prepared: &[Line],
    out: &mut [i32],
) {
    let prepared = Prepared::new(geometry, prepared);
    let row_bytes = geometry.cols / 4;
    for (row, vectors, sums) in listed(rows, ends, vectors, out) {
        for (v, sum) in vectors.iter().zip(sums) {
            let activations = prepared.activations(*v as usize, 0);
            *sum = -prepared.total(*v as usize, 0);
            let blocks = data[row * row_bytes..][..row_bytes].chunks_exact(i2s::BLOCK / 4);
            for (bytes, activations) in blocks.zip(activations.chunks_exact(i2s::BLOCK)) {
                i2s::codes(bytes, |i, code| *sum += i32::from(code) * i32::from(activations[i]));
            }
        }
    }
}
