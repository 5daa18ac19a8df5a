//! One ternary matrix of a model: its packed weights, its scales, its kernels.

use crate::checkpoint::{Tensor, TernaryTensor};
use crate::config::ActivationScales;
use crate::error::{Error, Result};
use crate::packed::PackedWeights;
use crate::pages::Pages;
use crate::prepared::PreparedInput;
use crate::threads::Pool;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use tritone_kernels::activations;
use tritone_kernels::float::FloatKernels;
use tritone_kernels::format::{Geometry, Layout, c2, i2s};
use tritone_kernels::kernel::Operation;
use tritone_kernels::line::Line;
use tritone_kernels::matrix::{MatrixPlan, Scales};
use tritone_kernels::registry;

#[derive(Debug)]
enum OwnedScales {
    Tensor(f32),
    /// `[tile][block][row in tile]`
    Blocks(Vec<f32>),
}

thread_local! {
    /// A thread's integer sums, kept from product to product.
    static SUMS: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
    /// What became of them, until it is where it belongs: large outputs are then written once, not cleared before.
    static PRODUCTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// A vector's int8 codes.
    static CODES: RefCell<Vec<i8>> = const { RefCell::new(Vec::new()) };
    /// A vector after the norm of one matrix.
    static NORMED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A matrix `rows x cols` with ternary weights.
#[derive(Debug)]
pub(crate) struct Linear {
    plan: MatrixPlan,
    weights: PackedWeights,
    scales: OwnedScales,
    /// Activations that share a scale: `cols`, or the weights' own block.
    activation_block: usize,
    /// The norm that stands before this matrix alone, and what it adds to the mean square.
    norm: Option<(Arc<[f32]>, f32)>,
}

/// What [`Linear::prepare_vector`] has to say about a vector beside its lines.
pub(crate) struct VectorNotes {
    pub(crate) scales: Vec<f32>,
    /// Activations that are not 0.
    pub(crate) n_nonzero: usize,
}

/// From so many bytes for each activation on, a thread is faster to make a kernel's lines than to read those that another
/// one made: they have to pass from cache to cache, twice as often as they are read since they are written again for each
/// matrix.
const LARGE_LINES: usize = 8;

/// What the products with a matrix need not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Skips {
    /// All of it is needed.
    Nothing,
    /// Rows whose result is not wanted: up, where the gate is not positive.
    Rows,
    /// Columns whose activation is 0: down, behind a gate that often is.
    Columns,
}

/// How to load matrices.
pub(crate) struct LinearOptions<'a> {
    pub(crate) isa: tritone_kernels::isa::Isa,
    /// `None`: I2_S and T5 in place, everything else in the layout that this processor prefers.
    pub(crate) layout: Option<Layout>,
    /// A GEMV kernel by name, for the matrices of its layout.
    pub(crate) kernel: Option<&'static tritone_kernels::kernel::Kernel>,
    /// What shares a scale among the activations.
    pub(crate) activations: ActivationScales,
    /// Multiplies every weight.
    pub(crate) factor: f32,
    pub(crate) pool: &'a mut Pool,
}

impl Linear {
    /// Takes a tensor of `rows x cols` into use, in a layout that can skip what `skips` says where there is one.
    pub(crate) fn load(
        tensor: &Tensor,
        (rows, cols): (usize, usize),
        skips: Skips,
        options: &mut LinearOptions,
    ) -> Result<Linear> {
        tensor.expect_dims(&[cols, rows])?;
        let ternary = tensor.ternary()?;
        // Where activations have a scale for each token, integers can be added up over the blocks of a matrix that has one scale.
        let scale = match options.activations {
            ActivationScales::Token => ternary.common_scale()?,
            ActivationScales::Block => ternary.tensor_scale(),
        };
        let one_scale = scale.is_some();
        // Scales per block have no I2_S and no C2 form.
        let possible = |layout: Layout| match layout {
            Layout::I2S => one_scale && cols.is_multiple_of(i2s::BLOCK),
            Layout::C2 => one_scale,
            _ => true,
        };
        let skipping = match skips {
            Skips::Nothing => None,
            Skips::Rows => Some(Layout::I2S),
            Skips::Columns => Some(Layout::C2),
        };
        // A layout that the user asked for goes before one that skips.
        let wanted = options.layout.or(skipping).filter(|layout| possible(*layout));
        let in_place = [(Layout::I2S, ternary.i2s()), (Layout::T5, ternary.t5())]
            .into_iter()
            .find_map(|(layout, bytes)| Some((layout, bytes?)))
            .filter(|&(layout, _)| wanted.is_none_or(|wanted| wanted == layout));
        let layout = match (&in_place, wanted) {
            (Some((layout, _)), _) => *layout,
            (None, Some(layout)) => layout,
            (None, None) => registry::preferred_layout(options.isa, possible(Layout::I2S)),
        };
        let refused = |what: String| Error::Unsupported {
            at: Box::new(tensor.place()),
            what,
            fix: "choose another --kernel or --layout, or leave them out".to_owned(),
        };
        // The blocks of a T5 file are in the order of its bytes.
        let block = if one_scale && in_place.is_none() { cols } else { ternary.block() };
        let mut plan = Geometry::new(layout, rows, cols, block)
            .map_err(tritone_kernels::matrix::PlanError::Geometry)
            .and_then(|geometry| MatrixPlan::new(geometry, options.isa))
            .map_err(|error| refused(error.to_string()))?;
        if let Some(kernel) = options.kernel {
            plan = plan.with_kernel(kernel).map_err(|error| refused(error.to_string()))?;
        }
        let geometry = *plan.geometry();
        let scales = match scale {
            Some(scale) => OwnedScales::Tensor(scale * options.factor),
            None => OwnedScales::Blocks(block_scales(&ternary, &geometry, options.factor)?),
        };
        let weights = match in_place {
            Some((layout, bytes)) => {
                // Kernels rely on T5's counts in different ways, so wrong ones must not reach them.
                if layout == Layout::T5 {
                    ternary.check()?;
                }
                PackedWeights::in_place(bytes)
            }
            None => {
                let packed = pack(ternary, &geometry, options.pool)?;
                // Weights are in memory once.
                tensor.data().release();
                PackedWeights::packed(packed)
            }
        };
        let activation_block = match options.activations {
            ActivationScales::Token => cols,
            ActivationScales::Block => geometry.block,
        };
        Ok(Linear { plan, weights, scales, activation_block, norm: None })
    }

    /// Puts a norm before this matrix: `cols` weights, and what is added to the mean square.
    pub(crate) fn set_norm(&mut self, weight: Arc<[f32]>, eps: f32) {
        assert_eq!(weight.len(), self.cols(), "a weight for each column");
        self.norm = Some((weight, eps));
    }

    /// Bytes of its norm.
    pub(crate) fn norm_bytes(&self) -> usize {
        self.norm.as_ref().map_or(0, |(weight, _)| weight.len() * size_of::<f32>())
    }

    pub(crate) fn rows(&self) -> usize {
        self.plan.geometry().rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.plan.geometry().cols
    }

    pub(crate) fn tile_rows(&self) -> usize {
        self.plan.geometry().tile_rows()
    }

    pub(crate) fn n_tiles(&self) -> usize {
        self.plan.geometry().n_tiles()
    }

    /// Whether an input prepared for one of the two is prepared for the other as well.
    pub(crate) fn shares_input(&self, other: &Linear) -> bool {
        let same = |operation| self.kernel_name(operation) == other.kernel_name(operation);
        let (a, b) = (self.plan.geometry(), other.plan.geometry());
        a.cols == b.cols
            && a.block == b.block
            && self.norm.is_none()
            && other.norm.is_none()
            && self.activation_block == other.activation_block
            && same(Operation::Gemv)
            && same(Operation::Gemm)
    }

    /// Whether [`Linear::row_products`] works.
    pub(crate) fn skips_rows(&self) -> bool {
        self.plan.has_row_sums()
    }

    /// Whether [`Linear::listed_products`] works.
    pub(crate) fn lists_vectors(&self) -> bool {
        self.plan.has_listed_sums() && matches!(self.scales, OwnedScales::Tensor(_))
    }

    /// Whether columns whose activation is 0 are not read.
    pub(crate) fn skips_columns(&self, operation: Operation) -> bool {
        self.plan.kernel(operation).skips_columns
    }

    /// What multiplies so many vectors fastest.
    pub(crate) fn operation(&self, n_vectors: usize) -> Operation {
        let from = [Operation::Gemv, Operation::Gemm].map(|operation| self.plan.kernel(operation).gemm_from);
        if n_vectors < from[0].min(from[1]) { Operation::Gemv } else { Operation::Gemm }
    }

    /// The same where a share of the activations is not 0.
    pub(crate) fn operation_for(&self, n_vectors: usize, nonzero: f64) -> Operation {
        let skipping_pays = || nonzero < registry::skipping_columns_pays_below(self.plan.isa(), n_vectors);
        if self.skips_columns(Operation::Gemv) && skipping_pays() {
            return Operation::Gemv;
        }
        self.operation(n_vectors)
    }

    /// The share of pairs of a row and a vector below which it is faster to skip all others than to
    /// multiply them too.
    pub(crate) fn skipping_rows_pays_below(&self, operation: Operation, n_vectors: usize) -> f64 {
        registry::skipping_rows_pays_below(self.plan.isa(), operation, n_vectors)
    }

    pub(crate) fn kernel_name(&self, operation: Operation) -> &'static str {
        self.plan.kernel(operation).name
    }

    /// Bytes of the packed weights and their scales.
    pub(crate) fn bytes(&self) -> usize {
        let scales = match &self.scales {
            OwnedScales::Tensor(_) => 1,
            OwnedScales::Blocks(scales) => scales.len(),
        };
        self.weights.len() + scales * size_of::<f32>()
    }

    /// Lines of a vector in the form of an operation.
    pub(crate) fn vector_lines(&self, operation: Operation) -> usize {
        self.plan.prepared_lines(operation)
    }

    /// Those of them that hold something.
    pub(crate) fn used_lines(&self, operation: Operation, vector: &[Line]) -> usize {
        self.plan.used_lines(operation, vector)
    }

    /// Whether each thread should make the lines of a single vector itself.
    pub(crate) fn has_large_lines(&self, operation: Operation) -> bool {
        self.norm.is_none() && self.vector_lines(operation) * size_of::<Line>() >= LARGE_LINES * self.cols()
    }

    /// Scales that one vector of activations has.
    pub(crate) fn activation_scales(&self) -> usize {
        self.cols() / self.activation_block
    }

    /// Where some tiles lie.
    pub(crate) fn tiles(&self, tiles: Range<usize>) -> &[u8] {
        let (data, bytes) = (&*self.weights, self.plan.geometry().tile_bytes());
        &data[(tiles.start * bytes).min(data.len())..(tiles.end * bytes).min(data.len())]
    }

    pub(crate) fn weights(&self) -> &PackedWeights {
        &self.weights
    }

    /// Norms one vector if a norm stands before this matrix, quantises it, and writes it in the form of an operation to `out`,
    /// [`Linear::vector_lines`].
    pub(crate) fn prepare_vector(
        &self,
        float: &FloatKernels,
        x: &[f32],
        operation: Operation,
        out: &mut [Line],
    ) -> VectorNotes {
        let Some((weight, eps)) = &self.norm else {
            return self.quantise_vector(float, x, operation, out);
        };
        NORMED.with_borrow_mut(|normed| {
            normed.resize(x.len(), 0.0);
            float.rms_norm(x, weight, *eps, normed);
            self.quantise_vector(float, normed, operation, out)
        })
    }

    fn quantise_vector(&self, float: &FloatKernels, x: &[f32], operation: Operation, out: &mut [Line]) -> VectorNotes {
        CODES.with_borrow_mut(|codes| {
            codes.resize(x.len(), 0);
            let notes = self.quantise(float, x, codes);
            self.plan.prepare(operation, codes, out);
            notes
        })
    }

    /// Quantises one vector.
    pub(crate) fn quantise(&self, float: &FloatKernels, x: &[f32], codes: &mut [i8]) -> VectorNotes {
        let mut scales = vec![0.0; self.activation_scales()];
        activations::quantize(float, x, self.activation_block, codes, &mut scales);
        // In runs that a byte can count: the compiler makes vectors of it.
        let nonzero = |codes: &[i8]| usize::from(codes.iter().map(|code| u8::from(*code != 0)).sum::<u8>());
        VectorNotes { scales, n_nonzero: codes.chunks(128).map(nonzero).sum() }
    }

    /// Appends `[vector][row]` for the rows of `tiles`.
    pub(crate) fn product(&self, tiles: Range<usize>, input: &PreparedInput, out: &mut Vec<f32>) {
        PRODUCTS.with_borrow_mut(|products| {
            self.product_in(tiles, input, products);
            out.extend_from_slice(products);
        });
    }

    /// The same in place of what `out` holds.
    pub(crate) fn product_in(&self, tiles: Range<usize>, input: &PreparedInput, out: &mut Vec<f32>) {
        self.product_asking(tiles, input, &[], out);
    }

    /// The same, and asks memory for `next`, which is read soon.
    pub(crate) fn product_asking(&self, tiles: Range<usize>, input: &PreparedInput, next: &[u8], out: &mut Vec<f32>) {
        let n = input.n_vectors();
        out.resize(n * self.plan.geometry().rows_of(tiles.clone()).len(), 0.0);
        SUMS.with_borrow_mut(|sums| {
            sums.resize(self.plan.n_sums(tiles.len(), n), 0);
            input.with_lines(&self.plan, |lines| {
                self.plan.sums_asking(input.operation(), &self.weights, tiles.clone(), lines, n, next, sums);
            });
            let scales = match &self.scales {
                OwnedScales::Tensor(scale) => Scales::Tensor(*scale),
                OwnedScales::Blocks(scales) => Scales::Blocks(scales),
            };
            self.plan.scale(tiles, sums, scales, input.scales(), n, out);
        });
    }
}

impl Linear {
    /// The results of some rows for vector `v` of `input`, which is prepared for [`Operation::Gemv`]; the other rows are
    /// not read. `cached`: they are in the cache. `out` is overwritten.
    ///
    /// # Panics
    /// Not [`Linear::skips_rows`], or the vector or a row does not exist.
    pub(crate) fn row_products(&self, rows: &[u32], input: &PreparedInput, v: usize, cached: bool, out: &mut Vec<f32>) {
        assert!(input.operation() == Operation::Gemv, "vectors for rows of their own");
        let OwnedScales::Tensor(scale) = self.scales else {
            unreachable!("layouts with rows of their own have one scale")
        };
        SUMS.with_borrow_mut(|sums| {
            sums.resize(rows.len(), 0);
            let n_lines = self.vector_lines(Operation::Gemv);
            input.with_lines(&self.plan, |lines| {
                let vector = &lines[v * n_lines..][..n_lines];
                match cached {
                    true => self.plan.cached_row_sums(&self.weights, rows, vector, sums),
                    false => self.plan.row_sums(&self.weights, rows, vector, sums),
                }
            });
            out.resize(rows.len(), 0.0);
            self.plan.scale_rows(sums, scale, input.scales()[v], out);
        });
    }
}

impl Linear {
    /// The results of neighbouring rows, each with those vectors of `input`, prepared for [`Operation::Gemm`], that are listed for
    /// it: see [`MatrixPlan::listed_sums`]. `out` is overwritten.
    ///
    /// # Panics
    /// Not [`Linear::lists_vectors`], or a vector or a row does not exist.
    pub(crate) fn listed_products(
        &self,
        rows: Range<usize>,
        ends: &[u32],
        vectors: &[u32],
        input: &PreparedInput,
        out: &mut Vec<f32>,
    ) {
        assert!(input.operation() == Operation::Gemm, "vectors for a GEMM");
        let OwnedScales::Tensor(scale) = self.scales else { unreachable!("such layouts have one scale") };
        SUMS.with_borrow_mut(|sums| {
            sums.resize(vectors.len(), 0);
            input.with_lines(&self.plan, |lines| {
                self.plan.listed_sums(&self.weights, rows, ends, vectors, lines, sums);
            });
            out.resize(vectors.len(), 0.0);
            self.plan.scale_listed(sums, scale, vectors, input.scales(), out);
        });
    }
}

/// Scales in the kernels' order; rows past the last have 0.
fn block_scales(ternary: &TernaryTensor, geometry: &Geometry, factor: f32) -> Result<Vec<f32>> {
    let (n_blocks, tile_rows) = (geometry.n_blocks(), geometry.tile_rows());
    let mut scales = vec![0.0; geometry.n_tiles() * n_blocks * tile_rows];
    for (tile, scales) in scales.chunks_exact_mut(n_blocks * tile_rows).enumerate() {
        for (r, row) in geometry.rows_of(tile..tile + 1).enumerate() {
            for b in 0..n_blocks {
                scales[b * tile_rows + r] = ternary.scale(row, b)? * factor;
            }
        }
    }
    Ok(scales)
}

/// Packs a tensor into another layout, all threads at once.
fn pack(ternary: TernaryTensor, geometry: &Geometry, pool: &mut Pool) -> Result<Pages> {
    let geometry = *geometry;
    let mut pages = Pages::zeroed(geometry.data_len())
        .map_err(|_| Error::Memory { what: "repacked weights".to_owned(), bytes: geometry.data_len() as u64 })?;
    let mut failed = None;
    let (bodies, trailers) = pages.split_at_mut(geometry.trailer_offset());
    pool.run(
        Arc::new(ternary),
        geometry.n_tiles(),
        1,
        move |ternary, tiles, out: &mut Vec<Result<Vec<u8>>>| {
            for tile in tiles {
                out.push(pack_tile(ternary, &geometry, tile));
            }
        },
        |tiles, packed| {
            for (tile, packed) in tiles.zip(packed) {
                match packed {
                    Ok(packed) => {
                        let trailer_bytes = geometry.tile_trailer_bytes();
                        let (body, trailer) = packed.split_at(packed.len() - trailer_bytes);
                        bodies[tile * geometry.tile_bytes()..][..body.len()].copy_from_slice(body);
                        trailers[tile * trailer_bytes..][..trailer_bytes].copy_from_slice(trailer);
                    }
                    Err(error) => failed = Some(error.to_string()),
                }
            }
        },
    );
    match failed {
        None => Ok(pages),
        Some(what) => Err(Error::Malformed { at: Box::default(), what, fix: "the file is damaged, download it again" }),
    }
}

/// The body of a tile and then its part of the trailer.
fn pack_tile(ternary: &TernaryTensor, geometry: &Geometry, tile: usize) -> Result<Vec<u8>> {
    let rows = geometry.rows_of(tile..tile + 1);
    if matches!(geometry.layout, Layout::I2S | Layout::C2)
        && geometry.cols.is_multiple_of(i2s::BLOCK)
        && let Some(bytes) = ternary.i2s_rows(rows.clone())?
    {
        if geometry.layout == Layout::I2S {
            return Ok(bytes.into_owned());
        }
        let mut body = vec![0; geometry.tile_bytes()];
        c2::transpose_i2s(geometry, &bytes, &mut body);
        return Ok(body);
    }
    let mut trits = vec![0i8; geometry.tile_rows() * geometry.cols];
    let n_rows = rows.len();
    for (row, trits) in rows.zip(trits.chunks_exact_mut(geometry.cols)) {
        ternary.row_trits(row, trits)?;
    }
    let body = match geometry.layout {
        Layout::I2S => n_rows * geometry.cols / 4,
        _ => geometry.tile_bytes(),
    };
    let mut packed = vec![0; body + geometry.tile_trailer_bytes()];
    let (body, trailer) = packed.split_at_mut(body);
    geometry.pack_tile(&trits, body, trailer);
    Ok(packed)
}
