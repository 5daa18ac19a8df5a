//! Half-precision conversion in portable code: the definition that the instructions must match.
//!
//! **Widening.** Shifted left by 13, a half's exponent and fraction stand where those of an `f32`
//! do, with an exponent that is 112 too small. Multiplying by 2^112 repairs it, exactly, and
//! normalises subnormal halves on the way (the shifted pattern is then a subnormal `f32`).
//!
//! **Narrowing.** A normal half is the upper bits of the `f32` after its exponent is lowered by
//! 112; adding `0xfff` plus the lowest bit that is kept rounds to nearest even, and a carry out of
//! the fraction raises the exponent as it should, up to infinity. For a subnormal half, adding 0.5
//! lets the adder round: the last place of a float in [0.5, 1) is 2^-24, which is the unit of
//! subnormal halves.

use super::fused::fused;
use super::lanes::{HalfUnit, Simd, UNIT, Unit, larger};

/// A half as `f32`, exact.
#[inline(always)]
pub(super) fn widen(half: u16) -> f32 {
    const TWO_POW_112: f32 = f32::from_bits((112 + 127) << 23);
    let sign = (u32::from(half) & 0x8000) << 16;
    let magnitude = (u32::from(half) & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * TWO_POW_112).to_bits();
    let quiet = if magnitude > 0x0f80_0000 { 0x0040_0000 } else { 0 };
    let special = magnitude | 0x7f80_0000 | quiet;
    f32::from_bits(sign | if magnitude >= 0x0f80_0000 { special } else { finite })
}

/// The half nearest to `value`, ties to even; NaNs keep sign and upper payload, made quiet.
#[inline(always)]
pub(super) fn narrow(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) & 0x8000;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00 | ((magnitude >> 13) & 0x03ff)
    } else if magnitude >= 0x4780_0000 {
        0x7c00 // 65536 and above
    } else if magnitude < 0x3880_0000 {
        // below 2^-14
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        (magnitude - (112 << 23) + 0x0fff + ((magnitude >> 13) & 1)) >> 13
    };
    (sign | half) as u16
}

/// Vectors in portable code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

/// Applies a function of two values lane by lane.
#[inline(always)]
fn zip(a: Unit, b: Unit, f: impl Fn(f32, f32) -> f32) -> Unit {
    core::array::from_fn(|j| f(a[j], b[j]))
}

/// Applies a conversion of sixteen bits lane by lane.
#[inline(always)]
fn widen_with(halves: &HalfUnit, f: impl Fn(u16) -> f32) -> Unit {
    core::array::from_fn(|j| f(u16::from_le_bytes([halves[2 * j], halves[2 * j + 1]])))
}

impl Simd for Portable {
    type Vector = Unit;

    #[inline(always)]
    fn load(self, values: &Unit) -> Unit {
        *values
    }

    #[inline(always)]
    fn store(self, vector: Unit) -> Unit {
        vector
    }

    #[inline(always)]
    fn widen_f16(self, halves: &HalfUnit) -> Unit {
        widen_with(halves, widen)
    }

    #[inline(always)]
    fn widen_bf16(self, halves: &HalfUnit) -> Unit {
        widen_with(halves, |bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    fn narrow_f16(self, vector: Unit) -> HalfUnit {
        bytemuck::cast(vector.map(narrow))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Unit {
        [value; UNIT]
    }

    #[inline(always)]
    fn add(self, a: Unit, b: Unit) -> Unit {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn add_product(self, sums: Unit, a: Unit, b: Unit) -> Unit {
        core::array::from_fn(|j| fused(sums[j], a[j], b[j]))
    }

    #[inline(always)]
    fn larger(self, max: Unit, candidate: Unit) -> Unit {
        zip(max, candidate, larger)
    }

    #[inline(always)]
    fn abs(self, a: Unit) -> Unit {
        a.map(f32::abs)
    }
}
