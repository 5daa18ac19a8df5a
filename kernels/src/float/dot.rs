//! Dot products of stored float rows with `f32` vectors, in the order of `lanes`:
//! lane `i % 32` adds `f32(w[i]) * x[i]`, product and sum each rounded.
//!
//! Several rows or several vectors can share a pass: two rows reuse each load of `x`, two vectors
//! reuse each conversion of `w`. Every pair still has 32 lanes of its own, so the bits are those
//! of one pair alone. Two pairs are 64 accumulators: eight of AVX2's sixteen registers; four pairs
//! would spill. AVX-512 has room for two rows and four vectors at once.

use super::lanes::{LANES, Operation, Simd, UNIT, Unit, fold, pad, split};
use core::marker::PhantomData;

/// A format that weights are stored in, little-endian.
pub(super) trait Stored {
    /// 32 weights.
    type Block: Copy;

    /// Bytes of one weight.
    const SIZE: usize;

    /// Whole blocks, and the bytes that are left.
    fn blocks(bytes: &[u8]) -> (&[Self::Block], &[u8]);

    /// Fewer than 32 weights, padded with zeros.
    fn partial(tail: &[u8]) -> Self::Block;

    /// 32 weights as `f32`.
    fn widen<S: Simd>(simd: S, block: &Self::Block) -> [S::Vector; 2];
}

/// The part of `Stored` that only depends on the number of bytes.
macro_rules! blocks_of {
    ($size:literal) => {
        type Block = [u8; $size * LANES];
        const SIZE: usize = $size;

        #[inline(always)]
        fn blocks(bytes: &[u8]) -> (&[Self::Block], &[u8]) {
            bytes.as_chunks()
        }

        #[inline(always)]
        fn partial(tail: &[u8]) -> Self::Block {
            let mut block = [0; $size * LANES];
            block[..tail.len()].copy_from_slice(tail);
            block
        }
    };
}

/// IEEE half precision.
pub(super) struct F16;

impl Stored for F16 {
    blocks_of!(2);

    #[inline(always)]
    fn widen<S: Simd>(simd: S, block: &Self::Block) -> [S::Vector; 2] {
        let (units, _) = block.as_chunks();
        [simd.widen_f16(&units[0]), simd.widen_f16(&units[1])]
    }
}

/// The upper half of an `f32`.
pub(super) struct Bf16;

impl Stored for Bf16 {
    blocks_of!(2);

    #[inline(always)]
    fn widen<S: Simd>(simd: S, block: &Self::Block) -> [S::Vector; 2] {
        let (units, _) = block.as_chunks();
        [simd.widen_bf16(&units[0]), simd.widen_bf16(&units[1])]
    }
}

/// Single precision.
pub(super) struct F32;

impl Stored for F32 {
    blocks_of!(4);

    #[inline(always)]
    fn widen<S: Simd>(simd: S, block: &Self::Block) -> [S::Vector; 2] {
        let units: [Unit; 2] = bytemuck::cast(*block);
        [simd.load(&units[0]), simd.load(&units[1])]
    }
}

/// All pairs of `ROWS` rows and `VECTORS` vectors of one length. `ahead`: so many bytes behind each group of weights is
/// what should come to the cache meanwhile.
#[inline(always)]
fn tile<F: Stored, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    rows: [&[u8]; ROWS],
    vectors: [&[f32]; VECTORS],
    ahead: Option<usize>,
) -> [[f32; VECTORS]; ROWS] {
    let mut sums = [[[simd.splat(0.0); 2]; VECTORS]; ROWS];
    let rows = rows.map(|row| F::blocks(row));
    let vectors = vectors.map(split);
    // Slices of one known length, so that the loop needs no bounds checks.
    let whole = vectors[0].0.len();
    let whole_rows = rows.map(|row| &row.0[..whole]);
    let whole_vectors = vectors.map(|vector| &vector.0[..whole]);
    for b in 0..whole {
        for r in 0..ROWS {
            if let Some(distance) = ahead {
                simd.prefetch(whole_rows[r][b..].as_ptr().cast::<u8>().wrapping_add(distance));
            }
            let weights = F::widen(simd, &whole_rows[r][b]);
            for v in 0..VECTORS {
                sums[r][v] = step(simd, sums[r][v], weights, &whole_vectors[v][b]);
            }
        }
    }
    if !vectors[0].1.is_empty() {
        for r in 0..ROWS {
            let weights = F::widen(simd, &F::partial(rows[r].1));
            for v in 0..VECTORS {
                sums[r][v] = step(simd, sums[r][v], weights, &pad(vectors[v].1, 0.0));
            }
        }
    }
    // Not `map`: its closure need not be inlined, and would lose the target features.
    let mut products = [[0.0; VECTORS]; ROWS];
    for r in 0..ROWS {
        for v in 0..VECTORS {
            products[r][v] = fold(simd, sums[r][v]);
        }
    }
    products
}

/// 32 products added to 32 lanes.
#[inline(always)]
fn step<S: Simd>(simd: S, sums: [S::Vector; 2], weights: [S::Vector; 2], values: &[Unit; 2]) -> [S::Vector; 2] {
    [
        simd.add_product(sums[0], weights[0], simd.load(&values[0])),
        simd.add_product(sums[1], weights[1], simd.load(&values[1])),
    ]
}

/// One row, one vector.
pub(super) struct Dot<'a, F> {
    pub row: &'a [u8],
    pub x: &'a [f32],
    pub format: PhantomData<F>,
}

impl<F: Stored> Operation for Dot<'_, F> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        tile::<F, S, 1, 1>(simd, [self.row], [self.x], None)[0][0]
    }
}

/// All rows with all vectors: `out[v * n_rows + r] = rows[r] . vectors[v]`.
pub(super) struct RowsDot<'a, F> {
    pub rows: &'a [u8],
    pub cols: usize,
    pub vectors: &'a [f32],
    pub out: &'a mut [f32],
    pub format: PhantomData<F>,
}

impl<F: Stored> Operation for RowsDot<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cols = self.cols;
        let row_size = cols * F::SIZE;
        let n_rows = self.rows.len() / row_size;
        let row = |r: usize| &self.rows[r * row_size..(r + 1) * row_size];
        let vector = |v: usize| &self.vectors[v * cols..(v + 1) * cols];
        let n_vectors = self.vectors.len() / cols;
        let mut first = 0;
        while S::MANY_SUMS && first + 4 <= n_vectors {
            let vectors = [vector(first), vector(first + 1), vector(first + 2), vector(first + 3)];
            let mut put = |r: usize, sums: [f32; 4]| {
                for (i, sum) in sums.into_iter().enumerate() {
                    self.out[(first + i) * n_rows + r] = sum;
                }
            };
            // The first vectors wait for the rows, the last ones find them in cache; meanwhile the rows behind these
            // come, which are likely to be next.
            let ahead = (first > 0 && first + 8 > n_vectors).then_some(self.rows.len());
            for r in (0..n_rows - n_rows % 2).step_by(2) {
                let [a, b] = tile::<F, S, 2, 4>(simd, [row(r), row(r + 1)], vectors, ahead);
                put(r, a);
                put(r + 1, b);
            }
            if n_rows % 2 == 1 {
                let [a] = tile::<F, S, 1, 4>(simd, [row(n_rows - 1)], vectors, ahead);
                put(n_rows - 1, a);
            }
            first += 4;
        }
        for v in (first..n_vectors - n_vectors % 2).step_by(2) {
            for r in 0..n_rows {
                let [sums] = tile::<F, S, 1, 2>(simd, [row(r)], [vector(v), vector(v + 1)], None);
                self.out[v * n_rows + r] = sums[0];
                self.out[(v + 1) * n_rows + r] = sums[1];
            }
        }
        if n_vectors % 2 == 1 {
            let x = vector(n_vectors - 1);
            let out = &mut self.out[(n_vectors - 1) * n_rows..];
            for r in (0..n_rows - n_rows % 2).step_by(2) {
                let sums = tile::<F, S, 2, 1>(simd, [row(r), row(r + 1)], [x], None);
                out[r] = sums[0][0];
                out[r + 1] = sums[1][0];
            }
            if n_rows % 2 == 1 {
                let r = n_rows - 1;
                out[r] = tile::<F, S, 1, 1>(simd, [row(r)], [x], None)[0][0];
            }
        }
    }
}

/// Stored floats as `f32`.
pub(super) struct Widen<'a, F> {
    pub stored: &'a [u8],
    pub out: &'a mut [f32],
    pub format: PhantomData<F>,
}

impl<F: Stored> Operation for Widen<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (blocks, tail) = F::blocks(self.stored);
        let (outs, out_tail) = self.out.split_at_mut(blocks.len() * LANES);
        for (out, block) in outs.as_chunks_mut::<LANES>().0.iter_mut().zip(blocks) {
            let [a, b] = F::widen(simd, block);
            *out = bytemuck::cast([simd.store(a), simd.store(b)]);
        }
        let [a, b] = F::widen(simd, &F::partial(tail));
        let values = [simd.store(a), simd.store(b)];
        out_tail.copy_from_slice(&values.as_flattened()[..out_tail.len()]);
    }
}

/// `f32` rounded to halves, little-endian.
pub(super) struct NarrowF16<'a> {
    pub x: &'a [f32],
    pub out: &'a mut [u8],
}

impl Operation for NarrowF16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (units, tail) = self.x.as_chunks::<UNIT>();
        let (outs, out_tail) = self.out.split_at_mut(units.len() * 2 * UNIT);
        for (out, unit) in outs.as_chunks_mut().0.iter_mut().zip(units) {
            *out = simd.narrow_f16(simd.load(unit));
        }
        let mut unit = [0.0; UNIT];
        unit[..tail.len()].copy_from_slice(tail);
        let halves = simd.narrow_f16(simd.load(&unit));
        out_tail.copy_from_slice(&halves[..out_tail.len()]);
    }
}
