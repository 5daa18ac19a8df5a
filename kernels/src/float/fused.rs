//! A product and a sum rounded once, in portable code that a compiler can vectorise.
//!
//! The product of two `f32` is exact in `f64`. The sum of it and a third is not, and rounding it twice, to 53 bits
//! and then to 24, may end on the wrong side of a tie. So the first rounding is made *to odd*: if anything
//! was lost, the last bit kept is 1. Then the second one sees that the number is no tie, and since 53 >= 24 + 2, it
//! rounds as if from the exact sum (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms
//! using rounding to odd", IEEE Transactions on Computers 57 (2008)). What was lost is known exactly from Knuth's two-sum.

/// `sum + a * b`, rounded once, to nearest even.
#[inline(always)]
pub(crate) fn fused(sum: f32, a: f32, b: f32) -> f32 {
    let (product, sum) = (f64::from(a) * f64::from(b), f64::from(sum));
    let rounded = product + sum;
    let other = rounded - product;
    let lost = (product - (rounded - other)) + (sum - other);
    // False for the NaN that an infinite sum leaves here.
    let inexact = lost.abs() > 0.0;
    let even = rounded.to_bits() & 1 == 0;
    // Away from zero if what was lost has the sign of the sum. An inexact sum is not 0.
    let step = if (lost > 0.0) == (rounded > 0.0) { 1 } else { u64::MAX };
    let odd = rounded.to_bits().wrapping_add(if inexact && even { step } else { 0 });
    f64::from_bits(odd) as f32
}

#[cfg(test)]
mod tests {
    use super::fused;
    use proptest::prelude::*;

    #[track_caller]
    fn check(sum: f32, a: f32, b: f32) {
        let (got, expected) = (fused(sum, a, b), a.mul_add(b, sum));
        let same = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(same, "{a:e} * {b:e} + {sum:e} is {expected:e}, not {got:e}");
    }

    proptest! {
        #[test]
        fn any_bits(sum: u32, a: u32, b: u32) {
            check(f32::from_bits(sum), f32::from_bits(a), f32::from_bits(b));
        }

        /// Sums that nearly cancel, and sums whose summands lie up to 60 binary places apart.
        #[test]
        fn near_ties(a in 1u32 << 23..1 << 24, b in 1u32 << 23..1 << 24, nudge in -3i64..4, place in -60i32..61, negative: bool) {
            let (a, b) = (a as f32, b as f32);
            let product = (f64::from(a) * f64::from(b)) as f32;
            let sum = f32::from_bits((i64::from(product.to_bits()) + nudge) as u32);
            let sum = if negative { -sum } else { sum };
            check(sum, a, b);
            check(sum * libm::ldexpf(1.0, place), a, b);
            check(sum * libm::ldexpf(1.0, place.rem_euclid(30) - 150), a * libm::ldexpf(1.0, -80), b * libm::ldexpf(1.0, -80));
        }

        /// Few bits set: exact sums, ties, and ties missed by a bit far below.
        #[test]
        fn few_bits(bits in prop::array::uniform6(0i32..30), signs in prop::array::uniform3(prop::bool::ANY)) {
            let value = |i: usize| {
                let value = libm::ldexpf(1.0, bits[i]) + libm::ldexpf(1.0, -bits[i + 3]);
                if signs[i] { -value } else { value }
            };
            check(value(0), value(1), value(2));
        }
    }

    #[test]
    fn ties_and_extremes() {
        // A tie between two halves of the last place, decided by a product far below it.
        let tiny = f32::from_bits(1);
        for sum in
            [1.0 + f32::EPSILON, 1.0, -1.0, f32::MAX, f32::MIN_POSITIVE, tiny, 0.0, -0.0, f32::INFINITY, f32::NAN]
        {
            for a in
                [f32::EPSILON / 2.0, -f32::EPSILON / 4.0, tiny, -tiny, f32::MAX, f32::MIN, 0.0, -0.0, f32::INFINITY]
            {
                for b in [1.0, 1.0 + f32::EPSILON, -1.0 + f32::EPSILON, tiny, f32::MAX, f32::NEG_INFINITY, -0.0] {
                    check(sum, a, b);
                }
            }
        }
    }
}
