//! GEMM with NEON: `gemm-{i2s,t3,t5}-neon` and `gemm-{i2s,t3,t5}-neon-dotprod`.
//!
//! ```text
//! for each tile of rows, each block, each chunk of columns:
//!     decode the weights of the tile to i8 trits                (once)
//!     for each vector:   out[vector][row] += trits[row] * codes of the chunk
//! ```
//!
//! 1. The decoded chunk, at most 7.5 KiB on the stack, stays in the first-level cache while all
//!    vectors pass over it; packed weights are read and decoded once.
//! 2. The interleaved layouts (T3, T5) decode to one column after the other, rows side by side:
//!    rows are the lanes, an activation is broadcast, and no lane is ever added to another. `smlal`
//!    sums in 16 bits: trits times codes are at most 128, and a chunk has at most 240 columns, so
//!    `|sum| <= 30,720`. `sdot` wants four columns of a row side by side, so its decoder
//!    transposes four columns at a time.
//! 3. I2_S is row-major and stays so: 16 rows of at most 384 columns. The weight 2 (the unused
//!    code 3) times 128 in `384 / 8` products per 16-bit lane is at most 12,288.
//! 4. Padding columns of a block (groups are whole) meet codes of 0, and padding groups of the
//!    last chunk decode to 0.
//!
//! Both levels live in one file because they share the decoders; each `run_*` has its own list of
//! features.

use crate::format::Geometry;
use crate::line::Line;
use core::arch::aarch64::*;
use core::arch::asm;
use core::ops::Range;

/// Bytes of a decoded chunk: 240 columns of T3, 120 of T5; I2_S takes less.
const CHUNK: usize = 240 * T3_ROWS;

const T3_ROWS: usize = 32;
/// Groups that share a sign plane.
const T3_SUPER: usize = 8;

const T5_ROWS: usize = 64;
/// Groups decoded together: four, so that their columns are a multiple of four.
const T5_GROUPS: usize = 4;

const I2S_ROWS: usize = 16;
/// Columns of a decoded chunk of I2_S.
const I2S_CHUNK: usize = 384;

/// Decodes the units `units` of a block to `[column][row]`.
type Decode = unsafe fn(block: &[u8], units: Range<usize>, groups: usize, trits: &mut [i8; CHUNK]);
/// `out[row] += sum over the columns of trits * codes`, for as many columns as there are codes.
type Multiply = unsafe fn(trits: &[i8; CHUNK], codes: &[i8], out: &mut [i32]);

/// An interleaved layout: rows are lanes.
struct Interleaved {
    rows: usize,
    /// Groups of a block.
    groups: usize,
    /// Groups and columns of a unit, the least that is decoded.
    unit_groups: usize,
    unit_cols: usize,
    /// Packed bytes of one block of one tile.
    block_bytes: usize,
}

impl Interleaved {
    fn t3(geometry: &Geometry) -> Self {
        let groups = geometry.block.div_ceil(3).next_multiple_of(2);
        Interleaved {
            rows: T3_ROWS,
            groups,
            unit_groups: T3_SUPER,
            unit_cols: 3 * T3_SUPER,
            block_bytes: (groups.div_ceil(T3_SUPER) + groups / 2) * T3_ROWS,
        }
    }

    fn t5(geometry: &Geometry) -> Self {
        let groups = geometry.block.div_ceil(5);
        Interleaved {
            rows: T5_ROWS,
            groups,
            unit_groups: T5_GROUPS,
            unit_cols: 5 * T5_GROUPS,
            block_bytes: groups * T5_ROWS,
        }
    }

    fn units(&self) -> usize {
        self.groups.div_ceil(self.unit_groups)
    }

    /// Columns of a block, with its padding.
    fn padded(&self) -> usize {
        self.units() * self.unit_cols
    }

    fn lines(&self, geometry: &Geometry) -> usize {
        Line::count_for(geometry.cols / geometry.block * self.padded())
    }

    /// Copies the codes, with zeros after each block and at the end.
    fn prepare(&self, geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
        assert_eq!(codes.len(), geometry.cols);
        assert_eq!(out.len(), self.lines(geometry));
        let out: &mut [i8] = bytemuck::cast_slice_mut(out);
        out.fill(0);
        let blocks = codes.chunks_exact(geometry.block);
        for (out, codes) in out.chunks_exact_mut(self.padded()).zip(blocks) {
            out[..codes.len()].copy_from_slice(codes);
        }
    }

    /// Decodes each chunk of the tiles once and multiplies it with all vectors.
    ///
    /// # Safety
    /// The CPU must have the features that `decode` and `multiply` need.
    unsafe fn run(
        &self,
        (decode, multiply): (Decode, Multiply),
        geometry: &Geometry,
        data: &[u8],
        tiles: Range<usize>,
        prepared: &[Line],
        n_vectors: usize,
        out: &mut [i32],
    ) {
        let n_blocks = geometry.cols / geometry.block;
        let n_outputs = tiles.len() * n_blocks;
        let lines = self.lines(geometry);
        assert_eq!(prepared.len(), n_vectors * lines);
        assert_eq!(out.len(), n_vectors * n_outputs * self.rows);
        let units_per_chunk = CHUNK / (self.unit_cols * self.rows);
        let mut trits = [0; CHUNK];
        out.fill(0);
        for index in 0..n_outputs {
            let packed = (tiles.start * n_blocks + index) * self.block_bytes;
            let packed = &data[packed..packed + self.block_bytes];
            for first in (0..self.units()).step_by(units_per_chunk) {
                let units = first..self.units().min(first + units_per_chunk);
                let cols = units.len() * self.unit_cols;
                // SAFETY: the caller vouches for the features, the only obligation.
                unsafe { decode(packed, units, self.groups, &mut trits) };
                for vector in 0..n_vectors {
                    let codes = &prepared[vector * lines..][..lines];
                    let at = index % n_blocks * self.padded() + first * self.unit_cols;
                    let codes = &bytemuck::cast_slice(codes)[at..at + cols];
                    let out = &mut out[(vector * n_outputs + index) * self.rows..][..self.rows];
                    // SAFETY: as above.
                    unsafe { multiply(&trits, codes, out) };
                }
            }
        }
    }
}

/// Lines of a vector for the T3 kernels.
pub(crate) fn prepared_lines_t3(geometry: &Geometry) -> usize {
    Interleaved::t3(geometry).lines(geometry)
}

/// Lines of a vector for the T5 kernels.
pub(crate) fn prepared_lines_t5(geometry: &Geometry) -> usize {
    Interleaved::t5(geometry).lines(geometry)
}

/// Lines of a vector for the I2_S kernels: its codes.
pub(crate) fn prepared_lines_i2s(geometry: &Geometry) -> usize {
    Line::count_for(geometry.cols)
}

/// The codes, each block padded with zeros to whole units.
#[target_feature(enable = "neon")]
pub(crate) fn prepare_t3(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    Interleaved::t3(geometry).prepare(geometry, codes, out);
}

/// The codes, each block padded with zeros to whole units.
#[target_feature(enable = "neon")]
pub(crate) fn prepare_t5(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    Interleaved::t5(geometry).prepare(geometry, codes, out);
}

/// The codes as they are: I2_S rows are whole groups of 128.
#[target_feature(enable = "neon")]
pub(crate) fn prepare_i2s(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    assert_eq!(codes.len(), geometry.cols);
    assert_eq!(out.len(), prepared_lines_i2s(geometry));
    bytemuck::cast_slice_mut::<Line, i8>(out).copy_from_slice(codes);
}

/// The six functions of the registry, see [`crate::kernel::RunFn`].
macro_rules! interleaved_kernel {
    ($name:ident, $layout:ident, $features:literal, $decode:expr, $multiply:expr) => {
        #[doc = concat!("GEMM with ", $features, ", see [`crate::kernel::RunFn`].")]
        #[target_feature(enable = $features)]
        pub(crate) fn $name(
            geometry: &Geometry,
            data: &[u8],
            tiles: Range<usize>,
            prepared: &[Line],
            n_vectors: usize,
            out: &mut [i32],
        ) {
            let layout = Interleaved::$layout(geometry);
            let functions: (Decode, Multiply) = ($decode, $multiply);
            // SAFETY: both functions need no more than this function's own features.
            unsafe { layout.run(functions, geometry, data, tiles, prepared, n_vectors, out) };
        }
    };
}

interleaved_kernel!(run_t3, t3, "neon", decode_t3, multiply_columns::<T3_ROWS>);
interleaved_kernel!(run_t5, t5, "neon", decode_t5, multiply_columns::<T5_ROWS>);
interleaved_kernel!(
    run_t3_dotprod,
    t3,
    "neon,dotprod",
    decode_t3_quads,
    dot_columns::<T3_ROWS>
);
interleaved_kernel!(
    run_t5_dotprod,
    t5,
    "neon,dotprod",
    decode_t5_quads,
    dot_columns::<T5_ROWS>
);

/// GEMM on I2_S with `smull`, see [`crate::kernel::RunFn`].
#[target_feature(enable = "neon")]
pub(crate) fn run_i2s(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    // SAFETY: `multiply_rows` needs no more than this function's own features.
    unsafe {
        rows(
            multiply_rows,
            geometry,
            data,
            tiles,
            prepared,
            n_vectors,
            out,
        )
    };
}

/// GEMM on I2_S with `sdot`, see [`crate::kernel::RunFn`].
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn run_i2s_dotprod(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    // SAFETY: `dot_rows` needs no more than this function's own features.
    unsafe { rows(dot_rows, geometry, data, tiles, prepared, n_vectors, out) };
}

/// Decodes each chunk of 16 rows to `[row][column]` and multiplies it with all vectors.
///
/// # Safety
/// The CPU must have the features that `multiply` needs.
#[target_feature(enable = "neon")]
unsafe fn rows(
    multiply: Multiply,
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let row_bytes = geometry.cols / 4;
    let lines = prepared_lines_i2s(geometry);
    assert_eq!(prepared.len(), n_vectors * lines);
    assert_eq!(out.len(), n_vectors * tiles.len() * I2S_ROWS);
    let n_tiles = tiles.len();
    let mut trits = [0; CHUNK];
    out.fill(0);
    for (index, tile) in tiles.enumerate() {
        let first_row = tile * I2S_ROWS;
        let present = geometry.rows.saturating_sub(first_row).min(I2S_ROWS);
        for first in (0..geometry.cols).step_by(I2S_CHUNK) {
            let cols = I2S_CHUNK.min(geometry.cols - first);
            for (row, trits) in trits.chunks_exact_mut(cols).take(present).enumerate() {
                let at = (first_row + row) * row_bytes + first / 4;
                decode_i2s(&data[at..at + cols / 4], trits);
            }
            for vector in 0..n_vectors {
                let codes = bytemuck::cast_slice(&prepared[vector * lines..][..lines]);
                let out = &mut out[(vector * n_tiles + index) * I2S_ROWS..][..present];
                // SAFETY: the caller vouches for the features, the only obligation.
                unsafe { multiply(&trits, &codes[first..first + cols], out) };
            }
        }
    }
}

/// Trit `i` of each of sixteen T3 nibbles, from its table; the codes 14 and 15 are three zeros.
const T3_DIGITS: [[i8; 16]; 3] = [
    [0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0],
    [0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0],
    [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
];

/// A [`Decode`] for T3; a unit is a super-group.
#[target_feature(enable = "neon")]
fn decode_t3(block: &[u8], units: Range<usize>, groups: usize, trits: &mut [i8; CHUNK]) {
    let (planes, _) = block.as_chunks::<T3_ROWS>();
    let (cols, _) = trits.as_chunks_mut::<T3_ROWS>();
    let digits = T3_DIGITS.map(|digits| load_trits(&digits));
    for (unit, cols) in units.zip(cols.chunks_exact_mut(3 * T3_SUPER)) {
        let planes = &planes[unit * (1 + T3_SUPER / 2)..];
        let (signs, nibbles) = (&planes[0], &planes[1..]);
        let present = T3_SUPER.min(groups - unit * T3_SUPER);
        for (g, cols) in cols.chunks_exact_mut(3).enumerate() {
            if g >= present {
                cols.fill([0; T3_ROWS]);
                continue;
            }
            for half in 0..2 {
                let at = 16 * half;
                let both = load(&nibbles[g / 2], at);
                let nibble = if g % 2 == 0 {
                    vandq_u8(both, vdupq_n_u8(15))
                } else {
                    vshrq_n_u8::<4>(both)
                };
                let flip = vtstq_u8(load(signs, at), vdupq_n_u8(1 << g));
                let flip = vreinterpretq_s8_u8(flip);
                for (col, &digit) in cols.iter_mut().zip(&digits) {
                    let trit = vqtbl1q_s8(digit, nibble);
                    store(col, at, vsubq_s8(veorq_s8(trit, flip), flip));
                }
            }
        }
    }
}

/// A [`Decode`] for T5; a unit is four groups.
///
/// A signed value of -121..=121 plus 121 is an ordinary number in base 3 whose digits are the trits
/// plus one. `x / 3 = (x * 171) >> 9` is exact below 256.
#[target_feature(enable = "neon")]
fn decode_t5(block: &[u8], units: Range<usize>, groups: usize, trits: &mut [i8; CHUNK]) {
    let (weights, _) = block.as_chunks::<T5_ROWS>();
    let (cols, _) = trits.as_chunks_mut::<T5_ROWS>();
    for (unit, cols) in units.zip(cols.chunks_exact_mut(5 * T5_GROUPS)) {
        for (g, cols) in cols.chunks_exact_mut(5).enumerate() {
            let group = unit * T5_GROUPS + g;
            if group >= groups {
                cols.fill([0; T5_ROWS]);
                continue;
            }
            for at in (0..T5_ROWS).step_by(16) {
                let weights = load(&weights[group], at);
                let value = vandq_u8(weights, vdupq_n_u8(127));
                let value = vandq_u8(value, vcleq_u8(value, vdupq_n_u8(121)));
                let flip = vcltzq_s8(vreinterpretq_s8_u8(weights));
                // value ^ 0xff = -value - 1, and subtracting 0xff adds the one.
                let signed = vsubq_u8(veorq_u8(value, flip), flip);
                let mut rest = vaddq_u8(signed, vdupq_n_u8(121));
                for col in cols.iter_mut() {
                    let third = divide_by_three(rest);
                    let digit = vmlsq_u8(rest, third, vdupq_n_u8(3));
                    let trit = vsubq_s8(vreinterpretq_s8_u8(digit), vdupq_n_s8(1));
                    store(col, at, trit);
                    rest = third;
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn divide_by_three(x: uint8x16_t) -> uint8x16_t {
    let factor = vdupq_n_u8(171);
    let low = vmull_u8(vget_low_u8(x), vget_low_u8(factor));
    let high = vmull_high_u8(x, factor);
    vshrq_n_u8::<1>(vshrn_high_n_u16::<8>(vshrn_n_u16::<8>(low), high))
}

/// [`decode_t3`] for [`dot_columns`].
#[target_feature(enable = "neon")]
fn decode_t3_quads(block: &[u8], units: Range<usize>, groups: usize, trits: &mut [i8; CHUNK]) {
    let cols = units.len() * 3 * T3_SUPER;
    decode_t3(block, units, groups, trits);
    interleave_quads::<T3_ROWS>(&mut trits[..cols * T3_ROWS]);
}

/// [`decode_t5`] for [`dot_columns`].
#[target_feature(enable = "neon")]
fn decode_t5_quads(block: &[u8], units: Range<usize>, groups: usize, trits: &mut [i8; CHUNK]) {
    let cols = units.len() * 5 * T5_GROUPS;
    decode_t5(block, units, groups, trits);
    interleave_quads::<T5_ROWS>(&mut trits[..cols * T5_ROWS]);
}

/// `[column][row]` becomes `[column / 4][row][column % 4]`.
#[target_feature(enable = "neon")]
fn interleave_quads<const ROWS: usize>(trits: &mut [i8]) {
    let (cols, _) = trits.as_chunks_mut::<ROWS>();
    for quad in cols.as_chunks_mut::<4>().0 {
        let from = *quad;
        let (to, _) = quad.as_flattened_mut().as_chunks_mut::<16>();
        for (r, to) in to.chunks_exact_mut(4).enumerate() {
            let [a, b, c, d] = from.each_ref().map(|col| load_trits(&col.as_chunks().0[r]));
            let (ab, cd) = (vzip1q_s8(a, b), vzip1q_s8(c, d));
            let (ab, cd) = (vreinterpretq_s16_s8(ab), vreinterpretq_s16_s8(cd));
            store(&mut to[0], 0, vreinterpretq_s8_s16(vzip1q_s16(ab, cd)));
            store(&mut to[1], 0, vreinterpretq_s8_s16(vzip2q_s16(ab, cd)));
            let (ab, cd) = (vzip2q_s8(a, b), vzip2q_s8(c, d));
            let (ab, cd) = (vreinterpretq_s16_s8(ab), vreinterpretq_s16_s8(cd));
            store(&mut to[2], 0, vreinterpretq_s8_s16(vzip1q_s16(ab, cd)));
            store(&mut to[3], 0, vreinterpretq_s8_s16(vzip2q_s16(ab, cd)));
        }
    }
}

/// The trits of consecutive columns of one row: code minus 1.
#[target_feature(enable = "neon")]
fn decode_i2s(packed: &[u8], trits: &mut [i8]) {
    let (packed, _) = packed.as_chunks::<32>();
    let (trits, _) = trits.as_chunks_mut::<128>();
    for (packed, trits) in packed.iter().zip(trits) {
        for at in [0, 16] {
            let weights = load(packed, at);
            let shifted = [
                vshrq_n_u8::<6>(weights),
                vshrq_n_u8::<4>(weights),
                vshrq_n_u8::<2>(weights),
                weights,
            ];
            for (s, weights) in shifted.into_iter().enumerate() {
                let codes = vreinterpretq_s8_u8(vandq_u8(weights, vdupq_n_u8(3)));
                store(trits, 32 * s + at, vsubq_s8(codes, vdupq_n_s8(1)));
            }
        }
    }
}

/// A [`Multiply`] for `[column][row]`.
#[target_feature(enable = "neon")]
fn multiply_columns<const ROWS: usize>(trits: &[i8; CHUNK], codes: &[i8], out: &mut [i32]) {
    let (cols, _) = trits.as_chunks::<ROWS>();
    let (out, _) = out.as_chunks_mut::<16>();
    for (r, out) in out.iter_mut().enumerate() {
        let mut sums = [vdupq_n_s16(0); 2];
        for (col, &code) in cols.iter().zip(codes) {
            let trits = load_trits(&col.as_chunks().0[r]);
            let code = vdupq_n_s8(code);
            sums[0] = vmlal_s8(sums[0], vget_low_s8(trits), vget_low_s8(code));
            sums[1] = vmlal_high_s8(sums[1], trits, code);
        }
        for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            let (low, high) = (vmovl_s16(vget_low_s16(sum)), vmovl_high_s16(sum));
            add_eight(out, low, high);
        }
    }
}

/// A [`Multiply`] for `[column / 4][row][column % 4]`.
#[target_feature(enable = "neon,dotprod")]
fn dot_columns<const ROWS: usize>(trits: &[i8; CHUNK], codes: &[i8], out: &mut [i32]) {
    let (rows_of_four, _) = trits.as_chunks::<16>();
    let (out, _) = out.as_chunks_mut::<8>();
    for (r, out) in out.iter_mut().enumerate() {
        let mut sums = [vdupq_n_s32(0); 2];
        let quads = rows_of_four.chunks_exact(ROWS / 4);
        for (quad, &codes) in quads.zip(codes.as_chunks::<4>().0) {
            let codes = i32::from_le_bytes(codes.map(i8::cast_unsigned));
            let codes = vreinterpretq_s8_s32(vdupq_n_s32(codes));
            sums[0] = sdot(sums[0], load_trits(&quad[2 * r]), codes);
            sums[1] = sdot(sums[1], load_trits(&quad[2 * r + 1]), codes);
        }
        add_eight(out, sums[0], sums[1]);
    }
}

/// A [`Multiply`] for `[row][column]`.
#[target_feature(enable = "neon")]
fn multiply_rows(trits: &[i8; CHUNK], codes: &[i8], out: &mut [i32]) {
    for (out, row) in out.iter_mut().zip(trits.chunks_exact(codes.len())) {
        let mut sums = [vdupq_n_s16(0); 2];
        for (trits, codes) in row.as_chunks().0.iter().zip(codes.as_chunks().0) {
            let (trits, codes) = (load_trits(trits), load_trits(codes));
            sums[0] = vmlal_s8(sums[0], vget_low_s8(trits), vget_low_s8(codes));
            sums[1] = vmlal_high_s8(sums[1], trits, codes);
        }
        *out += vaddlvq_s16(sums[0]) + vaddlvq_s16(sums[1]);
    }
}

/// A [`Multiply`] for `[row][column]`.
#[target_feature(enable = "neon,dotprod")]
fn dot_rows(trits: &[i8; CHUNK], codes: &[i8], out: &mut [i32]) {
    for (out, row) in out.iter_mut().zip(trits.chunks_exact(codes.len())) {
        let mut sums = vdupq_n_s32(0);
        for (trits, codes) in row.as_chunks().0.iter().zip(codes.as_chunks().0) {
            sums = sdot(sums, load_trits(trits), load_trits(codes));
        }
        *out += vaddvq_s32(sums);
    }
}

/// `sums[i] += a[4i] * b[4i] + .. + a[4i + 3] * b[4i + 3]`. In assembly because the intrinsic is
/// not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction needs `dotprod`, which this function's attribute demands of its
    // callers; it reads and writes nothing but the three registers named here.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// `out += [low, high]`
#[inline]
#[target_feature(enable = "neon")]
fn add_eight(out: &mut [i32; 8], low: int32x4_t, high: int32x4_t) {
    let out = out.as_mut_ptr();
    // SAFETY: each load and store touches 16 bytes at the i32 0 and 4 of the eight that `out`
    // points to, which we borrow mutably; they need no alignment beyond that of an i32.
    unsafe {
        vst1q_s32(out, vaddq_s32(vld1q_s32(out), low));
        vst1q_s32(out.add(4), vaddq_s32(vld1q_s32(out.add(4)), high));
    }
}

/// Sixteen bytes from `at`.
#[inline]
#[target_feature(enable = "neon")]
fn load<const N: usize>(bytes: &[u8; N], at: usize) -> uint8x16_t {
    let bytes = &bytes[at..at + 16];
    // SAFETY: the load reads 16 bytes and needs no alignment; the slice above has 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_trits(trits: &[i8; 16]) -> int8x16_t {
    // SAFETY: the load reads 16 bytes, which `trits` has, and needs no alignment.
    unsafe { vld1q_s8(trits.as_ptr()) }
}

/// Writes sixteen bytes from `at`.
#[inline]
#[target_feature(enable = "neon")]
fn store<const N: usize>(bytes: &mut [i8; N], at: usize, value: int8x16_t) {
    let bytes = &mut bytes[at..at + 16];
    // SAFETY: the store writes 16 bytes and needs no alignment; the slice above has 16 bytes.
    unsafe { vst1q_s8(bytes.as_mut_ptr(), value) };
}
