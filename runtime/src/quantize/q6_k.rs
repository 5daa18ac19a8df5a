//! Q6_K: 256 weights in 16 groups; a weight is `d * scale * code` with a half-precision `d` for the
//! block, an i8 scale for the group and a code from -32 to 31.
//!
//! For each group the scale is searched alone first: the extreme value is mapped to several points
//! around the end of the codes' range, the codes follow by rounding, and for these codes the scale
//! of least squares is `sum(x q) / sum(q q)`; the best of them wins. Then `d` is chosen so that the
//! largest group scale has the code 127 or -128, and each group takes, of the i8 scales next to its
//! own, the one with the least squared error in the numbers as the reader will see them.

use super::float::nearest_half;

const GROUP: usize = 16;
const GROUPS: usize = 16;

/// Where the extreme value of a group is mapped to. The codes go to -32 on one side.
const ENDS: [f32; 7] = [30.5, 31.0, 31.5, 32.0, 32.5, 33.0, 33.5];

/// Appends one block.
pub(super) fn encode(block: &[f32; 256], out: &mut Vec<u8>) {
    let groups = block.as_chunks::<GROUP>().0;
    let mut scales = [0.0; GROUPS];
    for (scale, group) in scales.iter_mut().zip(groups) {
        *scale = best_scale(group);
    }
    let extreme = scales.iter().fold(0.0, |max: f32, scale| if scale.abs() > max.abs() { *scale } else { max });
    // The sign of `d` is chosen so that the extreme scale may take -128, the larger end.
    let half = nearest_half(extreme / -128.0);
    let d = half.to_f32();
    let mut scale_codes = [0i8; GROUPS];
    let mut codes = [0u8; 256];
    for (g, group) in groups.iter().enumerate() {
        let near = if d == 0.0 { 0.0 } else { (scales[g] / d).round() };
        let mut least = f32::INFINITY;
        for step in [0.0, -1.0, 1.0] {
            let scale_code = (near + step).clamp(-128.0, 127.0) as i8;
            let step = d * f32::from(scale_code);
            let quantised = round_group(group, if step == 0.0 { 0.0 } else { 1.0 / step });
            let error = sum(|i| (group[i] - quantised[i] * step) * (group[i] - quantised[i] * step));
            if error < least {
                least = error;
                scale_codes[g] = scale_code;
                for (code, q) in codes[g * GROUP..].iter_mut().zip(&quantised) {
                    *code = (*q as i8 + 32) as u8;
                }
            }
        }
    }
    // Quarter q of a half: nibble q / 2 of bytes 0-31 or 32-63, upper bits 2q, 2q + 1.
    let (mut low, mut upper) = ([0u8; 128], [0u8; 64]);
    for (i, code) in codes.iter().enumerate() {
        let (half, quarter, k) = (i / 128, i % 128 / 32, i % 32);
        low[half * 64 + quarter % 2 * 32 + k] |= (code & 15) << (quarter / 2 * 4);
        upper[half * 32 + k] |= (code >> 4) << (2 * quarter);
    }
    out.extend(low);
    out.extend(upper);
    out.extend(scale_codes.map(|code| code as u8));
    out.extend(half.to_le_bytes());
}

/// The scale with which codes from -32 to 31 come nearest to the group.
fn best_scale(group: &[f32; GROUP]) -> f32 {
    let extreme = group.iter().fold(0.0, |max: f32, x| if x.abs() > max.abs() { *x } else { max });
    // Subnormal values have no use here, and their inverse may be infinite.
    if extreme.abs() < f32::MIN_POSITIVE {
        return 0.0;
    }
    let (mut best, mut most) = (0.0, 0.0);
    for end in ENDS {
        let codes = round_group(group, -end / extreme);
        let (xq, qq) = (sum(|i| group[i] * codes[i]), sum(|i| codes[i] * codes[i]));
        // The squared error is sum(x x) - xq^2 / qq.
        if qq > 0.0 && xq * xq / qq > most {
            most = xq * xq / qq;
            best = xq / qq;
        }
    }
    best
}

/// A sum over a group in four lanes, so that it need not wait for each addition.
fn sum(term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; 4];
    for i in 0..GROUP {
        lanes[i % 4] += term(i);
    }
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

/// The codes of a group as floats.
fn round_group(group: &[f32; GROUP], inverse: f32) -> [f32; GROUP] {
    /// Adding and subtracting 1.5 * 2^23 rounds numbers below 2^22 to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    group.map(|x| ((x * inverse).clamp(-32.0, 31.0) + ROUND) - ROUND)
}
