//! Reads GGUF files, versions 2 and 3, from a map or from bytes in memory.
//!
//! Opening a file checks everything that can be checked without looking at the weights: after it,
//! every tensor is known to lie in the file, apart from the others, with a type that is read and a
//! size that fits its shape. The data itself is checked when it is read: [`TernaryTensor`] refuses
//! codes that stand for no trit and scales that are not finite.
//!
//! To add a tensor type: a row in each table of `types.rs`, and its decoder in `dequant.rs` or
//! `ternary.rs`.

mod dequant;
mod parse;
mod summary;
mod tensor;
mod ternary;
mod types;
mod value;
mod writer;

pub use crate::mmap::{ByteView, Bytes};
pub use dequant::dequantize_row;
pub use summary::{KeySummary, Summary, TensorSummary};
pub use tensor::Tensor;
pub use ternary::TernaryTensor;
pub use types::TensorType;
pub use value::{Array, FromValue, Strings, Value, ValueType};
pub use writer::{DataWriter, Writer};

use crate::error::{Error, Place, Result};
use parse::Header;
use std::path::Path;
use std::sync::Arc;

/// An open GGUF file: its metadata and its tensors.
pub struct Gguf {
    file: Arc<str>,
    bytes: Bytes,
    header: Header,
    tensors: Vec<Tensor>,
}

impl Gguf {
    /// Maps and reads the file at `path`.
    ///
    /// # Errors
    ///
    /// `Io`, `Malformed`, `Unsupported` or `Metadata`, each naming the place in the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(Bytes::open(path)?, &path.display().to_string())
    }

    /// Reads a file that is in memory. `name` stands for it in messages.
    ///
    /// # Errors
    ///
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: Bytes, name: &str) -> Result<Self> {
        let mut header = parse::header(name, &bytes)?;
        let file: Arc<str> = name.into();
        let tensors = tensor::place_tensors(&file, &bytes, &header)?;
        header.tensors = Vec::new();
        Ok(Self { file, bytes, header, tensors })
    }

    /// Path or name of the file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Bytes to whose multiples tensor data is aligned.
    pub fn alignment(&self) -> usize {
        self.header.alignment
    }

    /// Metadata in the file's order; no key occurs twice.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.header.metadata
    }

    /// Tensors in the order of their descriptions; no name occurs twice.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of this name, if there is one.
    pub fn find_tensor(&self, name: &str) -> Option<&Tensor> {
        Some(&self.tensors[*self.header.names.get(name)?])
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
        Some(&self.header.metadata[*self.header.keys.get(key)?].1)
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
    /// `MissingKey`, and as [`Gguf::find`].
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.find(key)?.ok_or_else(|| Error::MissingKey { at: Box::new(Place::file(&*self.file).key(key)) })
    }

    /// [`Gguf::get`] for an unsigned integer.
    ///
    /// # Errors
    ///
    /// As [`Gguf::get`].
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.get(key)
    }

    /// [`Gguf::get`] for a finite number.
    ///
    /// # Errors
    ///
    /// As [`Gguf::get`].
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.get(key)
    }

    /// [`Gguf::get`] for a bool.
    ///
    /// # Errors
    ///
    /// As [`Gguf::get`].
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.get(key)
    }

    /// [`Gguf::get`] for a string.
    ///
    /// # Errors
    ///
    /// As [`Gguf::get`].
    pub fn str(&self, key: &str) -> Result<&str> {
        self.get(key)
    }

    /// [`Gguf::get`] for an array of strings.
    ///
    /// # Errors
    ///
    /// As [`Gguf::get`].
    pub fn array_str(&self, key: &str) -> Result<Strings<'_>> {
        self.get(key)
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("file", &self.file)
            .field("bytes", &self.bytes)
            .field("keys", &self.header.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
