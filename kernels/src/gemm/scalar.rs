//! `gemm-*-scalar`: the chunk's products in portable Rust, and the definition of the others.

use super::{Chunk, STRIDE, drive};
use crate::format::Geometry;
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
