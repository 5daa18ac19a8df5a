//! Ternary matrix kernels: weights in {-1, 0, +1} times int8 activations, exact in integers, and
//! the float operations of a transformer in one fixed order: the same bits on every instruction
//! set.
//!
//! A matrix is packed in one of four layouts ([`format`]), bound to kernels of this processor
//! ([`matrix::MatrixPlan`]) and multiplied with quantised activations:
//!
//! ```
//! use tritone_kernels::format::{Geometry, Layout};
//! use tritone_kernels::isa::Isa;
//! use tritone_kernels::kernel::Operation;
//! use tritone_kernels::line::Line;
//! use tritone_kernels::matrix::MatrixPlan;
//!
//! // One row of 64 (the rest of the tile is empty), ten columns.
//! let geometry = Geometry::new(Layout::T5, 1, 10, 10)?;
//! let mut trits = vec![0i8; geometry.tile_rows() * 10];
//! trits[..10].copy_from_slice(&[1, 0, -1, 1, 1, 0, 0, -1, 1, 0]);
//! let mut data = vec![0u8; geometry.data_len()];
//! let (body, trailer) = data.split_at_mut(geometry.trailer_offset());
//! geometry.pack_tile(&trits, body, trailer);
//!
//! let plan = MatrixPlan::new(geometry, Isa::detect())?;
//! let activations = [1i8, 2, 3, 4, 5, 6, 7, 8, 9, 10];
//! let mut prepared = vec![Line::ZERO; plan.prepared_lines(Operation::Gemv)];
//! plan.prepare(Operation::Gemv, &activations, &mut prepared);
//! let mut sums = vec![0; plan.n_sums(1, 1)];
//! plan.sums(Operation::Gemv, &data, 0..1, &prepared, 1, &mut sums);
//! assert_eq!(sums[0], 1 - 3 + 4 + 5 - 8 + 9);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod activations;
#[cfg_attr(
    not(all(target_arch = "x86_64", target_feature = "sse2")),
    allow(dead_code, reason = "part of it is for x86's kernels")
)]
pub mod ask;
pub mod cpu;
pub mod float;
pub mod format;
mod gemm;
mod gemv;
pub mod isa;
pub mod kernel;
pub mod line;
pub mod matrix;
pub mod probe;
pub mod registry;
pub mod screen;
pub mod selftest;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
