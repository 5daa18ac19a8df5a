//! 64-byte aligned memory for the inputs of kernels.

/// One cache line, 64 bytes, aligned to 64.
///
/// Buffers of prepared activations are slices of lines, so that a kernel may use aligned
/// loads without a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

impl Line {
    /// A line of zero bytes.
    pub const ZERO: Line = Line([0; 64]);

    /// How many lines hold `bytes` bytes.
    #[must_use]
    pub const fn count_for(bytes: usize) -> usize {
        bytes.div_ceil(64)
    }
}
