//! Tensor types: the blocks that weights are stored in.

/// A tensor type that Tritone reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q5_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    /// 256 trits in 54 bytes.
    Tq1_0,
    /// 256 trits in 66 bytes.
    Tq2_0,
    /// Two bits a weight and one scale for the whole tensor, in the layout of published files.
    I2S,
    /// I2_S as builds on Arm wrote it; the file says I2_S.
    I2SArm,
    /// I2_S with four rows in a byte; the file says I2_S.
    I2SRows4,
    /// 64 weights in 18 bytes.
    Q2_0,
    /// The type of older files with the same number: 128 weights in 34 bytes.
    Q2_0G128,
    /// 128 weights in 34 bytes.
    Pq2_0,
}

/// Bytes after the packed weights of an I2_S tensor; the first four are the scale.
pub(crate) const I2S_TRAILER: usize = 32;

impl TensorType {
    /// The number in the file.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q5_0 => 6,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
            Self::Tq1_0 => 34,
            Self::Tq2_0 => 35,
            Self::I2S | Self::I2SArm | Self::I2SRows4 => 36,
            Self::Q2_0 | Self::Q2_0G128 => 42,
            Self::Pq2_0 => 142,
        }
    }

    /// The name, as other tools print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q5_0 => "Q5_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
            Self::I2S => "I2_S",
            Self::I2SArm => "I2_S (Arm layout)",
            Self::I2SRows4 => "I2_S (four rows in a byte)",
            Self::Q2_0 => "Q2_0",
            Self::Q2_0G128 => "Q2_0 (groups of 128)",
            Self::Pq2_0 => "PQ2_0",
        }
    }

    /// Weights in one block. Rows are whole numbers of blocks.
    pub fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => 32,
            Self::Q2_0 | Self::I2SArm => 64,
            Self::I2S | Self::Q2_0G128 | Self::Pq2_0 => 128,
            // Of one row; the four rows of a group share the bytes.
            Self::I2SRows4 => 4,
            Self::Q4K | Self::Q5K | Self::Q6K | Self::Tq1_0 | Self::Tq2_0 => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::Q2_0 => 18,
            Self::Q5_0 => 22,
            Self::Q8_0 | Self::Q2_0G128 | Self::Pq2_0 => 34,
            Self::I2S => 32,
            Self::I2SArm => 16,
            Self::I2SRows4 => 1,
            Self::Tq1_0 => 54,
            Self::Tq2_0 => 66,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether every weight is -1, 0 or +1 times a scale. Q2_0 can also hold +2, which
    /// [`super::TernaryTensor`] refuses when it meets one.
    pub fn is_ternary(self) -> bool {
        self.is_i2s() || matches!(self, Self::Tq1_0 | Self::Tq2_0 | Self::Q2_0 | Self::Q2_0G128 | Self::Pq2_0)
    }

    /// Whether this is I2_S in one of its layouts.
    pub fn is_i2s(self) -> bool {
        matches!(self, Self::I2S | Self::I2SArm | Self::I2SRows4)
    }

    /// Bytes of one row of `cols` weights, or nothing if `cols` is no whole number of
    /// blocks or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_weights()) {
            return None;
        }
        (cols / self.block_weights()).checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor of `rows` times `cols` weights, with the trailer of I2_S. Nothing if
    /// `cols` is no whole number of blocks or the size overflows.
    pub fn tensor_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        let packed = self.row_bytes(cols)?.checked_mul(rows)?;
        match self {
            Self::I2S | Self::I2SArm | Self::I2SRows4 => packed.checked_add(I2S_TRAILER),
            _ => Some(packed),
        }
    }
}

/// Which weights share a byte in an I2_S tensor. The file does not say, and every layout holds the
/// same codes in other places: only what the model says tells them apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum I2sLayout {
    /// Weights `k`, `k+32`, `k+64`, `k+96` of 128: the published files, written on x86.
    #[default]
    Published,
    /// Weights `k`, `k+16`, `k+32`, `k+48` of 64: written by builds on Arm.
    Arm,
    /// The same column of four rows: one build option.
    Rows4,
}

impl I2sLayout {
    /// All layouts.
    pub const ALL: [I2sLayout; 3] = [I2sLayout::Published, I2sLayout::Arm, I2sLayout::Rows4];

    /// What `--i2s-layout` calls it.
    pub fn name(self) -> &'static str {
        match self {
            I2sLayout::Published => "published",
            I2sLayout::Arm => "arm",
            I2sLayout::Rows4 => "rows4",
        }
    }

    pub(crate) fn tensor_type(self) -> TensorType {
        match self {
            I2sLayout::Published => TensorType::I2S,
            I2sLayout::Arm => TensorType::I2SArm,
            I2sLayout::Rows4 => TensorType::I2SRows4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(TensorType::I2S.tensor_bytes(256, 768), Some(49152 + 32));
        assert_eq!(TensorType::I2S.tensor_bytes(2, 64), None);
        assert_eq!(TensorType::Tq1_0.row_bytes(1024), Some(216));
        assert_eq!(TensorType::F32.tensor_bytes(usize::MAX, 2), None);
        assert_eq!(TensorType::I2S.tensor_bytes(1 << 59, 128), None);
    }
}
