//! Trits of tensors that do not store trits and scales together: packed bytes whose scale is a
//! tensor of its own, master weights that a model ternarises whenever it runs, and floats that
//! are ternary already.

use super::tensor::Tensor;
use crate::error::{Error, Result};

/// How a tensor's numbers become trits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ternarise {
    /// Packed bytes; every weight is its trit times `multiplier`.
    Packed {
        /// The scale of the tensor.
        multiplier: f32,
    },
    /// Master weights: with `s = 1 / max(mean |w|, 1e-5)` the trit is `clamp(round(w * s), -1, 1)`,
    /// ties to even, and the scale `1 / s` (BitNet b1.58, Ma et al. 2024).
    AbsMean,
    /// Each weight is 0, or plus or minus the scale of its block. What a block is follows from the
    /// numbers: the tensor, or 256, 128 or 64 weights of a row.
    Exact,
}

/// What [`Ternarise`] comes to for one tensor of floats.
#[derive(Clone, Debug)]
pub(super) enum Floats {
    /// The factor before rounding, and the scale.
    Rounded { factor: f32, scale: f32 },
    /// The scale that all weights have.
    OneScale(f32),
    /// Weights that share a scale.
    Blocks(usize),
}

/// Blocks that are tried, largest first, once the tensor has more than one scale.
const BLOCKS: [usize; 3] = [256, 128, 64];

/// Reads the tensor as often as it takes to know its scales.
pub(super) fn floats(tensor: &Tensor, rule: Ternarise) -> Result<Floats> {
    let malformed = |what: String| Error::Malformed {
        at: Box::new(tensor.place()),
        what,
        fix: "the model is not ternary, or the file is damaged: download it again",
    };
    let mut values = vec![0.0f32; tensor.cols()];
    if rule == Ternarise::AbsMean {
        let mut sum = 0.0f64;
        for row in 0..tensor.rows() {
            tensor.dequantize_float_row(row, &mut values);
            sum += values.iter().map(|value| f64::from(value.abs())).sum::<f64>();
        }
        let mean = (sum / (tensor.rows() * tensor.cols()) as f64) as f32;
        if !mean.is_finite() {
            return Err(malformed("a weight is not finite".to_owned()));
        }
        let scale = mean.max(1e-5);
        return Ok(Floats::Rounded { factor: 1.0 / scale, scale });
    }
    // Of the largest block that every row so far allows.
    let mut allowed = BLOCKS.iter().copied().filter(|block| tensor.cols().is_multiple_of(*block)).collect::<Vec<_>>();
    let mut one = Some(0.0f32);
    for row in 0..tensor.rows() {
        tensor.dequantize_float_row(row, &mut values);
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(malformed(format!("row {row} holds {value}")));
        }
        let scale = one_scale(&values);
        one = one.zip(scale).and_then(|(one, scale)| match (one, scale) {
            (one, 0.0) => Some(one),
            (0.0, scale) => Some(scale),
            (one, scale) => (one == scale).then_some(one),
        });
        if scale.is_none() {
            allowed.retain(|&block| values.chunks_exact(block).all(|block| one_scale(block).is_some()));
        }
        if one.is_none() && allowed.is_empty() {
            return Err(malformed(format!(
                "row {row} has weights of more than one size within blocks of {}, {} and {}",
                BLOCKS[0], BLOCKS[1], BLOCKS[2]
            )));
        }
    }
    Ok(match (one, allowed.first()) {
        (Some(scale), _) => Floats::OneScale(scale),
        (None, Some(&block)) => Floats::Blocks(block),
        (None, None) => return Err(malformed("its rows can't be cut in blocks of 64 weights".to_owned())),
    })
}

/// The one size that all weights have that are not 0; 0 if all are.
fn one_scale(values: &[f32]) -> Option<f32> {
    let scale = values.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
    values.iter().all(|value| *value == 0.0 || value.abs() == scale).then_some(scale)
}

impl Floats {
    /// Trits of a row of floats.
    pub(super) fn trits(&self, values: &[f32], out: &mut [i8]) {
        for (trit, value) in out.iter_mut().zip(values) {
            *trit = match self {
                // NaN was refused with the mean.
                Floats::Rounded { factor, .. } => libm::rintf(value * factor).clamp(-1.0, 1.0) as i8,
                Floats::OneScale(_) | Floats::Blocks(_) => i8::from(*value > 0.0) - i8::from(*value < 0.0),
            };
        }
    }

    /// The one scale of the tensor, if it has one.
    pub(super) fn tensor_scale(&self) -> Option<f32> {
        match self {
            Floats::Rounded { scale, .. } | Floats::OneScale(scale) => Some(*scale),
            Floats::Blocks(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Bytes, TensorType};

    fn tensor(rows: usize, values: &[f32]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (len, dims) = (bytes.len(), vec![values.len() / rows, rows]);
        let view = Bytes::from(bytes).view(0..len).unwrap();
        Tensor::new("memory".into(), "w".into(), TensorType::F32, dims, 0, len, view)
    }

    #[test]
    fn the_largest_block_with_one_scale_is_found() {
        let mut values = vec![0.5f32; 512];
        values[3] = -0.5;
        values[4] = 0.0;
        assert!(matches!(floats(&tensor(2, &values), Ternarise::Exact), Ok(Floats::OneScale(0.5))));
        values[256..].fill(-0.25);
        assert!(matches!(floats(&tensor(2, &values), Ternarise::Exact), Ok(Floats::Blocks(256))));
        values[128..256].fill(2.0);
        assert!(matches!(floats(&tensor(2, &values), Ternarise::Exact), Ok(Floats::Blocks(128))));
        values[64..70].fill(0.0);
        values[70..128].fill(1.0);
        assert!(matches!(floats(&tensor(2, &values), Ternarise::Exact), Ok(Floats::Blocks(64))));
        values[1] = 0.1;
        assert!(floats(&tensor(2, &values), Ternarise::Exact).is_err());
        values[1] = f32::NAN;
        assert!(floats(&tensor(2, &values), Ternarise::Exact).is_err());
        assert!(floats(&tensor(2, &values), Ternarise::AbsMean).is_err());
    }

    #[test]
    fn master_weights_are_rounded_by_their_mean() {
        let values = [1.0f32, -3.0, 0.4, -0.5, 0.0, 1.1, 2.0, 0.0];
        let found = floats(&tensor(1, &values), Ternarise::AbsMean).unwrap();
        let mut trits = [0; 8];
        found.trits(&values, &mut trits);
        // The mean of the sizes is 1, so -0.5 is a tie.
        assert_eq!(trits, [1, -1, 0, 0, 0, 1, 1, 0]);
        assert_eq!(found.tensor_scale(), Some(1.0));
    }
}
