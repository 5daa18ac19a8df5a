//! What a file holds, as plain data: the source of `tritone inspect`, in words or as JSON.

use super::tensor::Tensor;
use super::value::Value;
use super::{Array, Checkpoint};
use serde::Serialize;
use serde_json::json;

/// How many elements of an array a summary shows.
const SHOWN_ELEMENTS: usize = 8;

/// A file's metadata and tensors.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Path or name of the file.
    pub file: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// `GGUF 3, aligned to 32`
    pub format: String,
    /// Metadata in the file's order.
    pub metadata: Vec<KeySummary>,
    /// Tensors in the file's order.
    pub tensors: Vec<TensorSummary>,
}

/// One metadata key.
#[derive(Debug, Clone, Serialize)]
pub struct KeySummary {
    /// The key.
    pub key: String,
    /// Its type: `u32`, or for an array `array of string`.
    #[serde(rename = "type")]
    pub value_type: String,
    /// Number of elements of an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub len: Option<usize>,
    /// The value; of an array the first eight elements. Numbers that are not finite are null.
    pub value: serde_json::Value,
}

/// One tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorSummary {
    /// The name.
    pub name: String,
    /// The type: `I2_S`.
    #[serde(rename = "type")]
    pub tensor_type: &'static str,
    /// Dimensions, the fastest first.
    pub dims: Vec<usize>,
    /// First byte of the data in the file.
    pub offset: u64,
    /// Bytes of data, padding not counted.
    pub bytes: usize,
    /// Weights that are 0, of a ternary tensor that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zeros: Option<u64>,
    /// Why the weights could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl TensorSummary {
    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.dims.iter().map(|&d| d as u64).product()
    }

    /// Share of weights that are 0, from 0 to 1, if they were counted.
    pub fn share_of_zeros(&self) -> Option<f64> {
        Some(self.zeros? as f64 / self.weights() as f64)
    }
}

impl Checkpoint {
    /// Metadata and tensors. `count_zeros` reads all ternary weights, which takes a few seconds
    /// for a model of two gigabytes; a tensor that cannot be read has a `problem` then.
    pub fn summary(&self, count_zeros: bool) -> Summary {
        Summary {
            file: self.file().into(),
            bytes: self.bytes(),
            format: self.format().into(),
            metadata: self.metadata().iter().map(key_summary).collect(),
            tensors: self.tensors().iter().map(|tensor| tensor_summary(tensor, count_zeros)).collect(),
        }
    }
}

fn key_summary((key, value): &(String, Value)) -> KeySummary {
    let name = value.value_type().name();
    let (value_type, len) = match value {
        Value::Array(array) => (format!("{name} of {}", array.element().name()), Some(array.len())),
        _ => (name.into(), None),
    };
    KeySummary { key: key.clone(), value_type, len, value: to_json(value) }
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Array(v) => first_elements(v),
    }
}

fn first_elements(array: &Array) -> serde_json::Value {
    if let Some(strings) = array.strings() {
        return strings.take(SHOWN_ELEMENTS).collect();
    }
    let scalars = array.scalars().into_iter().flatten();
    scalars.take(SHOWN_ELEMENTS).map(|v| to_json(&v)).collect()
}

fn tensor_summary(tensor: &Tensor, count_zeros: bool) -> TensorSummary {
    let counted =
        (count_zeros && tensor.tensor_type().is_ternary()).then(|| tensor.ternary().and_then(|t| t.count_zeros()));
    let (zeros, problem) = match counted {
        Some(Ok(zeros)) => (Some(zeros), None),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (None, None),
    };
    TensorSummary {
        name: tensor.name().into(),
        tensor_type: tensor.tensor_type().name(),
        dims: tensor.dims().into(),
        offset: tensor.offset(),
        bytes: tensor.data().len(),
        zeros,
        problem,
    }
}
