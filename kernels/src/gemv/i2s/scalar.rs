//! `gemv-i2s-scalar`: multiply and add in portable Rust, and the definition of the others.
//!
//! The prepared vector is the activations as they are; a code counts as the trit plus one, so the
//! sum of the activations, kept in the last line, is taken off once.

use crate::format::Geometry;
use crate::format::i2s::{BLOCK, TILE_ROWS, codes};
use crate::gemv::{sums_at, vector};
use crate::line::Line;
use core::ops::Range;

/// The activations, `cols` bytes in whole lines, and a line that begins with their sum (i32).
pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    Line::count_for(geometry.cols) + 1
}

pub(crate) unsafe fn prepare(_: &Geometry, codes: &[i8], out: &mut [Line]) {
    out.fill(Line::ZERO);
    let Some((last, lines)) = out.split_last_mut() else { return };
    bytemuck::cast_slice_mut::<Line, i8>(lines)[..codes.len()].copy_from_slice(codes);
    let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
    last.0[..4].copy_from_slice(&sum.to_le_bytes());
}

/// A prepared vector's activations and their sum.
#[inline(always)]
pub(super) fn activations(vector: &[Line], cols: usize) -> (&[i8], i32) {
    let (last, lines) = vector.split_last().expect("at least the line of the sum");
    let [a, b, c, d, ..] = last.0;
    (&bytemuck::cast_slice(lines)[..cols], i32::from_le_bytes([a, b, c, d]))
}

pub(crate) unsafe fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let row_bytes = geometry.cols / 4;
    for v in 0..n_vectors {
        let (activations, total) = activations(vector(prepared, n_vectors, v), geometry.cols);
        for (t, tile) in tiles.clone().enumerate() {
            let sums = &mut out[sums_at(geometry, tiles.len(), v, t, 0)..][..TILE_ROWS];
            sums.fill(0);
            let rows = geometry.rows_of(tile..tile + 1);
            for (row, sum) in rows.zip(sums) {
                *sum = products(&data[row * row_bytes..(row + 1) * row_bytes], activations) - total;
            }
        }
    }
}

/// See [`crate::kernel::RunRowsFn`].
pub(crate) unsafe fn run_rows(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
    let (activations, total) = activations(prepared, geometry.cols);
    for (row, sum) in rows.iter().zip(out) {
        *sum = products(row_bytes(geometry, data, *row), activations) - total;
    }
}

/// The bytes of a row.
#[inline(always)]
pub(super) fn row_bytes<'a>(geometry: &Geometry, data: &'a [u8], row: u32) -> &'a [u8] {
    let bytes = geometry.cols / 4;
    &data[row as usize * bytes..(row as usize + 1) * bytes]
}

/// Codes of a row times activations.
fn products(bytes: &[u8], activations: &[i8]) -> i32 {
    let mut products = 0;
    for (bytes, activations) in bytes.chunks_exact(BLOCK / 4).zip(activations.chunks_exact(BLOCK)) {
        codes(bytes, |i, code| products += i32::from(code) * i32::from(activations[i]));
    }
    products
}
