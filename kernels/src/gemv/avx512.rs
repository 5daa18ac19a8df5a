//! What the AVX-512 kernels share: loads, stores, and sums of bytes in balanced base 63.
//!
//! A sum `T` of a table is split into two digits, `T = 63 * high + low` with `low` in -31..=31. Both
//! can be negated without a carry between them. 63 is the largest base whose low digits can be added
//! four times in an i8: `4 * 31 = 124`.

use core::arch::x86_64::*;

/// The digits' base.
pub(super) const BASE: i16 = 63;

/// Adds `factor` (at most 255) times signed bytes to 16-bit sums: the even ones to `sums[0]`, the
/// odd ones to `sums[1]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn add_bytes(sums: [__m512i; 2], bytes: __m512i, factor: i16) -> [__m512i; 2] {
    // One factor of each pair is 0, so `vpmaddubsw` adds nothing that could saturate.
    let even = _mm512_maddubs_epi16(_mm512_set1_epi16(factor), bytes);
    let odd = _mm512_maddubs_epi16(_mm512_set1_epi16(factor << 8), bytes);
    [_mm512_add_epi16(sums[0], even), _mm512_add_epi16(sums[1], odd)]
}

/// The words of two registers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn to_words(sums: [__m512i; 2]) -> [[i16; 32]; 2] {
    let mut words = [[0; 32]; 2];
    for (words, sums) in words.iter_mut().zip(sums) {
        store(bytemuck::cast_mut(words), sums);
    }
    words
}

/// Any address will do.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the load reads 64 bytes and needs no alignment; `bytes` is a reference to 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Any address will do.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(bytes: &mut [u8; 64], value: __m512i) {
    // SAFETY: the store writes 64 bytes and needs no alignment; `bytes` is 64 bytes that we borrow
    // mutably.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), value) }
}
