//! `gemv-c2-scalar`: portable Rust, and the definition of the others. See the parent module.

use super::listed;
use crate::format::Geometry;
use crate::format::c2::{TILE_ROWS, tile_lines};
use crate::gemv::{sums_at, vector};
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
    for (t, tile) in tiles.clone().enumerate() {
        let lines = tile_lines(geometry, data, tile);
        for v in 0..n_vectors {
            let (columns, activations, total) = listed(vector(prepared, n_vectors, v));
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(-total);
            for (column, activation) in columns.iter().zip(activations) {
                let halves = lines[*column as usize].as_chunks::<32>().0;
                for (bytes, sums) in halves.iter().zip(sums.chunks_exact_mut(TILE_ROWS / 2)) {
                    for (quarter, sums) in sums.chunks_exact_mut(32).enumerate() {
                        for (sum, byte) in sums.iter_mut().zip(bytes) {
                            *sum += i32::from(byte >> (6 - 2 * quarter) & 3) * i32::from(*activation);
                        }
                    }
                }
            }
        }
    }
}
