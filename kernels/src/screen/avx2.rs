//! `screen` with AVX2: four rows at a time, sixteen columns a step.
//!
//! `vpmaddwd` adds two products of at most `127 * 32767` to a 32-bit lane of its own; what the lanes add up to is
//! within the bound of the whole sum. A step takes 64 bytes of weights, one cache line, and asks for one that
//! comes two groups of rows later.

use crate::isa::{Isa, Level};
use core::arch::x86_64::*;

/// Rows that share the loads of activations.
const TOGETHER: usize = 4;

/// Columns of a step.
const STEP: usize = 16;

/// Proof that the processor has AVX2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof(());

impl Proof {
    /// The proof, if `isa` allows it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        isa.supports(Level::Avx2).then_some(Self(()))
    }
}

/// See [`super::dots`].
pub(super) fn dots(_: Proof, rows: &[i8], x: &[i16], out: &mut [i32]) {
    // SAFETY: the function needs AVX2; the proof exists only if `Proof::new` saw it.
    unsafe { all_rows(rows, x, out) }
}

#[target_feature(enable = "avx2")]
fn all_rows(rows: &[i8], x: &[i16], out: &mut [i32]) {
    let cols = x.len();
    let (fours, rest) = out.as_chunks_mut::<TOGETHER>();
    let (whole, left) = rows.split_at(fours.len() * TOGETHER * cols);
    for (four, rows) in fours.iter_mut().zip(whole.chunks_exact(TOGETHER * cols)) {
        let (first, second) = rows.split_at(2 * cols);
        let (a, b) = first.split_at(cols);
        let (c, d) = second.split_at(cols);
        *four = sums([a, b, c, d], x);
    }
    for (sum, row) in rest.iter_mut().zip(left.chunks_exact(cols)) {
        [*sum] = sums([row], x);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sums<const N: usize>(rows: [&[i8]; N], x: &[i16]) -> [i32; N] {
    let (steps, x_rest) = x.as_chunks::<STEP>();
    let ahead = rows[0].as_ptr().wrapping_add(2 * N * x.len());
    let mut parts: [&[[i8; STEP]]; N] = [&[]; N];
    for (part, row) in parts.iter_mut().zip(rows) {
        // All of one known length, so that the loop needs no bounds checks.
        *part = &row.as_chunks().0[..steps.len()];
    }
    let mut sums = [_mm256_setzero_si256(); N];
    for (step, x) in steps.iter().enumerate() {
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(step * N * STEP));
        // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
        let x = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        for i in 0..N {
            // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
            let weights = unsafe { _mm_loadu_si128(parts[i][step].as_ptr().cast()) };
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_cvtepi8_epi16(weights), x));
        }
    }
    let mut totals = [0; N];
    for i in 0..N {
        let lanes: [i32; 8] = bytemuck::cast(sums[i]);
        let rest = &rows[i][steps.len() * STEP..];
        let products = rest.iter().zip(x_rest).map(|(w, x)| i32::from(*w) * i32::from(*x));
        totals[i] = lanes.iter().sum::<i32>() + products.sum::<i32>();
    }
    totals
}
