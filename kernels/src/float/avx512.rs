//! The AVX-512 instance: sixteen values in one register.

use super::lanes::{HalfUnit, Operation, Simd, UNIT, Unit};
use crate::isa::{Isa, Level};
use core::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW and VL.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The proof, if `isa` allows it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        isa.supports(Level::Avx512).then_some(Self(()))
    }
}

impl Simd for Avx512 {
    type Vector = __m512;
    const MANY_SUMS: bool = true;

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
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        unsafe { _mm512_cvtph_ps(bytemuck::cast(*halves)) }
    }

    #[inline(always)]
    fn widen_bf16(self, halves: &HalfUnit) -> Self::Vector {
        let halves = bytemuck::cast(*halves);
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        let bits = unsafe { _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)) };
        bytemuck::cast(bits)
    }

    #[inline(always)]
    fn narrow_f16(self, vector: Self::Vector) -> HalfUnit {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        let halves = unsafe { _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(vector) };
        bytemuck::cast(halves)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn add_product(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        unsafe { _mm512_fmadd_ps(a, b, sums) }
    }

    /// `maxps` gives its second operand unless the first is greater.
    #[inline(always)]
    fn larger(self, max: Self::Vector, candidate: Self::Vector) -> Self::Vector {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        unsafe { _mm512_max_ps(candidate, max) }
    }

    /// Each step adds halves of two vectors side by side, so that half as many are left: the sums of the tree, each in the same
    /// order.
    #[inline(always)]
    fn fold_each(self, vectors: [Self::Vector; UNIT]) -> Unit {
        let mut v = vectors;
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        unsafe {
            for i in 0..8 {
                let (a, b) = (v[2 * i], v[2 * i + 1]);
                v[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            }
            for i in 0..4 {
                let (a, b) = (v[2 * i], v[2 * i + 1]);
                v[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            }
            for i in 0..2 {
                let (a, b) = (v[2 * i], v[2 * i + 1]);
                v[i] = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b));
            }
            let sums = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(v[0], v[1]), _mm512_shuffle_ps::<0xdd>(v[0], v[1]));
            // Quarter k holds the sums of vectors k, k + 4, k + 8 and k + 12.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            self.store(_mm512_permutexvar_ps(order, sums))
        }
    }

    #[inline(always)]
    fn positive(self, values: &Unit, first: u32, out: &mut [u32; 16]) -> usize {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        unsafe {
            let which = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.load(values), _mm512_setzero_ps());
            let indices = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let indices = _mm512_add_epi32(indices, _mm512_set1_epi32(first.cast_signed()));
            *out = bytemuck::cast(_mm512_maskz_compress_epi32(which, indices));
            which.count_ones() as usize
        }
    }

    #[inline(always)]
    fn abs(self, a: Self::Vector) -> Self::Vector {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512::new` saw a level with it.
        unsafe { _mm512_abs_ps(a) }
    }
}

/// Runs `operation` compiled for AVX-512.
#[inline]
pub(super) fn run<O: Operation>(proof: Avx512, operation: O) -> O::Output {
    // SAFETY: `proof` exists only if `Avx512::new` saw the level with the features below.
    unsafe { instance(proof, operation) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn instance<O: Operation>(proof: Avx512, operation: O) -> O::Output {
    operation.run(proof)
}
