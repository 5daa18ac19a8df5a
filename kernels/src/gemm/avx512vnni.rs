//! `gemm-*-avx512vnni`: `vpdpbusd` with rows as lanes; what it multiplies is decoded by
//! [`super::avx512`], strip by strip ([`super::avx2::strips`]).
//!
//! ```text
//! for each eight vectors (then four, two, one):
//!     for each quad (then in two, four, eight sums that take turns):
//!         sums[vector][half] += dpbusd(codes[quad][half], the vector's 4 activations in all lanes)
//! ```
//!
//! * Codes are the trit plus one, so they are unsigned, as `vpdpbusd` wants its first factor; the surplus is
//!   the total of the activations, taken off once.
//! * A half of a quad is 16 rows x 4 columns, one register. Sixteen sums stay in registers, twice what hides
//!   the latency of the instruction, and ten loads serve sixteen multiplications.
//! * Bound: the instruction adds four products to 32 bits without saturating. Sums of whole rows fit
//!   ([`crate::format::MAX_COLS`]).

use super::avx2::strips::{Ahead, Blocking, Columns, Packed, Quad, Strip, drive};
use super::avx512::decode;
use crate::format::Geometry;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// 256 vectors have 320 KiB of columns in a panel; processors with AVX-512 have a second cache of 1 MiB or more. The codes of a
/// panel for few vectors are 20 KiB, which leaves room in the first cache for what is asked for meanwhile.
pub(super) const BLOCKING: Blocking =
    Blocking { vectors: 256, together: 8, quads: 1, panel: 320, few_panel: 160, starts: true };

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
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
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn multiply(strip: &mut Strip, vectors: Range<usize>) {
    let mut v = vectors.start;
    while vectors.end - v >= 8 {
        for next in (v + 8)..(v + 16).min(vectors.end) {
            strip.prefetch_sums(next);
        }
        multiply_some::<8, 1>(strip, v);
        v += 8;
    }
    if vectors.end - v >= 4 {
        multiply_some::<4, 2>(strip, v);
        v += 4;
    }
    if vectors.end - v >= 2 {
        multiply_some::<2, 4>(strip, v);
        v += 2;
    }
    if vectors.end - v == 1 {
        multiply_some::<1, 8>(strip, v);
    }
}

/// Adds codes times activations for `N` vectors from `v` on, in `CHAINS` sums for each vector and half, which take
/// turns.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply_some<const N: usize, const CHAINS: usize>(strip: &mut Strip, v: usize) {
    let codes = strip.codes;
    let mut vectors: [Columns; N] = [&[]; N];
    for (i, vector) in vectors.iter_mut().enumerate() {
        *vector = &strip.columns(v + i)[..codes.len()];
    }
    let mut chains = [[[_mm512_setzero_si512(); 2]; N]; CHAINS];
    let (some, last) = codes.as_chunks::<CHAINS>();
    for (i, codes) in some.iter().enumerate() {
        for (c, (codes, sums)) in codes.iter().zip(&mut chains).enumerate() {
            multiply_quad(codes, vectors, i * CHAINS + c, sums);
        }
    }
    for (codes, (c, sums)) in last.iter().zip(chains.iter_mut().enumerate()) {
        multiply_quad(codes, vectors, some.len() * CHAINS + c, sums);
    }
    for i in 0..N {
        let mut sums = [_mm512_setzero_si512(); 2];
        for chain in &chains {
            sums[0] = _mm512_add_epi32(sums[0], chain[i][0]);
            sums[1] = _mm512_add_epi32(sums[1], chain[i][1]);
        }
        add(strip, v + i, sums[0], sums[1]);
    }
}

/// Adds the products of quad `q`.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply_quad<const N: usize>(codes: &Quad, vectors: [Columns; N], q: usize, sums: &mut [[__m512i; 2]; N]) {
    let [low, high]: &[[u8; 64]; 2] = bytemuck::cast_ref(codes);
    let (low, high) = (load(low), load(high));
    for (sums, vector) in sums.iter_mut().zip(vectors) {
        let a = _mm512_set1_epi32(i32::from_le_bytes(vector[q]));
        sums[0] = _mm512_dpbusd_epi32(sums[0], low, a);
        sums[1] = _mm512_dpbusd_epi32(sums[1], high, a);
    }
}

/// Adds the products of a strip's rows to the sums of vector `v`, or starts them, as far as there are rows. A half's
/// lanes are rows 0-3, 16-19, 4-7, 20-23 and 8-11, 24-27, 12-15, 28-31.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn add(strip: &mut Strip, v: usize, low: __m512i, high: __m512i) {
    let start = strip.first.then(|| strip.start(v));
    let (sums, missing) = {
        let sums = strip.sums(v);
        strip.out[sums].split_at_mut(strip.n_rows)
    };
    let (first, second) = sums.split_at_mut(strip.n_rows.min(16));
    add_sixteen(first, start, _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high));
    add_sixteen(second, start, _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high));
    if strip.first {
        missing.fill(0);
    }
}

/// Adds products to at most 16 sums, or sets them to `start` and the products.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_sixteen(sums: &mut [i32], start: Option<i32>, products: __m512i) {
    debug_assert!(sums.len() <= 16);
    let mask = 0xffff_u16.checked_shr(16 - sums.len() as u32).unwrap_or(0);
    // SAFETY: the lanes that the mask has are as many as `sums` has places, from the first on; the
    // others are neither read nor written.
    unsafe {
        let before = match start {
            Some(start) => _mm512_set1_epi32(start),
            None => _mm512_maskz_loadu_epi32(mask, sums.as_ptr()),
        };
        _mm512_mask_storeu_epi32(sums.as_mut_ptr(), mask, _mm512_add_epi32(before, products));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
