//! The portable instance: the definition of every operation, and what a CPU without a better one
//! runs.

use super::halves::Portable;
use super::lanes::Operation;

/// Runs `operation` with the target's baseline features.
#[inline(never)]
pub(super) fn run<O: Operation>(operation: O) -> O::Output {
    operation.run(Portable)
}
