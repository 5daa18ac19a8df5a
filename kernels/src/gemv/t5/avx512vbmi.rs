//! Five-trit lookup GEMV with AVX-512 VBMI: `gemv-t5-avx512vbmi`.
//!
//! ```text
//! for each group g of five columns, each k in 0..=121:
//!     T = sum_i trit_i(k) * code_i;     T = 63 * h[g][k] + l[g][k],   l in -31..=31
//! for each tile of 64 rows, each group g:   k = byte & 127, negative = byte & 128
//!     low  += negative ? -l[g][k] : l[g][k]         (i8 lanes, one row each)
//!     high += negative ? -h[g][k] : h[g][k]         (i8 lanes)
//! sum = low + 63 * high
//! ```
//!
//! 1. 128 bytes are two registers, and `vpermi2b` looks 64 indices up in them at once. It ignores
//!    the top bit of an index, so the packed byte is the index as it is.
//! 2. A byte stores a sign and |v| (`T[-v] = -T[v]` halves the table). The two digits of a sum in
//!    balanced base 63 are negated one by one, without a carry between them: the top bits go to a
//!    mask register, and a masked `0 - x` negates just those lanes. No count of the negative
//!    bytes is needed, the layout's `neg` array is not read.
//! 3. Base 63 is the largest whose low digits (at most 31) can be added four times in an i8:
//!    `4 * 31 = 124`. `|T| <= 5 * 128 = 640 = 63 * 10 + 10`, so `|h| <= 10` and [`HIGH`] = 12
//!    groups fit: `12 * 10 = 120`. Only then are the bytes widened, by `vpmaddubsw` with 1 (or 63)
//!    in the even or the odd places, which makes widening cost 4 instructions per 4 groups (per 12
//!    groups for the high digits) where unpacking every sum would cost 4 for each group.
//! 4. The 16-bit sums hold [`WIDEN`] = 48 groups: `48 * 640 = 30,720`. A partial sum of the digits
//!    before the last digit is added may exceed that by at most `124 + 63 * 120 = 7,684`, and wraps
//!    back: 16-bit addition is exact modulo 2^16, and the complete sum is in range. A single
//!    `vpmaddubsw` result is at most `63 * 120 = 7,560`, so its saturation never acts.
//! 5. The entries 122..=127 are 0, so bytes that no five trits give count nothing.
//! 6. [`TILES`] = 4 tiles go through a group together: its four table registers are loaded once
//!    for 256 rows. 2 digits, 2 widened sums for 4 tiles, 4 tables and the constants fit in the 32
//!    registers.
//!
//! The table itself is the sum of two shuffles of one register that holds 27 sums of the first
//! three codes and 5 sums of the last two: `k = 27 * h + l` with `l` in -13..=13 and `h` in 0..=4.
//!
//! Lookup tables for ternary weights are known from T-MAC and bitnet.cpp; five trits in a byte from
//! llama.cpp's TQ1_0. The mirrored table of 122 entries and the carry-free split are this file's.

use crate::ask::{Ask, ask_here};
use crate::format::Geometry;
use crate::format::t5::{GROUP, TILE_ROWS as ROWS};
use crate::gemv::avx512::{BASE, add_bytes, load, to_words};
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Tiles that share one load of the tables.
const TILES: usize = 4;
/// Groups, a line of each of [`TILES`] tiles, that memory is asked for before they are used.
const AHEAD: usize = 32;
/// Groups whose low digits are summed in 8 bits.
const LOW: usize = 4;
/// Groups whose high digits are summed in 8 bits; a multiple of [`LOW`].
const HIGH: usize = 12;
/// Groups summed in 16 bits; a multiple of [`HIGH`].
const WIDEN: usize = 48;

/// One group: 128 low digits, then 128 high digits.
type Table = [Line; 4];
/// 64 packed bytes, one of each row.
type Bytes = [u8; ROWS];

/// `DIGITS[i][at]` is what code `i` is multiplied by in sum `at`: the first 27 sums are those of
/// codes 0 to 2 for `l = at - 13`, the last 5 those of codes 3 and 4 for `h = at - 27`.
const DIGITS: [[i16; 32]; GROUP] = {
    let mut digits = [[0; 32]; 5];
    let mut at = 0;
    while at < 27 {
        digits[0][at] = (at % 3) as i16 - 1;
        digits[1][at] = (at / 3 % 3) as i16 - 1;
        digits[2][at] = (at / 9) as i16 - 1;
        at += 1;
    }
    while at < 32 {
        let h = at as i16 - 27;
        digits[4][at] = (h + 1) / 3;
        digits[3][at] = h - 3 * digits[4][at];
        at += 1;
    }
    digits
};

/// Which two sums entry `k` is made of: `FIRST[k]` of the 27, `LAST[k]` of the 5. The entries
/// 122..=127 take the two that are always 0.
const FIRST: [i16; 128] = {
    let mut first = [both_bytes(13); 128];
    let mut k = 0;
    while k < 122 {
        first[k] = both_bytes((k + 13) % 27);
        k += 1;
    }
    first
};
const LAST: [i16; 128] = {
    let mut last = [both_bytes(27); 128];
    let mut k = 0;
    while k < 122 {
        last[k] = both_bytes(27 + (k + 13) / 27);
        k += 1;
    }
    last
};

/// The indices of word `at`'s two bytes: `vpermi2b` moves whole words by them.
const fn both_bytes(at: usize) -> i16 {
    ((2 * at) | ((2 * at + 1) << 8)) as i16
}

/// Four lines for each group of each block.
pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    geometry.n_blocks() * geometry.groups() * 4
}

/// Writes the table of every group, block after block; columns past the end of a block count 0.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    assert_eq!(codes.len(), geometry.cols);
    assert_eq!(out.len(), prepared_lines(geometry));
    let (tables, _) = out.as_chunks_mut::<4>();
    let blocks = codes.chunks_exact(geometry.block);
    for (codes, tables) in blocks.zip(tables.chunks_exact_mut(geometry.groups())) {
        for (codes, table) in codes.chunks(GROUP).zip(tables) {
            let mut five = [0; GROUP];
            five[..codes.len()].copy_from_slice(codes);
            write_table(five, table);
        }
    }
}

/// The digits of the 128 sums of one group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn write_table(codes: [i8; GROUP], table: &mut Table) {
    let mut sums = _mm512_setzero_si512();
    for (digits, code) in DIGITS.iter().zip(codes) {
        let product = _mm512_mullo_epi16(load_words(digits), _mm512_set1_epi16(i16::from(code)));
        sums = _mm512_add_epi16(sums, product);
    }
    let (first, _) = FIRST.as_chunks::<32>();
    let (last, _) = LAST.as_chunks::<32>();
    let table: &mut [[[u8; 32]; 4]; 2] = bytemuck::cast_mut(table);
    let [low, high] = table;
    for (i, (low, high)) in low.iter_mut().zip(high).enumerate() {
        let entries = _mm512_add_epi16(
            _mm512_permutex2var_epi8(sums, load_words(&first[i]), sums),
            _mm512_permutex2var_epi8(sums, load_words(&last[i]), sums),
        );
        let digits = digits(entries);
        *low = bytemuck::cast(_mm512_cvtepi16_epi8(digits[0]));
        *high = bytemuck::cast(_mm512_cvtepi16_epi8(digits[1]));
    }
}

/// The low and the high digits of sums. `(2 T + 63) / 126`, rounded down, is `T / 63` rounded to
/// nearest; the upper half of the product gives it for every |T| <= 640 (a test goes through all of them).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn digits(sums: __m512i) -> [__m512i; 2] {
    let base = _mm512_set1_epi16(BASE);
    let high = _mm512_mulhi_epi16(_mm512_add_epi16(_mm512_add_epi16(sums, sums), base), _mm512_set1_epi16(520));
    [_mm512_sub_epi16(sums, _mm512_mullo_epi16(high, base)), high]
}

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    ask_here!(A => run_tiles::<A>(geometry, data, tiles, prepared, n_vectors, out));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn run_tiles<A: Ask>(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let n_blocks = geometry.n_blocks();
    let groups = geometry.groups();
    let (tables, _) = prepared.as_chunks::<4>();
    assert_eq!(Some(tables.len()), n_vectors.checked_mul(n_blocks * groups));
    assert_eq!(Some(out.len()), geometry.n_sums(tiles.len(), n_vectors));
    let (bytes, _) = data.as_chunks::<ROWS>();
    let (out, _) = out.as_chunks_mut::<ROWS>();
    let n_outputs = tiles.len() * n_blocks;

    let mut tile = 0;
    while tile < tiles.len() {
        let together = TILES.min(tiles.len() - tile);
        for block in 0..n_blocks {
            let mut ahead = Ahead { left: (n_blocks - block) * groups, jump: (TILES - 1) * n_blocks * groups };
            // The packed bytes of this block in tile `tile + i`.
            let block_of = |i: usize| {
                let at = ((tiles.start + tile + i) * n_blocks + block) * groups;
                &bytes[at..at + groups]
            };
            for vector in 0..n_vectors {
                let at = (vector * n_blocks + block) * groups;
                let tables = &tables[at..at + groups];
                let at = vector * n_outputs + tile * n_blocks + block;
                if together == TILES {
                    let sums = block_sums::<A, _>([0, 1, 2, 3].map(block_of), tables, ahead);
                    for (i, sums) in sums.into_iter().enumerate() {
                        out[at + i * n_blocks] = sums;
                    }
                } else {
                    for i in 0..together {
                        [out[at + i * n_blocks]] = block_sums::<A, _>([block_of(i)], tables, Ahead::NOTHING);
                    }
                }
                // The others find the weights in the cache.
                ahead = Ahead::NOTHING;
            }
        }
        tile += together;
    }
}

/// Memory to ask for while a block of some tiles is multiplied: what comes [`AHEAD`] groups later in each tile, and
/// behind a tile's end what the next tiles begin with.
#[derive(Clone, Copy)]
struct Ahead {
    /// Groups from here to the tile's end; 0: nothing is asked for.
    left: usize,
    /// Groups from a tile's end to where the tile that follows in its place begins.
    jump: usize,
}

impl Ahead {
    const NOTHING: Ahead = Ahead { left: 0, jump: 0 };

    /// Asks for what comes [`AHEAD`] groups after group `g` of each tile.
    #[inline(always)]
    fn prefetch<A: Ask, const N: usize>(self, tiles: [*const Bytes; N], g: usize) {
        if self.left == 0 {
            return;
        }
        let at = g + AHEAD;
        let at = if at < self.left { at } else { at + self.jump };
        for tile in tiles {
            A::ask(tile.wrapping_add(at));
        }
    }
}

/// Sums of the rows of `N` tiles over one block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn block_sums<A: Ask, const N: usize>(bytes: [&[Bytes]; N], tables: &[Table], ahead: Ahead) -> [[i32; ROWS]; N] {
    // Loops, since a closure would be a call: it has the instruction set, `map` has not.
    let mut bytes = bytes;
    for bytes in &mut bytes {
        *bytes = &bytes[..tables.len()];
    }
    let mut totals = [[0; ROWS]; N];
    let mut from = 0;
    while from < tables.len() {
        let to = tables.len().min(from + WIDEN);
        let sums = word_sums::<A, N>(bytes, tables, from..to, ahead);
        for (totals, sums) in totals.iter_mut().zip(sums) {
            add_words(totals, sums);
        }
        from = to;
    }
    totals
}

/// 16-bit sums over at most [`WIDEN`] groups: of the even rows, and of the odd rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn word_sums<A: Ask, const N: usize>(
    bytes: [&[Bytes]; N],
    tables: &[Table],
    groups: Range<usize>,
    ahead: Ahead,
) -> [[__m512i; 2]; N] {
    let zero = _mm512_setzero_si512();
    let mut sums = [[zero; 2]; N];
    let mut high = [zero; N];
    let n = groups.end;
    let tables = &tables[..n];
    let (mut bytes, mut starts) = (bytes, [core::ptr::null(); N]);
    for (bytes, start) in bytes.iter_mut().zip(&mut starts) {
        *bytes = &bytes[..n];
        *start = bytes.as_ptr();
    }
    let mut g = groups.start;
    while g < n {
        let high_end = n.min(g + HIGH);
        while g < high_end {
            let low_end = high_end.min(g + LOW);
            let mut low = [zero; N];
            while g < low_end {
                ahead.prefetch::<A, N>(starts, g);
                let table = tables[g].each_ref().map(|line| load(&line.0));
                for i in 0..N {
                    let index = load(&bytes[i][g]);
                    let negative = _mm512_movepi8_mask(index);
                    let l = _mm512_permutex2var_epi8(table[0], index, table[1]);
                    let h = _mm512_permutex2var_epi8(table[2], index, table[3]);
                    let l = _mm512_mask_sub_epi8(l, negative, zero, l);
                    let h = _mm512_mask_sub_epi8(h, negative, zero, h);
                    low[i] = _mm512_add_epi8(low[i], l);
                    high[i] = _mm512_add_epi8(high[i], h);
                }
                g += 1;
            }
            for i in 0..N {
                sums[i] = add_bytes(sums[i], low[i], 1);
            }
        }
        for i in 0..N {
            sums[i] = add_bytes(sums[i], high[i], BASE);
            high[i] = zero;
        }
    }
    sums
}

/// Adds the 16-bit sums of even and of odd rows to the totals, in the order of rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_words(totals: &mut [i32; ROWS], sums: [__m512i; 2]) {
    let words = to_words(sums);
    let (pairs, _) = totals.as_chunks_mut::<2>();
    for (r, pair) in pairs.iter_mut().enumerate() {
        pair[0] += i32::from(words[0][r]);
        pair[1] += i32::from(words[1][r]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words(words: &[i16; 32]) -> __m512i {
    load(bytemuck::cast_ref(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Level;
    use crate::testing::can_run;

    /// Both digits stay within the bounds that the module's head relies on.
    #[test]
    #[cfg_attr(miri, ignore = "needs AVX-512")]
    fn digits_are_small_and_exact() {
        if !can_run(Level::Avx512Vbmi) {
            return;
        }
        for sum in -640..=640_i16 {
            // SAFETY: both need AVX-512 F and BW, which the level seen above includes.
            let [low, high] = unsafe { digits(_mm512_set1_epi16(sum)) }.map(bytemuck::cast::<_, [i16; 32]>);
            let (low, high) = (low[7], high[7]);
            assert_eq!(low + BASE * high, sum);
            assert!(usize::from(high.unsigned_abs()) * HIGH <= 127, "sum {sum}: high {high}");
            assert!(usize::from(low.unsigned_abs()) * LOW <= 127, "sum {sum}: low {low}");
        }
        assert!(640 * WIDEN <= i16::MAX as usize);
    }

    /// Entry `k` is the sum of the five digits of `k`, each times its code.
    #[test]
    fn two_partial_sums_make_every_entry() {
        for k in 0..128 {
            let mut rest = if k < 122 { k } else { 0 };
            let at = |words: &[i16]| (words[k as usize] & 255) as usize / 2;
            let (first, last) = (at(&FIRST), at(&LAST));
            for digits in &DIGITS {
                let digit = (rest + 1) % 3 - 1;
                rest = (rest - digit) / 3;
                assert_eq!(digits[first] + digits[last], digit, "entry {k}");
            }
        }
    }
}
