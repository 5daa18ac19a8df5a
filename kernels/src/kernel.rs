//! What a kernel is: one row of data, a name and two functions.

use crate::format::{Geometry, Layout};
use crate::isa::{Isa, Level};
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
/// `run` reads. `out` has `prepared_lines(geometry)` lines; every byte that `run` reads is written.
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

/// The same, and asks for `next`, which the caller reads soon, while it multiplies: several vectors keep a processor busier than
/// its memory.
pub type RunAskingFn = unsafe fn(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    next: &[u8],
    out: &mut [i32],
);

/// Exact integer sums of some rows of a matrix with one scale, for one vector.
///
/// `out[i]` is overwritten with the sum of `rows[i]`, all of which exist.
pub type RunRowsFn = unsafe fn(geometry: &Geometry, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]);

/// Exact integer sums of neighbouring rows of a matrix with one scale, each with those of several prepared vectors that want it.
///
/// `vectors` has the numbers of the first row's vectors, then the next one's; `ends[i]` is where those of `rows.start + i` end.
/// `out[i]` is overwritten with the sum of `vectors[i]` and its row.
pub type RunListedFn = unsafe fn(
    geometry: &Geometry,
    data: &[u8],
    rows: Range<usize>,
    ends: &[u32],
    vectors: &[u32],
    prepared: &[Line],
    out: &mut [i32],
);

/// One row of the registry.
///
/// The function pointers are private: they are reached only through the methods below, which take
/// the proof that this processor has `level`.
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
    /// Where it pays.
    pub(crate) run_asking: Option<RunAskingFn>,
    /// Where rows lie apart, so that those that are not wanted need not be read.
    pub(crate) run_rows: Option<RunRowsFn>,
    /// Of such kernels: for rows that are in the cache already, where that is worth a function of its own.
    pub(crate) run_cached_rows: Option<RunRowsFn>,
    /// Of a GEMM kernel: for rows each of which meets some of the vectors, where that has a function of its own.
    pub(crate) run_listed: Option<RunListedFn>,
    /// Whether it leaves out the columns whose activation is 0.
    pub skips_columns: bool,
    /// Of a GEMV kernel: from this many vectors on, decoding weights once for all of them, as the GEMM of its level
    /// does, is faster. Of a GEMM kernel: from this many on it is faster than any GEMV. Measured, see `benches/README.md`.
    pub gemm_from: usize,
}

impl Kernel {
    /// Lines of one prepared vector.
    pub(crate) fn prepared_lines(&self, geometry: &Geometry) -> usize {
        (self.prepared_lines)(geometry)
    }

    /// See [`PrepareFn`]; checks the sizes.
    pub(crate) fn prepare(&self, isa: Isa, geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
        assert!(isa.supports(self.level), "{} can't run here", self.name);
        assert_eq!(codes.len(), geometry.cols, "one activation for each column");
        assert_eq!(out.len(), self.prepared_lines(geometry), "room for one prepared vector");
        // SAFETY: the function needs the features of `self.level`; the first assertion has the
        // proof that this processor has them.
        unsafe { (self.prepare)(geometry, codes, out) }
    }

    /// See [`RunFn`], and [`RunAskingFn`] for `next`; checks the sizes.
    #[allow(clippy::too_many_arguments, reason = "a kernel's inputs, as `RunFn` names them, and the proof")]
    pub(crate) fn run(
        &self,
        isa: Isa,
        geometry: &Geometry,
        data: &[u8],
        tiles: Range<usize>,
        prepared: &[Line],
        n_vectors: usize,
        next: &[u8],
        out: &mut [i32],
    ) {
        assert!(isa.supports(self.level), "{} can't run here", self.name);
        assert_eq!(geometry.layout, self.layout, "the layout that the kernel reads");
        assert_eq!(data.len(), geometry.data_len(), "a whole packed matrix");
        assert!(tiles.start <= tiles.end && tiles.end <= geometry.n_tiles(), "tiles of this matrix");
        let lines = n_vectors.checked_mul(self.prepared_lines(geometry));
        assert_eq!(Some(prepared.len()), lines, "n_vectors prepared vectors");
        let sums = geometry.n_sums(tiles.len(), n_vectors);
        assert_eq!(Some(out.len()), sums, "a sum for each vector, block and row");
        // SAFETY: both functions need the features of `self.level`; the first assertion has the
        // proof that this processor has them.
        unsafe {
            match self.run_asking {
                Some(run) if !next.is_empty() => run(geometry, data, tiles, prepared, n_vectors, next, out),
                _ => (self.run)(geometry, data, tiles, prepared, n_vectors, out),
            }
        }
    }

    /// See [`RunRowsFn`]; checks the sizes. `cached`: the rows are in the cache.
    ///
    /// # Panics
    /// The kernel has no such function.
    #[allow(clippy::too_many_arguments, reason = "a kernel's inputs, as `RunRowsFn` names them, and the proof")]
    pub(crate) fn run_rows(
        &self,
        isa: Isa,
        geometry: &Geometry,
        data: &[u8],
        rows: &[u32],
        prepared: &[Line],
        cached: bool,
        out: &mut [i32],
    ) {
        let Some(run_rows) = self.run_rows else { panic!("{} takes whole tiles only", self.name) };
        assert!(isa.supports(self.level), "{} can't run here", self.name);
        assert_eq!(geometry.layout, self.layout, "the layout that the kernel reads");
        assert_eq!(data.len(), geometry.data_len(), "a whole packed matrix");
        assert!(rows.iter().all(|row| (*row as usize) < geometry.rows), "rows of this matrix");
        assert_eq!(prepared.len(), self.prepared_lines(geometry), "one prepared vector");
        assert_eq!(out.len(), rows.len(), "a sum for each row");
        let run_rows = self.run_cached_rows.filter(|_| cached).unwrap_or(run_rows);
        // SAFETY: both functions need the features of `self.level`; the second assertion has the
        // proof that this processor has them.
        unsafe { run_rows(geometry, data, rows, prepared, out) }
    }

    /// See [`RunListedFn`]; checks the sizes.
    ///
    /// # Panics
    /// The kernel has no such function.
    #[allow(clippy::too_many_arguments, reason = "a kernel's inputs, as `RunListedFn` names them, and the proof")]
    pub(crate) fn run_listed(
        &self,
        isa: Isa,
        geometry: &Geometry,
        data: &[u8],
        rows: Range<usize>,
        ends: &[u32],
        vectors: &[u32],
        prepared: &[Line],
        out: &mut [i32],
    ) {
        let Some(run_listed) = self.run_listed else {
            panic!("{} does not take rows with some vectors each", self.name)
        };
        assert!(isa.supports(self.level), "{} can't run here", self.name);
        assert_eq!(geometry.layout, self.layout, "the layout that the kernel reads");
        assert_eq!(data.len(), geometry.data_len(), "a whole packed matrix");
        assert!(rows.start <= rows.end && rows.end <= geometry.rows, "rows of this matrix");
        assert_eq!(ends.len(), rows.len(), "an end for each row");
        assert!(
            ends.is_sorted() && ends.last().map_or(0, |end| *end as usize) == vectors.len(),
            "all vectors have a row"
        );
        let n_lines = self.prepared_lines(geometry);
        assert!(prepared.len().is_multiple_of(n_lines), "whole prepared vectors");
        let n_vectors = prepared.len() / n_lines;
        assert!(vectors.iter().all(|v| (*v as usize) < n_vectors), "vectors that there are");
        assert_eq!(out.len(), vectors.len(), "a sum for each vector of a row");
        // SAFETY: the function needs the features of `self.level`; the first assertion has the
        // proof that this processor has them.
        unsafe { run_listed(geometry, data, rows, ends, vectors, prepared, out) }
    }
}
