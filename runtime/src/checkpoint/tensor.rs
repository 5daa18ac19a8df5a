//! One tensor of a checkpoint: its shape, its type and its bytes.

use super::{I2sLayout, TensorType, TernaryTensor, dequant};
use crate::error::{Error, Place, Result};
use crate::mmap::ByteView;
use std::sync::Arc;

/// A tensor of an open file. It keeps the file's bytes alive, so it may outlive the [`super::Checkpoint`].
///
/// The first dimension varies fastest: a matrix of `rows x cols`, row-major, has the dimensions
/// `[cols, rows]`.
#[derive(Debug, Clone)]
pub struct Tensor {
    name: String,
    tensor_type: TensorType,
    dims: Vec<usize>,
    rows: usize,
    cols: usize,
    offset: u64,
    span: usize,
    data: ByteView,
    file: Arc<str>,
}

impl Tensor {
    /// A tensor whose `data`, at byte `offset` of `file`, is as long as its type and its
    /// dimensions (one to four, none 0) say.
    pub(crate) fn new(
        file: Arc<str>,
        name: String,
        tensor_type: TensorType,
        dims: Vec<usize>,
        offset: u64,
        span: usize,
        data: ByteView,
    ) -> Self {
        let cols = dims[0];
        let rows = dims[1..].iter().product();
        Self { name, tensor_type, dims, rows, cols, offset, span, data, file }
    }

    /// Its name: `blk.0.attn_q.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type.
    pub fn tensor_type(&self) -> TensorType {
        self.tensor_type
    }

    /// The same bytes, read in another layout of I2_S. Other types stay what they are.
    pub(crate) fn set_i2s_layout(&mut self, layout: I2sLayout) {
        if self.tensor_type.is_i2s() {
            self.tensor_type = layout.tensor_type();
        }
    }

    /// One to four dimensions, none 0, the fastest first.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Weights in a row: the first dimension.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Byte of the file at which the data starts; a multiple of the file's alignment.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes from this tensor to the next, or to the end of the file: the data and what pads it.
    pub fn span(&self) -> usize {
        self.span
    }

    /// The data as it stands in the file.
    pub fn data(&self) -> &ByteView {
        &self.data
    }

    /// Refuses a tensor that does not have exactly these dimensions, the fastest first.
    ///
    /// # Errors
    ///
    /// `Shape`.
    pub fn expect_dims(&self, dims: &[usize]) -> Result<()> {
        if self.dims == dims {
            return Ok(());
        }
        Err(Error::Shape {
            at: Box::new(self.place()),
            found: format!("{:?}", self.dims),
            expected: format!("{dims:?}"),
        })
    }

    /// Where the tensor is, for messages.
    pub fn place(&self) -> Place {
        Place::file(&*self.file).at(self.offset).tensor(self.name.clone())
    }

    /// The tensor as trits and scales.
    ///
    /// # Errors
    ///
    /// `Unsupported` if its type is not ternary, `Malformed` if the scale of an I2_S tensor is not
    /// finite.
    pub fn ternary(&self) -> Result<TernaryTensor> {
        TernaryTensor::new(self)
    }

    /// Writes row `row` as floats to `out`, which has `cols` elements.
    ///
    /// # Errors
    ///
    /// For ternary types as [`TernaryTensor::dequantize_row`]; others cannot fail.
    ///
    /// # Panics
    ///
    /// If there is no such row or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        if self.tensor_type.is_ternary() {
            return self.ternary()?.dequantize_row(row, out);
        }
        self.dequantize_float_row(row, out);
        Ok(())
    }

    /// All weights as floats, row after row.
    ///
    /// # Errors
    ///
    /// As [`Tensor::dequantize_row`], and `Memory`.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        let n = self.rows * self.cols;
        out.try_reserve_exact(n).map_err(|_| Error::Memory {
            what: format!("tensor `{}` as floats", crate::error::shown(&self.name)),
            bytes: (n as u64).saturating_mul(4),
        })?;
        out.resize(n, 0.0);
        let rows = out.chunks_exact_mut(self.cols).enumerate();
        if self.tensor_type.is_ternary() {
            let ternary = self.ternary()?;
            for (row, values) in rows {
                ternary.dequantize_row(row, values)?;
            }
        } else {
            for (row, values) in rows {
                self.dequantize_float_row(row, values);
            }
        }
        Ok(out)
    }

    fn dequantize_float_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols);
        let row_bytes = self.data.len() / self.rows;
        let bytes = &self.data[row * row_bytes..][..row_bytes];
        dequant::dequantize_row(self.tensor_type, bytes, out);
    }
}
