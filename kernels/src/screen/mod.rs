//! Integer products that screen the rows of an output head: a copy of it in 8 bits, read four bits at a time, times
//! activations of 8 bits and then of 15.
//!
//! ```text
//! row r, column c in block b of 64:   weight ~ scale[r] * part[r][b] * (code - 127.5),   code = 16 high + low
//!     code - 127.5 = 16 (high - 7.5) + (low - 7.5)
//! product of a plane:                 sum over b of part[r][b] * sum over c of (2 nibble - 15) * x[c]
//! weights . x / unit of x  ~          scale * (8 * product of high + 0.5 * product of low)
//! ```
//!
//! The high nibbles of all rows are read first ([`tiles`]), the low ones only of rows that may still matter ([`rows`]).
//! So the high ones lie in tiles of 16 rows, each 32-bit lane a row of its own, and the low ones row by row. The high ones
//! meet activations rounded to 8 bits, with a scale for each block ([`Step::short`]): what that loses is a small part of
//! what the low nibbles would say, and it halves the work. The low ones meet 15 bits.
//!
//! **Exact.** Sums within a block are integers below 2^24 (`64 * 15 *` [`LIMIT`]), so that they are exact as `f32` too; blocks are
//! joined by fused products and sums in one order. So all instruction sets give the same bits.
//!
//! **Digits.** `vpdpbusd` and its kin multiply unsigned with signed bytes: nibbles are unsigned as they are, and an
//! activation of 15 bits is `256 * high + low` with signed digits, each multiplied by itself.

mod lanes;
mod pack;
mod portable;

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx512vnni;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;

#[cfg(test)]
mod tests;

use crate::ask::ask_here;
use crate::isa::{Isa, Level};
use core::marker::PhantomData;
pub use lanes::Step;
use lanes::{Nibbles, Operation, Rows, Tiles};
use pack::PackRow;
pub use pack::RowNotes;

/// Columns that have a scale of their own.
pub const BLOCK: usize = 64;

/// Columns that a row is padded to a multiple of.
pub const STEP: usize = 2 * BLOCK;

/// Rows that lie side by side in the plane of the high nibbles.
pub const TILE: usize = 16;

/// The largest magnitude of activations: sums within a block stay below 2^24.
pub const LIMIT: i16 = 16_383;

/// Blocks of a tile whose scales share a line, which stands before their nibbles, so that a tile is read in the order of memory. With all
/// scales before all nibbles, and what went with it, one core of a Zen 4 read tiles for one state at 22 to 25 GB/s; like this at 27 to 28.
pub const GROUP: usize = 4;

/// Lines of a block of a tile.
const BLOCK_LINES: usize = TILE * BLOCK / 2 / size_of::<Nibbles>();

/// Lines of a whole group: one of scales, and those of its blocks.
const GROUP_LINES: usize = 1 + GROUP * BLOCK_LINES;

/// Sizes of the two planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    cols: usize,
}

impl Shape {
    /// For rows of `cols` weights.
    ///
    /// # Panics
    /// `cols` is 0 or more than 2^24.
    #[must_use]
    pub fn new(cols: usize) -> Shape {
        assert!((1..=1 << 24).contains(&cols), "1 to 2^24 columns");
        Shape { cols }
    }

    /// Weights of a row.
    #[must_use]
    pub const fn cols(self) -> usize {
        self.cols
    }

    /// Steps of a row: as many lines of low nibbles.
    #[must_use]
    pub const fn n_steps(self) -> usize {
        self.cols.div_ceil(STEP)
    }

    /// Blocks of a row.
    #[must_use]
    pub const fn n_blocks(self) -> usize {
        self.n_steps() * (STEP / BLOCK)
    }

    /// How far a product is off at most, as a share of the sum of the magnitudes of all products of a weight and an
    /// activation.
    #[must_use]
    pub fn rounding(self) -> f64 {
        // A rounding for each block and one of its scale, or for each step and four in a tree of lanes, and room for
        // their products.
        (self.n_blocks() + 8) as f64 / f64::from(1 << 24)
    }

    /// Bytes of a tile of high nibbles, whole lines: for each [`GROUP`] blocks a line of their scales, `[block][row]`, and then their
    /// nibbles, `[8 columns][row][4]`, each byte those of columns `c` (low half) and `c + 4`.
    #[must_use]
    pub const fn tile_bytes(self) -> usize {
        (self.n_blocks().div_ceil(GROUP) + self.n_blocks() * BLOCK_LINES) * size_of::<Nibbles>()
    }

    /// Bytes of a row of low nibbles: the blocks' scales, then the nibbles, `[8 columns][4]`.
    #[must_use]
    pub const fn row_bytes(self) -> usize {
        self.n_blocks() * (BLOCK / 2 + 1)
    }
}

/// Rounds `x` to `x[i] / unit`, at most [`LIMIT`] in magnitude, and returns the unit (0 if all of `x` is 0).
/// `x` must be finite.
///
/// # Panics
/// The lengths differ.
pub fn round(x: &[f32], out: &mut [i16]) -> f64 {
    assert_eq!(x.len(), out.len(), "one place for each activation");
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let unit = f64::from(largest) / f64::from(LIMIT);
    let inverse = if unit > 0.0 { 1.0 / unit } else { 0.0 };
    for (out, x) in out.iter_mut().zip(x) {
        // Within the limit up to one rounding, and the conversion saturates.
        *out = (nearest(f64::from(*x) * inverse) as i16).clamp(-LIMIT, LIMIT);
    }
    unit
}

/// The nearest integer, the even one of two, of what is below 2^51 in magnitude: the sum has no bits below 1.
fn nearest(x: f64) -> f64 {
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
    (x + ROUND) - ROUND
}

/// Brings rounded activations into the form that products read.
///
/// # Panics
/// `out` is not [`Shape::n_steps`] for so many columns, or an activation is above the limit.
pub fn prepare(codes: &[i16], out: &mut [Step]) {
    assert_eq!(out.len(), codes.len().div_ceil(STEP), "a step for each {STEP} columns");
    assert!(codes.iter().all(|code| (-LIMIT..=LIMIT).contains(code)), "within the limit");
    for (codes, step) in codes.chunks(STEP).zip(out) {
        *step = Step::new(codes);
    }
}

/// Packs a row, which becomes row `place` of a tile of high nibbles and a row of low ones; says what was lost.
///
/// # Panics
/// A length is not that of the shape, or there is no such place.
#[must_use]
pub fn pack_row(isa: Isa, shape: Shape, weights: &[f32], place: usize, tile: &mut [u8], row: &mut [u8]) -> RowNotes {
    assert_eq!(weights.len(), shape.cols, "one weight for each column");
    assert_eq!((tile.len(), row.len()), (shape.tile_bytes(), shape.row_bytes()), "a tile and a row");
    assert!(place < TILE, "a row of the tile");
    run(isa, PackRow { shape, weights, place, tile, row })
}

/// Products of tiles of high nibbles with some states in eight bits ([`Step::short`]), each [`Shape::n_steps`] steps: `out` is
/// `[state][row]`.
///
/// # Panics
/// A length does not fit the others.
pub fn tiles(isa: Isa, shape: Shape, tiles: &[u8], states: &[Step], out: &mut [f32]) {
    let n_tiles = tiles.len() / shape.tile_bytes();
    let n_states = states.len() / shape.n_steps();
    assert_eq!(tiles.len(), n_tiles * shape.tile_bytes(), "whole tiles");
    assert_eq!(states.len(), n_states * shape.n_steps(), "whole states");
    assert_eq!(out.len(), n_states * n_tiles * TILE, "a product for each state and row");
    ask_here!(A => run(isa, Tiles::<A> { shape, tiles, states, out, way: PhantomData }));
}

/// Products of some rows of a plane of low nibbles with one state.
///
/// # Panics
/// A length does not fit the others, or there is no such row.
pub fn rows(isa: Isa, shape: Shape, plane: &[u8], rows: &[u32], state: &[Step], out: &mut [f32]) {
    let n_rows = plane.len() / shape.row_bytes();
    assert_eq!(state.len(), shape.n_steps(), "one state");
    assert_eq!(out.len(), rows.len(), "a product for each row");
    assert!(rows.iter().all(|row| (*row as usize) < n_rows), "rows of this plane");
    ask_here!(A => run(isa, Rows::<A> { shape, plane, rows, state, out, way: PhantomData }));
}

/// The best of this module's instruction sets that `isa` allows.
pub(crate) fn level(isa: Isa) -> Level {
    let levels = [Level::Avx512Vnni, Level::Avx2, Level::NeonDotprod, Level::Neon];
    levels.into_iter().find(|level| isa.supports(*level)).unwrap_or(Level::Scalar)
}

/// Runs `operation` compiled for the best of this module's instruction sets that `isa` allows.
fn run<O: Operation>(isa: Isa, operation: O) -> O::Output {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    {
        if let Some(proof) = avx512vnni::Avx512Vnni::new(isa) {
            return avx512vnni::run(proof, operation);
        }
        if let Some(proof) = avx2::Avx2::new(isa) {
            return avx2::run(proof, operation);
        }
    }
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    {
        if let Some(proof) = neon::Neon::<true>::new(isa) {
            return neon::run_dotprod(proof, operation);
        }
        if let Some(proof) = neon::Neon::<false>::new(isa) {
            return neon::run(proof, operation);
        }
    }
    let _ = isa;
    operation.run(portable::Portable)
}
