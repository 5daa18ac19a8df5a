//! Reads GGUF files, versions 2 and 3, from a map or from bytes in memory, and writes version 3.
//!
//! Opening a file checks everything that can be checked without looking at the weights: after it,
//! every tensor is known to lie in the file, apart from the others, with a type that is read and a
//! size that fits its shape. The data itself is checked when it is read:
//! [`crate::checkpoint::TernaryTensor`] refuses codes that stand for no trit and scales that are
//! not finite.
//!
//! To add a tensor type: its number in `type_id.rs`; its sizes and its decoder in `checkpoint`.

mod parse;
mod place;
mod type_id;
mod writer;

pub use writer::{DataWriter, Writer};

use crate::checkpoint::{Bytes, Checkpoint};
use crate::error::{Error, Place, Result};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// An open GGUF file: a [`Checkpoint`], to which it dereferences, and what only GGUF has.
#[derive(Debug)]
pub struct Gguf {
    checkpoint: Checkpoint,
    bytes: Bytes,
    version: u32,
    alignment: usize,
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
        let header = parse::header(name, &bytes)?;
        let file: Arc<str> = name.into();
        let tensors = place::place_tensors(&file, &bytes, &header)?;
        let (version, alignment) = (header.version, header.alignment);
        let format = format!("GGUF {version}, aligned to {alignment}");
        let checkpoint = Checkpoint::new(file, format, bytes.len() as u64, header.metadata, tensors)?;
        refuse_part(&checkpoint)?;
        Ok(Self { checkpoint, bytes, version, alignment })
    }

    /// The metadata and the tensors.
    pub fn into_checkpoint(self) -> Checkpoint {
        self.checkpoint
    }

    /// All bytes of the file.
    pub fn data(&self) -> &Bytes {
        &self.bytes
    }

    /// GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes to whose multiples tensor data is aligned.
    pub fn alignment(&self) -> usize {
        self.alignment
    }
}

/// Refuses one of several files over which a model was split.
fn refuse_part(checkpoint: &Checkpoint) -> Result<()> {
    let Some(count) = checkpoint.find::<u64>("split.count")?.filter(|&count| count > 1) else {
        return Ok(());
    };
    let part = match checkpoint.find::<u64>("split.no")? {
        Some(part) => format!("part {} of {count}", part.saturating_add(1)),
        None => format!("one part of {count}"),
    };
    Err(Error::Unsupported {
        at: Box::new(Place::file(checkpoint.file()).key("split.count")),
        what: format!("this is {part} of a model"),
        fix: "join them first, with `llama-gguf-split --merge FIRST-PART NEW-FILE`".to_owned(),
    })
}

impl Deref for Gguf {
    type Target = Checkpoint;

    fn deref(&self) -> &Checkpoint {
        &self.checkpoint
    }
}
