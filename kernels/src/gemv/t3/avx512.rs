//! Three-trit lookup GEMV with AVX-512 BW: `gemv-t3-avx512`.
//!
//! ```text
//! for each group g of three columns, each k in 0..=13:
//!     T = sum_i trit_i(k) * code_i;     T = 63 * h[g][k] + l[g][k],   l in -31..=31
//! for each tile of 32 rows, each four groups:
//!     even = nibbles of groups 0 and 2, odd = nibbles of groups 1 and 3   (32 rows in each half)
//!     low  += sign ? -l[k] : l[k]            (i8 lanes, for even and for odd)
//!     high += sign ? -h[k] : h[k]
//! sum = low + 63 * high, of both halves
//! ```
//!
//! 1. `vpshufb` looks indices up in 16 bytes, for each 128-bit lane in its own 16. Two nibble
//!    planes of 32 rows fill a register, so the lanes 0 and 1 get the tables of groups 0 (1), the
//!    lanes 2 and 3 those of groups 2 (3). `prepare` stores the tables in that doubled form, which
//!    costs memory in the L1 or L2 cache and saves a shuffle.
//! 2. Signs are bits of one byte a row: broadcast to both halves and tested against a constant with
//!    the two groups' bits, they give a mask register, and a masked `0 - x` negates.
//! 3. The two digits of a sum in balanced base 63 can be negated one by one, without a carry.
//!    Base 63 is the largest whose low digits (at most 31) can be added four times in an i8,
//!    `4 * 31 = 124`: a lane sees four groups of a super-group of eight.
//!    `|T| <= 3 * 128 = 384 = 63 * 6 + 6`, so `|h| <= 6`, and five super-groups fit:
//!    `5 * 4 * 6 = 120`. `vpmaddubsw` widens, with 1 (or 63) in the even or the odd places; its
//!    results are at most `63 * 120`, so its saturation never acts.
//! 4. The 16-bit sums hold [`WIDEN`] = 20 super-groups: `20 * 4 * 384 = 30,720`; sums that lack the
//!    last digits may wrap and wrap back.
//! 5. Entry 0 is 0 and a nibble without a plane is taken as 0, so short super-groups need no case
//!    of their own in the sums; signs of absent groups negate a 0. The entries 14 and 15 are 0.

use crate::format::Geometry;
use crate::format::t3::{SUPER, TILE_ROWS as ROWS};
use crate::gemv::avx512::{BASE, add_bytes, load, to_words};
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Super-groups whose high digits are summed in 8 bits.
const HIGH: usize = 5;
/// Super-groups summed in 16 bits; a multiple of [`HIGH`].
const WIDEN: usize = 20;

/// Four groups: low digits of the even ones, of the odd ones, high digits likewise.
type Table = [Line; 4];
/// Lines of a super-group's two tables.
const SUPER_LINES: usize = 8;
/// 32 bytes, one of each row.
type Plane = [u8; ROWS];

/// `DIGITS[i][k]` is trit `i` of nibble `k`; the codes 14 and 15 stand for no weight at all.
const DIGITS: [[i16; 16]; 3] = {
    let mut digits = [[0; 16]; 3];
    let mut k = 0;
    while k < 14 {
        let mut rest = k as i16;
        let mut i = 0;
        while i < 3 {
            let digit = (rest + 1) % 3 - 1;
            digits[i][k] = digit;
            rest = (rest - digit) / 3;
            i += 1;
        }
        k += 1;
    }
    digits
};

/// Eight lines for each super-group of each block.
pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    geometry.n_blocks() * geometry.groups().div_ceil(SUPER) * SUPER_LINES
}

/// Writes the tables of every group, block after block; columns past the end of a block count 0.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    assert_eq!(codes.len(), geometry.cols);
    assert_eq!(out.len(), prepared_lines(geometry));
    let lines_per_block = geometry.groups().div_ceil(SUPER) * SUPER_LINES;
    let blocks = codes.chunks_exact(geometry.block);
    for (codes, lines) in blocks.zip(out.chunks_exact_mut(lines_per_block)) {
        let (tables, _) = lines.as_chunks_mut::<4>();
        for (four, table) in tables.iter_mut().enumerate() {
            for g in 0..4 {
                let code = |i: usize| codes.get(12 * four + 3 * g + i).map_or(0, |&c| i16::from(c));
                let [low, high] = digits([code(0), code(1), code(2)]);
                // Group g goes to half g / 2 of the even or the odd line, twice.
                for copy in 0..2 {
                    let at = g / 2 * 32 + copy * 16;
                    table[g % 2].0[at..at + 16].copy_from_slice(&low);
                    table[2 + g % 2].0[at..at + 16].copy_from_slice(&high);
                }
            }
        }
    }
}

/// The digits of the 16 sums of one group, as bytes: low, high.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn digits(codes: [i16; 3]) -> [[u8; 16]; 2] {
    let mut digits = [[0; 16]; 2];
    for k in 0..16 {
        let sum = DIGITS[0][k] * codes[0] + DIGITS[1][k] * codes[1] + DIGITS[2][k] * codes[2];
        // Rounds to nearest: the division is of a number that is never negative.
        let high = (sum + BASE * 7 + BASE / 2) / BASE - 7;
        digits[0][k] = (sum - high * BASE) as u8;
        digits[1][k] = high as u8;
    }
    digits
}

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let n_blocks = geometry.n_blocks();
    let groups = geometry.groups();
    let supers = groups.div_ceil(SUPER);
    let planes_per_block = supers + groups / 2;
    let (tables, _) = prepared.as_chunks::<SUPER_LINES>();
    assert_eq!(Some(tables.len()), n_vectors.checked_mul(n_blocks * supers));
    assert_eq!(Some(out.len()), geometry.n_sums(tiles.len(), n_vectors));
    let (planes, _) = data.as_chunks::<ROWS>();
    let (out, _) = out.as_chunks_mut::<ROWS>();
    let n_outputs = tiles.len() * n_blocks;

    let mut tile = 0;
    while tile < tiles.len() {
        let together = 2.min(tiles.len() - tile);
        for block in 0..n_blocks {
            // The planes of this block in tile `tile + i`.
            let block_of = |i: usize| {
                let at = ((tiles.start + tile + i) * n_blocks + block) * planes_per_block;
                &planes[at..at + planes_per_block]
            };
            for vector in 0..n_vectors {
                let at = (vector * n_blocks + block) * supers;
                let tables = &tables[at..at + supers];
                let at = vector * n_outputs + tile * n_blocks + block;
                if together == 2 {
                    [out[at], out[at + n_blocks]] = block_sums([block_of(0), block_of(1)], tables);
                } else {
                    [out[at]] = block_sums([block_of(0)], tables);
                }
            }
        }
        tile += together;
    }
}

/// Sums of the rows of `N` tiles over one block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn block_sums<const N: usize>(planes: [&[Plane]; N], tables: &[[Line; SUPER_LINES]]) -> [[i32; ROWS]; N] {
    let zero = _mm512_setzero_si512();
    let whole = planes.map(|planes| planes.as_chunks::<{ 1 + SUPER / 2 }>());
    // A last super-group that is short: its missing planes are zero.
    let short: [_; N] = core::array::from_fn(|i| {
        let mut padded = [[0; ROWS]; 1 + SUPER / 2];
        padded[..whole[i].1.len()].copy_from_slice(whole[i].1);
        padded
    });
    let n_whole = whole[0].0.len();
    let mut totals = [[0; ROWS]; N];
    let mut at = 0;
    while at < tables.len() {
        let mut sums = [[zero; 2]; N];
        let words_end = tables.len().min(at + WIDEN);
        while at < words_end {
            let mut high = [zero; N];
            let high_end = words_end.min(at + HIGH);
            while at < high_end {
                for i in 0..N {
                    let planes = if at < n_whole { &whole[i].0[at] } else { &short[i] };
                    let low = super_group(planes, &tables[at], &mut high[i]);
                    sums[i] = add_bytes(sums[i], low, 1);
                }
                at += 1;
            }
            for i in 0..N {
                sums[i] = add_bytes(sums[i], high[i], BASE);
            }
        }
        for i in 0..N {
            add_words(&mut totals[i], sums[i]);
        }
    }
    totals
}

/// Low digits of a super-group, summed; the high ones are added to `high`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn super_group(planes: &[Plane; 1 + SUPER / 2], tables: &[Line; SUPER_LINES], high: &mut __m512i) -> __m512i {
    let [signs, first, second, third, fourth] = planes;
    let signs = _mm512_broadcast_i64x4(load_plane(signs));
    let (tables, _) = tables.as_chunks::<4>();
    let low = _mm512_setzero_si512();
    let low = four_groups(join(first, second), signs, 0x01, &tables[0], low, high);
    four_groups(join(third, fourth), signs, 0x10, &tables[1], low, high)
}

/// Adds the digits of four groups; `sign` is the bit of the first group's sign.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn four_groups(nibbles: __m512i, signs: __m512i, sign: u8, table: &Table, low: __m512i, high: &mut __m512i) -> __m512i {
    let zero = _mm512_setzero_si512();
    let mask = _mm512_set1_epi8(15);
    let indices = [_mm512_and_si512(nibbles, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), mask)];
    let mut low = low;
    for (odd, index) in indices.into_iter().enumerate() {
        let bit = i32::from(sign) << odd;
        let bits = _mm512_inserti64x4::<1>(_mm512_set1_epi8(bit as i8), _mm256_set1_epi8((bit << 2) as i8));
        let negative = _mm512_test_epi8_mask(signs, bits);
        let l = _mm512_shuffle_epi8(load(&table[odd].0), index);
        let h = _mm512_shuffle_epi8(load(&table[2 + odd].0), index);
        low = _mm512_add_epi8(low, _mm512_mask_sub_epi8(l, negative, zero, l));
        *high = _mm512_add_epi8(*high, _mm512_mask_sub_epi8(h, negative, zero, h));
    }
    low
}

/// Two planes in one register.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(first: &Plane, second: &Plane) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load_plane(first)), load_plane(second))
}

/// Adds the 16-bit sums of even and of odd rows, both halves, to the totals in the order of rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_words(totals: &mut [i32; ROWS], sums: [__m512i; 2]) {
    let [even, odd] = to_words(sums);
    let (pairs, _) = totals.as_chunks_mut::<2>();
    for (r, pair) in pairs.iter_mut().enumerate() {
        for (total, words) in pair.iter_mut().zip([&even, &odd]) {
            *total += i32::from(words[r]) + i32::from(words[r + ROWS / 2]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx")]
fn load_plane(bytes: &Plane) -> __m256i {
    // SAFETY: the load reads 32 bytes and needs no alignment; `bytes` is a reference to 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bounds that the module's head relies on, for every sum of three codes.
    #[test]
    fn digits_are_small_and_exact() {
        for sum in -384..=384_i16 {
            let high = (sum + BASE * 7 + BASE / 2) / BASE - 7;
            let low = sum - high * BASE;
            assert!(high.unsigned_abs() as usize * 4 * HIGH <= 127, "sum {sum}");
            assert!(low.abs() * 4 <= 127, "sum {sum}: low digit {low}");
        }
        assert!(384 * 4 * WIDEN <= i16::MAX as usize);
    }
}
