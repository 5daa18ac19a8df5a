//! `I2_S`: two bits a weight, row-major, as published BitNet files hold it.
//!
//! 128 weights of a row lie in 32 bytes: byte `k` holds weights `k`, `k + 32`, `k + 64`, `k + 96` in bits
//! 7-6, 5-4, 3-2, 1-0. A code is the trit plus one. Code 3 is no trit; the kernels read it as +2,
//! so that every byte has one meaning, and whoever loads a file refuses it. Source: the format of
//! the bitnet.cpp converter (x86 layout).

/// Rows that kernels take together; rows are not interleaved.
pub const TILE_ROWS: usize = 16;

/// Weights of one block of bytes.
pub const BLOCK: usize = 128;

/// Packs whole rows; rows of `trits` beyond `out` are left out.
pub(super) fn pack(trits: &[i8], cols: usize, out: &mut [u8]) {
    for (row, bytes) in trits.chunks_exact(cols).zip(out.chunks_exact_mut(cols / 4)) {
        for (weights, bytes) in row.chunks_exact(BLOCK).zip(bytes.chunks_exact_mut(BLOCK / 4)) {
            for (k, byte) in bytes.iter_mut().enumerate() {
                let code = |i: usize| (weights[k + 32 * i] + 1) as u8;
                *byte = code(0) << 6 | code(1) << 4 | code(2) << 2 | code(3);
            }
        }
    }
}

/// The trits (and +2 for code 3) of some whole blocks.
pub(super) fn unpack(bytes: &[u8], out: &mut [i8]) {
    codes(bytes, |i, code| out[i] = code as i8 - 1);
}

/// Calls `each(index of the weight, code)` for the weights of some whole blocks.
#[inline(always)]
pub(crate) fn codes(bytes: &[u8], mut each: impl FnMut(usize, u8)) {
    for (block, bytes) in bytes.chunks_exact(BLOCK / 4).enumerate() {
        for (k, byte) in bytes.iter().enumerate() {
            for i in 0..4 {
                each(block * BLOCK + k + 32 * i, byte >> (6 - 2 * i) & 3);
            }
        }
    }
}
