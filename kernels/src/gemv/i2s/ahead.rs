//! Asking for rows of I2_S before they are multiplied.
//!
//! A kernel that takes four rows side by side reads memory at four places, and hardware prefetchers stop at
//! pages of 4 KiB. Asked for in the order of addresses, one core of a Zen 3 read 9 to 11 GB/s instead of
//! 4.3. On a Sapphire Rapids (virtual machines both) one core read 8.4 GB/s before, 8 to 10 with that, and 11.5 to
//! 13.8 where a kernel takes one row after the other and asks for what is 2 KiB on.

use crate::ask::Ask;

/// Which rows of a list to ask for while others are multiplied.
#[derive(Clone, Copy)]
pub(super) struct Listed<'a> {
    rows: &'a [u32],
    /// How many rows later in the list.
    distance: usize,
}

impl<'a> Listed<'a> {
    /// Asks for the first rows, `bytes` long each, of which `row` gives the place.
    #[inline(always)]
    pub(super) fn begin<'d, A: Ask>(rows: &'a [u32], bytes: usize, row: impl Fn(&u32) -> &'d [u8]) -> Listed<'a> {
        let distance = (A::BYTES_APART / bytes.max(1)).max(1);
        for first in rows.iter().take(distance).map(row) {
            for line in first.chunks(64) {
                A::ask(line.as_ptr());
            }
        }
        Listed { rows, distance }
    }

    /// What to ask for while row `at` of the list is multiplied: that row itself, which costs little, where no other is
    /// left.
    #[inline]
    pub(super) fn after(&self, at: usize) -> &'a u32 {
        self.rows.get(at + self.distance).unwrap_or(&self.rows[at])
    }
}

/// Memory to ask for while some rows are multiplied.
#[derive(Clone, Copy)]
pub(super) enum Ahead<'a, const N: usize> {
    /// What follows at this distance, in the order of addresses: hardware then foresees the rest.
    After(usize),
    /// These rows.
    Rows([&'a [u8]; N]),
    /// They are in the cache already.
    Nothing,
}

impl<const N: usize> Ahead<'_, N> {
    /// Asks for the `step`-th line of each row, or as many neighbouring lines.
    #[inline(always)]
    pub(super) fn prefetch<A: Ask>(&self, first: &[u8], step: usize) {
        for i in 0..N {
            let line = match self {
                Ahead::After(distance) => first.as_ptr().wrapping_add(distance + (step * N + i) * 64),
                Ahead::Rows(rows) => rows[i].as_ptr().wrapping_add(step * 64),
                Ahead::Nothing => return,
            };
            A::ask(line);
        }
    }
}

/// Asks for `N` neighbouring lines, the `step`-th so many behind `from`. The memory may be anybody's or nobody's.
#[inline(always)]
pub(super) fn prefetch_lines<A: Ask, const N: usize>(from: *const u8, step: usize) {
    for i in 0..N {
        A::ask(from.wrapping_add((step * N + i) * 64));
    }
}
