//! The AVX2 instance: sixteen values in two registers.

use super::lanes::{HalfUnit, Operation, Simd, Unit};
use crate::isa::{Isa, Level};
use core::arch::x86_64::*;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The proof, if `isa` allows it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        isa.supports(Level::Avx2).then_some(Self(()))
    }
}

impl Simd for Avx2 {
    type Vector = [__m256; 2];

    #[inline(always)]
    fn load(self, values: &Unit) -> Self::Vector {
        bytemuck::cast(*values)
    }

    #[inline(always)]
    fn store(self, vector: Self::Vector) -> Unit {
        bytemuck::cast(vector)
    }

    #[inline(always)]
    fn widen_f16(self, halves: &HalfUnit) -> Self::Vector {
        let [a, b] = bytemuck::cast(*halves);
        // SAFETY: needs F16C; `self` exists only if `Avx2::new` saw the level that includes it.
        unsafe { [_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)] }
    }

    #[inline(always)]
    fn widen_bf16(self, halves: &HalfUnit) -> Self::Vector {
        let [a, b] = bytemuck::cast(*halves);
        // SAFETY: needs AVX2; `self` exists only if `Avx2::new` saw it.
        let bits = unsafe {
            [_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(a)), _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(b))]
        };
        bytemuck::cast(bits)
    }

    #[inline(always)]
    fn narrow_f16(self, [a, b]: Self::Vector) -> HalfUnit {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        // SAFETY: needs F16C; `self` exists only if `Avx2::new` saw the level that includes it.
        let halves = unsafe { [_mm256_cvtps_ph::<NEAREST>(a), _mm256_cvtps_ph::<NEAREST>(b)] };
        bytemuck::cast(halves)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        // SAFETY: needs AVX; `self` exists only if `Avx2::new` saw AVX2.
        [unsafe { _mm256_set1_ps(value) }; 2]
    }

    #[inline(always)]
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: needs AVX; `self` exists only if `Avx2::new` saw AVX2.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn add_product(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: needs FMA; `self` exists only if `Avx2::new` saw the level that includes it.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], sums[0]), _mm256_fmadd_ps(a[1], b[1], sums[1])] }
    }

    /// `maxps` gives its second operand unless the first is greater.
    #[inline(always)]
    fn larger(self, max: Self::Vector, candidate: Self::Vector) -> Self::Vector {
        // SAFETY: needs AVX; `self` exists only if `Avx2::new` saw AVX2.
        unsafe { [_mm256_max_ps(candidate[0], max[0]), _mm256_max_ps(candidate[1], max[1])] }
    }

    #[inline(always)]
    fn abs(self, a: Self::Vector) -> Self::Vector {
        // SAFETY: needs AVX; `self` exists only if `Avx2::new` saw AVX2.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }
}

/// Runs `operation` compiled for AVX2.
#[inline]
pub(super) fn run<O: Operation>(proof: Avx2, operation: O) -> O::Output {
    // SAFETY: `proof` exists only if `Avx2::new` saw the level with the features below.
    unsafe { instance(proof, operation) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn instance<O: Operation>(proof: Avx2, operation: O) -> O::Output {
    operation.run(proof)
}
