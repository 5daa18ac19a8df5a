//! Shapes as data, and a product of one of them ready to be timed.

use tritone_kernels::format::Geometry;
use tritone_kernels::isa::Isa;
use tritone_kernels::kernel::Kernel;
use tritone_kernels::line::Line;
use tritone_kernels::matrix::MatrixPlan;
use tritone_kernels::testing::{Random, pack};

/// Rows and columns of BitNet-b1.58-2B-4T's matrices: attention, gate and up, down.
pub const LARGE: [(usize, usize); 3] = [(2560, 2560), (6912, 2560), (2560, 6912)];

/// Rows and columns of the story model's matrices.
pub const STORY: [(usize, usize); 3] = [(384, 384), (1024, 384), (384, 1024)];

/// Bytes that no cache in use holds.
pub const MEMORY: usize = 256 << 20;

/// Where the weights are when a product begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The same matrix again and again.
    Cache,
    /// The next one of a ring of matrices of [`MEMORY`] bytes.
    Memory,
}

impl Place {
    /// The name in benchmark ids.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Place::Cache => "cache",
            Place::Memory => "memory",
        }
    }
}

/// One kernel, one shape, weights and activations: everything that a product needs.
#[derive(Debug)]
pub struct Product {
    kernel: &'static Kernel,
    plan: MatrixPlan,
    codes: Vec<i8>,
    ring: Vec<u8>,
    next: usize,
    n_vectors: usize,
    prepared: Vec<Line>,
    sums: Vec<i32>,
}

impl Product {
    /// Packs random trits, prepares `n_vectors` random vectors of activations.
    ///
    /// # Panics
    /// The processor can't run the kernel, or its layout does not take the shape.
    #[must_use]
    pub fn new(kernel: &'static Kernel, (rows, cols): (usize, usize), n_vectors: usize, place: Place) -> Product {
        let geometry = Geometry::new(kernel.layout, rows, cols, cols).expect("a shape of this layout");
        let plan = MatrixPlan::new(geometry, Isa::detect()).and_then(|plan| plan.with_kernel(kernel));
        let plan = plan.expect("a kernel of this processor");
        let mut random = Random::new(1);
        let matrix = pack(&geometry, &random.trits(rows * cols));
        let n_matrices = if place == Place::Memory { MEMORY.div_ceil(matrix.len()) } else { 1 };
        let mut product = Product {
            kernel,
            plan,
            codes: random.codes(n_vectors * cols),
            ring: matrix.repeat(n_matrices),
            next: 0,
            n_vectors,
            prepared: vec![Line::ZERO; n_vectors * plan.prepared_lines(kernel.operation)],
            sums: vec![0; plan.n_sums(geometry.n_tiles(), n_vectors)],
        };
        product.prepare();
        product
    }

    /// Brings the activations into the kernel's form.
    pub fn prepare(&mut self) {
        let lines = self.plan.prepared_lines(self.kernel.operation);
        let vectors = self.codes.chunks_exact(self.plan.geometry().cols);
        for (codes, out) in vectors.zip(self.prepared.chunks_exact_mut(lines)) {
            self.plan.prepare(self.kernel.operation, codes, out);
        }
    }

    /// Multiplies one matrix, all tiles, with all vectors.
    pub fn multiply(&mut self) -> &[i32] {
        let bytes = self.bytes();
        let data = &self.ring[self.next..self.next + bytes];
        let tiles = 0..self.plan.geometry().n_tiles();
        self.plan.sums(self.kernel.operation, data, tiles, &self.prepared, self.n_vectors, &mut self.sums);
        self.next += bytes;
        if self.next == self.ring.len() {
            self.next = 0;
        }
        &self.sums
    }

    /// Packed bytes that [`Product::multiply`] reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.plan.geometry().data_len()
    }

    /// Multiplications of a weight with an activation in [`Product::multiply`].
    #[must_use]
    pub fn macs(&self) -> usize {
        let geometry = self.plan.geometry();
        geometry.rows * geometry.cols * self.n_vectors
    }
}
