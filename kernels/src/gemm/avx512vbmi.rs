//! `gemm-t5-avx512vbmi`: [`super::avx512vnni`] with T5 decoded by lookups of bytes, see [`super::avx512`].

use super::avx2::strips::{Ahead, Packed, Strip, drive};
use super::avx512::decode_vbmi;
use super::avx512vnni::{BLOCKING, multiply};
use crate::format::Geometry;
use crate::line::Line;
use core::ops::Range;

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let decode = |packed: &Packed, units, ahead: Ahead, codes: &mut _| decode_vbmi(packed, units, ahead, codes);
    let multiply = |strip: &mut Strip, vectors| multiply(strip, vectors);
    drive(geometry, data, tiles, prepared, n_vectors, out, BLOCKING, decode, multiply);
}
