//! Matrix-vector products: exact sums of ternary weights times int8 activations.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx512;
pub(crate) mod c2;
pub(crate) mod i2s;
pub(crate) mod t3;
pub(crate) mod t5;

use crate::format::Geometry;
use crate::line::Line;

/// Where the sums of vector `v`, tile number `t` of the range, block `b` begin.
#[inline(always)]
pub(crate) fn sums_at(geometry: &Geometry, n_tiles: usize, v: usize, t: usize, b: usize) -> usize {
    ((v * n_tiles + t) * geometry.n_blocks() + b) * geometry.tile_rows()
}

/// One prepared vector of several.
#[inline(always)]
pub(crate) fn vector(prepared: &[Line], n_vectors: usize, v: usize) -> &[Line] {
    let lines = prepared.len() / n_vectors;
    &prepared[v * lines..(v + 1) * lines]
}

/// The body of one block of one tile.
#[inline(always)]
pub(crate) fn tile_block<'a>(geometry: &Geometry, data: &'a [u8], tile: usize, b: usize) -> &'a [u8] {
    let bytes = geometry.tile_block_bytes();
    &data[(tile * geometry.n_blocks() + b) * bytes..][..bytes]
}
