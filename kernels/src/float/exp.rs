//! The exponential function, softmax and what is built from it.
//!
//! **Algorithm.** `x = n ln 2 + r` with `n` the nearest integer to `x / ln 2`, so |r| <= 0.3466;
//! then `exp(x) = 2^n (1 + r + r^2 q(r))`.
//!
//! 1. `n` comes from adding and subtracting 1.5 * 2^23: the sum has no bits below 1, so the
//!    addition itself rounds to nearest even, and the low bits of the sum are `n`.
//! 2. `ln 2` is split in two parts. The first has nine significant bits, `n` has at most eight, so
//!    their product is exact; it lies close to `x`, so the subtraction is exact too. Only the
//!    product with the second part (2.1e-4) rounds.
//! 3. `q` interpolates `(e^r - 1 - r) / r^2` at the five Chebyshev nodes of the interval
//!    [-0.3468, 0.3468]; with coefficients rounded to `f32` its error moves the result by less
//!    than 2.8e-10 of its value, a two-hundredth of the last place.
//! 4. Multiplying by 2^n happens in two steps of half the exponent each, since `n` reaches from
//!    -151 to 128 and 2^n need not be a float. The first step is exact; the second rounds once
//!    when the result is subnormal and gives infinity when it is too large.
//!
//! Arguments are clamped to [-105, 89], where the result is 0 or infinity already. The selects let
//! NaN through; its `n` is garbage, and a NaN times whatever is NaN. The result is within one unit
//! in the last place over the whole range; the tests measure it.

use super::Partial;
use super::lanes::{self, Operation, Simd};

/// 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;
/// 355 / 512.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;
const Q: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_556, 0.008_363_203, 0.001_392_621_3];

/// `e^x`. Everything up to -104 gives 0, everything from 88.73 on infinity, NaN gives NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * core::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let q = (((Q[4] * r + Q[3]) * r + Q[2]) * r + Q[1]) * r + Q[0];
    let fraction = 1.0 + (r + (r * r) * q);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let first = exponent >> 1;
    let second = exponent.wrapping_sub(first);
    fraction * power_of_two(first) * power_of_two(second)
}

/// `2^k` for -126 <= k <= 127; any other `k` gives some float.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `-2 sqrt(2 / pi)`.
const GELU_FIRST: f32 = -1.595_769_2;
/// The same times 0.044715.
const GELU_THIRD: f32 = -0.071_354_814;

/// GELU as its approximation by tanh defines it, `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 x^3)`:
/// since `1 + tanh(u) = 2 / (1 + e^(-2u))`, it takes one exponential and loses nothing where tanh is close to -1.
/// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    x / (1.0 + exp(x * (GELU_FIRST + GELU_THIRD * (x * x))))
}

/// `out[i] = e^x[i]`.
pub(super) struct Exp<'a> {
    pub x: &'a [f32],
    pub out: &'a mut [f32],
}

impl Operation for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = exp(x);
        }
    }
}

/// `out[i] = silu(x[i])`.
pub(super) struct Silu<'a> {
    pub x: &'a [f32],
    pub out: &'a mut [f32],
}

impl Operation for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = silu(x);
        }
    }
}

/// `out[i] = silu(gate[i]) * up[i]`.
pub(super) struct SiluGate<'a> {
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub out: &'a mut [f32],
}

impl Operation for SiluGate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for ((out, &gate), &up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = silu(gate) * up;
        }
    }
}

/// `out[i] = gelu(gate[i]) * up[i]`.
pub(super) struct GeluGate<'a> {
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub out: &'a mut [f32],
}

impl Operation for GeluGate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for ((out, &gate), &up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gelu(gate) * up;
        }
    }
}

/// `out[i] = gate[i]^2 * up[i]` where the gate is positive, else `+0.0`.
pub(super) struct Relu2Gate<'a> {
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub out: &'a mut [f32],
}

impl Operation for Relu2Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for ((out, &gate), &up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            let value = (gate * gate) * up;
            *out = if gate > 0.0 { value } else { 0.0 };
        }
    }
}

/// `e^(x - max)` for each element of `x` in place; returns the maximum and the sum.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(simd: S, x: &mut [f32]) -> Partial {
    let max = lanes::max(simd, x);
    for value in x.iter_mut() {
        *value = exp(*value - max);
    }
    Partial { max, sum: lanes::sum(simd, x) }
}

/// Softmax of `x` in place; returns the maximum and the sum of the exponentials.
pub(super) struct Softmax<'a> {
    pub x: &'a mut [f32],
}

impl Operation for Softmax<'_> {
    type Output = Partial;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Partial {
        let partial = exponentials(simd, self.x);
        for value in self.x.iter_mut() {
            *value /= partial.sum;
        }
        partial
    }
}
