//! Quantised activations: int8 codes and their scales, per token or per block.
//!
//! `m = max(|x|max, 1e-5)`, `q = clamp(round_half_even(x * (127 / m)), -127, 127)`, and a code stands for
//! `q * (m / 127)`: the rule that BitNet models are trained with (arXiv 2402.17764, section 2). NaNs
//! are passed over by the maximum and become -127, so every input has one result.

use crate::float::FloatKernels;

/// The smallest maximum: an all-zero vector is not divided by 0.
pub const FLOOR: f32 = 1e-5;

/// Quantises each run of `block` activations with a scale of its own; `block` equal to the
/// length gives one scale for the token. `scales` gets what a code has to be multiplied by.
///
/// # Panics
/// `codes` and `x` differ in length, or `scales` has not one place for each block.
pub fn quantize(float: &FloatKernels, x: &[f32], block: usize, codes: &mut [i8], scales: &mut [f32]) {
    assert_eq!(x.len(), codes.len(), "one code for each activation");
    assert_eq!(x.len(), scales.len() * block, "one scale for each block");
    for ((x, codes), scale) in x.chunks_exact(block).zip(codes.chunks_exact_mut(block)).zip(scales) {
        let largest = float.absmax(x).max(FLOOR);
        float.quantize(x, 127.0 / largest, codes);
        *scale = largest / 127.0;
    }
}
