//! `gemv-t5-avx2`: lookup of five trits at a time without a 128-entry table instruction.
//!
//! A magnitude `m` (0..=121) is `27 q + r` with `q` in 0..=4 (the two high trits, their value never
//! negative when `m` is not) and `r` in -13..=13 (the three low trits). So
//! `T[m] = Tq[q] + sign(r) Tr[|r|]`: two tables that fit `vpshufb`, and the byte's own sign turns the
//! whole.
//!
//! ```text
//! m = byte & 127, or 0 where that is above 121
//! q = Q[m >> 4] + (m > LIMIT[m >> 4]);   r = m - 27 q
//! sum_l += sign(Tq_l[q] + sign(Tr_l[|r|], r), byte | 1)                       (bytes)
//! sum_h += sign(Tq_h[q] + sign(Tr_h[|r|], r), the same)
//! every 4 groups: sum16 += 31 sum_h + sum_l;  every 12 times that: sum32 += sum16
//! ```
//!
//! * `q` changes at most once in a run of 16 magnitudes (they are 27 apart), so a base and a limit
//!   for each run give it exactly; the tests go through all bytes.
//! * `vpsignb` with `r = 0` gives 0, and `Tr[0]` is 0 as well.
//! * Bounds: each table's `l` is within 15, two of them and four groups within 120; `h` is within
//!   9 for two activations and 12 for three, four groups within 84. Four groups are within
//!   4 * 640 = 2560, twelve times that 30,720.

use crate::format::Geometry;
use crate::format::t5::{GROUP, TILE_ROWS, groups};
use crate::gemv::avx2::{Digits, Narrow, load, load_twice, table};
use crate::gemv::t3::avx2::DIGITS;
use crate::gemv::{sums_at, tile_block, vector};
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

const GROUPS_PER_NARROW: usize = 4;
const NARROWS_PER_FLUSH: usize = 12;

/// Bytes of a group's tables: 16 each of `Tr` low and high, `Tq` low and high.
const TABLE: usize = 64;

/// `q` at the start of each run of 16 magnitudes, and the last magnitude of the run that has it
/// (127 where the whole run has).
const STEPS: ([u8; 16], [u8; 16]) = {
    let (mut base, mut limit) = ([0; 16], [127; 16]);
    let mut run = 0;
    while run < 8 {
        base[run] = quotient(16 * run) as u8;
        let mut m = 16 * run;
        while m < 16 * run + 16 {
            if quotient(m) == base[run] as usize {
                limit[run] = m as u8;
            }
            m += 1;
        }
        run += 1;
    }
    (base, limit)
};

/// The value of the two high trits: `m / 27`, rounded to the nearest.
const fn quotient(m: usize) -> usize {
    (m + 13) / 27
}

pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    geometry.n_blocks() * groups(geometry.block)
}

/// The two high trits of `q` from 0 to 4: 00, +0, -+, 0+, ++.
static HIGH_DIGITS: [Digits; 2] = {
    let mut table = [[0; 16]; 2];
    (table[0][1], table[0][2], table[0][4]) = (1, -1, 1);
    (table[1][2], table[1][3], table[1][4]) = (1, 1, 1);
    table
};

#[target_feature(enable = "avx2")]
pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    let n_groups = groups(geometry.block);
    for (codes, lines) in codes.chunks_exact(geometry.block).zip(out.chunks_exact_mut(n_groups)) {
        let (whole, rest) = codes.as_chunks::<GROUP>();
        let (lines, lines_rest) = lines.split_at_mut(whole.len());
        for (codes, line) in whole.iter().zip(lines) {
            *line = tables(*codes);
        }
        if !rest.is_empty() {
            let mut padded = [0; GROUP];
            padded[..rest.len()].copy_from_slice(rest);
            lines_rest[0] = tables(padded);
        }
    }
}

/// The tables of one group.
#[inline]
#[target_feature(enable = "avx2")]
fn tables([a, b, c, d, e]: [i8; GROUP]) -> Line {
    let tables: [[i8; TABLE / 2]; 2] = [table(&DIGITS, [a, b, c]), table(&HIGH_DIGITS, [d, e])];
    bytemuck::cast(tables)
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
    let n_groups = groups(geometry.block);
    for (t, tile) in tiles.clone().enumerate() {
        for b in 0..geometry.n_blocks() {
            let (bytes, _) = tile_block(geometry, data, tile, b).as_chunks::<TILE_ROWS>();
            for v in 0..n_vectors {
                let tables = &vector(prepared, n_vectors, v)[b * n_groups..(b + 1) * n_groups];
                let sums = &mut out[sums_at(geometry, tiles.len(), v, t, b)..][..TILE_ROWS];
                let (halves, _) = sums.as_chunks_mut::<32>();
                let [first, second] = halves else { unreachable!("64 rows are two halves") };
                block_sums(bytes, tables, [first, second]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn block_sums(bytes: &[[u8; TILE_ROWS]], tables: &[Line], sums: [&mut [i32; 32]; 2]) {
    let steps = [load_twice(&STEPS.0), load_twice(&STEPS.1)];
    for (half, sums) in sums.into_iter().enumerate() {
        sums.fill(0);
        let mut narrow = Narrow::zero();
        let parts = bytes.chunks(GROUPS_PER_NARROW).zip(tables.chunks(GROUPS_PER_NARROW));
        for (number, (bytes, tables)) in parts.enumerate() {
            let mut low = _mm256_setzero_si256();
            let mut high = _mm256_setzero_si256();
            for (bytes, table) in bytes.iter().zip(tables) {
                let (halves, _) = bytes.as_chunks::<32>();
                let (l, h) = look_up(load(&halves[half]), table, steps);
                low = _mm256_add_epi8(low, l);
                high = _mm256_add_epi8(high, h);
            }
            narrow.add(low, high);
            if (number + 1).is_multiple_of(NARROWS_PER_FLUSH) {
                narrow.flush(sums);
            }
        }
        narrow.flush(sums);
    }
}

/// The two halves of the sums that 32 bytes stand for.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(bytes: __m256i, table: &Line, [base, limit]: [__m256i; 2]) -> (__m256i, __m256i) {
    let (tables, _) = table.0.as_chunks::<16>();
    let m = _mm256_and_si256(bytes, _mm256_set1_epi8(127));
    let m = _mm256_and_si256(m, _mm256_cmpgt_epi8(_mm256_set1_epi8(122), m));
    let run = _mm256_and_si256(_mm256_srli_epi16::<4>(m), _mm256_set1_epi8(7));
    let above = _mm256_cmpgt_epi8(m, _mm256_shuffle_epi8(limit, run));
    let q = _mm256_sub_epi8(_mm256_shuffle_epi8(base, run), above);
    // 27 q by shifts of small bytes: q is at most 4.
    let q3 = _mm256_add_epi8(q, _mm256_add_epi8(q, q));
    let q9 = _mm256_add_epi8(q3, _mm256_add_epi8(q3, q3));
    let q27 = _mm256_add_epi8(q9, _mm256_add_epi8(q9, q9));
    let r = _mm256_sub_epi8(m, q27);
    let index = _mm256_abs_epi8(r);
    let sign = _mm256_or_si256(bytes, _mm256_set1_epi8(1));
    let half = |r_table: &[u8; 16], q_table: &[u8; 16]| {
        let low_trits = _mm256_sign_epi8(_mm256_shuffle_epi8(load_twice(r_table), index), r);
        let high_trits = _mm256_shuffle_epi8(load_twice(q_table), q);
        _mm256_sign_epi8(_mm256_add_epi8(low_trits, high_trits), sign)
    };
    (half(&tables[0], &tables[2]), half(&tables[1], &tables[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_give_every_quotient() {
        for m in 0..=121u8 {
            let run = usize::from(m / 16);
            let q = STEPS.0[run] + u8::from(m > STEPS.1[run]);
            assert_eq!(usize::from(q), quotient(usize::from(m)));
            let r = i16::from(m) - 27 * i16::from(q);
            assert!((-13..=13).contains(&r) && q <= 4);
        }
    }
}
