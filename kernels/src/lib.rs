//! Ternary matrix kernels: weights in {-1, 0, +1} times int8 activations, exact in
//! integers, the same bits on every instruction set.
#![no_std]
#![warn(missing_docs)]

pub mod cpu;
pub mod float;
pub mod format;
pub mod gemm;
pub mod gemv;
pub mod isa;
pub mod kernel;
pub mod line;
pub mod matrix;
pub mod activations;
pub mod registry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
