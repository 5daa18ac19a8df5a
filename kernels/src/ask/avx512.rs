//! Reading from lines by gathers of AVX-512, shortly before they are used.
//!
//! A Zen 4 foresees lines from plain loads that miss its first cache: after each row of ten lines it fetched seven to fifteen that nobody
//! wanted (counted by the time that reading them took then), whether or not the row had been asked for into the second cache. That took half
//! of the bandwidth of lines that lie apart. Neither requests into the second cache nor gathers make it do so. So lines are asked for
//! into the second cache early, read from by a gather when they are there, which brings them into the first, and the loads that
//! follow miss nothing.
//!
//! What is read is thrown away. One lane for each line is enough.

use core::arch::x86_64::*;
use core::hint::black_box;

/// Lanes of [`touch`]'s gather.
const LANES: usize = 16;

/// Reads from each of some lines.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn touch(lines: &[[u8; 64]]) {
    let offsets = _mm512_setr_epi32(0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960);
    for some in lines.chunks(LANES) {
        let there = ((1u32 << some.len()) - 1) as __mmask16;
        // SAFETY: `there` has a bit for each line of `some`, at most 16, so lane i is read only where there is a line i; it reads 4 bytes at
        // `offsets`' 64 * i, the start of that line.
        black_box(unsafe {
            _mm512_mask_i32gather_epi32::<1>(_mm512_setzero_si512(), there, offsets, some.as_ptr().cast())
        });
    }
}
