//! `t5`: five trits in a byte, 64 rows interleaved; 1.6 bits a weight.
//!
//! The value of a group is `v = t0 + 3 t1 + 9 t2 + 27 t3 + 81 t4`, from -121 to 121. A byte holds its magnitude in
//! the low seven bits, an index into a table of 122 sums, and its sign in the top bit. Magnitudes
//! 122 to 127 mean five zeros, and so does a sign beside a 0 (byte 0x80).
//!
//! A block of columns has `ceil(block / 5)` groups, the missing trits being 0. The byte of tile `t`, block `b`,
//! group `g`, row `r` of the tile lies at `((t * n_blocks + b) * groups + g) * 64 + r`.
//!
//! After all tiles follows the trailer `[tile][block][64]` of little-endian `u16`: how many bytes of
//! that row and block have the top bit set. A kernel that negates by complementing the bits
//! (`!x = -x - 1`) adds this number at the end.

use super::Geometry;

/// Rows of one tile.
pub const TILE_ROWS: usize = 64;

/// Trits of one group.
pub const GROUP: usize = 5;

/// Largest magnitude of a group.
pub const MAX_VALUE: u8 = 121;

/// Entries of a table that any seven bits may index.
pub const TABLE: usize = 128;

/// Groups of one block of a row.
#[must_use]
pub const fn groups(block: usize) -> usize {
    block.div_ceil(GROUP)
}

/// The five trits of a value from -121 to 121.
#[must_use]
pub const fn digits(value: i8) -> [i8; GROUP] {
    let mut shifted = value as i16 + 121;
    let mut trits = [0; GROUP];
    let mut i = 0;
    while i < GROUP {
        trits[i] = (shifted % 3) as i8 - 1;
        shifted /= 3;
        i += 1;
    }
    trits
}

/// What a byte stands for, total over all bytes.
#[must_use]
pub const fn value(byte: u8) -> i8 {
    let magnitude = byte & 0x7f;
    if magnitude > MAX_VALUE {
        0
    } else if byte & 0x80 != 0 {
        -(magnitude as i8)
    } else {
        magnitude as i8
    }
}

/// The trits of every byte.
pub(crate) static TRITS: [[i8; GROUP]; 256] = {
    let mut table = [[0; GROUP]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = digits(value(byte as u8));
        byte += 1;
    }
    table
};

pub(super) fn pack_tile(geometry: &Geometry, trits: &[i8], body: &mut [u8], trailer: &mut [u8]) {
    let Geometry { cols, block, .. } = *geometry;
    for (b, bytes) in body.chunks_exact_mut(geometry.tile_block_bytes()).enumerate() {
        for r in 0..TILE_ROWS {
            let row = &trits[r * cols + b * block..][..block];
            for (group, weights) in row.chunks(GROUP).enumerate() {
                let value = weights.iter().rev().fold(0, |value, trit| 3 * value + trit);
                bytes[group * TILE_ROWS + r] = u8::from(value < 0) << 7 | value.unsigned_abs();
            }
        }
    }
    negatives(geometry, body, trailer);
}

/// Writes one tile's part of the trailer. A row has fewer than 65,536 groups ([`super::MAX_COLS`]),
/// so no count wraps.
pub(crate) fn negatives(geometry: &Geometry, body: &[u8], trailer: &mut [u8]) {
    let blocks = body.chunks_exact(geometry.tile_block_bytes());
    for (bytes, counts) in blocks.zip(trailer.chunks_exact_mut(TILE_ROWS * 2)) {
        let mut negative = [0u16; TILE_ROWS];
        for rows in bytes.chunks_exact(TILE_ROWS) {
            for (count, byte) in negative.iter_mut().zip(rows) {
                *count += u16::from(byte >> 7);
            }
        }
        for (bytes, count) in counts.chunks_exact_mut(2).zip(negative) {
            bytes.copy_from_slice(&count.to_le_bytes());
        }
    }
}

pub(super) fn unpack_row(geometry: &Geometry, data: &[u8], row: usize, out: &mut [i8]) {
    let (tile, r) = (row / TILE_ROWS, row % TILE_ROWS);
    let body = &data[tile * geometry.tile_bytes()..][..geometry.tile_bytes()];
    let blocks = body.chunks_exact(geometry.tile_block_bytes());
    for (bytes, out) in blocks.zip(out.chunks_exact_mut(geometry.block)) {
        for (rows, out) in bytes.chunks_exact(TILE_ROWS).zip(out.chunks_mut(GROUP)) {
            out.copy_from_slice(&TRITS[usize::from(rows[r])][..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_the_value() {
        for value in -121i8..=121 {
            let sum = digits(value).iter().rev().fold(0i32, |sum, trit| 3 * sum + i32::from(*trit));
            assert_eq!(sum, i32::from(value));
        }
    }

    #[test]
    fn bytes_that_no_packing_writes_are_zeros() {
        for byte in [0x00u8, 0x80, 122, 127, 250, 255] {
            assert_eq!(TRITS[usize::from(byte)], [0; 5]);
        }
        assert_eq!(TRITS[1], [1, 0, 0, 0, 0]);
        assert_eq!(TRITS[0x81], [-1, 0, 0, 0, 0]);
        assert_eq!(TRITS[121], [1; 5]);
    }
}
