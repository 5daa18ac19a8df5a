//! What a kernel is: one row of data, a name and two functions.

use crate::format::Geometry;
use crate::format::Layout;
use crate::isa::Level;
use crate::line::Line;
use core::ops::Range;

/// How a kernel turns packed weights into sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Packed weights index a table of precomputed sums of activations.
    Lookup,
    /// Weights are unpacked to small codes and multiplied.
    MultiplyAdd,
}

/// One vector, or several that share one pass over the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Matrix times a few vectors; the weights are read once for each vector.
    Gemv,
    /// Matrix times many vectors; a tile of weights is decoded once for all of them.
    Gemm,
}

/// Brings one vector of int8 activations (`geometry.cols` codes) into the form that the kernel's
/// `run` reads. `out` has `prepared_lines(geometry)` lines; every byte of it is written.
pub type PrepareFn = unsafe fn(geometry: &Geometry, codes: &[i8], out: &mut [Line]);

/// How many lines one prepared vector takes.
pub type PreparedLinesFn = fn(geometry: &Geometry) -> usize;

/// Exact integer sums of a range of tiles.
///
/// `prepared` holds `n_vectors` prepared vectors, one after the other. `out` is
/// `[vector][tile - tiles.start][block][row in tile]`, each an i32 that is overwritten:
/// `sum over the columns c of block b of trit(row, c) * codes[c]`. Rows past the matrix's last row
/// get 0.
pub type RunFn = unsafe fn(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
);

/// One row of the registry.
///
/// The function pointers are private to the crate: they may only be called when the CPU has
/// `level`'s features, which `matrix::PackedMatrix` proves by holding an `isa::Isa`.
#[derive(Debug)]
pub struct Kernel {
    /// The same everywhere: logs, `--kernel`, tests, criterion ids. `gemv-t5-avx512vbmi`.
    pub name: &'static str,
    /// The packed layout it reads.
    pub layout: Layout,
    /// GEMV or GEMM.
    pub operation: Operation,
    /// Lookup or multiply-add.
    pub family: Family,
    /// The instruction-set level it needs.
    pub level: Level,
    pub(crate) prepared_lines: PreparedLinesFn,
    pub(crate) prepare: PrepareFn,
    pub(crate) run: RunFn,
}
