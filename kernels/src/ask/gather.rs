//! Reading from lines by gathers of AVX2 and AVX-512, shortly before they are used.
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

/// Reads from four lines of some, the last one for any that does not exist.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn touch_lines(lines: &[[u8; 64]], numbers: &[u32; 4]) {
    let Some(last) = lines.len().checked_sub(1) else { return };
    // Eight times the number must stay within an i32.
    let last = _mm_set1_epi32(last.min((1 << 28) - 1) as i32);
    let numbers = _mm_min_epu32(bytemuck::cast(*numbers), last);
    // SAFETY: the minimum above leaves numbers from 0 to `last`, which is below the count of `lines`; each lane reads 4 bytes at 64
    // times its number, 8 by the shift, which cannot overflow below 2^28, and 8 by the gather's scale: the start of that line.
    black_box(unsafe { _mm_i32gather_epi32::<8>(lines.as_ptr().cast(), _mm_slli_epi32::<3>(numbers)) });
}
