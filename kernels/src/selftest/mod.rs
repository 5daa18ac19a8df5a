//! A self-test for users: every kernel that a processor can run against the definition, and the
//! float operations of its best level and the screening of output heads against the portable ones, bit for bit; what takes several
//! rows, vectors or queries together against each alone.
//!
//! It takes a few milliseconds and at most [`STACK_BYTES`] of stack. It is no replacement for the tests of
//! this crate: it finds a processor, an emulator or a compiler that does not do what its features
//! promise, with a handful of shapes that are a multiple of nothing. They are chosen so that every way through a kernel that
//! models take is taken: rows, vectors and queries alone, and as many as a kernel takes together.

mod floats;
mod integers;
mod screening;

use crate::float::FloatKernels;
use crate::isa::Isa;
use crate::registry;
use floats::{Inputs, OPERATIONS, OUT, TOGETHER};
use integers::agrees;

/// A stack on which everything here runs. With the kernels of AVX2, and those below, it took between 192 and 208 KiB.
pub const STACK_BYTES: usize = 256 << 10;

/// What became of one kernel or one float operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The kernel's name in the registry, or that of the float operation.
    pub name: &'static str,
    /// The instruction set it was compiled for.
    pub level: &'static str,
    /// Whether it is what this processor uses by default.
    pub preferred: bool,
    /// Whether every result was right.
    pub agrees: bool,
}

/// Multiplies small seeded matrices with every kernel of the registry that `isa` allows, and
/// compares with the sums by the definition. Calls `each` once for every kernel.
pub fn integers(isa: Isa, each: &mut dyn FnMut(Outcome)) {
    for kernel in registry::all().iter().filter(|kernel| isa.supports(kernel.level)) {
        each(Outcome {
            name: kernel.name,
            level: kernel.level.name(),
            preferred: registry::select(isa, kernel.layout, kernel.operation).name == kernel.name,
            agrees: agrees(kernel, isa),
        });
    }
}

/// Runs every float operation as compiled for `isa` and as portable code, and then screening, and compares the bits.
/// Calls `each` once for every operation.
pub fn floats(isa: Isa, each: &mut dyn FnMut(Outcome)) {
    let (best, portable) = (FloatKernels::new(isa), FloatKernels::new(Isa::scalar()));
    let inputs = Inputs::new();
    for (name, run, define) in OPERATIONS.map(|(name, run)| (name, run, run)).into_iter().chain(TOGETHER) {
        let (mut got, mut expected) = ([0.0; OUT], [0.0; OUT]);
        run(&best, &inputs, &mut got);
        define(&portable, &inputs, &mut expected);
        each(Outcome { name, level: best.name(), preferred: true, agrees: same_bits(&got, &expected) });
    }
    screening::all(isa, each);
}

/// Whether floats have the same bits.
fn same_bits(got: &[f32], expected: &[f32]) -> bool {
    got.iter().zip(expected).all(|(got, expected)| got.to_bits() == expected.to_bits())
}

/// A small generator (xorshift64, Marsaglia 2003): the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 3
    }
}

#[cfg(test)]
mod tests;
