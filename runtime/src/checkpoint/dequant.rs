//! Blocks of quantised weights that are not ternary, to f32: embeddings and output heads.
//!
//! Every product and difference is rounded on its own and in the order that the formats'
//! reference implementation uses, so that the floats are the same to the last bit.
//!
//! | type | weights | bytes of a block |
//! |---|---|---|
//! | Q4_0 | 32 | f16 `d`; 16 bytes, low nibbles are weights 0-15, high ones 16-31; `d * (n - 8)` |
//! | Q5_0 | 32 | f16 `d`; 32 fifth bits; 16 bytes as Q4_0; `d * (n - 16)` |
//! | Q8_0 | 32 | f16 `d`; 32 i8; `d * n` |
//! | Q4_K | 256 | f16 `d`, f16 `dmin`; 12 bytes of eight 6-bit scales and minima; 128 bytes of nibbles; `d * scale * n - dmin * min` in groups of 32 |
//! | Q5_K | 256 | as Q4_K with 32 bytes of fifth bits before the nibbles |
//! | Q6_K | 256 | 128 bytes of nibbles, 64 bytes of two upper bits, 16 i8 scales, f16 `d`; `d * scale * (n - 32)` in groups of 16 |

use super::tensor_type::TensorType;
use half::{bf16, f16};

/// Decodes one row, or any whole number of blocks, of a type that is not ternary.
///
/// # Panics
///
/// If the type is ternary ([`super::TernaryTensor`] reads those), or `bytes` and `out` are not the
/// same whole number of blocks long.
pub fn dequantize_row(ty: TensorType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        ty.row_bytes(out.len()),
        Some(bytes.len()),
        "{} bytes of {} do not hold {} weights",
        bytes.len(),
        ty.name(),
        out.len()
    );
    match ty {
        TensorType::F32 => {
            for (b, o) in bytes.as_chunks().0.iter().zip(out) {
                *o = f32::from_le_bytes(*b);
            }
        }
        TensorType::F16 => {
            for (b, o) in bytes.as_chunks().0.iter().zip(out) {
                *o = f16::from_le_bytes(*b).to_f32();
            }
        }
        TensorType::BF16 => {
            for (b, o) in bytes.as_chunks().0.iter().zip(out) {
                *o = bf16::from_le_bytes(*b).to_f32();
            }
        }
        TensorType::Q4_0 => blocks(bytes, out, q4_0),
        TensorType::Q5_0 => blocks(bytes, out, q5_0),
        TensorType::Q8_0 => blocks(bytes, out, q8_0),
        TensorType::Q4K => blocks(bytes, out, q4_k),
        TensorType::Q5K => blocks(bytes, out, q5_k),
        TensorType::Q6K => blocks(bytes, out, q6_k),
        TensorType::Tq1_0
        | TensorType::Tq2_0
        | TensorType::I2S
        | TensorType::I2SArm
        | TensorType::I2SRows4
        | TensorType::Q2_0
        | TensorType::Q2_0G128
        | TensorType::Pq2_0 => panic!("{} is ternary", ty.name()),
    }
}

fn blocks<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    let (bytes, out) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    for (block, weights) in bytes.iter().zip(out) {
        decode(block, weights);
    }
}

/// The f16 at bytes `at`, `at + 1`.
pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, &byte) in block[2..].iter().enumerate() {
        out[j] = f32::from((byte & 15) as i8 - 8) * d;
        out[j + 16] = f32::from((byte >> 4) as i8 - 8) * d;
    }
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (j, &byte) in block[6..].iter().enumerate() {
        let low = (byte & 15) | ((fifth >> j & 1) << 4) as u8;
        let high = (byte >> 4) | ((fifth >> (j + 16) & 1) << 4) as u8;
        out[j] = f32::from(low as i8 - 16) * d;
        out[j + 16] = f32::from(high as i8 - 16) * d;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (o, &byte) in out.iter_mut().zip(&block[2..]) {
        *o = f32::from(byte as i8) * d;
    }
}

/// Scale and minimum of group `j` of 0..8: six bits each, packed in 12 bytes. The first four
/// groups have theirs in the low six bits of bytes 0-3 and 4-7; the others have four bits in bytes
/// 8-11 and the upper two in the upper bits of bytes 0-7.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4))
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    k_groups(block, out, &[0; 32], &block[16..]);
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let fifth = block[16..48].as_array().expect("32 bytes");
    k_groups(block, out, fifth, &block[48..]);
}

/// Groups of 32 weights, in pairs that share 32 bytes of nibbles. Bit `g` of `fifth[k]` is the
/// fifth bit of weight `k` of group `g`.
fn k_groups(block: &[u8], out: &mut [f32; 256], fifth: &[u8; 32], nibbles: &[u8]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], g);
        let (scale, min) = (d * scale, dmin * min);
        let bytes = &nibbles[g / 2 * 32..][..32];
        for (k, o) in group.iter_mut().enumerate() {
            let nibble = bytes[k] >> (g % 2 * 4) & 15;
            let code = nibble | (fifth[k] >> g & 1) << 4;
            *o = scale * f32::from(code) - min;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (upper, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half_at(d, 0);
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        for (i, o) in out.iter_mut().enumerate() {
            // Quarter q of the half: nibble q / 2 of bytes 0-31 or 32-63, upper bits 2q, 2q + 1.
            let (q, k) = (i / 32, i % 32);
            let nibble = low[half * 64 + q % 2 * 32 + k] >> (q / 2 * 4) & 15;
            let code = nibble | (upper[half * 32 + k] >> (2 * q) & 3) << 4;
            let scale = scales[half * 8 + i / 16] as i8;
            *o = d * f32::from(scale) * f32::from(code as i8 - 32);
        }
    }
}
