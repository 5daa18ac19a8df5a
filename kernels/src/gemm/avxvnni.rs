//! `gemm-*-avxvnni`: 256-bit `vpdpbusd` with rows as lanes; what it multiplies is decoded by
//! [`super::avx2::strips`].
//!
//! ```text
//! for each two vectors (then one):
//!     for each quad, octet, vector:
//!         sums[vector][octet] += dpbusd(codes[quad][octet], the vector's 4 activations in all lanes)
//! ```
//!
//! * Codes are the trit plus one, so they are unsigned, as `vpdpbusd` wants its first factor; the surplus is
//!   the total of the activations, taken off once.
//! * Eight sums, two activations and a load of codes stay in registers; six loads serve eight
//!   multiplications.
//! * Bound: the instruction adds four products to 32 bits without saturating. Sums of whole rows fit
//!   ([`crate::format::MAX_COLS`]).

use super::avx2::decode::decode;
use super::avx2::strips::{Ahead, Blocking, Columns, Packed, Strip, drive};
use super::avx2::{add, load};
use crate::format::Geometry;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

const BLOCKING: Blocking = Blocking { vectors: 128, together: 2, quads: 1, panel: 320, few_panel: 160, starts: false };

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx2,avxvnni")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let decode = |packed: &Packed, units, ahead: Ahead, codes: &mut _| decode(packed, units, ahead, codes);
    let multiply = |strip: &mut Strip, vectors| multiply(strip, vectors);
    drive(geometry, data, tiles, prepared, n_vectors, out, BLOCKING, decode, multiply);
}

/// Adds a strip's products.
#[target_feature(enable = "avx2,avxvnni")]
fn multiply(strip: &mut Strip, vectors: Range<usize>) {
    let twos = vectors.start + vectors.len() / 2 * 2;
    for v in (vectors.start..twos).step_by(2) {
        for next in (v + 2)..(v + 4).min(vectors.end) {
            strip.prefetch_sums(next);
        }
        multiply_some::<2>(strip, v);
    }
    if twos < vectors.end {
        multiply_some::<1>(strip, twos);
    }
}

/// Adds codes times activations for `N` vectors from `v` on.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn multiply_some<const N: usize>(strip: &mut Strip, v: usize) {
    let codes = strip.codes;
    let mut vectors: [Columns; N] = [&[]; N];
    for (i, vector) in vectors.iter_mut().enumerate() {
        *vector = &strip.columns(v + i)[..codes.len()];
    }
    let mut sums = [[_mm256_setzero_si256(); 4]; N];
    for (q, codes) in codes.iter().enumerate() {
        let mut a = [_mm256_setzero_si256(); N];
        for (a, vector) in a.iter_mut().zip(vectors) {
            *a = _mm256_set1_epi32(i32::from_le_bytes(vector[q]));
        }
        for (octet, codes) in codes.iter().enumerate() {
            let codes = load(codes);
            for (sums, a) in sums.iter_mut().zip(a) {
                sums[octet] = _mm256_dpbusd_avx_epi32(sums[octet], codes, a);
            }
        }
    }
    for (i, [a, b, c, d]) in sums.into_iter().enumerate() {
        add(strip, v + i, 0, a, b);
        add(strip, v + i, 8, c, d);
    }
}
