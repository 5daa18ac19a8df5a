//! Asking for memory before it is read.
//!
//! A kernel that multiplies as fast as memory brings the weights waits for each line unless it has asked for it long before, and
//! no hardware foresees rows and columns that lie apart. Which cache to ask into, and how early, is the processor's
//! matter: it changes the speed and never a result.
//!
//! * Into the first cache (`IntoL1`) was best on a Zen 3, a Zen 5 and a Sapphire Rapids.
//! * On a Zen 4 the second cache (`IntoL2`) is. It behaves as if its first cache waited for some 20 lines at a time and nothing else
//!   went on behind them: 6912 x 2560 by `gemv-i2s-avx512vnni` came at 10 to 12 GB/s from whatever distance, of 33 that one core reads.
//!   Into the second cache it comes at 24 to 30, 15% of the columns at 18 to 20 instead of 6, and
//!   `gemv-t5-avx512vbmi` multiplies 108 GMAC/s instead of 80. AVX2's kernels, which multiply more slowly than memory comes, lost a
//!   tenth to a third that way, and ask into the first as everywhere; so does the GEMM, with which it was not tried alone.
//!   Lines that lie apart it is besides made to read from by a gather shortly before they are used (`Ask::GATHER`): half of the
//!   rows of that shape then take 84 us instead of 132, a third of the columns of 2560 x 6912 60 instead of 134. A Zen 5, which also reads
//!   lines apart at half of the rate of lines in order, may want the same; that was not measured.
//!   What one loop with few operations for a line reads in order, hardware foresees there, and asking only takes time
//!   (`Ask::Foreseen`).

use crate::cpu::{Processor, processor};

#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
mod sse;

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx512;

/// Asks for memory in one way.
pub(crate) trait Ask {
    /// How many columns that lie apart, a line each, are best under way at a time.
    const LINES_APART: usize;

    /// How many bytes of rows that lie apart are best under way at a time.
    const BYTES_APART: usize;

    /// Whether lines that lie apart are best read from by a gather before they are used: see `avx512.rs`.
    const GATHER: bool;

    /// How to ask for lines that one loop reads in order, with little work between them.
    type Foreseen: Ask;

    /// Asks for the line of an address, which may be anybody's or nobody's.
    fn ask<T>(address: *const T);
}

/// For what is in the cache already.
pub(crate) struct Nothing;

impl Ask for Nothing {
    const LINES_APART: usize = 0;
    const BYTES_APART: usize = 0;
    const GATHER: bool = false;
    type Foreseen = Nothing;

    #[inline(always)]
    fn ask<T>(_: *const T) {}
}

/// Into all caches.
pub(crate) struct IntoL1;

impl Ask for IntoL1 {
    /// Of 32, 64, 128 and 256 columns, 64 were fastest on a Zen 5.
    const LINES_APART: usize = 64;
    /// Of 2 to 16 KiB, 4 to 8 KiB gave most on a Zen 5, and more than twice as much as nothing.
    const BYTES_APART: usize = 5 << 10;
    const GATHER: bool = false;
    type Foreseen = IntoL1;

    #[inline(always)]
    fn ask<T>(address: *const T) {
        #[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
        sse::into_l1(address);
        let _ = address;
    }
}

/// Into the second cache and those behind it.
pub(crate) struct IntoL2;

impl Ask for IntoL2 {
    /// Columns of which 15% count took a Zen 4 41 us with 64, 33 with 128 and with 192.
    const LINES_APART: usize = 192;
    /// Half of the rows of 6912 x 2560 took a Zen 4 217 us with 5 KiB, 86 with 10, 81 with 16 and 83 with 24.
    const BYTES_APART: usize = 16 << 10;
    const GATHER: bool = true;
    /// A head's tiles for one state come at 27 to 31 GB/s like that, and came at 19 to 21 when asked for, of 32 that a plain loop reads.
    type Foreseen = Nothing;

    #[inline(always)]
    fn ask<T>(address: *const T) {
        #[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
        sse::into_l2(address);
        let _ = address;
    }
}

/// Evaluates an expression with the [`Ask`] that suits this processor under the given name.
macro_rules! ask_here {
    ($ask:ident => $body:expr) => {
        if $crate::ask::into_l2() {
            type $ask = $crate::ask::IntoL2;
            $body
        } else {
            type $ask = $crate::ask::IntoL1;
            $body
        }
    };
}
pub(crate) use ask_here;

/// Asks for memory that is read soon, into the second cache: for what nothing foresees, and what comes while something else is computed.
/// Changes nothing but the time that reading takes.
pub fn soon<T>(memory: &[T]) {
    for line in memory.chunks((64 / size_of::<T>().max(1)).max(1)) {
        IntoL2::ask(line.as_ptr());
    }
}

/// Whether [`IntoL2`] is the better way here.
pub(crate) fn into_l2() -> bool {
    processor() == Processor::Zen4
}

/// How far ahead of its use, in bytes, memory that is read in order is best asked for.
///
/// Found by measurement with `gemv-i2s-avx512vnni`, 6912 x 2560 from memory on one core. Zen 5: 24 GB/s for 2 KiB, 27 for 4,
/// 33 for 8 and for 16. Zen 4: 14 for 2, 18 for 4, 22 to 30 for 8 and for 16. Sapphire Rapids: 2 KiB gave most of 1, 2 and 5.
pub(crate) fn bytes_ahead() -> usize {
    match processor() {
        Processor::Zen4 | Processor::OtherAmd => 8 << 10,
        Processor::Other => 2 << 10,
    }
}
