//! Integer products that screen the rows of an output head: int8 weights times int16 activations.
//!
//! They say how large a logit may be at most, so that only the rows that can still matter are computed from their
//! own weights. The sums are exact, so every instruction set gives the same. Bound: `cols * 127 *`
//! [`limit`]`(cols)` is less than 2^31.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx2;

use crate::isa::Isa;

/// The largest magnitude of activations for rows of `cols` weights: as fine as the 32-bit sums allow.
///
/// # Panics
/// `cols` is 0 or more than 2^24.
#[must_use]
pub fn limit(cols: usize) -> i16 {
    assert!((1..=1 << 24).contains(&cols), "1 to 2^24 columns");
    let most = i32::MAX as usize / 127 / cols;
    most.min(i16::MAX as usize) as i16
}

/// Rounds `x` to `x[i] / scale`, at most `limit` in magnitude, and returns the scale (0 if all of `x` is 0).
/// `x` must be finite.
///
/// # Panics
/// The lengths differ.
pub fn round(x: &[f32], limit: i16, out: &mut [i16]) -> f64 {
    assert_eq!(x.len(), out.len(), "one place for each activation");
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let scale = f64::from(largest) / f64::from(limit);
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (out, x) in out.iter_mut().zip(x) {
        // Within the limit up to one rounding, and the conversion saturates.
        *out = (libm::rint(f64::from(*x) * inverse) as i16).clamp(-limit, limit);
    }
    scale
}

/// `out[r] = rows[r] . x`, rows of `x.len()` weights one after the other.
///
/// # Panics
/// `rows` is not `out.len()` rows, or a weight or an activation is so large that sums could overflow
/// (checked where assertions are on).
pub fn dots(isa: Isa, rows: &[i8], x: &[i16], out: &mut [i32]) {
    assert_eq!(rows.len(), x.len() * out.len(), "out.len() rows of x.len() weights");
    if x.is_empty() || out.is_empty() {
        return out.fill(0);
    }
    debug_assert!(
        x.iter().all(|value| (-limit(x.len())..=limit(x.len())).contains(value)) && !rows.contains(&-128),
        "within the limits"
    );
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    if let Some(proof) = avx2::Proof::new(isa) {
        return avx2::dots(proof, rows, x, out);
    }
    let _ = isa;
    portable(rows, x, out);
}

/// The definition.
fn portable(rows: &[i8], x: &[i16], out: &mut [i32]) {
    for (out, row) in out.iter_mut().zip(rows.chunks_exact(x.len())) {
        *out = row.iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn all_instruction_sets_agree() {
        let mut random = Random::new(23);
        for cols in [1, 15, 16, 17, 64, 100, 384, 2560] {
            for n_rows in [1, 2, 3, 4, 5, 9] {
                let limit = limit(cols);
                let x: Vec<i16> = (0..cols).map(|_| (random.bits() as i16).clamp(-limit, limit)).collect();
                let rows: Vec<i8> = random.codes(cols * n_rows).into_iter().map(|code| code.max(-127)).collect();
                let (mut expected, mut got) = (vec![0; n_rows], vec![7; n_rows]);
                portable(&rows, &x, &mut expected);
                dots(Isa::detect(), &rows, &x, &mut got);
                assert_eq!(got, expected, "{n_rows} x {cols}");
            }
        }
    }

    #[test]
    fn extremes_fit() {
        for cols in [16, 2560, 8192] {
            let limit = limit(cols);
            let mut got = [0; 5];
            dots(Isa::detect(), &vec![127; 5 * cols], &vec![limit; cols], &mut got);
            assert_eq!(got, [cols as i32 * 127 * i32::from(limit); 5]);
            dots(Isa::detect(), &vec![-127; 5 * cols], &vec![limit; cols], &mut got);
            assert_eq!(got, [-(cols as i32 * 127 * i32::from(limit)); 5]);
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_step() {
        let x = [0.5, -1.0, 0.25, 0.0, 1.0];
        let mut out = [9; 5];
        let scale = round(&x, 1000, &mut out);
        assert_eq!(out, [500, -1000, 250, 0, 1000]);
        assert!((scale - 0.001).abs() < 1e-18);
        assert_eq!(round(&[0.0; 3], 1000, &mut out[..3]), 0.0);
        assert_eq!(out[..3], [0; 3]);
    }
}
