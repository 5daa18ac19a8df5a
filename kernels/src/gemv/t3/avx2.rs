//! `gemv-t3-avx2`: lookup of three trits at a time with `vpshufb`.
//!
//! ```text
//! table of a group: 16 entries l, 16 entries h, entry m = sum of the activations with m's digits
//! for each super-group of 8 groups, for each of 4 tiles of 32 rows:
//!     signs = 32 bytes; bit k is the sign in group k
//!     for each group k: index = nibbles of 32 rows
//!         sum_l += sign(shuffle(l, index), signs << (7 - k) | 1)        (bytes)
//!         sum_h += sign(shuffle(h, index), the same)
//!     sum16 += 31 sum_h + sum_l
//! ```
//!
//! * One table serves 128 rows: it is loaded once for four tiles.
//! * `vpsignb` takes the sign from the top bit of its second factor and zeroes where that is 0;
//!   the `| 1` sees to it that it never is.
//! * Bounds: `l` is within 15, so eight of them are within 120; `h` is within 12, eight within 96. A
//!   super-group is within 8 * 384 = 3072, ten of them 30,720, then sums go to 32 bits.

use crate::format::Geometry;
use crate::format::t3::{GROUP, MAX_VALUE, PLANE, SUPER, TILE_ROWS, digits, groups};
use crate::gemv::avx2::{Digits, Narrow, load, load_twice, table};
use crate::gemv::{sums_at, tile_block, vector};
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Super-groups whose sums fit 16 bits.
const SUPERS_PER_FLUSH: usize = 10;

/// Bytes of a group's table: 16 of `l`, 16 of `h`.
const TABLE: usize = 32;

pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    Line::count_for(geometry.n_blocks() * groups(geometry.block) * TABLE)
}

/// The digits of the magnitudes; 14 and 15 have none.
pub(crate) static DIGITS: [Digits; GROUP] = {
    let mut table = [[0; 16]; GROUP];
    let mut m = 0;
    while m <= MAX_VALUE {
        let trits = digits(m as i8);
        let mut j = 0;
        while j < GROUP {
            table[j][m as usize] = trits[j] as i16;
            j += 1;
        }
        m += 1;
    }
    table
};

#[target_feature(enable = "avx2")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    out.fill(Line::ZERO);
    let tables: &mut [i8] = bytemuck::cast_slice_mut(out);
    let n_groups = groups(geometry.block);
    for (codes, tables) in codes.chunks_exact(geometry.block).zip(tables.chunks_mut(n_groups * TABLE)) {
        let (whole, rest) = codes.as_chunks::<GROUP>();
        let (tables, tables_rest) = tables.as_chunks_mut::<TABLE>().0.split_at_mut(whole.len());
        for (codes, out) in whole.iter().zip(tables) {
            *out = table(&DIGITS, *codes);
        }
        if !rest.is_empty() {
            let mut padded = [0; GROUP];
            padded[..rest.len()].copy_from_slice(rest);
            tables_rest[0] = table(&DIGITS, padded);
        }
    }
}

#[target_feature(enable = "avx2")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let n_tiles = tiles.len();
    for b in 0..geometry.n_blocks() {
        for v in 0..n_vectors {
            let tables: &[u8] = bytemuck::cast_slice(vector(prepared, n_vectors, v));
            let tables = &tables[b * groups(geometry.block) * TABLE..][..groups(geometry.block) * TABLE];
            let mut t = 0;
            while t + 4 <= n_tiles {
                let blocks = core::array::from_fn(|i| tile_block(geometry, data, tiles.start + t + i, b));
                let sums = sums::<4>(blocks, tables);
                for (i, sums) in sums.iter().enumerate() {
                    out[sums_at(geometry, n_tiles, v, t + i, b)..][..TILE_ROWS].copy_from_slice(sums);
                }
                t += 4;
            }
            while t < n_tiles {
                let [sums] = sums::<1>([tile_block(geometry, data, tiles.start + t, b)], tables);
                out[sums_at(geometry, n_tiles, v, t, b)..][..TILE_ROWS].copy_from_slice(&sums);
                t += 1;
            }
        }
    }
}

/// How many planes ahead memory is asked for: 2 KiB.
const AHEAD: usize = 64;

/// Asks for the cache line of a plane, or of what follows the last one.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(planes: &[[u8; PLANE]], plane: usize) {
    _mm_prefetch::<_MM_HINT_T0>(planes.as_ptr().wrapping_add(plane).cast());
}

/// Sums of one block of `N` tiles.
#[inline]
#[target_feature(enable = "avx2")]
fn sums<const N: usize>(blocks: [&[u8]; N], tables: &[u8]) -> [[i32; TILE_ROWS]; N] {
    let mut wide = [[0; TILE_ROWS]; N];
    let mut narrow = [Narrow::zero(); N];
    let nibble = _mm256_set1_epi8(15);
    let one = _mm256_set1_epi8(1);
    let planes = blocks.map(|block| block.as_chunks::<PLANE>().0);
    let mut plane = 0;
    for (number, supers) in tables.chunks(SUPER * TABLE).enumerate() {
        let pairs = supers.len() / (2 * TABLE);
        let (tables, _) = supers.as_chunks::<16>();
        for i in 0..N {
            for line in 0..3 {
                prefetch(planes[i], plane + AHEAD + 2 * line);
            }
            let mut signs = load(&planes[i][plane]);
            // The sign of group k is brought to the top bit by shifting left once a group, from
            // the last group down.
            signs = _mm256_sll_epi16(signs, _mm_cvtsi32_si128(SUPER as i32 - 2 * pairs as i32));
            let mut low = _mm256_setzero_si256();
            let mut high = _mm256_setzero_si256();
            for pair in (0..pairs).rev() {
                let bytes = load(&planes[i][plane + 1 + pair]);
                let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
                let even = _mm256_and_si256(bytes, nibble);
                for (index, group) in [(odd, 2 * pair + 1), (even, 2 * pair)] {
                    let sign = _mm256_or_si256(signs, one);
                    let l = _mm256_shuffle_epi8(load_twice(&tables[2 * group]), index);
                    let h = _mm256_shuffle_epi8(load_twice(&tables[2 * group + 1]), index);
                    low = _mm256_add_epi8(low, _mm256_sign_epi8(l, sign));
                    high = _mm256_add_epi8(high, _mm256_sign_epi8(h, sign));
                    signs = _mm256_add_epi8(signs, signs);
                }
            }
            narrow[i].add(low, high);
            if (number + 1).is_multiple_of(SUPERS_PER_FLUSH) {
                narrow[i].flush(&mut wide[i]);
            }
        }
        plane += 1 + pairs;
    }
    for (narrow, wide) in narrow.iter_mut().zip(&mut wide) {
        narrow.flush(wide);
    }
    wide
}
