//! `gemv-t3-scalar`: the lookup in portable Rust, and the definition of the others.
//!
//! For each group of 3 activations a table of 16 16-bit sums, 14 of them in use: entry `m` is the
//! sum of the activations with the digits of `m` as signs. A code's magnitude picks the entry, its
//! sign turns it. Sums are 32 bits wide throughout.

use crate::format::Geometry;
use crate::format::t3::{GROUP, MAX_VALUE, TILE_ROWS, digits, groups, value};
use crate::gemv::{sums_at, tile_block, vector};
use crate::line::Line;
use core::ops::Range;

/// Entries of a group's table; those past the largest magnitude are 0.
const TABLE: usize = 16;

pub(crate) fn prepared_lines(geometry: &Geometry) -> usize {
    Line::count_for(geometry.n_blocks() * groups(geometry.block) * TABLE * 2)
}

pub(crate) unsafe fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    out.fill(Line::ZERO);
    let tables: &mut [i16] = bytemuck::cast_slice_mut(out);
    let blocks = codes.chunks_exact(geometry.block);
    for (codes, tables) in blocks.zip(tables.chunks_mut(groups(geometry.block) * TABLE)) {
        for (codes, table) in codes.chunks(GROUP).zip(tables.chunks_exact_mut(TABLE)) {
            for (magnitude, entry) in (0..=MAX_VALUE).zip(table) {
                let trits = digits(magnitude as i8);
                *entry = codes.iter().zip(trits).map(|(code, trit)| i16::from(*code) * i16::from(trit)).sum();
            }
        }
    }
}

pub(crate) unsafe fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    let n_groups = groups(geometry.block);
    for v in 0..n_vectors {
        let tables: &[i16] = bytemuck::cast_slice(vector(prepared, n_vectors, v));
        for (t, tile) in tiles.clone().enumerate() {
            for b in 0..geometry.n_blocks() {
                let bytes = tile_block(geometry, data, tile, b);
                let tables = &tables[b * n_groups * TABLE..(b + 1) * n_groups * TABLE];
                let sums = &mut out[sums_at(geometry, tiles.len(), v, t, b)..][..TILE_ROWS];
                block_sums(bytes, tables, sums);
            }
        }
    }
}

fn block_sums(bytes: &[u8], tables: &[i16], sums: &mut [i32]) {
    for (r, sum) in sums.iter_mut().enumerate() {
        *sum = tables
            .chunks_exact(TABLE)
            .enumerate()
            .map(|(group, table)| {
                let value = value(bytes, group, r);
                let entry = i32::from(table[usize::from(value.unsigned_abs())]);
                if value < 0 { -entry } else { entry }
            })
            .sum();
    }
}
