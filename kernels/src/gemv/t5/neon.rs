//! Five-trit lookup GEMV with NEON: `gemv-t5-neon`.
//!
//! ```text
//! for each group g of five columns:         lo[g][k], hi[g][k] = bytes of sum_i trit_i(k) * code_i
//! for each tile of 64 rows, each group g:   k = byte & 127, m = byte & 128 ? 0xff : 0
//!     low  += lo[g][k] ^ m                  (u8 added to u16)
//!     high += hi[g][k] ^ m                  (i8 added to i8)
//! sum = low + 256 * high + number of negative bytes
//! ```
//!
//! 1. 128 entries of a byte are eight registers: `tbl` over four of them answers 0..=63 and gives 0
//!    elsewhere, `tbx` over the other four replaces what lies in 64..=127.
//! 2. Both bytes of an entry are flipped for a negative weight, `x ^ 0xffff = -x - 1`; the missing
//!    ones are counted here, from the bytes themselves, so that the sums depend on nothing but the
//!    weights. (The layout's array of counts is not read.)
//! 3. Low and high bytes are accumulated apart and joined modulo 2^16. That is exact because the
//!    joined sum fits in an i16: `|entry| <= 5 * 128 = 640` and at most [`WIDEN`] = 42 groups are
//!    summed before widening, so `|sum| <= 26,880`. High bytes and their complements lie in
//!    -3..=2, so 42 of them fit in an i8; the counts fit in a u8 and the low bytes,
//!    `42 * 255 + 42`, in a u16.
//! 4. The entries 122..=127 are 0, whatever the layout's unused codes are in the data.
//!
//! The table itself is made from two smaller ones: `k = 27 * h + l` with `l` in -13..=13 (the first
//! three trits) and `h` in 0..=4 (the last two), so each `h` adds one number to a run of 27
//! sums.

use crate::format::Geometry;
use crate::format::t5::{GROUP, MAX_VALUE, TABLE, TILE_ROWS};
use crate::gemv::{sums_at, tile_block, vector};
use crate::line::Line;
use core::arch::aarch64::*;
use core::ops::Range;

/// Groups summed in 16 bits, with high bytes in 8 bits.
const WIDEN: usize = 42;
/// 128 low bytes, then 128 high bytes, of one group's sums.
type Table = [u8; 2 * TABLE];
const LINES_PER_TABLE: usize = size_of::<Table>() / size_of::<Line>();

/// `DIGITS[i][l + 13]` is trit `i` of `l`, for `l` in -13..=13; the five last entries are unused.
const DIGITS: [[i16; 32]; 3] = {
    let mut digits = [[0; 32]; 3];
    let mut at = 0;
    while at < 27 {
        digits[0][at] = (at % 3) as i16 - 1;
        digits[1][at] = (at / 3 % 3) as i16 - 1;
        digits[2][at] = (at / 9) as i16 - 1;
        at += 1;
    }
    digits
};

/// One table for each group of each block.
pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    geometry.n_blocks() * geometry.groups() * LINES_PER_TABLE
}

/// Writes the table of every group, block after block; columns past the end of a block count 0.
#[target_feature(enable = "neon")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    let tables: &mut [Table] = bytemuck::cast_slice_mut(out);
    let blocks = codes.chunks_exact(geometry.block);
    for (codes, tables) in blocks.zip(tables.chunks_exact_mut(geometry.groups())) {
        for (codes, table) in codes.chunks(GROUP).zip(tables) {
            let mut five = [0; GROUP];
            for (to, &code) in five.iter_mut().zip(codes) {
                *to = i16::from(code);
            }
            write_table(five, table);
        }
    }
}

/// The sums of one group.
#[target_feature(enable = "neon")]
fn write_table(codes: [i16; GROUP], table: &mut Table) {
    let mut run = [0; 32];
    for (at, sum) in run.iter_mut().enumerate() {
        *sum = DIGITS[0][at] * codes[0] + DIGITS[1][at] * codes[1] + DIGITS[2][at] * codes[2];
    }
    let [_, _, _, c, d] = codes;
    // Entry k lies at `FIRST + k`. A run writes 32 sums of which 27 count; the next one overwrites the
    // rest, and the last one's rest are the entries 122..=127, which must be 0.
    const FIRST: usize = 13;
    let mut sums = [0; FIRST + TABLE];
    for (h, add) in [0, c, d - c, d, d + c].into_iter().enumerate() {
        for (sum, low) in sums[27 * h..27 * h + 32].iter_mut().zip(run) {
            *sum = low + add;
        }
    }
    sums[FIRST + MAX_VALUE as usize + 1..].fill(0);
    let (low, high) = table.split_at_mut(TABLE);
    for ((low, high), sum) in low.iter_mut().zip(high).zip(&sums[FIRST..]) {
        [*low, *high] = sum.to_le_bytes();
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
            let (weights, _) = tile_block(geometry, data, tile, b).as_chunks::<TILE_ROWS>();
            for v in 0..n_vectors {
                let tables: &[Table] = bytemuck::cast_slice(vector(prepared, n_vectors, v));
                let sums = block_sums(weights, &tables[b * groups..][..groups]);
                let at = sums_at(geometry, tiles.len(), v, t, b);
                out[at..at + TILE_ROWS].copy_from_slice(&sums);
            }
        }
    }
}

/// Sums of the 64 rows over one block.
#[target_feature(enable = "neon")]
fn block_sums(weights: &[[u8; TILE_ROWS]], tables: &[Table]) -> [i32; TILE_ROWS] {
    let mut totals = [0; TILE_ROWS];
    for (weights, tables) in weights.chunks(WIDEN).zip(tables.chunks(WIDEN)) {
        let mut low = [vdupq_n_u16(0); TILE_ROWS / 8];
        let mut high = [vdupq_n_s8(0); TILE_ROWS / 16];
        let mut negatives = [vdupq_n_u8(0); TILE_ROWS / 16];
        for (weights, table) in weights.iter().zip(tables) {
            let (low_bytes, high_bytes) = table.split_at(TABLE);
            let (low_table, high_table) = (load_table(low_bytes), load_table(high_bytes));
            let (weights, _) = weights.as_chunks::<16>();
            for (r, weights) in weights.iter().enumerate() {
                let weights = load(weights);
                let index = vandq_u8(weights, vdupq_n_u8(127));
                let flip = vcltzq_s8(vreinterpretq_s8_u8(weights));
                let low_bytes = veorq_u8(look_up(&low_table, index), flip);
                let high_bytes = veorq_u8(look_up(&high_table, index), flip);
                low[2 * r] = vaddw_u8(low[2 * r], vget_low_u8(low_bytes));
                low[2 * r + 1] = vaddw_high_u8(low[2 * r + 1], low_bytes);
                high[r] = vaddq_s8(high[r], vreinterpretq_s8_u8(high_bytes));
                negatives[r] = vsubq_u8(negatives[r], flip);
            }
        }
        let (rows, _) = totals.as_chunks_mut::<16>();
        for (r, rows) in rows.iter_mut().enumerate() {
            let first = vreinterpretq_u16_s16(vshll_n_s8::<8>(vget_low_s8(high[r])));
            let second = vreinterpretq_u16_s16(vshll_high_n_s8::<8>(high[r]));
            let first = vaddq_u16(vaddw_u8(low[2 * r], vget_low_u8(negatives[r])), first);
            let second = vaddq_u16(vaddw_high_u8(low[2 * r + 1], negatives[r]), second);
            add_sixteen(rows, vreinterpretq_s16_u16(first), vreinterpretq_s16_u16(second));
        }
    }
    totals
}

/// `rows += [first, second]`
#[inline]
#[target_feature(enable = "neon")]
fn add_sixteen(rows: &mut [i32; 16], first: int16x8_t, second: int16x8_t) {
    let rows = rows.as_mut_ptr();
    // SAFETY: each load and store touches 16 bytes at the i32 0, 4, 8 and 12 of the 16 that `rows`
    // points to, which we borrow mutably; they need no alignment beyond that of an i32.
    unsafe {
        vst1q_s32(rows, vaddw_s16(vld1q_s32(rows), vget_low_s16(first)));
        vst1q_s32(rows.add(4), vaddw_high_s16(vld1q_s32(rows.add(4)), first));
        vst1q_s32(rows.add(8), vaddw_s16(vld1q_s32(rows.add(8)), vget_low_s16(second)));
        vst1q_s32(rows.add(12), vaddw_high_s16(vld1q_s32(rows.add(12)), second));
    }
}

/// Byte `index` of the 128 bytes in `table`; every index is below 128.
#[inline]
#[target_feature(enable = "neon")]
fn look_up(table: &[uint8x16x4_t; 2], index: uint8x16_t) -> uint8x16_t {
    let first = vqtbl4q_u8(table[0], index);
    vqtbx4q_u8(first, table[1], vsubq_u8(index, vdupq_n_u8(64)))
}

/// A table of 128 bytes in registers.
#[inline]
#[target_feature(enable = "neon")]
fn load_table(bytes: &[u8]) -> [uint8x16x4_t; 2] {
    let (chunks, _) = bytes.as_chunks::<16>();
    let four = |at: usize| {
        uint8x16x4_t(load(&chunks[at]), load(&chunks[at + 1]), load(&chunks[at + 2]), load(&chunks[at + 3]))
    };
    [four(0), four(4)]
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the load reads 16 bytes, which `bytes` has, and needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}
