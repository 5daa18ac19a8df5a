//! Tensor types: their numbers, block sizes and byte sizes, and which of them Tritone reads.
//!
//! Three numbers stand for different types in different engines' files (36, 38, 39) and one for
//! two sizes of block (42). The number alone decides nothing there: the span of bytes that the
//! file gives to the tensor does.

use super::parse::RawTensor;
use crate::error::{Error, Place};

/// A tensor type that Tritone reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q5_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    /// 256 trits in 54 bytes.
    Tq1_0,
    /// 256 trits in 66 bytes.
    Tq2_0,
    /// Two bits a weight and one scale for the whole tensor.
    I2S,
    /// 64 weights in 18 bytes.
    Q2_0,
    /// The type of older files with the same number: 128 weights in 34 bytes.
    Q2_0G128,
    /// 128 weights in 34 bytes.
    Pq2_0,
}

/// Bytes after the packed weights of an I2_S tensor; the first four are the scale.
pub(crate) const I2S_TRAILER: usize = 32;

impl TensorType {
    /// The number in the file.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q5_0 => 6,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
            Self::Tq1_0 => 34,
            Self::Tq2_0 => 35,
            Self::I2S => 36,
            Self::Q2_0 | Self::Q2_0G128 => 42,
            Self::Pq2_0 => 142,
        }
    }

    /// The name, as other tools print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q5_0 => "Q5_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
            Self::I2S => "I2_S",
            Self::Q2_0 => "Q2_0",
            Self::Q2_0G128 => "Q2_0 (groups of 128)",
            Self::Pq2_0 => "PQ2_0",
        }
    }

    /// Weights in one block. Rows are whole numbers of blocks.
    pub fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => 32,
            Self::Q2_0 => 64,
            Self::I2S | Self::Q2_0G128 | Self::Pq2_0 => 128,
            Self::Q4K | Self::Q5K | Self::Q6K | Self::Tq1_0 | Self::Tq2_0 => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::Q2_0 => 18,
            Self::Q5_0 => 22,
            Self::Q8_0 | Self::Q2_0G128 | Self::Pq2_0 => 34,
            Self::I2S => 32,
            Self::Tq1_0 => 54,
            Self::Tq2_0 => 66,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether every weight is -1, 0 or +1 times a scale. Q2_0 can also hold +2, which
    /// [`super::TernaryTensor`] refuses when it meets one.
    pub fn is_ternary(self) -> bool {
        matches!(self, Self::Tq1_0 | Self::Tq2_0 | Self::I2S | Self::Q2_0 | Self::Q2_0G128 | Self::Pq2_0)
    }

    /// Bytes of one row of `cols` weights, or nothing if `cols` is no whole number of
    /// blocks or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_weights()) {
            return None;
        }
        (cols / self.block_weights()).checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor of `rows` times `cols` weights, with the trailer of I2_S. Nothing if
    /// `cols` is no whole number of blocks or the size overflows.
    pub fn tensor_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        let packed = self.row_bytes(cols)?.checked_mul(rows)?;
        match self {
            Self::I2S => packed.checked_add(I2S_TRAILER),
            _ => Some(packed),
        }
    }
}

/// What a type number can mean before the span has been looked at.
pub(crate) enum Candidates {
    /// The number has one meaning.
    One(TensorType),
    /// The number has several; the span decides.
    BySpan(&'static [TensorType]),
}

/// The types that a number may stand for.
pub(crate) fn candidates(id: u32) -> Option<Candidates> {
    Some(Candidates::One(match id {
        0 => TensorType::F32,
        1 => TensorType::F16,
        2 => TensorType::Q4_0,
        6 => TensorType::Q5_0,
        8 => TensorType::Q8_0,
        12 => TensorType::Q4K,
        13 => TensorType::Q5K,
        14 => TensorType::Q6K,
        30 => TensorType::BF16,
        34 => TensorType::Tq1_0,
        35 => TensorType::Tq2_0,
        36 => return Some(Candidates::BySpan(&[TensorType::I2S])),
        42 => {
            return Some(Candidates::BySpan(&[TensorType::Q2_0, TensorType::Q2_0G128]));
        }
        142 => TensorType::Pq2_0,
        _ => return None,
    }))
}

/// Names of types that other engines write and Tritone does not read. The list is for messages
/// only.
fn foreign_name(id: u32) -> Option<&'static str> {
    Some(match id {
        3 => "Q4_1",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        37 => "IQ4_NL_4_8",
        _ => return None,
    })
}

const READ: &str = "Tritone reads I2_S, TQ1_0, TQ2_0, Q2_0 and PQ2_0 for ternary weights, and F32, \
                    F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K, Q5_K and Q6_K for the others: \
                    convert the model to one of these";

/// The refusal of a type that is not read. `span` is the number of bytes that the file gives to
/// the tensor, `weights` how many weights it has.
pub(crate) fn refuse(at: Place, architecture: &str, raw: &RawTensor, weights: u64, span: u64) -> Error {
    let seen = format!("{weights} weights in {span} bytes, architecture `{}`", crate::error::shown(architecture));
    let id = raw.type_id;
    let (what, fix) = match id {
        // 32 weights in 17 bytes; the ternary type takes less than a third of that.
        39 if weights.checked_mul(17).map(|b| b / 32) <= Some(span) => {
            (format!("type 39 with {seen} is MXFP4, which is not read"), READ)
        }
        38 | 39 => (
            format!("type {id} with {seen} is TL{}, whose layout is made for one machine and shape", id - 37),
            "use the same model's I2_S file",
        ),
        143 => (
            format!("type 143 with {seen} is PTQ1_0, whose order of trits is not known for sure"),
            "use the same model's Q2_0 or PQ2_0 file",
        ),
        _ => match foreign_name(id) {
            Some(name) => (format!("type {id} ({name}) is not read ({seen})"), READ),
            None => (format!("type {id} is unknown ({seen})"), READ),
        },
    };
    Error::Unsupported { at: Box::new(at), what, fix: fix.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(TensorType::I2S.tensor_bytes(256, 768), Some(49152 + 32));
        assert_eq!(TensorType::I2S.tensor_bytes(2, 64), None);
        assert_eq!(TensorType::Tq1_0.row_bytes(1024), Some(216));
        assert_eq!(TensorType::F32.tensor_bytes(usize::MAX, 2), None);
        assert_eq!(TensorType::I2S.tensor_bytes(1 << 59, 128), None);
    }

    #[test]
    fn every_readable_number_leads_to_its_type() {
        for id in 0..200 {
            match candidates(id) {
                Some(Candidates::One(ty)) => assert_eq!(ty.id(), id),
                Some(Candidates::BySpan(types)) => {
                    assert!(types.iter().all(|ty| ty.id() == id));
                }
                None => {}
            }
        }
    }
}
