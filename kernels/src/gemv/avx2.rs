//! What the AVX2 lookup kernels share: small tables in two halves, sums widened in two steps.
//!
//! A sum `T` of a few activations does not fit a byte, and `vpshufb` looks up bytes. So a table is
//! kept as `T = 31 h + l` with `l` in -15..=15: two lookups, two signs turned by `vpsignb`, and both
//! halves added up as bytes for as long as they fit. `31 h + l` is then formed for pairs of bytes
//! by one `vpmaddubsw` with the factors 1 and 31.

use core::arch::x86_64::*;

/// The digits that 16 entries of a table have for one activation.
pub(super) type Digits = [i16; 16];

/// A table: entry `m` is the sum of `activations[j] * digits[j][m]`, of a magnitude of at most 640, as 16 bytes of `l`
/// (within 15) and 16 of `h` (within 21).
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn table<const N: usize>(digits: &[Digits; N], activations: [i8; N]) -> [i8; 32] {
    let mut sums = _mm256_setzero_si256();
    for (digits, activation) in digits.iter().zip(activations) {
        let activation = _mm256_set1_epi16(i16::from(activation));
        sums = _mm256_add_epi16(sums, _mm256_mullo_epi16(load(bytemuck::cast_ref(digits)), activation));
    }
    // h is (sum + 15) / 31, rounded down. With 21 * 31 more the dividend is from 26 to 1306, where the upper half
    // of its product with 2115 is the quotient: 2115 / 65536 exceeds 1 / 31 by less than 1 / (31 * 1306).
    let dividend = _mm256_add_epi16(sums, _mm256_set1_epi16(15 + 21 * 31));
    let quotient = _mm256_mulhi_epu16(dividend, _mm256_set1_epi16(2115));
    let high = _mm256_sub_epi16(quotient, _mm256_set1_epi16(21));
    let low = _mm256_sub_epi16(sums, _mm256_mullo_epi16(high, _mm256_set1_epi16(31)));
    bytemuck::cast(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(low, high)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 bytes, twice.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_twice(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(out: &mut [i32; 8], x: __m256i) {
    // SAFETY: the reference is to 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
}

/// 16-bit sums of 32 rows, in the order in which bytes are unpacked.
#[derive(Clone, Copy)]
pub(super) struct Narrow([__m256i; 2]);

impl Narrow {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn zero() -> Narrow {
        Narrow([_mm256_setzero_si256(); 2])
    }

    /// Adds `31 h + l` of 32 rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn add(&mut self, low: __m256i, high: __m256i) {
        let factors = _mm256_set1_epi16(31 << 8 | 1);
        let first = _mm256_maddubs_epi16(factors, _mm256_unpacklo_epi8(low, high));
        let second = _mm256_maddubs_epi16(factors, _mm256_unpackhi_epi8(low, high));
        self.0[0] = _mm256_add_epi16(self.0[0], first);
        self.0[1] = _mm256_add_epi16(self.0[1], second);
    }

    /// Adds the sums to `out`, row by row, and starts again from 0.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn flush(&mut self, out: &mut [i32; 32]) {
        let (parts, _) = out.as_chunks_mut::<8>();
        // Unpacking took rows 0-7 and 16-23 into the first half, 8-15 and 24-31 into the second.
        let eights = [
            _mm256_castsi256_si128(self.0[0]),
            _mm256_castsi256_si128(self.0[1]),
            _mm256_extracti128_si256::<1>(self.0[0]),
            _mm256_extracti128_si256::<1>(self.0[1]),
        ];
        for (part, eight) in parts.iter_mut().zip(eights) {
            let bytes: &[u8; 32] = bytemuck::cast_ref(&*part);
            let sum = _mm256_add_epi32(load(bytes), _mm256_cvtepi16_epi32(eight));
            store(part, sum);
        }
        *self = Narrow::zero();
    }
}

#[cfg(test)]
mod tests {
    use super::table;
    use crate::isa::Level;
    use crate::testing::can_run;

    #[test]
    fn halves_make_the_whole_and_stay_in_their_bounds() {
        if !can_run(Level::Avx2) {
            return;
        }
        for first in (-640i16..=640).step_by(16) {
            let sums = core::array::from_fn(|i| (first + i as i16).min(640));
            // SAFETY: the processor has AVX2, as was seen above.
            let halves = unsafe { table(&[sums], [1]) };
            for (i, sum) in sums.into_iter().enumerate() {
                let (low, high) = (halves[i], halves[16 + i]);
                assert_eq!(31 * i16::from(high) + i16::from(low), sum);
                assert!((-15..=15).contains(&low) && (-21..=21).contains(&high));
                if sum.abs() <= 384 {
                    assert!((-12..=12).contains(&high));
                }
            }
        }
    }
}
