//! RMSNorm: `out[i] = (x[i] * inv) * weight[i]` with `inv = 1 / sqrt(sum(x^2) / n + eps)`.
//!
//! The sum runs in 32 lanes (see `lanes`); quotient, root and reciprocal are each rounded once
//! (`libm::sqrtf` is exact to the last bit). Source: Zhang and Sennrich, "Root Mean Square Layer
//! Normalization", 2019.

use super::lanes::{Operation, Simd, sum_of_squares};

#[inline(always)]
fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let mean = sum_of_squares(simd, x) / x.len() as f32;
    1.0 / libm::sqrtf(mean + eps)
}

/// From `x` to `out`.
pub(super) struct RmsNorm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Operation for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let inverse = inverse_rms(simd, self.x, self.eps);
        for ((out, &x), &weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = (x * inverse) * weight;
        }
    }
}

/// In place, each group of `weight.len()` elements on its own.
pub(super) struct RmsNormHeads<'a> {
    pub x: &'a mut [f32],
    pub weight: &'a [f32],
    pub eps: f32,
}

impl Operation for RmsNormHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for head in self.x.chunks_exact_mut(self.weight.len()) {
            let inverse = inverse_rms(simd, head, self.eps);
            for (x, &weight) in head.iter_mut().zip(self.weight) {
                *x = (*x * inverse) * weight;
            }
        }
    }
}

/// `x[i] += y[i]`.
pub(super) struct AddAssign<'a> {
    pub x: &'a mut [f32],
    pub y: &'a [f32],
}

impl Operation for AddAssign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            *x += y;
        }
    }
}
