//! Packed weights, and where they lie: in the mapped file, packed anew, or moved to large pages.
//!
//! Decoding reads weights faster than a processor looks up pages of 4 KiB, each of which is a walk through the page table, and in a
//! virtual machine through two. On two cores of a Zen 5 gate and up of a token took 3.4 to 3.7 ms in the mapped file and 2.6 to 2.8 on
//! pages of 2 MiB (BitNet-2B-4T's shape), those of eight tokens 8.7 and 7.6. A file's pages can't be made large, so weights that are
//! used as the file has them are copied, a few layers with each step after the first, and the file's pages are let go. The first
//! token does not wait for it, and weights are in memory once.

use crate::mmap::ByteView;
use crate::pages::{LARGE, Pages};
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

/// Where each matrix of some begins.
const ALIGN: usize = 64;

/// The packed weights of one matrix.
#[derive(Debug)]
pub(crate) struct PackedWeights {
    made: Made,
    /// A copy of them on large pages, which is then what is read.
    large: OnceLock<Part>,
}

#[derive(Debug)]
enum Made {
    /// In the file, used in place.
    InPlace(ByteView),
    /// Packed anew at load, at the start of a page, since a kernel that skips reads a line here and a line
    /// there: off by some bytes each would be two.
    Packed(Pages),
}

/// Some bytes of pages that matrices share.
#[derive(Debug)]
struct Part {
    pages: Arc<Pages>,
    range: Range<usize>,
}

impl PackedWeights {
    pub(crate) fn in_place(bytes: ByteView) -> PackedWeights {
        PackedWeights { made: Made::InPlace(bytes), large: OnceLock::new() }
    }

    pub(crate) fn packed(pages: Pages) -> PackedWeights {
        PackedWeights { made: Made::Packed(pages), large: OnceLock::new() }
    }

    /// The bytes in the file, if they are still read there.
    fn to_move(&self) -> Option<&ByteView> {
        match &self.made {
            Made::InPlace(bytes) if bytes.is_mapped() && self.large.get().is_none() => Some(bytes),
            _ => None,
        }
    }
}

impl Deref for PackedWeights {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match (self.large.get(), &self.made) {
            (Some(Part { pages, range }), _) => &pages[range.clone()],
            (None, Made::InPlace(bytes)) => bytes,
            (None, Made::Packed(pages)) => pages,
        }
    }
}

/// Moves those that lie in a mapped file to large pages, which they share. Where they would not fill one, or the system has no
/// memory for them, they stay: it is a matter of speed only.
pub(crate) fn move_to_large_pages(matrices: &[&PackedWeights]) {
    let mut len = 0_usize;
    let mut parts = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        let Some(bytes) = matrix.to_move() else { continue };
        let start = len.next_multiple_of(ALIGN);
        len = start + bytes.len();
        parts.push((*matrix, bytes, start..len));
    }
    if len < LARGE {
        return;
    }
    let Ok(mut pages) = Pages::zeroed(len) else { return };
    for (_, bytes, range) in &parts {
        pages[range.clone()].copy_from_slice(bytes);
    }
    let pages = Arc::new(pages);
    for (matrix, bytes, range) in parts {
        // Another session may have been faster; both copied the same.
        if matrix.large.set(Part { pages: Arc::clone(&pages), range }).is_ok() {
            bytes.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmap::Bytes;

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn what_was_moved_is_the_same() {
        let path = std::env::temp_dir().join(format!("tritone-packed-{}", std::process::id()));
        let bytes: Vec<u8> = (0..3 * LARGE).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = Bytes::open(&path).unwrap();
        let matrix = |range: Range<usize>| PackedWeights::in_place(file.view(range).unwrap());
        let ranges = [3..LARGE + 5, 2 * LARGE + 1..3 * LARGE, 0..7];
        let [large, other, small] = ranges.clone().map(matrix);
        move_to_large_pages(&[&small]);
        assert!(small.large.get().is_none(), "not worth a large page");
        let before = large.as_ptr();
        move_to_large_pages(&[&large, &other]);
        move_to_large_pages(&[&large, &other, &small]);
        assert_ne!(before, large.as_ptr());
        assert!(large.as_ptr().addr().is_multiple_of(ALIGN) && other.as_ptr().addr().is_multiple_of(ALIGN));
        assert!(small.large.get().is_none());
        for (matrix, range) in [large, other, small].iter().zip(ranges) {
            assert!(**matrix == bytes[range], "the file's bytes");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_not_of_a_mapped_file_stays() {
        let bytes = Bytes::from(vec![7; LARGE]);
        let matrix = PackedWeights::in_place(bytes.view(0..LARGE).unwrap());
        move_to_large_pages(&[&matrix]);
        assert!(matrix.large.get().is_none() && matrix.iter().all(|byte| *byte == 7));
    }
}
