//! Packing of rows.

use super::lanes::{Nibbles, Operation, Simd};
use super::{BLOCK, BLOCK_LINES, GROUP, GROUP_LINES, STEP, Shape, TILE};

/// Below this a row is taken for zeros, and its norm says how wrong that is.
const TINY: f32 = 1e-30;

/// Adding it leaves the nearest integer in the low bits.
const ROUND: f32 = 8_388_608.0;

/// The sign of an `f32`.
const SIGN: u32 = 1 << 31;

/// Half a block's range in steps: its codes are 0 to 255.
const HALF: f32 = 128.0;

/// Blocks whose scales are found together.
const TOGETHER: usize = 16;

/// Sums side by side.
const LANES: usize = 16;

/// What is known of a packed row. Norms are rounded up by more than what was lost in computing them; they are infinite or NaN if
/// a weight is, or a square overflows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowNotes {
    /// Multiplies the blocks' scales.
    pub scale: f32,
    /// At least the norm of the row.
    pub norm: f32,
    /// At least the norm of what the high nibbles do not say.
    pub after_high: f32,
    /// At least the norm of what the codes do not say.
    pub after_low: f32,
}

/// See [`super::pack_row`].
pub(super) struct PackRow<'a> {
    pub(super) shape: Shape,
    pub(super) weights: &'a [f32],
    pub(super) place: usize,
    pub(super) tile: &'a mut [u8],
    pub(super) row: &'a mut [u8],
}

impl Operation for PackRow<'_> {
    type Output = RowNotes;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> RowNotes {
        let scale = match largest(self.weights) {
            largest if largest > TINY && largest < f32::INFINITY => largest / (255.0 * HALF),
            _ => 0.0,
        };
        let n_blocks = self.shape.n_blocks();
        let (low_scales, low) = self.row.split_at_mut(n_blocks);
        let tile = self.tile.as_chunks_mut::<64>().0;
        let mut low = low.as_chunks_mut::<4>().0.chunks_exact_mut(BLOCK / 8);
        let mut squares = [[0.0f32; LANES]; 3];
        for first in (0..n_blocks).step_by(TOGETHER) {
            let start = (first * BLOCK).min(self.weights.len());
            let group = &self.weights[start..];
            let (parts, inverses) = scales(group, scale);
            for ((b, low), (part, inverse)) in (first..n_blocks).zip(&mut low).zip(parts.into_iter().zip(inverses)) {
                let some = &group[((b - first) * BLOCK).min(group.len())..];
                let codes = match some.first_chunk() {
                    Some(block) => encode::<true>(block, BLOCK, part * scale, inverse, &mut squares),
                    None => {
                        let mut block = [0.0; BLOCK];
                        block[..some.len()].copy_from_slice(some);
                        encode::<false>(&block, some.len(), part * scale, inverse, &mut squares)
                    }
                };
                low_scales[b] = part as u8;
                let (scales, high) = block_of(tile, b);
                scales[self.place] = part as u8;
                for ((eight, low), high) in codes.as_chunks::<8>().0.iter().zip(low).zip(high) {
                    let codes = u64::from_le_bytes(*eight);
                    *low = merge(codes & 0x0f0f_0f0f_0f0f_0f0f);
                    high.as_chunks_mut().0[self.place] = merge(codes >> 4 & 0x0f0f_0f0f_0f0f_0f0f);
                }
            }
        }
        let [norm, after_high, after_low] = squares.map(|squares| norm_at_least(&squares, self.weights.len()));
        // Each difference was rounded three times, by at most 2^-24 of the code's value, which is no larger than
        // the weight and the difference.
        let rounding = (norm + after_high) * 2e-7;
        RowNotes { scale, norm, after_high: after_high + rounding, after_low: after_low + rounding }
    }
}

/// The scales and the nibbles of a tile's block, of all rows.
#[inline(always)]
fn block_of(tile: &mut [Nibbles], block: usize) -> (&mut [u8], &mut [Nibbles]) {
    let group = &mut tile[block / GROUP * GROUP_LINES..];
    let (scales, nibbles) = group.split_at_mut(1);
    let block = block % GROUP;
    (&mut scales[0][block * TILE..][..TILE], &mut nibbles[block * BLOCK_LINES..][..BLOCK_LINES])
}

/// Eight nibbles in four bytes: the last four become the high halves.
#[inline(always)]
fn merge(nibbles: u64) -> [u8; 4] {
    (nibbles as u32 | (nibbles >> 28) as u32).to_le_bytes()
}

/// For each of the next blocks a whole multiple of the row's scale, which half its range has to be, and what weights are multiplied by.
/// All at a time: each is two divisions that wait for each other.
#[inline(always)]
fn scales(weights: &[f32], scale: f32) -> ([f32; TOGETHER], [f32; TOGETHER]) {
    let mut most = [0.0; TOGETHER];
    for (most, block) in most.iter_mut().zip(weights.chunks(BLOCK)) {
        *most = largest(block);
    }
    let (mut parts, mut inverses) = ([0.0; TOGETHER], [0.0; TOGETHER]);
    if scale > 0.0 {
        for ((most, part), inverse) in most.iter().zip(&mut parts).zip(&mut inverses) {
            // At most 255 and a rounding, since no block has more than the row.
            let exact = most / (HALF * scale);
            let whole = exact as i32 as f32;
            let up = if whole < exact { whole + 1.0 } else { whole }.clamp(1.0, 255.0);
            *part = if *most > 0.0 { up } else { 0.0 };
            *inverse = if *most > 0.0 { 1.0 / (up * scale) } else { 0.0 };
        }
    }
    (parts, inverses)
}

/// A block's codes, the nearest to `weight * inverse`; adds the squares of its weights and of what high nibbles and codes, times
/// `unit`, leave of them. Where not all of it is (`WHOLE`), only `n` weights count: those behind them meet activations that are 0.
#[inline(always)]
fn encode<const WHOLE: bool>(
    block: &[f32; BLOCK],
    n: usize,
    unit: f32,
    inverse: f32,
    squares: &mut [[f32; LANES]; 3],
) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    let lanes = codes.as_chunks_mut::<LANES>().0.iter_mut().zip(block.as_chunks::<LANES>().0);
    for ((codes, weights), start) in lanes.zip((0..n as i32).step_by(LANES).chain(core::iter::repeat(n as i32))) {
        for i in 0..LANES {
            let counts = if WHOLE || start + (i as i32) < n as i32 { 1.0 } else { 0.0 };
            let weight = weights[i];
            let code = weight * inverse + (HALF - 0.5);
            // A NaN becomes 0.
            let code = if code > 0.0 { code } else { 0.0 };
            let code = if code < 255.0 { code } else { 255.0 };
            let rounded = (code + ROUND).to_bits() & 255;
            codes[i] = rounded as u8;
            let lost = counts * (weight - unit * ((rounded >> 4) as i32 as f32 * 16.0 - 120.0));
            let less = counts * (weight - unit * (rounded as i32 as f32 - (HALF - 0.5)));
            squares[0][i] += weight * weight;
            squares[1][i] += lost * lost;
            squares[2][i] += less * less;
        }
    }
    codes
}

/// Largest magnitude, NaNs passed over.
#[inline(always)]
fn largest(weights: &[f32]) -> f32 {
    let magnitude = |weight: f32| weight.to_bits() & !SIGN;
    let number = |bits: u32| if bits > f32::INFINITY.to_bits() { 0 } else { bits };
    let mut lanes = [0; LANES];
    let (whole, rest) = weights.as_chunks::<LANES>();
    for part in whole {
        for (lane, weight) in lanes.iter_mut().zip(part) {
            *lane = number(magnitude(*weight)).max(*lane);
        }
    }
    // Magnitudes are in the order of their bits, and those the compiler knows how to compare at once.
    let rest = rest.iter().fold(0, |most, weight| number(magnitude(*weight)).max(most));
    f32::from_bits(lanes.into_iter().fold(rest, u32::max))
}

/// At least the norm of `n` numbers whose squares were summed.
#[inline(always)]
fn norm_at_least(squares: &[f32; LANES], n: usize) -> f32 {
    // A sum of up to 2^20 squares in one lane is off by less than a sixteenth of itself, of up to 2^12 by 2^-12; and by
    // what is lost below the smallest number.
    let slack = if n <= LANES << 12 { 1e-3 } else { 0.1 };
    libm::sqrtf(squares.iter().sum()) * (1.0 + slack) + libm::sqrtf(n as f32) * 1e-22
}

const _: () = assert!(STEP.is_multiple_of(BLOCK) && BLOCK.is_multiple_of(LANES));
