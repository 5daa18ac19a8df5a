//! Matrix times several vectors: a chunk of weights is decoded once for all of them.
//!
//! ```text
//! for each tile, block, chunk of at most 240 columns:
//!     codes[row][column] = trit + 1 (unsigned bytes)                       (once)
//!     for each vector: sums[row] += codes[row] . activations - sum(activations)
//! ```
//!
//! The prepared vector is the activations, block after block, each block padded with zeros to
//! whole chunks; what the codes of padding are does not matter then.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod avx512vnni;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod neon;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod neon_dotprod;
pub(crate) mod scalar;

use crate::format::t5::TILE_ROWS as MAX_TILE_ROWS;
use crate::format::{Geometry, Layout, i2s, t3, t5};
use crate::gemv::{sums_at, tile_block, vector};
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

/// One row's chunk of activations, zeros at its end.
pub(crate) type Chunk = [i8; STRIDE];

/// The registry sees to it.
const NOT_C2: &str = "kernels of c2 skip columns and have a driver of their own";

const fn chunk_cols(layout: Layout) -> usize {
    match layout {
        Layout::I2S => I2S_CHUNK,
        Layout::T3 | Layout::T5 => GROUPED_CHUNK,
        Layout::C2 => panic!("{}", NOT_C2),
    }
}

const fn n_chunks(geometry: &Geometry) -> usize {
    geometry.block.div_ceil(chunk_cols(geometry.layout))
}

pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    Line::count_for(geometry.n_blocks() * n_chunks(geometry) * STRIDE)
}

pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    out.fill(Line::ZERO);
    let chunks = bytemuck::cast_slice_mut::<Line, i8>(out).as_chunks_mut::<STRIDE>().0;
    let per_block = n_chunks(geometry);
    for (codes, chunks) in codes.chunks_exact(geometry.block).zip(chunks.chunks_exact_mut(per_block)) {
        for (codes, chunk) in codes.chunks(chunk_cols(geometry.layout)).zip(chunks) {
            chunk[..codes.len()].copy_from_slice(codes);
        }
    }
}

/// The loop that all instruction sets share. `dot(codes of the tile's rows, activations, sums)` adds
/// each row's product, codes counting as they are, to `sums`.
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
    let (tile_rows, per_block) = (geometry.tile_rows(), n_chunks(geometry));
    out.fill(0);
    for (t, tile) in tiles.clone().enumerate() {
        for b in 0..geometry.n_blocks() {
            for c in 0..per_block {
                let n_rows = decode(geometry, data, tile, b, c, &mut codes);
                for v in 0..n_vectors {
                    let chunks: &[i8] = bytemuck::cast_slice(vector(prepared, n_vectors, v));
                    let activations = &chunks.as_chunks::<STRIDE>().0[b * per_block + c];
                    let total: i32 = activations.iter().map(|a| i32::from(*a)).sum();
                    let sums = &mut out[sums_at(geometry, tiles.len(), v, t, b)..][..tile_rows];
                    let sums = &mut sums[..n_rows];
                    dot(&codes[..n_rows], activations, sums);
                    for sum in sums {
                        *sum -= total;
                    }
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
