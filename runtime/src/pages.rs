//! Large buffers, on large pages where the system has them.
//!
//! What skips columns or rows reads a line here and a line there. With pages of 4 KiB nearly each of them has
//! to be looked up in the page table, and a buffer of 300 MB begins with 80,000 page faults. Linux gives pages of
//! 2 MiB to whoever asks (`MADV_HUGEPAGE`), if it is not set to `never`.

use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// Bytes of a large page.
pub(crate) const LARGE: usize = 2 << 20;

/// Whether the system gives large pages to whoever asks.
pub(crate) fn are_given() -> bool {
    // The setting in use stands in brackets.
    let setting = || std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
    cfg!(target_os = "linux") && setting().is_some_and(|all| all.contains("[madvise]") || all.contains("[always]"))
}

/// Bytes that begin as zeros, at the start of a page.
pub(crate) struct Pages {
    map: MmapMut,
    len: usize,
}

impl Pages {
    /// `len` zeros.
    ///
    /// # Errors
    /// The system has no memory for them.
    pub(crate) fn zeroed(len: usize) -> std::io::Result<Pages> {
        // Linux puts maps of whole large pages where these begin. A map can't be empty.
        let whole = if len >= LARGE { len.next_multiple_of(LARGE) } else { len.max(1) };
        let map = MmapMut::map_anon(whole)?;
        // Where there are no large pages, small ones will do.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Pages { map, len })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[..self.len]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_any_length_on_a_page() {
        for len in [0, 1, 4096, 4097, LARGE, 3 << 20] {
            let mut pages = Pages::zeroed(len).unwrap();
            assert_eq!(pages.len(), len);
            assert!(pages.iter().all(|byte| *byte == 0) && pages.as_ptr().addr().is_multiple_of(4096));
            pages.fill(7);
            assert!(pages.iter().all(|byte| *byte == 7));
        }
    }
}
