//! Dot products of stored float rows with `f32` vectors, in the order of `lanes`:
//! lane `i % 32` adds `f32(w[i]) * x[i]`, rounded once.
//!
//! Several rows or several vectors can share a pass: two rows reuse each load of `x`, two vectors
//! reuse each conversion of `w`. Every pair still has 32 lanes of its own, so the bits are those
//! of one pair alone. Two pairs are 64 accumulators: eight of AVX2's sixteen registers; four pairs
//! would spill. AVX-512 has room for half the lanes of sixteen pairs, of two rows and eight vectors or of four and four: lanes do
//! not meet before the end, so that one half of them can be computed after the other.

use super::lanes::{LANES, Operation, Simd, UNIT, Unit, fold, pad, split};
use crate::ask::{Ask, Nothing};
use core::marker::PhantomData;

/// Rows that take a part of the columns before the next.
const MANY: usize = 16;

/// Groups of 32 columns of a part, of all vectors together: 8 KiB.
const PART: usize = 64;

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

/// The lanes of all pairs of `ROWS` rows and `VECTORS` vectors.
type Sums<S, const ROWS: usize, const VECTORS: usize> = [[[<S as Simd>::Vector; 2]; VECTORS]; ROWS];

/// All pairs of `ROWS` rows and `VECTORS` vectors of one length. `ahead`: so many bytes behind each group of weights is
/// what should come to the cache meanwhile.
#[inline(always)]
fn tile<F: Stored, A: Ask, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    rows: [&[u8]; ROWS],
    vectors: [&[f32]; VECTORS],
    ahead: Option<usize>,
) -> [[f32; VECTORS]; ROWS] {
    let blocks = rows.map(|row| F::blocks(row).0);
    let whole = split(vectors[0]).0.len();
    let mut sums = [[[simd.splat(0.0); 2]; VECTORS]; ROWS];
    sums = part::<F, A, S, ROWS, VECTORS>(simd, sums, blocks, vectors.map(|vector| &split(vector).0[..whole]), ahead);
    finish::<F, S, ROWS, VECTORS>(simd, sums, rows, vectors)
}

/// Adds the products of some whole groups of 32 columns.
#[inline(always)]
fn part<F: Stored, A: Ask, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    mut sums: Sums<S, ROWS, VECTORS>,
    rows: [&[F::Block]; ROWS],
    vectors: [&[[Unit; 2]]; VECTORS],
    ahead: Option<usize>,
) -> Sums<S, ROWS, VECTORS> {
    // Slices of one known length, so that the loop needs no bounds checks.
    let n = vectors[0].len();
    let rows = rows.map(|row| &row[..n]);
    let vectors = vectors.map(|vector| &vector[..n]);
    for b in 0..n {
        // All rows multiply what is in registers; a request to memory between them would make the compiler load it again.
        let mut values = [[simd.splat(0.0); 2]; VECTORS];
        for v in 0..VECTORS {
            values[v] = [simd.load(&vectors[v][b][0]), simd.load(&vectors[v][b][1])];
        }
        for r in 0..ROWS {
            if let Some(distance) = ahead {
                A::ask(rows[r][b..].as_ptr().cast::<u8>().wrapping_add(distance));
            }
            let weights = F::widen(simd, &rows[r][b]);
            for v in 0..VECTORS {
                sums[r][v] = step(simd, sums[r][v], weights, values[v]);
            }
        }
    }
    sums
}

/// Adds the products of the columns that are left, and adds up the lanes.
#[inline(always)]
fn finish<F: Stored, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    mut sums: Sums<S, ROWS, VECTORS>,
    rows: [&[u8]; ROWS],
    vectors: [&[f32]; VECTORS],
) -> [[f32; VECTORS]; ROWS] {
    if !split(vectors[0]).1.is_empty() {
        for r in 0..ROWS {
            let weights = F::widen(simd, &F::partial(F::blocks(rows[r]).1));
            for v in 0..VECTORS {
                let [low, high] = pad(split(vectors[v]).1, 0.0);
                sums[r][v] = step(simd, sums[r][v], weights, [simd.load(&low), simd.load(&high)]);
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

/// Up to `MANY` rows with `VECTORS` vectors: the products of a row stand together, and behind the last row is anything.
///
/// `ROWS * VECTORS` are 16, so that the sums of `ROWS` rows fill half of the registers if only one half of the lanes is
/// computed at a time: then most of what is loaded and converted is used several times. The vectors do not stay in the first
/// cache beside the rows that pass through it, so that all rows take a part of the columns before the next; their lanes
/// wait in memory meanwhile. `GROUPS * ROWS` are `MANY`.
#[inline(always)]
fn many<F: Stored, A: Ask, S: Simd, const ROWS: usize, const VECTORS: usize, const GROUPS: usize>(
    simd: S,
    sums: &mut [[[[S::Vector; VECTORS]; ROWS]; 2]; GROUPS],
    rows: &[u8],
    vectors: [&[f32]; VECTORS],
    ahead: usize,
) -> [[[f32; VECTORS]; ROWS]; GROUPS] {
    const { assert!(ROWS * VECTORS == UNIT && ROWS * GROUPS == MANY) };
    let row_size = vectors[0].len() * F::SIZE;
    let last = rows.len() / row_size - 1;
    let used = last / ROWS + 1;
    // Where rows end within a group, the last one stands for those that are not there.
    let group = |g: usize| {
        let mut group = [rows; ROWS];
        for (r, row) in group.iter_mut().enumerate() {
            let start = (g * ROWS + r).min(last) * row_size;
            *row = &rows[start..start + row_size];
        }
        group
    };
    let whole = split(vectors[0]).0.len();
    for sums in &mut sums[..used] {
        *sums = [[[simd.splat(0.0); VECTORS]; ROWS]; 2];
    }
    let mut start = 0;
    while start < whole {
        let end = (start + PART / VECTORS).min(whole);
        let mut values: [&[[Unit; 2]]; VECTORS] = [&[]; VECTORS];
        for v in 0..VECTORS {
            values[v] = &split(vectors[v]).0[start..end];
        }
        for (g, [low, high]) in sums[..used].iter_mut().enumerate() {
            let mut blocks: [&[F::Block]; ROWS] = [&[]; ROWS];
            for (blocks, row) in blocks.iter_mut().zip(group(g)) {
                *blocks = &F::blocks(row).0[start..end];
            }
            *low = half::<F, A, S, ROWS, VECTORS, 0>(simd, *low, blocks, values, ahead);
            *high = half::<F, A, S, ROWS, VECTORS, 1>(simd, *high, blocks, values, ahead);
        }
        start = end;
    }
    let mut products = [[[0.0; VECTORS]; ROWS]; GROUPS];
    for (g, [low, high]) in sums[..used].iter_mut().enumerate() {
        if !split(vectors[0]).1.is_empty() {
            for (r, row) in group(g).into_iter().enumerate() {
                let weights = F::widen(simd, &F::partial(F::blocks(row).1));
                for v in 0..VECTORS {
                    let values = pad(split(vectors[v]).1, 0.0);
                    low[r][v] = simd.add_product(low[r][v], weights[0], simd.load(&values[0]));
                    high[r][v] = simd.add_product(high[r][v], weights[1], simd.load(&values[1]));
                }
            }
        }
        let mut lanes = [simd.splat(0.0); UNIT];
        for r in 0..ROWS {
            for v in 0..VECTORS {
                lanes[r * VECTORS + v] = simd.add(low[r][v], high[r][v]);
            }
        }
        products[g].as_flattened_mut().copy_from_slice(&simd.fold_each(lanes));
    }
    products
}

/// Adds the products of one half of the lanes, 0 or 1, of some whole groups of 32 columns.
#[inline(always)]
fn half<F: Stored, A: Ask, S: Simd, const ROWS: usize, const VECTORS: usize, const HALF: usize>(
    simd: S,
    mut sums: [[S::Vector; VECTORS]; ROWS],
    rows: [&[F::Block]; ROWS],
    vectors: [&[[Unit; 2]]; VECTORS],
    ahead: usize,
) -> [[S::Vector; VECTORS]; ROWS] {
    // Slices of one known length, so that the loop needs no bounds checks.
    let n = vectors[0].len();
    let (mut blocks, mut values) = ([rows[0]; ROWS], [vectors[0]; VECTORS]);
    for r in 0..ROWS {
        blocks[r] = &rows[r][..n];
    }
    for v in 0..VECTORS {
        values[v] = &vectors[v][..n];
    }
    for b in 0..n {
        for row in &blocks[HALF * ROWS / 2..(HALF + 1) * ROWS / 2] {
            A::ask(row.as_ptr().wrapping_add(b).cast::<u8>().wrapping_add(ahead));
        }
        let mut weights = [simd.splat(0.0); ROWS];
        for r in 0..ROWS {
            weights[r] = F::widen(simd, &blocks[r][b])[HALF];
        }
        for v in 0..VECTORS {
            let value = simd.load(&values[v][b][HALF]);
            for r in 0..ROWS {
                sums[r][v] = simd.add_product(sums[r][v], weights[r], value);
            }
        }
    }
    sums
}

/// 32 products added to 32 lanes.
#[inline(always)]
fn step<S: Simd>(simd: S, sums: [S::Vector; 2], weights: [S::Vector; 2], values: [S::Vector; 2]) -> [S::Vector; 2] {
    [simd.add_product(sums[0], weights[0], values[0]), simd.add_product(sums[1], weights[1], values[1])]
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
        tile::<F, Nothing, S, 1, 1>(simd, [self.row], [self.x], None)[0][0]
    }
}

/// All rows with all vectors: `out[v * n_rows + r] = rows[r] . vectors[v]`.
pub(super) struct RowsDot<'a, F, A> {
    pub rows: &'a [u8],
    pub cols: usize,
    pub vectors: &'a [f32],
    pub out: &'a mut [f32],
    pub format: PhantomData<(F, A)>,
}

impl<F: Stored, A: Ask> RowsDot<'_, F, A> {
    /// All rows with `VECTORS` vectors from one on.
    #[inline(always)]
    fn pass<S: Simd, const ROWS: usize, const VECTORS: usize, const GROUPS: usize>(&mut self, simd: S, first: usize) {
        let row_size = self.cols * F::SIZE;
        let n_rows = self.rows.len() / row_size;
        let mut vectors: [&[f32]; VECTORS] = [&[]; VECTORS];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = &self.vectors[(first + v) * self.cols..(first + v + 1) * self.cols];
        }
        // Who meets the rows first waits for memory; the others ask for what they have.
        let ahead = if first == 0 { MANY * row_size } else { 0 };
        let mut sums = [[[[simd.splat(0.0); VECTORS]; ROWS]; 2]; GROUPS];
        for start in (0..n_rows).step_by(MANY) {
            let end = (start + MANY).min(n_rows);
            let rows = &self.rows[start * row_size..end * row_size];
            let products = many::<F, A, S, ROWS, VECTORS, GROUPS>(simd, &mut sums, rows, vectors, ahead);
            for (row, products) in (start..end).zip(products.as_flattened()) {
                for (v, product) in products.iter().enumerate() {
                    self.out[(first + v) * n_rows + row] = *product;
                }
            }
        }
    }
}

impl<F: Stored, A: Ask> Operation for RowsDot<'_, F, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let cols = self.cols;
        let row_size = cols * F::SIZE;
        let n_rows = self.rows.len() / row_size;
        let n_vectors = self.vectors.len() / cols;
        let mut first = 0;
        while S::MANY_SUMS && first + 4 <= n_vectors {
            if first + 8 <= n_vectors {
                self.pass::<S, 2, 8, 8>(simd, first);
                first += 8;
            } else {
                self.pass::<S, 4, 4, 4>(simd, first);
                first += 4;
            }
        }
        let row = |r: usize| &self.rows[r * row_size..(r + 1) * row_size];
        let vector = |v: usize| &self.vectors[v * cols..(v + 1) * cols];
        // Who meets the rows first waits for memory.
        let soon = (first == 0).then_some(2 * row_size);
        for v in (first..n_vectors - n_vectors % 2).step_by(2) {
            let ahead = soon.filter(|_| v == 0);
            for r in 0..n_rows {
                let [sums] = tile::<F, A, S, 1, 2>(simd, [row(r)], [vector(v), vector(v + 1)], ahead);
                self.out[v * n_rows + r] = sums[0];
                self.out[(v + 1) * n_rows + r] = sums[1];
            }
        }
        if n_vectors % 2 == 1 {
            let x = vector(n_vectors - 1);
            let out = &mut self.out[(n_vectors - 1) * n_rows..];
            let ahead = soon.filter(|_| n_vectors == 1);
            for r in (0..n_rows - n_rows % 2).step_by(2) {
                let sums = tile::<F, A, S, 2, 1>(simd, [row(r), row(r + 1)], [x], ahead);
                out[r] = sums[0][0];
                out[r + 1] = sums[1][0];
            }
            if n_rows % 2 == 1 {
                let r = n_rows - 1;
                out[r] = tile::<F, A, S, 1, 1>(simd, [row(r)], [x], None)[0][0];
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
