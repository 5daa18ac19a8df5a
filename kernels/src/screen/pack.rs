//! Packing of rows.

use super::lanes::{Operation, Simd};
use super::{BLOCK, STEP, Shape, TILE};

/// Below this a row is taken for zeros, and its norm says how wrong that is.
const TINY: f32 = 1e-30;

/// Adding it leaves the nearest integer in the low bits.
const ROUND: f32 = 8_388_608.0;

/// Half a block's range in steps: its codes are 0 to 255.
const HALF: f32 = 128.0;

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
        let largest = largest(self.weights);
        let scale = if largest > TINY && largest < f32::INFINITY { largest / (255.0 * HALF) } else { 0.0 };
        let n_blocks = self.shape.n_blocks();
        let (low_scales, low) = self.row.split_at_mut(n_blocks);
        let (high_scales, high) = self.tile.split_at_mut(n_blocks * TILE);
        let lines = high.as_chunks_mut::<4>().0.chunks_exact_mut(TILE);
        let low = low.as_chunks_mut::<4>().0;
        let mut places = low.iter_mut().zip(lines.map(|line| &mut line[self.place]));
        let mut squares = [[0.0f32; LANES]; 3];
        for b in 0..n_blocks {
            let start = (b * BLOCK).min(self.weights.len());
            let some = &self.weights[start..(start + BLOCK).min(self.weights.len())];
            let mut block = [0.0; BLOCK];
            block[..some.len()].copy_from_slice(some);
            let (part, codes) = encode(&block, some.len(), scale, &mut squares);
            low_scales[b] = part;
            high_scales[b * TILE + self.place] = part;
            for (eight, (low, high)) in codes.as_chunks::<8>().0.iter().zip(&mut places) {
                let codes = u64::from_le_bytes(*eight);
                *low = merge(codes & 0x0f0f_0f0f_0f0f_0f0f);
                *high = merge(codes >> 4 & 0x0f0f_0f0f_0f0f_0f0f);
            }
        }
        let [norm, after_high, after_low] = squares.map(|squares| norm_at_least(&squares, self.weights.len()));
        // Each difference was rounded three times, by at most 2^-24 of the code's value, which is no larger than
        // the weight and the difference.
        let rounding = (norm + after_high) * 2e-7;
        RowNotes { scale, norm, after_high: after_high + rounding, after_low: after_low + rounding }
    }
}

/// Eight nibbles in four bytes: the last four become the high halves.
#[inline(always)]
fn merge(nibbles: u64) -> [u8; 4] {
    (nibbles as u32 | (nibbles >> 28) as u32).to_le_bytes()
}

/// A block's scale and codes; adds the squares of its weights and of what high nibbles and codes leave of them. Only `n`
/// weights count: those behind them meet activations that are 0.
#[inline(always)]
fn encode(block: &[f32; BLOCK], n: usize, scale: f32, squares: &mut [[f32; LANES]; 3]) -> (u8, [u8; BLOCK]) {
    let largest = largest(block);
    let (part, inverse) = if scale > 0.0 && largest > 0.0 {
        let part = libm::ceilf(largest / (HALF * scale)).clamp(1.0, 255.0);
        (part, 1.0 / (part * scale))
    } else {
        (0.0, 0.0)
    };
    let unit = part * scale;
    let mut codes = [0; BLOCK];
    let lanes = codes.as_chunks_mut::<LANES>().0.iter_mut().zip(block.as_chunks::<LANES>().0);
    for ((codes, weights), start) in lanes.zip((0..n as i32).step_by(LANES).chain(core::iter::repeat(n as i32))) {
        for i in 0..LANES {
            let counts = if start + (i as i32) < n as i32 { 1.0 } else { 0.0 };
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
    (part as u8, codes)
}

/// Largest magnitude, NaNs passed over.
#[inline(always)]
fn largest(weights: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = weights.as_chunks::<LANES>();
    for part in whole {
        for (lane, weight) in lanes.iter_mut().zip(part) {
            *lane = if weight.abs() > *lane { weight.abs() } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(0.0, |most, weight| if weight.abs() > most { weight.abs() } else { most })
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
