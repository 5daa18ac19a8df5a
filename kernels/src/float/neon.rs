//! The NEON instance: sixteen values in four registers.

use super::lanes::{HalfUnit, Operation, Simd, Unit};
use crate::isa::{Isa, Level};
use core::arch::aarch64::*;
use core::array::from_fn;

/// Proof that the CPU has NEON.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neon(());

impl Neon {
    /// The proof, if `isa` allows it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        isa.supports(Level::Neon).then_some(Self(()))
    }
}

impl Simd for Neon {
    type Vector = [float32x4_t; 4];

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
        let halves: [uint16x4_t; 4] = bytemuck::cast(*halves);
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw the level.
        from_fn(|i| unsafe { vcvt_f32_f16(vreinterpret_f16_u16(halves[i])) })
    }

    #[inline(always)]
    fn widen_bf16(self, halves: &HalfUnit) -> Self::Vector {
        let halves: [uint16x4_t; 4] = bytemuck::cast(*halves);
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw the level.
        from_fn(|i| unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(halves[i])) })
    }

    #[inline(always)]
    fn narrow_f16(self, vector: Self::Vector) -> HalfUnit {
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw the level.
        let halves = vector.map(|v| unsafe { vreinterpret_u16_f16(vcvt_f16_f32(v)) });
        bytemuck::cast(halves)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw the level.
        [unsafe { vdupq_n_f32(value) }; 4]
    }

    #[inline(always)]
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw the level.
        from_fn(|i| unsafe { vaddq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn add_product(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw the level.
        from_fn(|i| unsafe { vfmaq_f32(sums[i], a[i], b[i]) })
    }

    #[inline(always)]
    fn larger(self, max: Self::Vector, candidate: Self::Vector) -> Self::Vector {
        // A select, since `fmax` would hand NaN on.
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw the level.
        from_fn(|i| unsafe { vbslq_f32(vcgtq_f32(candidate[i], max[i]), candidate[i], max[i]) })
    }

    #[inline(always)]
    fn abs(self, a: Self::Vector) -> Self::Vector {
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw the level.
        from_fn(|i| unsafe { vabsq_f32(a[i]) })
    }
}

/// Runs `operation` compiled for NEON.
#[inline]
pub(super) fn run<O: Operation>(proof: Neon, operation: O) -> O::Output {
    // SAFETY: `proof` exists only if `Neon::new` saw the level with the feature below.
    unsafe { instance(proof, operation) }
}

#[target_feature(enable = "neon")]
fn instance<O: Operation>(proof: Neon, operation: O) -> O::Output {
    operation.run(proof)
}
