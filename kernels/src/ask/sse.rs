//! Requests to memory with SSE's `prefetch`.

use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

#[inline(always)]
pub(super) fn into_l1<T>(address: *const T) {
    // SAFETY: needs SSE, which the target has: `ask/mod.rs` declares this module only with `target_feature = "sse2"`. Whatever the
    // address, a prefetch reads and writes nothing that the program can see.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[inline(always)]
pub(super) fn into_l2<T>(address: *const T) {
    // SAFETY: needs SSE, which the target has: `ask/mod.rs` declares this module only with `target_feature = "sse2"`. Whatever the
    // address, a prefetch reads and writes nothing that the program can see.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
}
