//! I2_S with few vectors: rows are unpacked in registers.
//!
//! ```text
//! for each tile, part of its columns, eight vectors, row, run of 10 blocks:
//!     for each block (32 bytes, 128 columns):
//!         four registers of codes = trit + 1, unsigned bytes
//!         for each vector: sum16[vector] += maddubs(codes, activations), four times
//!     sum32[vector] += madd(sum16, 1)
//! ```
//!
//! * The codes of a block stay in registers while eight vectors pass. Unpacking takes 7 instructions beside 64 and stores nothing;
//!   strips are unpacked, transposed, stored and loaded again, which pays where many vectors follow. 33 loads serve 32
//!   multiplications.
//! * Lanes are columns, so sums are added up across registers, those of eight vectors together, once for each part of a row.
//! * A part of eight vectors stays in the first cache while the rows of a tile pass by, that of all vectors in the second.
//! * Bound: a pair of products is at most 2 * 3 * 128 = 768 in magnitude (code 3 included), four of them, which a block adds to a
//!   lane, 3072, and ten blocks 30,720, which fits 16 bits. Sums of whole rows fit 32 bits ([`crate::format::MAX_COLS`]).

use super::load;
use crate::format::Geometry;
use crate::format::i2s::BLOCK;
use crate::gemm::Prepared;
use crate::gemv::i2s::avx2::BLOCKS_PER_WIDENING;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Vectors up to which this is faster than strips. One core of a Zen 3, 2560 x 2560: 8 vectors take two thirds of the time, 32 a
/// seventh less, 64 as long, and of 6912 columns a tenth more.
pub(crate) const MOST: usize = 48;

/// Vectors that are multiplied together.
pub(super) const TOGETHER: usize = 8;

/// Blocks of a part: 20 KiB of eight vectors.
const PART: usize = 20;

/// How many bytes ahead packed rows are asked for where they come in the order of addresses.
pub(super) const AHEAD: usize = 2048;

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx2")]
pub(super) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let (tile_rows, row_bytes) = (geometry.tile_rows(), geometry.cols / 4);
    let n_slots = tiles.len() * tile_rows;
    let rows = geometry.rows_of(tiles);
    let prepared = Prepared::new(geometry, prepared);
    for (v, sums) in out.chunks_exact_mut(n_slots.max(1)).enumerate() {
        let (sums, others) = sums.split_at_mut(rows.len());
        sums.fill(-prepared.total(v, 0));
        others.fill(0);
    }
    let parts = even(0..row_bytes / 32, PART);
    let ahead = if parts.clone().count() == 1 { AHEAD } else { tile_rows * row_bytes };
    let data = &data[rows.start * row_bytes..rows.end * row_bytes];
    for (t, tile) in data.chunks(tile_rows * row_bytes).enumerate() {
        for part in parts.clone() {
            for few in even(0..n_vectors, TOGETHER) {
                let mut vectors = [Blocks::default(); TOGETHER];
                for (vector, v) in vectors.iter_mut().zip(few.clone()) {
                    *vector = &blocks(&prepared, v)[part.clone()];
                }
                // Who meets the rows first waits for memory; the others ask for what they have.
                let ahead = if few.start == 0 { ahead } else { 0 };
                for (r, row) in tile.chunks_exact(row_bytes).enumerate() {
                    let sums = row_sums(&row.as_chunks().0[part.clone()], &vectors[..few.len()], ahead);
                    for (v, sum) in few.clone().zip(sums) {
                        out[v * n_slots + t * tile_rows + r] += sum;
                    }
                }
            }
        }
    }
}

/// Parts of a range, each `most` long at most, as even as whole numbers allow.
pub(super) fn even(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let n = range.len().div_ceil(most).max(1);
    let len = range.len().div_ceil(n).max(1);
    range.clone().step_by(len).map(move |start| start..(start + len).min(range.end))
}

/// A vector's activations, or a part of them.
pub(super) type Blocks<'a> = &'a [[u8; BLOCK]];

/// All of vector `v`.
#[inline(always)]
pub(super) fn blocks<'a>(prepared: &Prepared<'a>, v: usize) -> Blocks<'a> {
    bytemuck::cast_slice::<i8, u8>(prepared.activations(v, 0)).as_chunks().0
}

/// Sums of a part of a row with that of up to eight vectors, code times activation; behind them are zeros. Asks for what is `ahead`
/// bytes further.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn row_sums(packed: &[[u8; 32]], vectors: &[Blocks], ahead: usize) -> [i32; TOGETHER] {
    match *vectors {
        [] => [0; TOGETHER],
        [a] => sums_of(packed, [a], ahead),
        [a, b] => sums_of(packed, [a, b], ahead),
        [a, b, c] => sums_of(packed, [a, b, c], ahead),
        [a, b, c, d] => sums_of(packed, [a, b, c, d], ahead),
        [a, b, c, d, e] => sums_of(packed, [a, b, c, d, e], ahead),
        [a, b, c, d, e, f] => sums_of(packed, [a, b, c, d, e, f], ahead),
        [a, b, c, d, e, f, g] => sums_of(packed, [a, b, c, d, e, f, g], ahead),
        [a, b, c, d, e, f, g, h] => sums_of(packed, [a, b, c, d, e, f, g, h], ahead),
        _ => unreachable!("eight at a time"),
    }
}

/// The same with exactly `N` vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn sums_of<const N: usize>(packed: &[[u8; 32]], vectors: [Blocks; N], ahead: usize) -> [i32; TOGETHER] {
    let (ones, three) = (_mm256_set1_epi16(1), _mm256_set1_epi8(3));
    let mut wide = [_mm256_setzero_si256(); TOGETHER];
    for (run, packed) in packed.chunks(BLOCKS_PER_WIDENING).enumerate() {
        let mut activations = [Blocks::default(); N];
        for (activations, vector) in activations.iter_mut().zip(vectors) {
            // All of one known length, so that the loop needs no bounds checks.
            *activations = &vector[run * BLOCKS_PER_WIDENING..][..packed.len()];
        }
        let mut narrow = [_mm256_setzero_si256(); N];
        for (block, bytes) in packed.iter().enumerate() {
            // Two blocks are a cache line.
            if block % 2 == 0 {
                _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead).cast());
            }
            let bytes = load(bytes);
            let codes = [
                _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), three),
                _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), three),
                _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), three),
                _mm256_and_si256(bytes, three),
            ];
            for i in 0..N {
                let (a, _) = activations[i][block].as_chunks::<32>();
                let products = |quarter: usize| _mm256_maddubs_epi16(codes[quarter], load(&a[quarter]));
                let (p, q) = (_mm256_add_epi16(products(0), products(1)), _mm256_add_epi16(products(2), products(3)));
                narrow[i] = _mm256_add_epi16(narrow[i], _mm256_add_epi16(p, q));
            }
        }
        for i in 0..N {
            wide[i] = _mm256_add_epi32(wide[i], _mm256_madd_epi16(narrow[i], ones));
        }
    }
    let [a, b, c, d, e, f, g, h] = wide;
    let four = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let others = _mm256_hadd_epi32(_mm256_hadd_epi32(e, f), _mm256_hadd_epi32(g, h));
    // Each half has the sums of half of the lanes.
    let lower = _mm256_permute2x128_si256::<0x20>(four, others);
    let upper = _mm256_permute2x128_si256::<0x31>(four, others);
    bytemuck::cast(_mm256_add_epi32(lower, upper))
}
