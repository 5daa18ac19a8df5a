//! The float half of activation quantisation: the largest magnitude, rounding to int8, and sums of products as floats.
//!
//! **Rounding.** For |v| <= 127, adding and subtracting 1.5 * 2^23 rounds to nearest even, since
//! the sum has no bits below 1. Larger values may round otherwise but stay large, so the clamp
//! that follows is right for all. The clamp's selects send NaN to -127. Adding 1.5 * 2^23 once
//! more leaves the integer in the sum's low byte, as two's complement: that is the code.

use super::lanes::{Operation, Simd, max_magnitude};

const ROUND: f32 = 12_582_912.0;

/// Largest magnitude, NaNs passed over, 0 when there is none.
pub(super) struct AbsMax<'a> {
    pub x: &'a [f32],
}

impl Operation for AbsMax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        max_magnitude(simd, self.x)
    }
}

/// `out[i] = clamp(round_half_even(x[i] * scale), -127, 127)`.
pub(super) struct Quantize<'a> {
    pub x: &'a [f32],
    pub scale: f32,
    pub out: &'a mut [i8],
}

impl Operation for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            let v = (x * self.scale + ROUND) - ROUND;
            let v = if v > -127.0 { v } else { -127.0 };
            let v = if v < 127.0 { v } else { 127.0 };
            *out = (v + ROUND).to_bits() as i8;
        }
    }
}

/// `out[i] = f32(sums[i]) * factor`.
pub(super) struct Scale<'a> {
    pub sums: &'a [i32],
    pub factor: f32,
    pub out: &'a mut [f32],
}

impl Operation for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (out, &sum) in self.out.iter_mut().zip(self.sums) {
            *out = sum as f32 * self.factor;
        }
    }
}
