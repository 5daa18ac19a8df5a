//! Floats to F32, F16, Q8_0 and Q6_K.

use super::q6_k;
use crate::checkpoint::TensorType;
use half::f16;

/// Appends a row, or any whole number of blocks, as `ty`. Values are finite; what half precision
/// cannot hold becomes its largest number.
///
/// Q8_0 is byte for byte what ggml's reference quantiser writes. Q6_K has many encodings of a
/// block; this one is searched for a small squared error.
///
/// # Panics
/// `ty` is none of F32, F16, Q8_0 and Q6_K, or `values` are no whole number of blocks.
pub fn quantize_row(ty: TensorType, values: &[f32], out: &mut Vec<u8>) {
    assert!(values.len().is_multiple_of(ty.block_weights()), "whole blocks of {}", ty.name());
    match ty {
        TensorType::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        TensorType::F16 => out.extend(values.iter().flat_map(|value| nearest_half(*value).to_le_bytes())),
        TensorType::Q8_0 => values.as_chunks().0.iter().for_each(|block| q8_0(block, out)),
        TensorType::Q6K => values.as_chunks().0.iter().for_each(|block| q6_k::encode(block, out)),
        _ => panic!("{} is not written", ty.name()),
    }
}

/// The nearest half that is finite.
pub(super) fn nearest_half(value: f32) -> f16 {
    let half = f16::from_f32(value);
    if half.is_infinite() { f16::MAX.copysign(half) } else { half }
}

/// The scale maps the largest magnitude to 127; halves round away from zero, as in C's `roundf`.
fn q8_0(block: &[f32; 32], out: &mut Vec<u8>) {
    let max = block.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
    let scale = max / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(nearest_half(scale).to_le_bytes());
    // The quotient's magnitude is at most 127 and a rounding error, or the inverse is infinite
    // because the values are subnormal; the conversion saturates.
    out.extend(block.map(|value| ((value * inverse).round() as i8) as u8));
}
