//! Packed layouts of ternary matrices: geometry, pack, unpack. Scalar code only; imports nothing
//! of the kernels.

/// How the trits of a matrix lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// Two bits a weight, row-major, as published in GGUF files (used in place, mapped).
    I2S,
    /// Three trits in a nibble plus a sign bit, 32 rows interleaved (5/3 bits a weight).
    T3,
    /// Five trits in a byte, 64 rows interleaved (1.6 bits a weight).
    T5,
}

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
