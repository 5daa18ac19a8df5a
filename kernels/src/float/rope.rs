//! Rotary position embedding (Su et al., "RoFormer", 2021).
//!
//! Pair `i` of a head is turned by the angle `position * base^(-2i / d) / factor[i]`, `d` being
//! the number of rotated dimensions. Angles, sines and cosines are computed in `f64` by `libm`,
//! which is plain Rust and thus the same everywhere, and rounded to `f32` once.

use super::lanes::{Operation, Simd};

/// Cosines and sines of one position. All three slices have one element per pair.
pub(super) fn table(position: f64, base: f32, factors: Option<&[f32]>, cos: &mut [f32], sin: &mut [f32]) {
    let pairs = cos.len();
    for i in 0..pairs {
        let exponent = -(i as f64) / pairs as f64;
        let frequency = libm::pow(f64::from(base), exponent);
        let factor = factors.map_or(1.0, |factors| f64::from(factors[i]));
        let angle = position * frequency / factor;
        cos[i] = libm::cos(angle) as f32;
        sin[i] = libm::sin(angle) as f32;
    }
}

/// Pairs `(i, i + pairs)` of each head.
pub(super) struct RopeNeox<'a> {
    pub x: &'a mut [f32],
    pub head_dim: usize,
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

impl Operation for RopeNeox<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let pairs = self.cos.len();
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let (first, second) = head[..2 * pairs].split_at_mut(pairs);
            let halves = first.iter_mut().zip(second);
            for ((x0, x1), (&cos, &sin)) in halves.zip(self.cos.iter().zip(self.sin)) {
                (*x0, *x1) = (*x0 * cos - *x1 * sin, *x0 * sin + *x1 * cos);
            }
        }
    }
}

/// Pairs `(2i, 2i + 1)` of each head.
pub(super) struct RopeInterleaved<'a> {
    pub x: &'a mut [f32],
    pub head_dim: usize,
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

impl Operation for RopeInterleaved<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let pairs = head.as_chunks_mut::<2>().0.iter_mut();
            for ([x0, x1], (&cos, &sin)) in pairs.zip(self.cos.iter().zip(self.sin)) {
                (*x0, *x1) = (*x0 * cos - *x1 * sin, *x0 * sin + *x1 * cos);
            }
        }
    }
}
