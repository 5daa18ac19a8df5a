//! Ternary tensors as trits and scales, whatever their packing.
//!
//! | type | weights | scale | packing of a block |
//! |---|---|---|---|
//! | I2_S | 128 | one f32 for the tensor, after the weights | 32 bytes; bits 7-6, 5-4, 3-2, 1-0 of byte `k` are weights `k`, `k+32`, `k+64`, `k+96` |
//! | I2_S, Arm | 64 | as above | 16 bytes; the same with steps of 16 |
//! | I2_S, rows4 | | as above | byte `c` of group `g` of four rows: the same bits are column `c` of rows `4g` to `4g+3` |
//! | TQ1_0 | 256 | f16 at byte 52 | five trits a byte, see [`tq1_0`] |
//! | TQ2_0 | 256 | f16 at byte 64 | per half: bits `2n`, `2n+1` of byte `m` are weight `m + 32n` |
//! | Q2_0 | 64 or 128 | f16 at byte 0 | four a byte, in order, low bits first |
//! | PQ2_0 | 128 | f16 at byte 0 | as Q2_0 |
//! | T5 | any | one f32, or f16 for 64, 128 or 256, after the weights | five trits a byte, 64 rows interleaved, see [`super::t5`] |
//!
//! Two-bit codes are the trit plus one. Code 3 is no trit: it is found by `code & code >> 1` over
//! whole rows, without a branch per weight, and refused.

use super::dequant::half_at;
use super::t5;
use super::tensor::Tensor;
use super::tensor_type::{I2S_TRAILER, TensorType};
use super::ternarise::{self, Floats, Ternarise};
use crate::error::{Error, Place, Result};
use crate::mmap::ByteView;
use std::borrow::Cow;
use std::ops::Range;
use tritone_kernels::format::t5::TILE_ROWS;

const DAMAGED: &str = "the file is damaged or in another layout, download it again";

/// A ternary matrix of `rows x cols`: weight (r, c) is `trit(r, c) * scale(r, c / block)`.
#[derive(Debug, Clone)]
pub struct TernaryTensor {
    tensor_type: TensorType,
    rows: usize,
    cols: usize,
    /// Bytes of packed weights of a row, scales included.
    row_bytes: usize,
    data: ByteView,
    /// The scale of a tensor that has only one.
    scale: Option<f32>,
    storage: Storage,
    place: Place,
}

/// Where trits and scales are.
#[derive(Debug, Clone)]
enum Storage {
    /// In rows of blocks of the type.
    Rows,
    /// In bytes that four rows share; the tensor knows their order.
    PackedRows(Box<Tensor>),
    T5(t5::Header),
    /// In floats that are not trits yet, and what becomes of them.
    Floats(Box<Tensor>, Floats),
}

impl TernaryTensor {
    pub(crate) fn new(tensor: &Tensor) -> Result<Self> {
        let tensor_type = tensor.tensor_type();
        if !tensor.is_ternary() {
            return Err(Error::Unsupported {
                at: Box::new(tensor.place()),
                what: format!("the tensor has type {}, but ternary weights are needed here", tensor_type.name()),
                fix: "convert the model to I2_S, TQ1_0, TQ2_0 or Q2_0".into(),
            });
        }
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let storage = match tensor.ternarise() {
            Some(Ternarise::Packed { .. }) => Storage::PackedRows(Box::new(tensor.clone())),
            Some(rule) => Storage::Floats(Box::new(tensor.clone()), ternarise::floats(tensor, rule)?),
            None if tensor_type == TensorType::T5 => {
                let header = t5::Header::read(tensor.data(), rows, cols).map_err(|what| Error::Malformed {
                    at: Box::new(tensor.place()),
                    what,
                    fix: DAMAGED,
                })?;
                Storage::T5(header)
            }
            None => Storage::Rows,
        };
        let mut ternary = Self {
            tensor_type,
            rows,
            cols,
            row_bytes: match storage {
                Storage::Rows => tensor_type.row_bytes(cols).expect("checked when the file was opened"),
                Storage::PackedRows(_) | Storage::T5(_) | Storage::Floats(..) => cols,
            },
            data: tensor.data().clone(),
            scale: None,
            storage,
            place: tensor.place(),
        };
        if tensor_type == TensorType::I2SRows4 && !rows.is_multiple_of(4) {
            return Err(Error::Unsupported {
                at: Box::new(tensor.place()),
                what: format!("{rows} rows can't be cut in groups of four, as this layout of I2_S has them"),
                fix: "choose another --i2s-layout".into(),
            });
        }
        ternary.scale = match (&ternary.storage, tensor.ternarise()) {
            (Storage::PackedRows(_), Some(Ternarise::Packed { multiplier })) => Some(multiplier),
            (Storage::Floats(_, floats), _) => floats.tensor_scale(),
            (Storage::T5(header), _) if header.block() == 0 => Some(ternary.scale_at(header.scales_offset())?),
            _ if tensor_type.is_i2s() => Some(ternary.scale_at(ternary.data.len() - I2S_TRAILER)?),
            _ => None,
        };
        Ok(ternary)
    }

    /// How the weights are packed.
    pub fn tensor_type(&self) -> TensorType {
        self.tensor_type
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Weights of a row that share a scale; the whole row where the tensor has one scale.
    pub fn block(&self) -> usize {
        match &self.storage {
            _ if self.scale.is_some() => self.cols,
            Storage::T5(header) => header.block(),
            Storage::Floats(_, Floats::Blocks(block)) => *block,
            _ => self.tensor_type.block_weights(),
        }
    }

    /// Scales of a row.
    pub fn blocks_per_row(&self) -> usize {
        self.cols / self.block()
    }

    /// The one scale of the tensor, a multiplier; nothing if there is one per block.
    pub fn tensor_scale(&self) -> Option<f32> {
        self.scale
    }

    /// The packed weights of a T5 tensor without header and scales, as the kernels read them in
    /// place. They are not checked, see [`TernaryTensor::check`].
    pub fn t5(&self) -> Option<ByteView> {
        let Storage::T5(header) = &self.storage else { return None };
        self.data.view(t5::HEADER_BYTES..header.scales_offset())
    }

    /// The packed weights of an I2_S tensor in the published layout, without its scale:
    /// `rows * cols / 4` bytes, as the kernels read them in place. Codes are not checked, see [`TernaryTensor::check`].
    pub fn i2s(&self) -> Option<ByteView> {
        if self.tensor_type != TensorType::I2S {
            return None;
        }
        self.data.view(0..self.data.len() - I2S_TRAILER)
    }

    /// Some rows as the published layout of I2_S has them, `cols / 4` bytes each, for types that are nearly that already: I2_S, and
    /// TQ2_0, whose bytes have the same four weights in the opposite order. Nothing for others. Codes of I2_S are not checked.
    ///
    /// # Errors
    ///
    /// As [`TernaryTensor::row_trits`].
    ///
    /// # Panics
    ///
    /// If there are no such rows.
    pub fn i2s_rows(&self, rows: Range<usize>) -> Result<Option<Cow<'_, [u8]>>> {
        if self.tensor_type == TensorType::I2S {
            return Ok(Some(Cow::Borrowed(&self.data[rows.start * self.row_bytes..rows.end * self.row_bytes])));
        }
        if self.tensor_type != TensorType::Tq2_0 {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(rows.len() * self.cols / 4);
        for row in rows {
            let bytes = self.row(row);
            self.check_row(row, bytes)?;
            for (block, _scale) in bytes.as_chunks::<66>().0.iter().map(|block| block.split_at(64)) {
                out.extend(block.iter().map(|&byte| reversed(byte)));
            }
        }
        Ok(Some(Cow::Owned(out)))
    }

    /// Writes the trits of row `row`, each -1, 0 or +1, to `out`, which has `cols` elements.
    ///
    /// # Errors
    ///
    /// `Malformed` if the row holds a code that is no trit.
    ///
    /// # Panics
    ///
    /// If there is no such row or `out` has another length.
    pub fn row_trits(&self, row: usize, out: &mut [i8]) -> Result<()> {
        assert_eq!(out.len(), self.cols);
        match &self.storage {
            Storage::Rows | Storage::PackedRows(_) => {}
            Storage::T5(header) => {
                self.check_t5(header, row / TILE_ROWS, row % TILE_ROWS..row % TILE_ROWS + 1)?;
                header.geometry().unpack_row(self.t5_packed(header), row, out);
                return Ok(());
            }
            Storage::Floats(tensor, floats) => {
                let mut values = vec![0.0; self.cols];
                tensor.dequantize_float_row(row, &mut values);
                floats.trits(&values, out);
                return Ok(());
            }
        }
        let bytes = self.row(row);
        self.check_row(row, bytes)?;
        match self.tensor_type {
            TensorType::I2S => decode(bytes, out, i2s::<32, 128>),
            TensorType::I2SArm => decode(bytes, out, i2s::<16, 64>),
            TensorType::I2SRows4 => row_of_four(bytes, row % 4, out),
            // The first quarter of the rows is in the low bits.
            TensorType::PackedRows => row_of_four(bytes, 3 - self.stored_row(row) / (self.rows / 4), out),
            TensorType::Tq1_0 => decode(bytes, out, tq1_0),
            TensorType::Tq2_0 => decode(bytes, out, tq2_0),
            TensorType::Q2_0 => decode(bytes, out, q2_0::<18, 64>),
            _ => decode(bytes, out, q2_0::<34, 128>),
        }
        Ok(())
    }

    /// The scale of block `block` of row `row`.
    ///
    /// # Errors
    ///
    /// `Malformed` if it is not finite.
    ///
    /// # Panics
    ///
    /// If there is no such row or block.
    pub fn scale(&self, row: usize, block: usize) -> Result<f32> {
        assert!(block < self.blocks_per_row());
        if let Some(scale) = self.tensor_scale() {
            return Ok(scale);
        }
        match &self.storage {
            Storage::Rows | Storage::PackedRows(_) => {}
            Storage::T5(header) => {
                assert!(row < self.rows);
                let at = header.scales_offset() + 2 * (row * self.blocks_per_row() + block);
                return self.finite(half_at(&self.data, at), || format!("of row {row}, block {block}"));
            }
            Storage::Floats(tensor, _) => {
                let mut values = vec![0.0; self.block()];
                tensor.dequantize_floats(row, block * values.len(), &mut values);
                return Ok(values.iter().fold(0.0, |scale: f32, value| scale.max(value.abs())));
            }
        }
        let size = self.tensor_type.block_bytes();
        let bytes = &self.row(row)[block * size..][..size];
        let at = match self.tensor_type {
            TensorType::Tq1_0 | TensorType::Tq2_0 => size - 2,
            _ => 0,
        };
        self.finite(half_at(bytes, at), || format!("of row {row}, block {block}"))
    }

    /// The scale that all blocks have, a multiplier, or nothing if they differ. Blocks of nothing but zeros don't count: whatever
    /// their scale, and quantisers give them 0, they are the same. So do files of formats with scales for blocks look where the
    /// model has one for each matrix, as all that are trained as BitNet have.
    ///
    /// # Errors
    ///
    /// As [`TernaryTensor::row_trits`] and [`TernaryTensor::scale`].
    pub fn common_scale(&self) -> Result<Option<f32>> {
        if self.scale.is_some() {
            return Ok(self.scale);
        }
        let mut common: Option<f32> = None;
        for row in 0..self.rows {
            let mut trits = Vec::new();
            for block in 0..self.blocks_per_row() {
                let scale = self.scale(row, block)?;
                if common.is_some_and(|common| common.to_bits() == scale.to_bits()) {
                    continue;
                }
                if trits.is_empty() {
                    trits = vec![0; self.cols];
                    self.row_trits(row, &mut trits)?;
                }
                let zeros = trits[block * self.block()..][..self.block()].iter().all(|trit| *trit == 0);
                match common {
                    _ if zeros => {}
                    Some(_) => return Ok(None),
                    None => common = Some(scale),
                }
            }
        }
        Ok(Some(common.unwrap_or(0.0)))
    }

    /// Writes row `row` as floats, trit times scale, to `out`, which has `cols` elements.
    ///
    /// # Errors
    ///
    /// As [`TernaryTensor::row_trits`] and [`TernaryTensor::scale`].
    ///
    /// # Panics
    ///
    /// If there is no such row or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let mut trits = vec![0; self.cols];
        self.row_trits(row, &mut trits)?;
        assert_eq!(out.len(), self.cols);
        let size = self.block();
        let blocks = trits.chunks_exact(size).zip(out.chunks_exact_mut(size));
        for (block, (trits, out)) in blocks.enumerate() {
            let scale = self.scale(row, block)?;
            for (o, &t) in out.iter_mut().zip(trits) {
                *o = f32::from(t) * scale;
            }
        }
        Ok(())
    }

    /// Reads everything once and refuses the tensor if a code is no trit or a scale is not
    /// finite: what `row_trits` and `scale` check, for users of [`TernaryTensor::i2s`] and
    /// [`TernaryTensor::t5`].
    ///
    /// # Errors
    ///
    /// `Malformed`, naming the first bad row.
    pub fn check(&self) -> Result<()> {
        for row in 0..self.rows {
            match &self.storage {
                Storage::Rows | Storage::PackedRows(_) => self.check_row(row, self.row(row))?,
                Storage::T5(header) if row.is_multiple_of(TILE_ROWS) => {
                    self.check_t5(header, row / TILE_ROWS, 0..TILE_ROWS)?;
                }
                Storage::T5(_) => {}
                // Everything was read when the scales were found.
                Storage::Floats(..) => return Ok(()),
            }
            if self.tensor_scale().is_none() {
                for block in 0..self.blocks_per_row() {
                    self.scale(row, block)?;
                }
            }
        }
        Ok(())
    }

    /// How many trits are 0.
    ///
    /// # Errors
    ///
    /// As [`TernaryTensor::row_trits`].
    pub fn count_zeros(&self) -> Result<u64> {
        let mut trits = vec![0; self.cols];
        let mut zeros = 0;
        for row in 0..self.rows {
            self.row_trits(row, &mut trits)?;
            zeros += trits.iter().filter(|&&t| t == 0).count() as u64;
        }
        Ok(zeros)
    }

    /// The bytes in which a row lies, those of its three neighbours among them if they share it.
    fn row(&self, row: usize) -> &[u8] {
        assert!(row < self.rows);
        if self.tensor_type == TensorType::I2SRows4 {
            return &self.data[row / 4 * self.cols..][..self.cols];
        }
        if self.tensor_type == TensorType::PackedRows {
            return &self.data[self.stored_row(row) % (self.rows / 4) * self.cols..][..self.cols];
        }
        &self.data[row * self.row_bytes..][..self.row_bytes]
    }

    /// Which row of the stored ones this is.
    fn stored_row(&self, row: usize) -> usize {
        match &self.storage {
            Storage::PackedRows(tensor) => tensor.stored_row(row),
            _ => row,
        }
    }

    /// The scale of the tensor, at byte `at` of its data.
    fn scale_at(&self, at: usize) -> Result<f32> {
        let bytes = self.data[at..].first_chunk().expect("the scale");
        self.finite(f32::from_le_bytes(*bytes), || "of the tensor".into())
    }

    fn t5_packed(&self, header: &t5::Header) -> &[u8] {
        &self.data[t5::HEADER_BYTES..header.scales_offset()]
    }

    fn check_t5(&self, header: &t5::Header, tile: usize, rows: Range<usize>) -> Result<()> {
        header.check(self.t5_packed(header), tile, rows).map_err(|(row, what)| Error::Malformed {
            at: Box::new(self.place.clone()),
            what: format!("row {row} {what}"),
            fix: DAMAGED,
        })
    }

    fn finite(&self, scale: f32, which: impl Fn() -> String) -> Result<f32> {
        if scale.is_finite() {
            return Ok(scale);
        }
        Err(Error::Malformed {
            at: Box::new(self.place.clone()),
            what: format!("the scale {} is {scale}", which()),
            fix: DAMAGED,
        })
    }

    fn check_row(&self, row: usize, bytes: &[u8]) -> Result<()> {
        let bad = match self.tensor_type {
            TensorType::I2S | TensorType::I2SArm | TensorType::I2SRows4 | TensorType::PackedRows => code_three(bytes),
            // All 256 values of a byte decode to trits.
            TensorType::Tq1_0 => false,
            TensorType::Tq2_0 => any_block::<66>(bytes, |b| code_three(&b[..64])),
            TensorType::Q2_0 => any_block::<18>(bytes, |b| code_three(&b[2..])),
            _ => any_block::<34>(bytes, |b| code_three(&b[2..])),
        };
        if !bad {
            return Ok(());
        }
        Err(Error::Malformed {
            at: Box::new(self.place.clone()),
            what: format!("row {row} holds the code 3, so this {} tensor is not ternary", self.tensor_type.name()),
            fix: DAMAGED,
        })
    }
}

fn any_block<const N: usize>(bytes: &[u8], bad: impl Fn(&[u8; N]) -> bool) -> bool {
    bytes.as_chunks().0.iter().fold(false, |any, b| any | bad(b))
}

/// Whether one of the four codes of one of the bytes is 3.
fn code_three(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |any, &b| any | (b & b >> 1)) & 0x55 != 0
}

/// The four codes of a byte, the last first.
fn reversed(byte: u8) -> u8 {
    let halves = byte.rotate_left(4);
    (halves & 0x33) << 2 | halves >> 2 & 0x33
}

fn decode<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    out: &mut [i8],
    block: impl Fn(&[u8; BYTES], &mut [i8; WEIGHTS]),
) {
    let (bytes, out) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    for (b, o) in bytes.iter().zip(out) {
        block(b, o);
    }
}

fn i2s<const BYTES: usize, const WEIGHTS: usize>(bytes: &[u8; BYTES], out: &mut [i8; WEIGHTS]) {
    for (n, out) in out.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
        row_of_four(bytes, n, out);
    }
}

/// The trits that have place `n` in their bytes, from the top.
fn row_of_four(bytes: &[u8], n: usize, out: &mut [i8]) {
    for (o, &byte) in out.iter_mut().zip(bytes) {
        *o = (byte >> (6 - 2 * n) & 3) as i8 - 1;
    }
}

fn tq2_0(bytes: &[u8; 66], out: &mut [i8; 256]) {
    let halves = bytes.as_chunks::<32>().0.iter();
    for (bytes, out) in halves.zip(out.as_chunks_mut::<128>().0) {
        for (n, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (o, &byte) in out.iter_mut().zip(bytes) {
                *o = (byte >> (2 * n) & 3) as i8 - 1;
            }
        }
    }
}

fn q2_0<const BYTES: usize, const WEIGHTS: usize>(bytes: &[u8; BYTES], out: &mut [i8; WEIGHTS]) {
    for (out, &byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(&bytes[2..]) {
        *out = FOUR[usize::from(byte)];
    }
}

/// The four trits of a byte, low bits first.
const FOUR: [[i8; 4]; 256] = {
    let mut table = [[0; 4]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut n = 0;
        while n < 4 {
            table[byte][n] = (byte >> (2 * n) & 3) as i8 - 1;
            n += 1;
        }
        byte += 1;
    }
    table
};

/// Five trits a byte, most significant first, as a fraction: the byte is `ceil(q * 256 / 243)`, so
/// `byte * 3^n mod 256` has the fraction that starts at digit n, and its product with 3 has the
/// digit above the low eight bits. Bytes 0-31 hold weights 0-159, strided by 32; bytes 32-47 hold
/// weights 160-239, strided by 16; bytes 48-51 hold weights 240-255, strided by 4, four each.
fn tq1_0(bytes: &[u8; 54], out: &mut [i8; 256]) {
    let (a, rest) = out.split_at_mut(160);
    let (b, c) = rest.split_at_mut(80);
    digits(&bytes[..32], a);
    digits(&bytes[32..48], b);
    digits(&bytes[48..52], c);
}

fn digits(bytes: &[u8], out: &mut [i8]) {
    let mut power = 1_u8;
    for out in out.chunks_exact_mut(bytes.len()) {
        for (o, &byte) in out.iter_mut().zip(bytes) {
            let fraction = byte.wrapping_mul(power);
            *o = ((u16::from(fraction) * 3) >> 8) as i8 - 1;
        }
        power = power.wrapping_mul(3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_trits_of_a_byte_come_back() {
        for q in 0..243_u32 {
            let byte = (q * 256).div_ceil(243) as u8;
            let mut trits = [0; 5];
            digits(&[byte], &mut trits);
            let back = trits.iter().fold(0, |v, &t| v * 3 + (t + 1) as u32);
            assert_eq!(back, q);
        }
    }

    #[test]
    fn every_byte_of_five_trits_is_total() {
        for byte in 0..=255 {
            let mut trits = [0; 5];
            digits(&[byte], &mut trits);
            assert!(trits.iter().all(|t| (-1..=1).contains(t)), "{byte}");
        }
    }

    #[test]
    fn codes_of_a_byte_are_reversed() {
        for byte in 0..=255_u8 {
            let codes: Vec<u8> = (0..4).map(|n| byte >> (2 * n) & 3).collect();
            let back: Vec<u8> = (0..4).map(|n| reversed(byte) >> (6 - 2 * n) & 3).collect();
            assert_eq!(codes, back, "{byte}");
        }
    }

    #[test]
    fn code_three_is_found_in_every_position() {
        for byte in 0..=255_u8 {
            let expected = (0..4).any(|n| byte >> (2 * n) & 3 == 3);
            assert_eq!(code_three(&[0, byte, 0]), expected, "{byte}");
        }
    }
}
