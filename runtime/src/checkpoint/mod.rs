//! A model as its makers stored it: metadata and tensors, whatever the file format.
//!
//! The vocabulary is GGUF's: its keys (`llama.block_count`), its tensor names
//! (`blk.0.attn_q.weight`), its order of dimensions. Readers of other formats translate into it, so
//! that everything behind them (configuration, tokenizer, weights, conversion) exists once.
//!
//! To add a way of storing ternary weights: a row in each table of `tensor_type.rs` and a decoder in
//! `ternary.rs`.

mod dequant;
mod summary;
mod tensor;
mod tensor_type;
mod ternary;
mod value;

pub use crate::mmap::{ByteView, Bytes};
pub use dequant::dequantize_row;
pub use summary::{KeySummary, Summary, TensorSummary};
pub use tensor::Tensor;
pub use tensor_type::{I2sLayout, TensorType};
pub use ternary::TernaryTensor;
pub(crate) use value::write_string;
pub use value::{Array, FromValue, Strings, Value, ValueType};

use crate::error::{Error, Place, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// Metadata and tensors of an open model.
pub struct Checkpoint {
    file: Arc<str>,
    format: String,
    bytes: u64,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<Tensor>,
    names: HashMap<String, usize>,
}

impl Checkpoint {
    /// `file` stands for the model in messages, `format` says what it is stored as, in `bytes` bytes.
    ///
    /// # Errors
    ///
    /// `Malformed` if a key or the name of a tensor occurs twice.
    pub(crate) fn new(
        file: Arc<str>,
        format: String,
        bytes: u64,
        metadata: Vec<(String, Value)>,
        tensors: Vec<Tensor>,
    ) -> Result<Self> {
        let twice = |at: Place, what: &str| Error::Malformed {
            at: Box::new(at),
            what: format!("the {what} occurs twice"),
            fix: "the file was not written correctly, download or convert it again",
        };
        let mut keys = HashMap::with_capacity(metadata.len());
        for (index, (key, _)) in metadata.iter().enumerate() {
            if keys.insert(key.clone(), index).is_some() {
                return Err(twice(Place::file(&*file).key(key.clone()), "key"));
            }
        }
        let mut names = HashMap::with_capacity(tensors.len());
        for (index, tensor) in tensors.iter().enumerate() {
            if names.insert(tensor.name().to_owned(), index).is_some() {
                return Err(twice(tensor.place(), "name"));
            }
        }
        Ok(Self { file, format, bytes, metadata, keys, tensors, names })
    }

    /// Path or name of the model.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What it is stored as: `GGUF 3, aligned to 32`.
    pub fn format(&self) -> &str {
        &self.format
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads all I2_S tensors in this layout. It is the reader's choice because the file does not
    /// say which it has.
    pub fn set_i2s_layout(&mut self, layout: I2sLayout) {
        for tensor in &mut self.tensors {
            tensor.set_i2s_layout(layout);
        }
    }

    /// Metadata in the file's order; no key occurs twice.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// Tensors in the order of their descriptions; no name occurs twice.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of this name, if there is one.
    pub fn find_tensor(&self, name: &str) -> Option<&Tensor> {
        Some(&self.tensors[*self.names.get(name)?])
    }

    /// The tensor of this name.
    ///
    /// # Errors
    ///
    /// `MissingTensor`.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.find_tensor(name)
            .ok_or_else(|| Error::MissingTensor { at: Box::new(Place::file(&*self.file).tensor(name)) })
    }

    /// The value of `key`, if there is one.
    pub fn value(&self, key: &str) -> Option<&Value> {
        Some(&self.metadata[*self.keys.get(key)?].1)
    }

    /// The value of `key` as a `T`, or nothing if the key is missing. Integers of any width are
    /// taken if the value fits.
    ///
    /// # Errors
    ///
    /// `Metadata` if the value is of another type or does not fit.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match T::from_value(value) {
            Some(found) => Ok(Some(found)),
            None => Err(Error::Metadata {
                at: Box::new(Place::file(&*self.file).key(key)),
                found: value.to_string(),
                expected: T::EXPECTED.into(),
            }),
        }
    }

    /// The value of `key` as a `T`.
    ///
    /// # Errors
    ///
    /// `MissingKey`, and as [`Checkpoint::find`].
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.find(key)?.ok_or_else(|| Error::MissingKey { at: Box::new(Place::file(&*self.file).key(key)) })
    }

    /// [`Checkpoint::get`] for an unsigned integer.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::get`].
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.get(key)
    }

    /// [`Checkpoint::get`] for a finite number.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::get`].
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.get(key)
    }

    /// [`Checkpoint::get`] for a bool.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::get`].
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.get(key)
    }

    /// [`Checkpoint::get`] for a string.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::get`].
    pub fn str(&self, key: &str) -> Result<&str> {
        self.get(key)
    }

    /// [`Checkpoint::get`] for an array of strings.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::get`].
    pub fn array_str(&self, key: &str) -> Result<Strings<'_>> {
        self.get(key)
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("file", &self.file)
            .field("format", &self.format)
            .field("keys", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
