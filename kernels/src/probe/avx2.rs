//! `read_lines` with AVX2: the compiler makes two loads of a line; memory is asked for ahead.

use crate::ask::{Ask, ask_here};
use crate::isa::{Isa, Level};
use crate::line::Line;

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
    unsafe { ask_here!(A => read::<A>(memory, order)) }
}

#[target_feature(enable = "avx2")]
fn read<A: Ask>(memory: &[Line], order: &[u32]) -> u64 {
    super::sum_lines(memory, order, |line| A::ask(core::ptr::from_ref(line)))
}
