//! Which of some numbers are positive, and how many are not 0.
//!
//! A gate of relu^2 opens where it is positive. Half of all branches on a sign would be guessed wrong, so there are none:
//! each index is written and then counted if it is to stay, or sixteen are sorted out by an instruction where there is one.

use super::lanes::{Operation, Simd, UNIT, Unit};

/// Indices of positive elements, rising; how many there are.
pub(super) struct Positive<'a> {
    pub x: &'a [f32],
    /// As long as `x`.
    pub out: &'a mut [u32],
}

impl Operation for Positive<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let mut n = 0;
        let (units, rest): (&[Unit], _) = self.x.as_chunks();
        for (unit, first) in units.iter().zip((0..).step_by(UNIT)) {
            // No more than `first` are written before, so there is room for all of a unit.
            let out = self.out[n..].first_chunk_mut().expect("as long as the elements");
            n += simd.positive(unit, first, out);
        }
        for (i, x) in (units.len() * UNIT..).zip(rest) {
            self.out[n] = i as u32;
            n += usize::from(*x > 0.0);
        }
        n
    }
}

/// How many elements are positive.
pub(super) struct CountPositive<'a>(pub &'a [f32]);

impl Operation for CountPositive<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        count(self.0, |x| x > 0.0)
    }
}

/// How many elements are not 0; NaN counts as one that is not.
pub(super) struct CountNonzero<'a>(pub &'a [f32]);

impl Operation for CountNonzero<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        count(self.0, |x| x != 0.0)
    }
}

#[inline(always)]
fn count(x: &[f32], is: impl Fn(f32) -> bool) -> usize {
    // Few enough for 32 bits, which are as wide as the elements: the compiler makes vectors of it.
    x.chunks(1 << 16).map(|some| some.iter().map(|x| u32::from(is(*x))).sum::<u32>() as usize).sum()
}
