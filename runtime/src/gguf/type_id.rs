//! The numbers that stand for tensor types in GGUF, and which of them Tritone reads.
//!
//! Three numbers stand for different types in different engines' files (36, 38, 39) and one for
//! two sizes of block (42). The number alone decides nothing there: the span of bytes that the
//! file gives to the tensor does.

use super::parse::RawTensor;
use crate::checkpoint::TensorType;
use crate::error::{Error, Place};

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
