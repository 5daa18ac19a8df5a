//! `screen` with AVX2: `vpmaddubsw` multiplies nibbles with digits, 32 bytes at a time.
//!
//! Bound: a pair of products is at most `2 * 15 * 128 = 3840` in magnitude, and eight pairs, the lines of a block, are
//! summed in 16 bits: 30,720. The two halves of the bytes have sums of their own.

use super::lanes::{Digits, Nibbles, Operation, Short, Simd, Step};
use crate::isa::{Isa, Level};
use core::arch::x86_64::*;

/// Proof that the CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The proof, if `isa` allows it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        isa.supports(Level::Avx2).then_some(Self(()))
    }
}

impl Simd for Avx2 {
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    #[inline(always)]
    fn tile_block<const N: usize>(self, block: &[Nibbles; 8], states: [&Short; N], half: usize) -> [Self::Ints; N] {
        // SAFETY: needs AVX2; `self` exists only if `Avx2::new` saw it.
        unsafe { tile_block(block, states, half) }
    }

    #[inline(always)]
    fn row_step(self, line: &Nibbles, state: &Step) -> Self::Ints {
        // SAFETY: needs AVX2; `self` exists only if `Avx2::new` saw it.
        unsafe { row_step(line, state) }
    }

    #[inline(always)]
    fn zeros(self) -> Self::Floats {
        bytemuck::cast([0.0f32; 16])
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; 16]) -> Self::Floats {
        let [a, b]: [i64; 2] = bytemuck::cast(*bytes);
        // SAFETY: needs AVX2; `self` exists only if `Avx2::new` saw it.
        let widen = |eight: i64| unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(eight))) };
        [widen(a), widen(b)]
    }

    #[inline(always)]
    fn widen_two(self, bytes: [u8; 2]) -> Self::Floats {
        // SAFETY: needs AVX; `self` exists only if `Avx2::new` saw AVX2.
        bytes.map(|byte| unsafe { _mm256_set1_ps(f32::from(byte)) })
    }

    #[inline(always)]
    fn times(self, scales: Self::Floats, factor: f32) -> Self::Floats {
        // SAFETY: needs AVX; `self` exists only if `Avx2::new` saw AVX2.
        scales.map(|scales| unsafe { _mm256_mul_ps(scales, _mm256_set1_ps(factor)) })
    }

    #[inline(always)]
    fn add(self, sums: Self::Floats, products: Self::Ints, scales: Self::Floats) -> Self::Floats {
        // SAFETY: needs AVX and FMA; `self` exists only if `Avx2::new` saw the level that includes them.
        let add = |i: usize| unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[i]), scales[i], sums[i]) };
        [add(0), add(1)]
    }

    #[inline(always)]
    fn store(self, lanes: Self::Floats) -> [f32; 16] {
        bytemuck::cast(lanes)
    }
}

/// Runs `operation` compiled for AVX2.
#[inline]
pub(super) fn run<O: Operation>(proof: Avx2, operation: O) -> O::Output {
    // SAFETY: `proof` exists only if `Avx2::new` saw the level with the features below.
    unsafe { instance(proof, operation) }
}

#[target_feature(enable = "avx2,fma")]
fn instance<O: Operation>(proof: Avx2, operation: O) -> O::Output {
    operation.run(proof)
}

#[inline]
#[target_feature(enable = "avx2")]
fn tile_block<const N: usize>(block: &[Nibbles; 8], states: [&Short; N], half: usize) -> [[__m256i; 2]; N] {
    let mut out = [[_mm256_setzero_si256(); 2]; N];
    let two = _mm256_set1_epi16(2);
    for eight in 0..2 {
        // Of each state, of the two halves of the bytes.
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for (line, lane) in block.iter().zip(8 * half..) {
            let [low, high] = halves(load(&bytemuck::cast_ref::<_, [[u8; 32]; 2]>(line)[eight]));
            for (sums, state) in sums.iter_mut().zip(states) {
                sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(low, all(state.low[lane])));
                sums[1] = _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(high, all(state.high[lane])));
            }
        }
        for ((out, [low, high]), state) in out.iter_mut().zip(sums).zip(states) {
            let sum = _mm256_add_epi32(_mm256_madd_epi16(low, two), _mm256_madd_epi16(high, two));
            out[eight] = _mm256_add_epi32(sum, _mm256_set1_epi32(state.less[half]));
        }
    }
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn row_step(line: &Nibbles, state: &Step) -> [__m256i; 2] {
    let mut out = [_mm256_setzero_si256(); 2];
    for (eight, out) in out.iter_mut().enumerate() {
        let [low, high] = halves(load(&bytemuck::cast_ref::<_, [[u8; 32]; 2]>(line)[eight]));
        let dot = |nibbles: __m256i, digits: &[[i8; 4]; 16]| {
            _mm256_maddubs_epi16(nibbles, load(&bytemuck::cast_ref::<_, [[u8; 32]; 2]>(digits)[eight]))
        };
        let both = |nibbles: __m256i, digits: &Digits| [dot(nibbles, &digits.coarse), dot(nibbles, &digits.fine)];
        let less = load(&bytemuck::cast_ref::<_, [[u8; 32]; 2]>(&state.less)[eight]);
        let (low, high) = (both(low, &state.low), both(high, &state.high));
        *out = finish([_mm256_add_epi16(low[0], high[0]), _mm256_add_epi16(low[1], high[1])], less);
    }
    out
}

/// `2 * sum + less` of sums of coarse and fine digits.
#[inline]
#[target_feature(enable = "avx2")]
fn finish([coarse, fine]: [__m256i; 2], less: __m256i) -> __m256i {
    let coarse = _mm256_madd_epi16(coarse, _mm256_set1_epi16(512));
    let fine = _mm256_madd_epi16(fine, _mm256_set1_epi16(2));
    _mm256_add_epi32(_mm256_add_epi32(coarse, fine), less)
}

/// The low and the high halves of bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(bytes: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(0x0f);
    [_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask)]
}

/// Four digits in all lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn all(digits: [i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(bytemuck::cast(digits)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}
