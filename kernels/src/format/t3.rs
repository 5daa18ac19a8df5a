//! `t3`: three trits in a nibble plus a sign bit, 32 rows interleaved; 5/3 bits a weight.
//!
//! The value of a group is `v = t0 + 3 t1 + 9 t2`, from -13 to 13. Its magnitude is the nibble, and
//! so an index into a table of 14 sums; the other half of the table is the same with the sign
//! turned. Nibbles 14 and 15 mean three zeros, and a set sign beside a 0 changes nothing.
//!
//! A block of columns has `ceil(block / 3)` groups, rounded up to an even number, the missing trits
//! being 0. The groups are cut into super-groups of 8 (the last may have 2, 4 or 6). A super-group
//! is a 32-byte plane of signs (bit `k` of byte `r`: group `k` of row `r` is negative) and then, for each
//! pair of groups, a 32-byte plane of nibbles (byte `r`: row `r`, the even group in the low nibble).

use super::Geometry;

/// Rows of one tile.
pub const TILE_ROWS: usize = 32;

/// Trits of one group.
pub const GROUP: usize = 3;

/// Groups that share a plane of signs.
pub const SUPER: usize = 8;

/// Bytes of a plane.
pub const PLANE: usize = TILE_ROWS;

/// Largest magnitude of a group.
pub const MAX_VALUE: u8 = 13;

/// Groups of one block of a row, always even.
#[must_use]
pub const fn groups(block: usize) -> usize {
    block.div_ceil(GROUP).next_multiple_of(2)
}

/// Bytes of one block of a tile.
#[must_use]
pub const fn block_bytes(block: usize) -> usize {
    let groups = groups(block);
    (groups.div_ceil(SUPER) + groups / 2) * PLANE
}

/// Offset of the sign plane of the super-group that holds `group`.
const fn sign_plane(group: usize) -> usize {
    group / SUPER * (1 + SUPER / 2) * PLANE
}

/// Offset of the nibble plane that holds `group`.
const fn nibble_plane(group: usize) -> usize {
    sign_plane(group) + (1 + group % SUPER / 2) * PLANE
}

/// The three trits of a value from -13 to 13.
#[must_use]
pub const fn digits(value: i8) -> [i8; GROUP] {
    let mut shifted = value + 13;
    let mut trits = [0; GROUP];
    let mut i = 0;
    while i < GROUP {
        trits[i] = shifted % 3 - 1;
        shifted /= 3;
        i += 1;
    }
    trits
}

pub(super) fn pack_tile(geometry: &Geometry, trits: &[i8], body: &mut [u8]) {
    body.fill(0);
    let block = geometry.block;
    for (b, bytes) in body.chunks_exact_mut(block_bytes(block)).enumerate() {
        for r in 0..TILE_ROWS {
            let row = &trits[r * geometry.cols + b * block..][..block];
            for (group, weights) in row.chunks(GROUP).enumerate() {
                let value = weights.iter().rev().fold(0, |value, trit| 3 * value + trit);
                bytes[nibble_plane(group) + r] |= value.unsigned_abs() << (group % 2 * 4);
                bytes[sign_plane(group) + r] |= u8::from(value < 0) << (group % SUPER);
            }
        }
    }
}

/// The value of `group` of row `r` of one block of a tile, total over all bytes.
#[inline(always)]
pub(crate) fn value(block: &[u8], group: usize, r: usize) -> i8 {
    let magnitude = block[nibble_plane(group) + r] >> (group % 2 * 4) & 15;
    if magnitude > MAX_VALUE {
        return 0;
    }
    if block[sign_plane(group) + r] >> (group % SUPER) & 1 == 1 { -(magnitude as i8) } else { magnitude as i8 }
}

pub(super) fn unpack_row(geometry: &Geometry, data: &[u8], row: usize, out: &mut [i8]) {
    let (tile, r) = (row / TILE_ROWS, row % TILE_ROWS);
    let body = &data[tile * geometry.tile_bytes()..][..geometry.tile_bytes()];
    let blocks = body.chunks_exact(geometry.tile_block_bytes());
    for (bytes, out) in blocks.zip(out.chunks_exact_mut(geometry.block)) {
        for (group, out) in out.chunks_mut(GROUP).enumerate() {
            let trits = digits(value(bytes, group, r));
            out.copy_from_slice(&trits[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_the_value() {
        for value in -13i8..=13 {
            let [a, b, c] = digits(value);
            assert_eq!(a + 3 * b + 9 * c, value);
            assert!([a, b, c].iter().all(|trit| (-1..=1).contains(trit)));
        }
    }

    #[test]
    fn sizes() {
        // One super-group of 8, three trits each, 32 rows: 160 bytes for 768 weights.
        assert_eq!(block_bytes(24), 160);
        assert_eq!(block_bytes(1), 64);
        // 128 columns: 43 groups, 44 with the padding, 6 planes of signs and 22 of nibbles.
        assert_eq!(block_bytes(128), 28 * 32);
    }
}
