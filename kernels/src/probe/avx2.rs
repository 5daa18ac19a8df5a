//! `read_lines` with AVX2: the compiler makes two loads of a line; memory is asked for ahead.

use crate::isa::{Isa, Level};
use crate::line::Line;
use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Proof that the processor has AVX2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof(());

impl Proof {
    /// The proof, if `isa` allows it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        isa.supports(Level::Avx2).then_some(Self(()))
    }
}

/// See [`super::read_lines`].
pub(super) fn read_lines(_: Proof, memory: &[Line], order: &[u32]) -> u64 {
    // SAFETY: the function needs AVX2; the proof exists only if `Proof::new` saw it.
    unsafe { read(memory, order) }
}

#[target_feature(enable = "avx2")]
fn read(memory: &[Line], order: &[u32]) -> u64 {
    super::sum_lines(memory, order, |line| _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(line).cast()))
}
