//! Matrix times several vectors: weights are decoded once for all of them.
//!
//! ```text
//! for each block and vector: sums = -total of the block's activations
//! for each part of the weights (some rows, some columns of a block):
//!     codes = trit + 1, unsigned bytes                                   (once)
//!     for each vector: sums += codes . activations
//! ```
//!
//! The prepared vector is the same for all kernels: the activations block after block, each block
//! padded with zeros to whole units of its layout ([`unit`]) and to a multiple of [`TOGETHER`], and after that, on a new
//! line, the total of each block as an i32. What the codes of padding are does not matter, their
//! activations being 0.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod amx;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx512;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx512vbmi;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx512vnni;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avxvnni;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod neon;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod neon_dotprod;
pub(crate) mod scalar;

use crate::format::t5::TILE_ROWS as MAX_TILE_ROWS;
use crate::format::{Geometry, Layout, i2s, t3, t5};
use crate::gemv::{sums_at, tile_block};
use crate::line::Line;
use core::ops::Range;

/// Columns of a chunk: whole groups of 3 and 5, whole super-groups of 24.
const GROUPED_CHUNK: usize = 240;

/// Columns of a chunk of I2_S: whole blocks of 128.
const I2S_CHUNK: usize = 256;

/// Bytes of a decoded row: the longer chunk, in whole 32-byte vectors.
pub(crate) const STRIDE: usize = 256;

/// Decoded rows; every row is [`STRIDE`] long.
pub(crate) type Codes = [[u8; STRIDE]; MAX_TILE_ROWS];

/// One vector's chunk of activations, zeros at its end.
pub(crate) type Chunk = [i8; STRIDE];

/// The registry sees to it.
pub(crate) const NOT_C2: &str = "here kernels of c2 skip columns";

const fn chunk_cols(layout: Layout) -> usize {
    match layout {
        Layout::I2S => I2S_CHUNK,
        Layout::T3 | Layout::T5 => GROUPED_CHUNK,
        Layout::C2 => panic!("{}", NOT_C2),
    }
}

/// Columns that a layout keeps together and that are whole fours: a block of I2_S, a super-group
/// of T3, four groups of T5, four columns of C2.
pub(crate) const fn unit(layout: Layout) -> usize {
    match layout {
        Layout::I2S => i2s::BLOCK,
        Layout::C2 => 4,
        Layout::T3 => t3::GROUP * t3::SUPER,
        Layout::T5 => t5::GROUP * 4,
    }
}

/// Columns that kernels may take together at the end of a block: a tile of AMX has 64.
pub(crate) const TOGETHER: usize = 64;

/// Columns of a block with its padding.
const fn padded_block(geometry: &Geometry) -> usize {
    geometry.block.next_multiple_of(unit(geometry.layout)).next_multiple_of(TOGETHER)
}

/// Lines before those of the totals.
const fn activation_lines(geometry: &Geometry) -> usize {
    Line::count_for(geometry.n_blocks() * padded_block(geometry))
}

pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    activation_lines(geometry) + Line::count_for(geometry.n_blocks() * size_of::<i32>())
}

pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    out.fill(Line::ZERO);
    let (activations, totals) = out.split_at_mut(activation_lines(geometry));
    let activations: &mut [i8] = bytemuck::cast_slice_mut(activations);
    let totals: &mut [i32] = bytemuck::cast_slice_mut(totals);
    let padded = activations.chunks_exact_mut(padded_block(geometry));
    for ((codes, activations), total) in codes.chunks_exact(geometry.block).zip(padded).zip(totals) {
        activations[..codes.len()].copy_from_slice(codes);
        *total = codes.iter().map(|code| i32::from(*code)).sum();
    }
}

/// Prepared vectors, their sizes computed once.
#[derive(Clone, Copy)]
pub(crate) struct Prepared<'a> {
    lines: &'a [Line],
    lines_per_vector: usize,
    activation_lines: usize,
    padded_block: usize,
}

impl<'a> Prepared<'a> {
    #[inline(always)]
    pub(crate) fn new(geometry: &Geometry, lines: &'a [Line]) -> Prepared<'a> {
        Prepared {
            lines,
            lines_per_vector: prepared_lines(geometry),
            activation_lines: activation_lines(geometry),
            padded_block: padded_block(geometry),
        }
    }

    #[inline(always)]
    fn vector(&self, v: usize) -> (&'a [Line], &'a [Line]) {
        self.lines[v * self.lines_per_vector..][..self.lines_per_vector].split_at(self.activation_lines)
    }

    /// The activations of block `b` of vector `v`, with their padding.
    #[inline(always)]
    pub(crate) fn activations(&self, v: usize, b: usize) -> &'a [i8] {
        let (activations, _) = self.vector(v);
        &bytemuck::cast_slice::<Line, i8>(activations)[b * self.padded_block..][..self.padded_block]
    }

    /// Some columns of block `b` of `vectors`, from the first vector's first to the last one's last, and how
    /// many bytes lie between the same columns of two neighbours.
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))] // Who needs the distance is AMX.
    #[inline(always)]
    pub(crate) fn columns(&self, vectors: Range<usize>, b: usize, columns: Range<usize>) -> (&'a [u8], usize) {
        assert!(!vectors.is_empty() && columns.end <= self.padded_block, "columns of a block of some vectors");
        let stride = self.lines_per_vector * size_of::<Line>();
        let block = b * self.padded_block;
        let bytes: &[u8] = bytemuck::cast_slice(self.lines);
        let first = vectors.start * stride + block + columns.start;
        (&bytes[first..(vectors.end - 1) * stride + block + columns.end], stride)
    }

    /// The total of the activations of block `b` of vector `v`.
    #[inline(always)]
    pub(crate) fn total(&self, v: usize, b: usize) -> i32 {
        let (_, totals) = self.vector(v);
        bytemuck::cast_slice::<Line, i32>(totals)[b]
    }
}

/// Each row with its vectors and their sums, as [`crate::kernel::RunListedFn`] has them.
#[inline(always)]
fn listed<'a>(
    rows: Range<usize>,
    ends: &'a [u32],
    vectors: &'a [u32],
    sums: &'a mut [i32],
) -> impl Iterator<Item = (usize, &'a [u32], &'a mut [i32])> {
    let (mut start, mut later) = (0, sums);
    rows.zip(ends).map(move |(row, end)| {
        let vectors = &vectors[start..*end as usize];
        start = *end as usize;
        let (sums, others) = core::mem::take(&mut later).split_at_mut(vectors.len());
        later = others;
        (row, vectors, sums)
    })
}

/// The loop of the instruction sets that take a tile's chunk of decoded rows at a time.
/// `dot(codes of the tile's rows, activations, sums)` adds each row's product, codes counting as
/// they are, to `sums`.
#[inline(always)]
pub(crate) fn drive(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
    dot: impl Fn(&[[u8; STRIDE]], &Chunk, &mut [i32]),
) {
    let mut codes: Codes = [[0; STRIDE]; MAX_TILE_ROWS];
    let prepared = Prepared::new(geometry, prepared);
    let chunk_cols = chunk_cols(geometry.layout);
    out.fill(0);
    for (t, tile) in tiles.clone().enumerate() {
        for b in 0..geometry.n_blocks() {
            for c in 0..geometry.block.div_ceil(chunk_cols) {
                let n_rows = decode(geometry, data, tile, b, c, &mut codes);
                for v in 0..n_vectors {
                    let columns = &prepared.activations(v, b)[c * chunk_cols..];
                    let columns = &columns[..columns.len().min(chunk_cols)];
                    let mut chunk = [0; STRIDE];
                    chunk[..columns.len()].copy_from_slice(columns);
                    let sums = &mut out[sums_at(geometry, tiles.len(), v, t, b)..][..n_rows];
                    if c == 0 {
                        sums.fill(-prepared.total(v, b));
                    }
                    dot(&codes[..n_rows], &chunk, sums);
                }
            }
        }
    }
}

/// Decodes chunk `c` of block `b` of a tile; returns how many rows it has.
fn decode(geometry: &Geometry, data: &[u8], tile: usize, b: usize, c: usize, codes: &mut Codes) -> usize {
    match geometry.layout {
        Layout::I2S => {
            let rows = geometry.rows_of(tile..tile + 1);
            let n_rows = rows.len();
            let row_bytes = geometry.cols / 4;
            let bytes = c * I2S_CHUNK / 4..(row_bytes).min((c + 1) * I2S_CHUNK / 4);
            for (row, codes) in rows.zip(codes) {
                i2s::codes(&data[row * row_bytes..][bytes.clone()], |i, code| codes[i] = code);
            }
            n_rows
        }
        Layout::C2 => unreachable!("{NOT_C2}"),
        Layout::T3 => {
            let block = tile_block(geometry, data, tile, b);
            let groups = group_range(c, t3::GROUP, geometry.groups());
            for (r, codes) in codes[..t3::TILE_ROWS].iter_mut().enumerate() {
                for (group, codes) in groups.clone().zip(codes.as_chunks_mut::<{ t3::GROUP }>().0) {
                    *codes = T3_CODES[(t3::value(block, group, r) + 13) as usize];
                }
            }
            t3::TILE_ROWS
        }
        Layout::T5 => {
            let block = tile_block(geometry, data, tile, b);
            let groups = group_range(c, t5::GROUP, geometry.groups());
            for (i, group) in groups.enumerate() {
                let bytes = &block[group * t5::TILE_ROWS..][..t5::TILE_ROWS];
                for (codes, byte) in codes.iter_mut().zip(bytes) {
                    codes[i * t5::GROUP..][..t5::GROUP].copy_from_slice(&T5_CODES[usize::from(*byte)]);
                }
            }
            t5::TILE_ROWS
        }
    }
}

/// The groups of chunk `c`.
fn group_range(c: usize, group: usize, n_groups: usize) -> Range<usize> {
    let per_chunk = GROUPED_CHUNK / group;
    (c * per_chunk).min(n_groups)..((c + 1) * per_chunk).min(n_groups)
}

/// Codes (trit plus one) of the values -13 to 13.
static T3_CODES: [[u8; t3::GROUP]; 27] = {
    let mut table = [[0; t3::GROUP]; 27];
    let mut i = 0;
    while i < 27 {
        let trits = t3::digits(i as i8 - 13);
        let mut j = 0;
        while j < t3::GROUP {
            table[i][j] = (trits[j] + 1) as u8;
            j += 1;
        }
        i += 1;
    }
    table
};

/// Codes (trit plus one) of every byte.
static T5_CODES: [[u8; t5::GROUP]; 256] = {
    let mut table = [[0; t5::GROUP]; 256];
    let mut i = 0;
    while i < 256 {
        let trits = t5::TRITS[i];
        let mut j = 0;
        while j < t5::GROUP {
            table[i][j] = (trits[j] + 1) as u8;
            j += 1;
        }
        i += 1;
    }
    table
};
