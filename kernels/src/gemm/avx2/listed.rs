//! Some rows of I2_S, each with those of many vectors that want it.
//!
//! As [`few`](super::few), whose bounds hold here, but that each row has vectors of its own, eight or fewer at a time. A row that several
//! want is unpacked once for each eight of them instead of once for each. The row stays in the first cache meanwhile; the vectors
//! should fit the second.

use super::few::{AHEAD, Blocks, TOGETHER, blocks, even, row_sums};
use crate::format::Geometry;
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
    for (row, wanted, sums) in listed(rows, ends, vectors, out) {
        let packed = data[row * row_bytes..][..row_bytes].as_chunks::<32>().0;
        for few in even(0..wanted.len(), TOGETHER) {
            let (few, sums) = (&wanted[few.clone()], &mut sums[few]);
            let mut vectors = [Blocks::default(); TOGETHER];
            for (vector, v) in vectors.iter_mut().zip(few) {
                *vector = blocks(&prepared, *v as usize);
            }
            // The next row that is wanted is near.
            let products = row_sums(packed, &vectors[..few.len()], AHEAD);
            for ((sum, product), v) in sums.iter_mut().zip(products).zip(few) {
                *sum = product - prepared.total(*v as usize, 0);
            }
        }
    }
}
