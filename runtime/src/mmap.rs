//! Model bytes: a mapped file, bytes inside the binary, or bytes on the heap, all shared by
//! counting references so that tensors can outlive the reader that found them.
//!
//! This is the only file of the runtime with `unsafe` in it: one call that maps a file, and one that
//! lets go of its pages.

use crate::error::{Error, Place, Result};
use memmap2::Mmap;
use std::fs::{self, File, Metadata};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// Immutable bytes of a model file. Cloning copies a pointer.
#[derive(Clone)]
pub struct Bytes(Source);

#[derive(Clone)]
enum Source {
    Mapped(Arc<Mmap>),
    Static(&'static [u8]),
    Owned(Arc<[u8]>),
}

impl Bytes {
    /// Maps the regular, non-empty file at `path` for reading.
    ///
    /// # Errors
    ///
    /// `Io` if it cannot be opened or mapped, `Malformed` if it is empty, `Unsupported` if it is
    /// not a regular file (a directory, a pipe, a device).
    pub fn open(path: &Path) -> Result<Self> {
        let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        // Looked at before opening, because opening a pipe waits for its writer, and again
        // afterwards, because the path may lead elsewhere by then.
        check_kind(path, &fs::metadata(path).map_err(io("open"))?)?;
        let file = File::open(path).map_err(io("open"))?;
        let metadata = file.metadata().map_err(io("open"))?;
        check_kind(path, &metadata)?;
        if metadata.len() == 0 {
            return Err(empty(&path.display().to_string()));
        }
        Ok(Self(Source::Mapped(Arc::new(map(&file).map_err(io("map"))?))))
    }

    /// All bytes. A mapped file starts on a page, other sources have no alignment.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Source::Mapped(map) => map,
            Source::Static(bytes) => bytes,
            Source::Owned(bytes) => bytes,
        }
    }

    /// The bytes in `range`, or nothing if it reaches past the end.
    pub fn view(&self, range: Range<usize>) -> Option<ByteView> {
        self.as_slice().get(range.clone())?;
        Some(ByteView { bytes: self.clone(), range })
    }
}

impl From<&'static [u8]> for Bytes {
    fn from(bytes: &'static [u8]) -> Self {
        Self(Source::Static(bytes))
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Source::Owned(bytes.into()))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.0 {
            Source::Mapped(_) => "mapped",
            Source::Static(_) => "static",
            Source::Owned(_) => "owned",
        };
        write!(f, "Bytes({kind}, {} bytes)", self.len())
    }
}

/// A part of [`Bytes`] that keeps the whole alive. The range was checked when it was made.
#[derive(Clone, Debug)]
pub struct ByteView {
    bytes: Bytes,
    range: Range<usize>,
}

impl ByteView {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes.as_slice()[self.range.clone()]
    }

    /// Whether the bytes are those of a mapped file.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.bytes.0, Source::Mapped(_))
    }

    /// Lets the system take back the memory of these bytes if they are mapped: their pages come from
    /// the file again when they are read. For parts that have been read for the last time.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Source::Mapped(map) = &self.bytes.0
            && !self.range.is_empty()
        {
            // SAFETY: `MADV_DONTNEED` must not lose what someone relies on. The map is of a file
            // and read-only (`map`), so nothing but the file's own bytes is in its pages, and the
            // next read brings the same bytes back.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.range.start, self.range.len())
            };
            // A system that refuses keeps the pages, which is no harm.
            drop(advised);
        }
    }

    /// A part of this part, or nothing if it reaches past the end.
    pub fn view(&self, range: Range<usize>) -> Option<ByteView> {
        self.as_slice().get(range.clone())?;
        Some(ByteView {
            bytes: self.bytes.clone(),
            range: self.range.start + range.start..self.range.start + range.end,
        })
    }
}

impl Deref for ByteView {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

pub(crate) fn empty(name: &str) -> Error {
    Error::Malformed { at: Box::new(Place::file(name)), what: "the file is empty".into(), fix: "download it again" }
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let what = if metadata.is_dir() {
        "this is a directory, not a file"
    } else {
        "this is a pipe or a device, not a regular file"
    };
    Err(Error::Unsupported {
        at: Box::new(Place::file(path.display().to_string())),
        what: what.into(),
        fix: "give the path of a model file".into(),
    })
}

/// Maps a whole file for reading.
///
/// # PARANOIA
///
/// A map is memory that another process can change by writing to the file, or take away by
/// truncating it. No check of ours can rule that out: advisory locks bind nobody. What we do:
///
/// - Text, counts, offsets and types are copied out of the map before they are checked, and only
///   the copies are used afterwards, so a change cannot invalidate a check.
/// - Tensor data stays in the map. Every reader and kernel has a defined result for every byte
///   value and takes no length, index or offset from it, so a change gives wrong numbers, not a
///   wild access.
/// - A truncated file ends the process with SIGBUS on Unix. On Windows the system refuses to
///   truncate a mapped file.
///
/// Whoever replaces a model file should write a new one and rename it: then the old map stays
/// whole.
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: `Mmap::map` asks that the file is not changed while it is mapped. `Bytes` only
    // hands out shared slices of the map and holds it in an `Arc` as long as any `ByteView`
    // lives (struct `ByteView`, field `bytes`), and this process never writes to a file that it
    // has mapped. Against other processes nothing can be promised; the paragraph above says what
    // follows from that.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_stay_inside() {
        let bytes = Bytes::from(vec![0, 1, 2, 3, 4]);
        let view = bytes.view(1..4).unwrap();
        assert_eq!(&*view, &[1, 2, 3]);
        assert_eq!(&*view.view(1..3).unwrap(), &[2, 3]);
        assert!(view.view(1..4).is_none());
        assert!(bytes.view(0..6).is_none());
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = 3..2;
        assert!(bytes.view(backwards).is_none());
    }

    #[test]
    fn a_view_keeps_its_bytes_alive() {
        let view = Bytes::from(vec![7; 100]).view(99..100).unwrap();
        assert_eq!(&*view, &[7]);
    }
}
