//! A matrix bound to the kernels it runs on.
//!
//! [`MatrixPlan`] holds no weights: engines map, share and page them as they like, and hand in the
//! bytes at each call, where their length is checked.

use crate::float::FloatKernels;
use crate::format::{Geometry, GeometryError, Layout};
use crate::gemv;
use crate::isa::Isa;
use crate::kernel::{Kernel, Operation};
use crate::line::Line;
use crate::registry;
use core::fmt;
use core::ops::Range;

/// Multipliers of a matrix's trits.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// One for the whole matrix, and one for each vector of activations.
    Tensor(f32),
    /// One for each row and block, in the order `[tile][block][row in tile]`, rows past the last
    /// included: neighbours are different rows, so that rows are SIMD lanes when sums are scaled.
    Blocks(&'a [f32]),
}

/// Why a matrix can't be bound to a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// The shape can't be packed.
    Geometry(GeometryError),
    /// The kernel reads another layout than the matrix has.
    OtherLayout {
        /// The kernel's name.
        kernel: &'static str,
        /// What it reads.
        reads: Layout,
        /// What the matrix has.
        matrix: Layout,
    },
    /// The processor lacks what the kernel needs.
    Unsupported(&'static str),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Geometry(error) => error.fmt(f),
            PlanError::OtherLayout { kernel, reads, matrix } => {
                let (reads, matrix) = (reads.name(), matrix.name());
                write!(f, "kernel {kernel} reads {reads}, but this matrix is laid out as {matrix}")
            }
            PlanError::Unsupported(name) => {
                write!(f, "kernel {name} needs instructions that were not allowed or that this processor lacks")
            }
        }
    }
}

impl core::error::Error for PlanError {}

/// Shape, kernels and the permission to run them.
#[derive(Clone, Copy, Debug)]
pub struct MatrixPlan {
    geometry: Geometry,
    isa: Isa,
    float: FloatKernels,
    gemv: &'static Kernel,
    gemm: &'static Kernel,
}

impl MatrixPlan {
    /// Binds a shape to the preferred kernels that `isa` allows.
    ///
    /// # Errors
    /// The shape can't be packed.
    pub fn new(geometry: Geometry, isa: Isa) -> Result<MatrixPlan, PlanError> {
        geometry.check().map_err(PlanError::Geometry)?;
        let select = |operation| registry::select(isa, geometry.layout, operation);
        let (gemv, gemm) = (select(Operation::Gemv), select(Operation::Gemm));
        Ok(MatrixPlan { geometry, isa, float: FloatKernels::new(isa), gemv, gemm })
    }

    /// The same with another kernel in place of the preferred one of its operation.
    ///
    /// # Errors
    /// The kernel reads another layout, or `isa` does not allow it.
    pub fn with_kernel(mut self, kernel: &'static Kernel) -> Result<MatrixPlan, PlanError> {
        if kernel.layout != self.geometry.layout {
            let (reads, matrix) = (kernel.layout, self.geometry.layout);
            return Err(PlanError::OtherLayout { kernel: kernel.name, reads, matrix });
        }
        if !self.isa.supports(kernel.level) {
            return Err(PlanError::Unsupported(kernel.name));
        }
        match kernel.operation {
            Operation::Gemv => self.gemv = kernel,
            Operation::Gemm => self.gemm = kernel,
        }
        Ok(self)
    }

    /// The shape.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The kernel that does an operation.
    #[must_use]
    pub const fn kernel(&self, operation: Operation) -> &'static Kernel {
        match operation {
            Operation::Gemv => self.gemv,
            Operation::Gemm => self.gemm,
        }
    }

    /// Lines of one vector prepared for `operation`.
    #[must_use]
    pub fn prepared_lines(&self, operation: Operation) -> usize {
        self.kernel(operation).prepared_lines(&self.geometry)
    }

    /// Brings `cols` int8 activations into the form that `operation` reads.
    ///
    /// # Panics
    /// A slice has the wrong length.
    pub fn prepare(&self, operation: Operation, codes: &[i8], out: &mut [Line]) {
        self.kernel(operation).prepare(self.isa, &self.geometry, codes, out);
    }

    /// How many lines of a prepared vector `operation` reads, from the first on: fewer than
    /// [`MatrixPlan::prepared_lines`] where activations that are 0 are left out. Only these need to be kept.
    ///
    /// # Panics
    /// `prepared` is not one prepared vector.
    #[must_use]
    pub fn used_lines(&self, operation: Operation, prepared: &[Line]) -> usize {
        assert_eq!(prepared.len(), self.prepared_lines(operation), "one prepared vector");
        let used = if self.kernel(operation).skips_columns { gemv::c2::used_lines(prepared) } else { prepared.len() };
        used.min(prepared.len())
    }

    /// Exact sums of `tiles`: `out` is `[vector][tile][block][row in tile]`.
    ///
    /// # Panics
    /// A slice has the wrong length or a tile does not exist.
    pub fn sums(
        &self,
        operation: Operation,
        data: &[u8],
        tiles: Range<usize>,
        prepared: &[Line],
        n_vectors: usize,
        out: &mut [i32],
    ) {
        self.sums_asking(operation, data, tiles, prepared, n_vectors, &[], out);
    }

    /// The same, and while it multiplies it may ask memory for `next`, which is read soon: with several vectors memory is
    /// idle most of the time.
    ///
    /// # Panics
    /// As [`MatrixPlan::sums`].
    #[allow(clippy::too_many_arguments, reason = "those of `sums`, and what comes next")]
    pub fn sums_asking(
        &self,
        operation: Operation,
        data: &[u8],
        tiles: Range<usize>,
        prepared: &[Line],
        n_vectors: usize,
        next: &[u8],
        out: &mut [i32],
    ) {
        self.kernel(operation).run(self.isa, &self.geometry, data, tiles, prepared, n_vectors, next, out);
    }

    /// The instruction set that the plan was made for.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether [`MatrixPlan::row_sums`] works: rows lie apart in this layout.
    #[must_use]
    pub fn has_row_sums(&self) -> bool {
        self.gemv.run_rows.is_some()
    }

    /// Exact sums of some rows for one vector that was prepared for [`Operation::Gemv`]; the other rows are not
    /// read. `out[i]` is the sum of `rows[i]`.
    ///
    /// # Panics
    /// A slice has the wrong length, a row does not exist, or not [`MatrixPlan::has_row_sums`].
    pub fn row_sums(&self, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
        self.gemv.run_rows(self.isa, &self.geometry, data, rows, prepared, false, out);
    }

    /// [`MatrixPlan::row_sums`] for rows that are in the cache or on their way there, because of another vector or as `next` of
    /// [`MatrixPlan::sums_asking`]: the same sums, without asking memory for the rows.
    ///
    /// # Panics
    /// As [`MatrixPlan::row_sums`].
    pub fn cached_row_sums(&self, data: &[u8], rows: &[u32], prepared: &[Line], out: &mut [i32]) {
        self.gemv.run_rows(self.isa, &self.geometry, data, rows, prepared, true, out);
    }

    /// Whether [`MatrixPlan::listed_sums`] works.
    #[must_use]
    pub fn has_listed_sums(&self) -> bool {
        self.gemm.run_listed.is_some()
    }

    /// Exact sums of neighbouring rows, each with those of many vectors that want it; vectors are prepared for
    /// [`Operation::Gemm`]. `vectors` has the numbers of those of the first row, then of the next one; `ends[i]` is where those of
    /// `rows.start + i` end. `out[i]` is the sum of `vectors[i]` and its row.
    ///
    /// # Panics
    /// A slice has the wrong length, a row or a vector does not exist, ends are not in order, or not
    /// [`MatrixPlan::has_listed_sums`].
    #[allow(clippy::too_many_arguments, reason = "a matrix, a list of lists, vectors and sums")]
    pub fn listed_sums(
        &self,
        data: &[u8],
        rows: Range<usize>,
        ends: &[u32],
        vectors: &[u32],
        prepared: &[Line],
        out: &mut [i32],
    ) {
        self.gemm.run_listed(self.isa, &self.geometry, data, rows, ends, vectors, prepared, out);
    }

    /// How many sums [`MatrixPlan::sums`] writes.
    ///
    /// # Panics
    /// There are more than a `usize` counts.
    #[must_use]
    pub fn n_sums(&self, n_tiles: usize, n_vectors: usize) -> usize {
        self.geometry.n_sums(n_tiles, n_vectors).expect("fewer sums than a usize counts")
    }

    /// Turns sums into floats: for every vector the rows of `tiles` that exist, in `y` as
    /// `[vector][row]`. `activation_scales` is `[vector][block]`, or `[vector]` when there is one
    /// for all blocks.
    ///
    /// With one scale for the matrix a row is `sum * (activation scale * weight scale)`, the sum that of all blocks; with a
    /// scale for each block it is 0 plus that of each block, in order. This is the one place where
    /// integers become floats, the same for every kernel.
    ///
    /// # Panics
    /// A slice has the wrong length, or there is one scale for the matrix and one for each block of a vector.
    pub fn scale(
        &self,
        tiles: Range<usize>,
        sums: &[i32],
        scales: Scales<'_>,
        activation_scales: &[f32],
        n_vectors: usize,
        y: &mut [f32],
    ) {
        let geometry = &self.geometry;
        let (n_blocks, tile_rows) = (geometry.n_blocks(), geometry.tile_rows());
        let n_rows = geometry.rows_of(tiles.clone()).len();
        assert_eq!(Some(sums.len()), geometry.n_sums(tiles.len(), n_vectors), "a sum for each vector, block and row");
        assert_eq!(Some(y.len()), n_vectors.checked_mul(n_rows), "a value for each vector and row");
        let per_vector = if activation_scales.len() == n_vectors { 1 } else { n_blocks };
        let n_scales = n_vectors.checked_mul(per_vector);
        assert_eq!(Some(activation_scales.len()), n_scales, "a scale for each vector or block");
        if n_rows == 0 {
            return;
        }
        let vectors =
            sums.chunks_exact(tiles.len() * n_blocks * tile_rows).zip(activation_scales.chunks_exact(per_vector));
        for ((sums, activation), y) in vectors.zip(y.chunks_exact_mut(n_rows)) {
            if let (Scales::Tensor(scale), 1) = (scales, n_blocks) {
                self.scale_rows(&sums[..n_rows], scale, activation[0], y);
                continue;
            }
            let per_tile = sums.chunks_exact(n_blocks * tile_rows).zip(y.chunks_mut(tile_rows));
            for (tile, (sums, y)) in tiles.clone().zip(per_tile) {
                match scales {
                    Scales::Tensor(scale) => {
                        assert_eq!(per_vector, 1, "one scale for the matrix needs one for a vector");
                        self.scale_tile(sums, scale, activation[0], y);
                    }
                    Scales::Blocks(scales) => {
                        let scales = &scales[tile * n_blocks * tile_rows..][..n_blocks * tile_rows];
                        y.fill(0.0);
                        let blocks = sums.chunks_exact(tile_rows).zip(scales.chunks_exact(tile_rows));
                        for (b, (sums, scales)) in blocks.enumerate() {
                            let activation = activation[if per_vector == 1 { 0 } else { b }];
                            for ((y, sum), scale) in y.iter_mut().zip(sums).zip(scales) {
                                *y += *sum as f32 * (activation * scale);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Turns sums of a matrix with one scale into floats: `y[i] = sums[i] * (activation scale * weight scale)`.
    ///
    /// # Panics
    /// The slices differ in length.
    pub fn scale_rows(&self, sums: &[i32], scale: f32, activation_scale: f32, y: &mut [f32]) {
        self.float.scale(sums, activation_scale * scale, y);
    }

    /// The same for sums of listed vectors, each with the scale of its own: `y[i]` is of vector `vectors[i]`.
    ///
    /// # Panics
    /// The slices differ in length, or a vector has no scale.
    pub fn scale_listed(&self, sums: &[i32], scale: f32, vectors: &[u32], activation_scales: &[f32], y: &mut [f32]) {
        assert!(sums.len() == vectors.len() && sums.len() == y.len(), "a vector and a value for each sum");
        for ((y, sum), v) in y.iter_mut().zip(sums).zip(vectors) {
            *y = *sum as f32 * (activation_scales[*v as usize] * scale);
        }
    }

    /// The same for a tile's sums `[block][row in tile]`, once those of each row are added up, which no geometry is too large for.
    fn scale_tile(&self, sums: &[i32], scale: f32, activation_scale: f32, y: &mut [f32]) {
        let (first, others) = sums.split_at(self.geometry.tile_rows());
        let factor = activation_scale * scale;
        for (row, (y, sum)) in y.iter_mut().zip(first).enumerate() {
            let others = others.iter().skip(row).step_by(first.len());
            *y = (sum + others.sum::<i32>()) as f32 * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    /// So many vectors that four lines of each, and as many sums, are none if the multiplication wraps.
    const TOO_MANY: usize = 1 << (usize::BITS - 2);

    fn plan(layout: Layout) -> MatrixPlan {
        MatrixPlan::new(Geometry::new(layout, 17, 128, 128).unwrap(), Isa::scalar()).unwrap()
    }

    #[test]
    #[should_panic(expected = "n_vectors prepared vectors")]
    fn more_vectors_than_memory_holds_are_refused() {
        let plan = plan(Layout::T5);
        assert_eq!(plan.prepared_lines(Operation::Gemv).wrapping_mul(TOO_MANY), 0);
        let data = std::vec![0; plan.geometry().data_len()];
        plan.sums(Operation::Gemv, &data, 0..1, &[], TOO_MANY, &mut []);
    }

    #[test]
    #[should_panic(expected = "fewer sums than a usize counts")]
    fn more_sums_than_a_usize_counts_are_refused() {
        let _ = plan(Layout::T5).n_sums(1, TOO_MANY);
    }

    #[test]
    #[should_panic(expected = "a sum for each vector, block and row")]
    fn sums_of_more_vectors_than_memory_holds_are_not_scaled() {
        plan(Layout::I2S).scale(0..1, &[], Scales::Tensor(1.0), &[], TOO_MANY, &mut []);
    }

    #[test]
    fn a_kernel_of_another_layout_is_refused_with_both_layouts() {
        for (name, layout) in [("gemv-t5-scalar", "t5"), ("gemm-t3-scalar", "t3")] {
            let kernel = registry::all().iter().find(|kernel| kernel.name == name).unwrap();
            let error = plan(Layout::I2S).with_kernel(kernel).unwrap_err();
            let expected = std::format!("kernel {name} reads {layout}, but this matrix is laid out as i2s");
            assert_eq!(error.to_string(), expected);
        }
    }
}
