//! `c2`: two bits a weight, column-major in tiles of 256 rows: what kernels read that skip the
//! columns whose activation is 0.
//!
//! A column of a tile is one cache line of 64 bytes, so that a skipped column costs no memory
//! traffic. Its 256 codes are two blocks of [`super::i2s`]: byte `k` of half `h` holds rows `k`, `k + 32`, `k + 64`, `k + 96`
//! of 128 in bits 7-6, 5-4, 3-2, 1-0. A code is the trit plus one; code 3 is no trit and is read as
//! +2. The line of tile `t`, column `c` lies at `(t * cols + c) * 64`.

use super::{Geometry, i2s};

/// Rows of one tile.
pub const TILE_ROWS: usize = 256;

/// Bytes of a column of a tile.
pub const LINE: usize = TILE_ROWS / 4;

/// Bytes and rows of half a column: one block of `i2s`.
const HALF: (usize, usize) = (i2s::BLOCK / 4, i2s::BLOCK);

/// Where the code of row `r` of a tile stands in a column: byte and shift.
const fn place(r: usize) -> (usize, usize) {
    (r / HALF.1 * HALF.0 + r % HALF.0, 6 - 2 * (r % HALF.1 / HALF.0))
}

pub(super) fn pack_tile(geometry: &Geometry, trits: &[i8], body: &mut [u8]) {
    for (c, line) in body.as_chunks_mut::<LINE>().0.iter_mut().enumerate() {
        line.fill(0);
        for r in 0..TILE_ROWS {
            let (byte, shift) = place(r);
            line[byte] |= ((trits[r * geometry.cols + c] + 1) as u8) << shift;
        }
    }
}

pub(super) fn unpack_row(geometry: &Geometry, data: &[u8], row: usize, out: &mut [i8]) {
    let (byte, shift) = place(row % TILE_ROWS);
    let lines = tile_lines(geometry, data, row / TILE_ROWS);
    for (out, line) in out.iter_mut().zip(lines) {
        *out = (line[byte] >> shift & 3) as i8 - 1;
    }
}

/// The columns of a tile.
pub(crate) fn tile_lines<'a>(geometry: &Geometry, data: &'a [u8], tile: usize) -> &'a [[u8; LINE]] {
    &data.as_chunks().0[tile * geometry.cols..(tile + 1) * geometry.cols]
}

/// Makes a tile's body from rows in the `i2s` layout: `rows` holds the bytes of the tile's rows that exist.
/// Codes are kept as they are, code 3 included.
///
/// # Panics
/// The columns are not whole blocks of `i2s`, or a slice has the wrong length.
pub fn transpose_i2s(geometry: &Geometry, rows: &[u8], body: &mut [u8]) {
    let row_bytes = geometry.cols / 4;
    assert!(geometry.cols.is_multiple_of(i2s::BLOCK), "whole blocks of columns");
    assert!(
        rows.len().is_multiple_of(row_bytes) && rows.len() <= TILE_ROWS * row_bytes,
        "at most a tile of whole rows"
    );
    assert_eq!(body.len(), geometry.tile_bytes(), "the tile's body");
    let lines = body.as_chunks_mut::<LINE>().0;
    for (h, rows) in rows.chunks(HALF.1 * row_bytes).enumerate() {
        for (block, lines) in lines.chunks_exact_mut(i2s::BLOCK).enumerate() {
            // Bytes transposed first: `turned[k]` are byte k of each row, four columns' codes.
            // Rows that do not exist have code 1, the trit 0.
            let mut turned = [[0x55u8; HALF.1]; HALF.0];
            for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
                for (turned, byte) in turned.iter_mut().zip(&row[block * HALF.0..(block + 1) * HALF.0]) {
                    turned[r] = *byte;
                }
            }
            for (k, codes) in turned.iter().enumerate() {
                let (quarters, _) = codes.as_chunks::<{ HALF.0 }>();
                for quarter in 0..4 {
                    let shift = 6 - 2 * quarter;
                    let line = &mut lines[k + HALF.0 * quarter][h * HALF.0..(h + 1) * HALF.0];
                    for (j, byte) in line.iter_mut().enumerate() {
                        let code = |i: usize| quarters[i][j] >> shift & 3;
                        *byte = code(0) << 6 | code(1) << 4 | code(2) << 2 | code(3);
                    }
                }
            }
        }
    }
    // A half without any row.
    let missing = rows.len().div_ceil(HALF.1 * row_bytes).min(2) * HALF.0..LINE;
    for line in lines {
        line[missing.clone()].fill(0x55);
    }
}
