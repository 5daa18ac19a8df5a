//! Three-trit lookup GEMV with NEON: `gemv-t3-neon`.
//!
//! ```text
//! for each group g of three columns:        lo[g][k], hi[g][k] = bytes of sum_i trit_i(k) * code_i
//! for each tile of 32 rows, each group g:   k = nibble of the row, m = sign of the row ? 0xff : 0
//!     low  += lo[g][k] ^ m                  (u8 added to u16)
//!     high += hi[g][k] ^ m                  (i8 added to i8)
//! sum = low + 256 * high + number of set signs
//! ```
//!
//! 1. A table has 16 entries because a nibble stores only |v| (`format` keeps the sign apart), and
//!    16 bytes are one `tbl` register. Sums of three codes need 16 bits, hence two tables.
//! 2. `x ^ 0xffff = -x - 1`: flipping both bytes negates up to one, and the missing ones are
//!    counted with a population count of the sign plane. Sign bits past the last group of a short
//!    super-group are masked away, so that their value has no meaning.
//! 3. The low and the high byte are accumulated apart and joined modulo 2^16. That is exact because
//!    the joined sum fits in an i16: `|entry| <= 3 * 128 = 384`, and at most [`WIDEN`] = 80 groups
//!    are summed before widening to i32, so `|sum| <= 30,720`. The low bytes alone reach at most
//!    `80 * 255 + 80 = 20,480`, which fits in a u16 also without the modulus.
//! 4. High bytes lie in -2..=1, and so do their complements: eight of them, a super-group, fit in
//!    an i8.
//!
//! The idea of mirrored tables in byte shuffles is that of T-MAC and of bitnet.cpp's TL2; the
//! split sums are what keeps it exact here.

use crate::format::Geometry;
use crate::format::t3::{PLANE, SUPER, TILE_ROWS, digits, groups};
use crate::gemv::{sums_at, tile_block, vector};
use crate::line::Line;
use core::arch::aarch64::*;
use core::ops::Range;

/// Groups summed in 16 bits; a multiple of [`SUPER`].
const WIDEN: usize = 80;
/// Low bytes, then high bytes, of one group's 16 sums.
type Table = [u8; 32];

/// `DIGITS[i][k]` is trit `i` of nibble `k`; the codes 14 and 15 stand for no weight at all.
const DIGITS: [[i16; 16]; 3] = {
    let mut table = [[0; 16]; 3];
    let mut k = 0;
    while k < 14 {
        let trits = digits(k as i8);
        let mut i = 0;
        while i < 3 {
            table[i][k] = trits[i] as i16;
            i += 1;
        }
        k += 1;
    }
    table
};

/// Two tables fill a line, and a block has an even number of groups.
pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    geometry.n_blocks() * geometry.groups() / 2
}

/// Writes the table of every group, block after block; groups past the end of a block get zeros.
#[target_feature(enable = "neon")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    let tables: &mut [Table] = bytemuck::cast_slice_mut(out);
    let blocks = codes.chunks_exact(geometry.block);
    for (codes, tables) in blocks.zip(tables.chunks_exact_mut(groups(geometry.block))) {
        for (g, table) in tables.iter_mut().enumerate() {
            let code = |i: usize| codes.get(3 * g + i).map_or(0, |&c| i16::from(c));
            let (a, b, c) = (code(0), code(1), code(2));
            let (low, high) = table.split_at_mut(16);
            for k in 0..16 {
                let sum = DIGITS[0][k] * a + DIGITS[1][k] * b + DIGITS[2][k] * c;
                [low[k], high[k]] = sum.to_le_bytes();
            }
        }
    }
}

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "neon")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let groups = geometry.groups();
    for (t, tile) in tiles.clone().enumerate() {
        for b in 0..geometry.n_blocks() {
            let (planes, _) = tile_block(geometry, data, tile, b).as_chunks::<PLANE>();
            for v in 0..n_vectors {
                let tables: &[Table] = bytemuck::cast_slice(vector(prepared, n_vectors, v));
                let sums = block_sums(planes, &tables[b * groups..][..groups]);
                let at = sums_at(geometry, tiles.len(), v, t, b);
                out[at..at + TILE_ROWS].copy_from_slice(&sums);
            }
        }
    }
}

/// Sums of the 32 rows over one block.
#[target_feature(enable = "neon")]
fn block_sums(mut planes: &[[u8; PLANE]], tables: &[Table]) -> [i32; TILE_ROWS] {
    let mut totals = [vdupq_n_s32(0); TILE_ROWS / 4];
    for tables in tables.chunks(WIDEN) {
        let mut sums = [vdupq_n_u16(0); TILE_ROWS / 8];
        let (whole, short) = tables.as_chunks::<SUPER>();
        for tables in whole {
            let (these, rest) = planes.split_at(1 + SUPER / 2);
            super_group(these, tables, &mut sums);
            planes = rest;
        }
        if !short.is_empty() {
            super_group(planes, short, &mut sums);
        }
        for (i, &sum) in sums.iter().enumerate() {
            let sum = vreinterpretq_s16_u16(sum);
            totals[2 * i] = vaddw_s16(totals[2 * i], vget_low_s16(sum));
            totals[2 * i + 1] = vaddw_high_s16(totals[2 * i + 1], sum);
        }
    }
    let mut out = [0; TILE_ROWS];
    let (quads, _) = out.as_chunks_mut::<4>();
    for (quad, &total) in quads.iter_mut().zip(&totals) {
        // SAFETY: the store writes 16 bytes, and `quad` is four i32 that we borrow mutably; it
        // needs no alignment beyond theirs.
        unsafe { vst1q_s32(quad.as_mut_ptr(), total) };
    }
    out
}

/// Adds one super-group: `planes` is the sign plane and a nibble plane for each pair of tables.
#[inline]
#[target_feature(enable = "neon")]
fn super_group(planes: &[[u8; PLANE]], tables: &[Table], sums: &mut [uint16x8_t; TILE_ROWS / 8]) {
    let (signs, nibbles) = (&planes[0], &planes[1..]);
    let signs = [load(signs, 0), load(signs, 16)];
    let mut high = [vdupq_n_s8(0); 2];
    for (p, (nibbles, pair)) in nibbles.iter().zip(tables.as_chunks::<2>().0).enumerate() {
        for half in 0..2 {
            let both = load(nibbles, 16 * half);
            let indices = [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)];
            for (i, (table, index)) in pair.iter().zip(indices).enumerate() {
                let flip = vtstq_u8(signs[half], vdupq_n_u8(1 << (2 * p + i)));
                let low_bytes = veorq_u8(vqtbl1q_u8(load(table, 0), index), flip);
                let high_bytes = veorq_u8(vqtbl1q_u8(load(table, 16), index), flip);
                let at = 2 * half;
                sums[at] = vaddw_u8(sums[at], vget_low_u8(low_bytes));
                sums[at + 1] = vaddw_high_u8(sums[at + 1], low_bytes);
                high[half] = vaddq_s8(high[half], vreinterpretq_s8_u8(high_bytes));
            }
        }
    }
    let in_use = vdupq_n_u8(u8::MAX >> (SUPER - tables.len()));
    for half in 0..2 {
        let negatives = vcntq_u8(vandq_u8(signs[half], in_use));
        let low = vshll_n_s8::<8>(vget_low_s8(high[half]));
        let upper = vshll_high_n_s8::<8>(high[half]);
        let at = 2 * half;
        let (first, second) = (vreinterpretq_u16_s16(low), vreinterpretq_u16_s16(upper));
        sums[at] = vaddq_u16(vaddw_u8(sums[at], vget_low_u8(negatives)), first);
        sums[at + 1] = vaddq_u16(vaddw_high_u8(sums[at + 1], negatives), second);
    }
}

/// Sixteen bytes from `at`.
#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 32], at: usize) -> uint8x16_t {
    let bytes = &bytes[at..at + 16];
    // SAFETY: the load reads 16 bytes and needs no alignment; the slice above has 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}
