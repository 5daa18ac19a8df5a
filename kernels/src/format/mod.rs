//! Packed layouts of ternary matrices: geometry, pack, unpack. Scalar code only; imports nothing
//! of the kernels.
//!
//! | layout | bits a weight | rows in a tile | read by |
//! |---|---|---|---|
//! | [`i2s`] | 2 | 16, not interleaved | multiply-add kernels, in place from the file |
//! | [`c2`] | 2 | 256, column-major | multiply-add kernels that skip columns |
//! | [`t3`] | 5/3 | 32, interleaved | lookup kernels with 16-entry tables |
//! | [`t5`] | 8/5 | 64, interleaved | lookup kernels with 128-entry tables |
//!
//! A packed matrix is the bodies of its tiles, one after the other, and then, for [`t5`], a
//! trailer for each tile. Every byte value has a meaning in every layout, so no content of a file
//! is undefined.

pub mod c2;
pub mod i2s;
pub mod t3;
pub mod t5;

use core::fmt;
use core::ops::Range;

/// How the trits of a matrix lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// Two bits a weight, row-major, as published in GGUF files (used in place, mapped).
    I2S,
    /// Two bits a weight, column-major in tiles of 256 rows: columns can be skipped.
    C2,
    /// Three trits in a nibble plus a sign bit, 32 rows interleaved (5/3 bits a weight).
    T3,
    /// Five trits in a byte, 64 rows interleaved (1.6 bits a weight).
    T5,
}

impl Layout {
    /// All layouts.
    pub const ALL: [Layout; 4] = [Layout::I2S, Layout::C2, Layout::T3, Layout::T5];

    /// The name in options, logs and kernel names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Layout::I2S => "i2s",
            Layout::C2 => "c2",
            Layout::T3 => "t3",
            Layout::T5 => "t5",
        }
    }

    /// Rows of one tile.
    #[must_use]
    pub const fn tile_rows(self) -> usize {
        match self {
            Layout::I2S => i2s::TILE_ROWS,
            Layout::C2 => c2::TILE_ROWS,
            Layout::T3 => t3::TILE_ROWS,
            Layout::T5 => t5::TILE_ROWS,
        }
    }
}

/// The largest number of columns: sums of that many products fit 32 bits (`2 * 128 * 2^18 = 2^26`), and
/// the number of groups of a row fits 16.
pub const MAX_COLS: usize = 1 << 18;

/// The largest number of rows; with [`MAX_COLS`] no size computed here overflows 64 bits.
pub const MAX_ROWS: usize = 1 << 30;

/// Shape of a packed ternary matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// How the trits are packed.
    pub layout: Layout,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Columns that share one scale; equal to `cols` when there is one scale for the whole tensor.
    pub block: usize,
}

/// Why a shape can't be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GeometryError {
    /// No rows or columns, more than [`MAX_ROWS`], [`MAX_COLS`], or more bytes than addresses of this machine reach.
    Size,
    /// The columns are not a whole number of blocks.
    Block,
    /// I2_S needs a multiple of 128 columns and one scale for the tensor.
    I2S,
    /// C2 needs one scale for the tensor.
    C2,
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GeometryError::Size => write!(
                f,
                "a matrix has 1 to {MAX_ROWS} rows, 1 to {MAX_COLS} columns and no more bytes than addresses reach"
            ),
            GeometryError::Block => f.write_str("the columns are not a whole number of scale blocks"),
            GeometryError::I2S => f.write_str("I2_S needs a multiple of 128 columns and one scale for the tensor"),
            GeometryError::C2 => f.write_str("C2 needs one scale for the tensor"),
        }
    }
}

impl core::error::Error for GeometryError {}

impl Geometry {
    /// A checked shape.
    ///
    /// # Errors
    /// See [`GeometryError`].
    pub fn new(layout: Layout, rows: usize, cols: usize, block: usize) -> Result<Geometry, GeometryError> {
        let geometry = Geometry { layout, rows, cols, block };
        geometry.check()?;
        Ok(geometry)
    }

    /// Checks a shape that was written by hand.
    ///
    /// # Errors
    /// See [`GeometryError`].
    pub fn check(&self) -> Result<(), GeometryError> {
        if !(1..=MAX_ROWS).contains(&self.rows) || !(1..=MAX_COLS).contains(&self.cols) {
            return Err(GeometryError::Size);
        }
        if self.block == 0 || !self.cols.is_multiple_of(self.block) {
            return Err(GeometryError::Block);
        }
        if self.layout == Layout::I2S && (!self.cols.is_multiple_of(i2s::BLOCK) || self.block != self.cols) {
            return Err(GeometryError::I2S);
        }
        if self.layout == Layout::C2 && self.block != self.cols {
            return Err(GeometryError::C2);
        }
        if !self.fits(usize::MAX as u64) {
            return Err(GeometryError::Size);
        }
        Ok(())
    }

    /// Whether the packed matrix, all of its tiles whole, is at most `most` bytes: the largest size that a machine's addresses have.
    /// Those of one tile are below 2^26, whatever a checked number of columns and their blocks.
    const fn fits(&self, most: u64) -> bool {
        match (self.n_tiles() as u64).checked_mul((self.tile_bytes() + self.tile_trailer_bytes()) as u64) {
            Some(bytes) => bytes <= most,
            None => false,
        }
    }

    /// Rows of one tile.
    #[must_use]
    pub const fn tile_rows(&self) -> usize {
        self.layout.tile_rows()
    }

    /// Tiles that cover all rows; the last one may be partly empty.
    #[must_use]
    pub const fn n_tiles(&self) -> usize {
        self.rows.div_ceil(self.tile_rows())
    }

    /// Scale blocks of a row.
    #[must_use]
    pub const fn n_blocks(&self) -> usize {
        self.cols / self.block
    }

    /// Groups of weights that one code stands for, in one block of one row.
    #[must_use]
    pub const fn groups(&self) -> usize {
        match self.layout {
            Layout::I2S => self.block / 4,
            Layout::C2 => self.block,
            Layout::T3 => t3::groups(self.block),
            Layout::T5 => t5::groups(self.block),
        }
    }

    /// Bytes of one block of one tile's body.
    #[must_use]
    pub const fn tile_block_bytes(&self) -> usize {
        match self.layout {
            Layout::I2S => i2s::TILE_ROWS * self.block / 4,
            Layout::C2 => c2::LINE * self.block,
            Layout::T3 => t3::block_bytes(self.block),
            Layout::T5 => t5::groups(self.block) * t5::TILE_ROWS,
        }
    }

    /// Bytes of one tile's body; of I2_S, a whole one's.
    #[must_use]
    pub const fn tile_bytes(&self) -> usize {
        self.n_blocks() * self.tile_block_bytes()
    }

    /// Bytes that a tile has in the trailer.
    #[must_use]
    pub const fn tile_trailer_bytes(&self) -> usize {
        match self.layout {
            Layout::T5 => self.n_blocks() * t5::TILE_ROWS * 2,
            Layout::I2S | Layout::C2 | Layout::T3 => 0,
        }
    }

    /// Where the trailer begins.
    #[must_use]
    pub const fn trailer_offset(&self) -> usize {
        match self.layout {
            Layout::I2S => self.rows * (self.cols / 4),
            Layout::C2 | Layout::T3 | Layout::T5 => self.n_tiles() * self.tile_bytes(),
        }
    }

    /// Bytes of the whole packed matrix.
    #[must_use]
    pub const fn data_len(&self) -> usize {
        self.trailer_offset() + self.n_tiles() * self.tile_trailer_bytes()
    }

    /// Sums of some tiles with some vectors, one for each vector, block and row; nothing if a `usize` does not count them.
    pub(crate) fn n_sums(&self, n_tiles: usize, n_vectors: usize) -> Option<usize> {
        n_vectors.checked_mul(n_tiles)?.checked_mul(self.n_blocks())?.checked_mul(self.tile_rows())
    }

    /// The rows of `tiles` that exist.
    #[must_use]
    pub fn rows_of(&self, tiles: Range<usize>) -> Range<usize> {
        let end = (tiles.end * self.tile_rows()).min(self.rows);
        (tiles.start * self.tile_rows()).min(end)..end
    }

    /// Packs one tile. `trits` is `tile_rows x cols`, row-major, each -1, 0 or +1, with zeros in
    /// rows past the matrix's last; `body` is the tile's body and `trailer` its part of the
    /// trailer.
    ///
    /// # Panics
    /// A slice has the wrong length, or a value is no trit.
    pub fn pack_tile(&self, trits: &[i8], body: &mut [u8], trailer: &mut [u8]) {
        assert_eq!(trits.len(), self.tile_rows() * self.cols, "tile_rows x cols trits");
        assert!(trits.iter().all(|trit| (-1..=1).contains(trit)), "trits are -1, 0 or +1");
        assert_eq!(trailer.len(), self.tile_trailer_bytes(), "the tile's part of the trailer");
        if self.layout == Layout::I2S {
            assert!(body.len().is_multiple_of(self.cols / 4) && body.len() <= self.tile_bytes(), "whole rows");
            return i2s::pack(trits, self.cols, body);
        }
        assert_eq!(body.len(), self.tile_bytes(), "the tile's body");
        match self.layout {
            Layout::C2 => c2::pack_tile(self, trits, body),
            Layout::T3 => t3::pack_tile(self, trits, body),
            Layout::T5 => t5::pack_tile(self, trits, body, trailer),
            Layout::I2S => unreachable!("returned above"),
        }
    }

    /// Unpacks one row of a whole packed matrix. Bytes that no packing writes have the meaning
    /// that the layout's module gives them.
    ///
    /// # Panics
    /// There is no such row, `data` is not [`Geometry::data_len`] long, or `out` not `cols`.
    pub fn unpack_row(&self, data: &[u8], row: usize, out: &mut [i8]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(data.len(), self.data_len(), "a whole packed matrix");
        assert_eq!(out.len(), self.cols, "one trit for each column");
        match self.layout {
            Layout::I2S => i2s::unpack(&data[row * (self.cols / 4)..][..self.cols / 4], out),
            Layout::C2 => c2::unpack_row(self, data, row, out),
            Layout::T3 => t3::unpack_row(self, data, row, out),
            Layout::T5 => t5::unpack_row(self, data, row, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_that_addresses_do_not_reach_is_refused() {
        // Packed bytes of 2^30 rows and 2^18 columns: a quarter of the weights, or for T5 with a scale for each column one and two for
        // each weight.
        for (layout, block, bytes) in [(Layout::I2S, MAX_COLS, 1u64 << 46), (Layout::T5, 1, 3 << 48)] {
            let largest = Geometry::new(layout, MAX_ROWS, MAX_COLS, block);
            assert_eq!(largest.is_ok(), size_of::<usize>() == 8);
            let largest = Geometry { layout, rows: MAX_ROWS, cols: MAX_COLS, block };
            assert!(largest.fits(bytes) && !largest.fits(bytes - 1));
            assert!(!largest.fits(u32::MAX.into()));
        }
        assert!(Geometry { layout: Layout::I2S, rows: 1 << 20, cols: 1 << 13, block: 1 << 13 }.fits(u32::MAX.into()));
    }
}
