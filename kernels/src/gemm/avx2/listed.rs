//! Some rows of I2_S, each with those of many vectors that want it.
//!
//! As [`few`](super::few), whose bounds hold here, but that each row has vectors of its own, eight or fewer at a time. A row that several
//! want is unpacked once for each eight of them instead of once for each. The row stays in the first cache meanwhile; the vectors
//! should fit the second.

use super::few::{AHEAD, TOGETHER, blocks, even, row_sums};
use crate::format::Geometry;
use crate::format::i2s::BLOCK;
use crate::gemm::{Prepared, listed};
use crate::line::Line;
use core::ops::Range;

/// See [`crate::kernel::RunListedFn`].
#[target_feature(enable = "avx2")]
pub(crate) fn run_listed(
    geometry: &Geometry,
    data: &[u8],
    rows: Range<usize>,
    ends: &[u32],
    vectors: &[u32],
    prepared: &[Line],
    out: &mut [i32],
) {
    let prepared = Prepared::new(geometry, prepared);
    let row_bytes = geometry.cols / 4;
    for (row, vectors, sums) in listed(rows, ends, vectors, out) {
        let packed = data[row * row_bytes..][..row_bytes].as_chunks::<32>().0;
        for few in even(0..vectors.len(), TOGETHER) {
            let (few, sums) = (&vectors[few.clone()], &mut sums[few]);
            match few.len() {
                1 => products::<1>(packed, &prepared, few, sums),
                2 => products::<2>(packed, &prepared, few, sums),
                3 => products::<3>(packed, &prepared, few, sums),
                4 => products::<4>(packed, &prepared, few, sums),
                5 => products::<5>(packed, &prepared, few, sums),
                6 => products::<6>(packed, &prepared, few, sums),
                7 => products::<7>(packed, &prepared, few, sums),
                _ => products::<TOGETHER>(packed, &prepared, few, sums),
            }
        }
    }
}

/// The sums of a row with `N` vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn products<const N: usize>(packed: &[[u8; 32]], prepared: &Prepared, vectors: &[u32], sums: &mut [i32]) {
    let mut activations: [&[[u8; BLOCK]]; N] = [&[]; N];
    for (activations, v) in activations.iter_mut().zip(vectors) {
        *activations = blocks(prepared, *v as usize);
    }
    // The next rows that are wanted are near.
    let products = row_sums(packed, activations, AHEAD);
    for ((sum, product), v) in sums.iter_mut().zip(products).zip(vectors) {
        *sum = product - prepared.total(*v as usize, 0);
    }
}
