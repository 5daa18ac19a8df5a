//! Reading from lines by gathers of AVX2, shortly before they are used: `avx512.rs` says why. What is read is thrown away.

use core::arch::x86_64::*;
use core::hint::black_box;

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
