//! Writes tensors: trits and scales as I2_S, TQ1_0, TQ2_0 and T5 ([`crate::checkpoint::t5`]), floats as F16, Q8_0 and Q6_K.
//!
//! A [`TernaryEncoder`] takes a matrix row by row and hands out its bytes as they become final, so
//! a tensor never lies in memory as a whole. Nothing is rounded in secret: a scale that the target
//! cannot hold is refused, except that the two TQ types hold scales in half precision by
//! definition.
//!
//! ```
//! use tritone_runtime::error::Place;
//! use tritone_runtime::quantize::{ScaleGrid, TernaryEncoder, TernaryFormat};
//!
//! let mut bytes = Vec::new();
//! let mut encoder = TernaryEncoder::new(TernaryFormat::I2S, 2, 128, ScaleGrid::Tensor, Place::file("m.gguf"))?;
//! for _ in 0..2 {
//!     encoder.push_row(&[1; 128], &[0.5], &mut bytes)?;
//! }
//! assert_eq!(encoder.len(), 2 * 32 + 32);
//! encoder.finish(&mut bytes);
//! assert_eq!(bytes.len(), 2 * 32 + 32);
//! # Ok::<(), tritone_runtime::error::Error>(())
//! ```

mod float;
mod q6_k;
mod ternary;
mod tiles;

pub use float::quantize_row;

use crate::checkpoint::t5;
use crate::error::{Error, Place, Result};
use half::f16;
use tiles::TileWriter;

/// Bytes after the packed weights of an I2_S tensor.
const I2S_TRAILER: usize = 32;

/// A type that ternary weights can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TernaryFormat {
    /// Two bits a weight, one scale for the tensor; 128 columns at a time.
    I2S,
    /// 256 weights in 54 bytes, a half-precision scale for each block.
    Tq1_0,
    /// 256 weights in 66 bytes, a half-precision scale for each block.
    Tq2_0,
    /// Five trits a byte as the kernels read them, see [`crate::checkpoint::t5`].
    T5,
}

impl TernaryFormat {
    /// The name as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::I2S => "i2_s",
            Self::Tq1_0 => "tq1_0",
            Self::Tq2_0 => "tq2_0",
            Self::T5 => "t5",
        }
    }

    /// The tensor type's number in GGUF.
    pub fn type_id(self) -> u32 {
        match self {
            Self::I2S => 36,
            Self::Tq1_0 => 34,
            Self::Tq2_0 => 35,
            Self::T5 => t5::TYPE_ID,
        }
    }

    /// `general.file_type` of files whose matrices have this type: the numbers of bitnet.cpp (I2_S)
    /// and llama.cpp (TQ1_0, TQ2_0), and the tensor type's own for T5.
    pub fn file_type(self) -> u32 {
        match self {
            Self::I2S => 40,
            Self::Tq1_0 => 36,
            Self::Tq2_0 => 37,
            Self::T5 => t5::TYPE_ID,
        }
    }

    /// Bytes to whose multiples tensor data is aligned in files of this type.
    pub fn alignment(self) -> usize {
        match self {
            Self::T5 => t5::ALIGNMENT,
            Self::I2S | Self::Tq1_0 | Self::Tq2_0 => 32,
        }
    }
}

/// How many scales a matrix has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleGrid {
    /// One.
    Tensor,
    /// One for each block of this many columns in each row.
    Blocks(usize),
}

impl ScaleGrid {
    /// Scales of a row of `cols` columns, at least one.
    pub fn per_row(self, cols: usize) -> usize {
        match self {
            Self::Tensor => 1,
            Self::Blocks(block) => cols / block,
        }
    }
}

/// Packs one ternary matrix, row after row.
#[derive(Debug)]
pub struct TernaryEncoder {
    format: TernaryFormat,
    rows: usize,
    cols: usize,
    grid: ScaleGrid,
    place: Place,
    rows_done: usize,
    /// The scale of the rows so far, for formats with one for the tensor.
    scale: f32,
    tiles: Option<TileWriter>,
}

impl TernaryEncoder {
    /// Starts a matrix of `rows x cols`. `place` names it in messages.
    ///
    /// # Errors
    /// `Unsupported` if the format cannot hold such a matrix; the message names one that can.
    pub fn new(format: TernaryFormat, rows: usize, cols: usize, grid: ScaleGrid, place: Place) -> Result<Self> {
        let refused = |what: String, fix: &str| {
            Err(Error::Unsupported { at: Box::new(place.clone()), what, fix: fix.to_owned() })
        };
        if rows == 0 || cols == 0 || rows.checked_mul(cols).is_none() {
            return refused(format!("a matrix of {rows} x {cols} cannot be written"), "the source is damaged");
        }
        if let ScaleGrid::Blocks(block) = grid
            && (block == 0 || !cols.is_multiple_of(block))
        {
            return refused(
                format!("rows of {cols} weights are no whole number of scale blocks of {block}"),
                "the source is damaged",
            );
        }
        let mut tiles = None;
        match format {
            TernaryFormat::I2S if !cols.is_multiple_of(ternary::I2S_BLOCK) => {
                return refused(
                    format!("rows of {cols} weights are no whole number of the blocks of 128 that I2_S has"),
                    "t5 takes rows of any length",
                );
            }
            TernaryFormat::Tq1_0 | TernaryFormat::Tq2_0 if !cols.is_multiple_of(ternary::TQ_BLOCK) => {
                return refused(
                    format!(
                        "rows of {cols} weights are no whole number of the blocks of 256 that {} has",
                        format.name()
                    ),
                    "t5 takes rows of any length, i2_s multiples of 128",
                );
            }
            TernaryFormat::I2S | TernaryFormat::Tq1_0 | TernaryFormat::Tq2_0 => {}
            TernaryFormat::T5 => {
                let block = match grid {
                    ScaleGrid::Tensor => 0,
                    ScaleGrid::Blocks(block) => block,
                };
                match t5::Header::new(rows, cols, block) {
                    Ok(header) => tiles = Some(TileWriter::new(header)),
                    Err(what) => {
                        return refused(what, "i2_s holds one scale for the tensor, tq2_0 one for 256 weights");
                    }
                }
            }
        }
        Ok(Self { format, rows, cols, grid, place, rows_done: 0, scale: 0.0, tiles })
    }

    /// Bytes of the whole tensor.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match (&self.tiles, self.format) {
            (Some(tiles), _) => tiles.header().tensor_bytes(),
            (None, TernaryFormat::I2S) => self.rows * self.cols / 4 + I2S_TRAILER,
            (None, TernaryFormat::Tq1_0) => self.rows * self.cols / ternary::TQ_BLOCK * ternary::TQ1_0_BYTES,
            (None, _) => self.rows * self.cols / ternary::TQ_BLOCK * ternary::TQ2_0_BYTES,
        }
    }

    /// Takes the next row: `cols` trits, each -1, 0 or +1, and its scales, [`ScaleGrid::per_row`] of
    /// them, or the scale of the tensor again. What is final of the tensor is appended to `out`.
    ///
    /// # Errors
    /// `Unsupported` if a scale cannot be held: different ones within a block of the format, or one
    /// that half precision cannot express.
    ///
    /// # Panics
    /// There are more rows than were announced, a slice has the wrong length, or a value is no trit.
    pub fn push_row(&mut self, trits: &[i8], scales: &[f32], out: &mut Vec<u8>) -> Result<()> {
        assert!(self.rows_done < self.rows, "{} rows were announced", self.rows);
        assert_eq!(trits.len(), self.cols, "one trit for each column");
        assert_eq!(scales.len(), self.grid.per_row(self.cols), "the scales of a row");
        match self.format {
            TernaryFormat::I2S => {
                self.one_scale(scales)?;
                ternary::i2_s(trits, out);
            }
            TernaryFormat::Tq1_0 | TernaryFormat::Tq2_0 => {
                let pack = if self.format == TernaryFormat::Tq1_0 { ternary::tq1_0 } else { ternary::tq2_0 };
                for (b, block) in trits.as_chunks().0.iter().enumerate() {
                    pack(block, self.half(self.scale_of(scales, b)?)?, out);
                }
            }
            TernaryFormat::T5 => {
                let mut halves = Vec::new();
                match self.grid {
                    ScaleGrid::Tensor => self.one_scale(scales)?,
                    ScaleGrid::Blocks(_) => {
                        for &scale in scales {
                            halves.push(self.exact_half(scale)?);
                        }
                    }
                }
                self.tiles.as_mut().expect("made with the format").push_row(trits, &halves, out);
            }
        }
        self.rows_done += 1;
        Ok(())
    }

    /// Appends what is left of the tensor.
    ///
    /// # Panics
    /// There were fewer rows than announced.
    pub fn finish(self, out: &mut Vec<u8>) {
        assert_eq!(self.rows_done, self.rows, "all rows");
        match self.tiles {
            Some(tiles) => tiles.finish(self.scale, out),
            None if self.format == TernaryFormat::I2S => {
                out.extend(self.scale.to_le_bytes());
                out.extend([0; I2S_TRAILER - 4]);
            }
            None => {}
        }
    }

    /// Checks that all scales so far are one.
    fn one_scale(&mut self, scales: &[f32]) -> Result<()> {
        if self.rows_done == 0 {
            self.scale = scales[0];
        }
        match scales.iter().find(|scale| scale.to_bits() != self.scale.to_bits()) {
            None => Ok(()),
            Some(other) => Err(self.refused(
                format!(
                    "{} has one scale for a tensor, but this one has several ({} and {other})",
                    self.format.name(),
                    self.scale
                ),
                "t5 keeps the scales of blocks",
            )),
        }
    }

    /// The scale of block `b` of 256 columns, whatever blocks the source has.
    fn scale_of(&self, scales: &[f32], b: usize) -> Result<f32> {
        let ScaleGrid::Blocks(block) = self.grid else {
            return Ok(scales[0]);
        };
        let columns = b * ternary::TQ_BLOCK..(b + 1) * ternary::TQ_BLOCK;
        let within = &scales[columns.start / block..columns.end.div_ceil(block)];
        if within.iter().all(|scale| scale.to_bits() == within[0].to_bits()) {
            return Ok(within[0]);
        }
        Err(self.refused(
            format!("{} has one scale for 256 weights, but here every {block} have their own", self.format.name()),
            "t5 keeps the scales of blocks",
        ))
    }

    /// The scale as the TQ types hold it, rounded by at most half a unit of 11 bits.
    fn half(&self, scale: f32) -> Result<f16> {
        let half = f16::from_f32(scale);
        let error = (half.to_f32() - scale).abs();
        if half.is_finite() && error <= scale.abs() / 2048.0 {
            return Ok(half);
        }
        Err(self.refused(
            format!("the scale {scale} is out of the range of half precision, which {} has", self.format.name()),
            "i2_s and t5 hold one scale for the tensor in single precision",
        ))
    }

    fn exact_half(&self, scale: f32) -> Result<f16> {
        let half = f16::from_f32(scale);
        if half.to_f32().to_bits() == scale.to_bits() {
            return Ok(half);
        }
        Err(self.refused(
            format!("the scale {scale} of a block is not exact in half precision, which t5 has for blocks"),
            "use another source: published models hold scales of blocks in half precision",
        ))
    }

    fn refused(&self, what: String, fix: &str) -> Error {
        Error::Unsupported { at: Box::new(self.place.clone()), what, fix: fix.to_owned() }
    }
}
