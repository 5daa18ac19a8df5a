//! The packings of I2_S, TQ1_0 and TQ2_0; the layouts are described at the reader,
//! [`TernaryTensor`](crate::checkpoint::TernaryTensor). Sources: the I2_S quantiser of bitnet.cpp (x86) and the
//! TQ types of ggml, whose bytes the tests compare.

use half::f16;

/// Weights in a block of I2_S.
pub(super) const I2S_BLOCK: usize = 128;
/// Weights in a block of TQ1_0 and TQ2_0.
pub(super) const TQ_BLOCK: usize = 256;
pub(super) const TQ1_0_BYTES: usize = 54;
pub(super) const TQ2_0_BYTES: usize = 66;

/// A trit as a code from 0 to 2.
fn code(trit: i8) -> u8 {
    assert!((-1..=1).contains(&trit), "trits are -1, 0 or +1");
    (trit + 1) as u8
}

/// Appends whole blocks of 128 trits.
pub(super) fn i2_s(trits: &[i8], out: &mut Vec<u8>) {
    for block in trits.as_chunks::<I2S_BLOCK>().0 {
        let codes = block.map(code);
        let mut bytes = [0; I2S_BLOCK / 4];
        for (n, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
            for (byte, code) in bytes.iter_mut().zip(codes) {
                *byte |= code << (6 - 2 * n);
            }
        }
        out.extend(bytes);
    }
}

/// Appends a block of TQ2_0.
pub(super) fn tq2_0(trits: &[i8; TQ_BLOCK], scale: f16, out: &mut Vec<u8>) {
    let codes = trits.map(code);
    for half in codes.as_chunks::<128>().0 {
        let mut bytes = [0; 32];
        for (n, codes) in half.as_chunks::<32>().0.iter().enumerate() {
            for (byte, code) in bytes.iter_mut().zip(codes) {
                *byte |= code << (2 * n);
            }
        }
        out.extend(bytes);
    }
    out.extend(scale.to_le_bytes());
}

/// Appends a block of TQ1_0.
pub(super) fn tq1_0(trits: &[i8; TQ_BLOCK], scale: f16, out: &mut Vec<u8>) {
    let codes = trits.map(code);
    let (a, rest) = codes.split_at(160);
    let (b, c) = rest.split_at(80);
    five(a, 32, out);
    five(b, 16, out);
    // Four digits; the fifth, the least significant, is 0.
    let mut last = [0; 20];
    last[..16].copy_from_slice(c);
    five(&last, 4, out);
    out.extend(scale.to_le_bytes());
}

/// Five codes a byte, `stride` apart, the first the most significant: `ceil(q * 256 / 243)`.
fn five(codes: &[u8], stride: usize, out: &mut Vec<u8>) {
    out.extend((0..stride).map(|m| {
        let q = (0..5).fold(0, |q, n| q * 3 + u32::from(codes[m + stride * n]));
        (q * 256).div_ceil(243) as u8
    }));
}
