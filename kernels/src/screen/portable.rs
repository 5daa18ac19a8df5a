//! The definition of every product, and what a CPU without a better instance runs.

use super::lanes::{Digits, Nibbles, Short, Simd, Step};
use crate::float::fused::fused;

/// Sixteen values in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

impl Simd for Portable {
    type Ints = [i32; 16];
    type Floats = [f32; 16];

    #[inline(always)]
    fn tile_block<const N: usize>(self, block: &[Nibbles; 8], states: [&Short; N], half: usize) -> [Self::Ints; N] {
        states.map(|state| {
            let mut sums = [state.less[half]; 16];
            for (line, i) in block.iter().zip(8 * half..) {
                let digits = state.low[i].into_iter().zip(state.high[i]);
                for (sum, bytes) in sums.iter_mut().zip(line.as_chunks::<4>().0) {
                    for (byte, (low, high)) in bytes.iter().zip(digits.clone()) {
                        *sum += 2 * (i32::from(byte & 15) * i32::from(low) + i32::from(byte >> 4) * i32::from(high));
                    }
                }
            }
            sums
        })
    }

    #[inline(always)]
    fn row_step(self, line: &Nibbles, state: &Step) -> Self::Ints {
        let mut sums = state.less;
        for (lane, bytes) in line.as_chunks::<4>().0.iter().enumerate() {
            sums[lane] += 2 * dot(bytes, state, lane);
        }
        sums
    }

    #[inline(always)]
    fn zeros(self) -> Self::Floats {
        [0.0; 16]
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; 16]) -> Self::Floats {
        bytes.map(f32::from)
    }

    #[inline(always)]
    fn widen_two(self, [a, b]: [u8; 2]) -> Self::Floats {
        let mut lanes = [f32::from(a); 16];
        lanes[8..].fill(f32::from(b));
        lanes
    }

    #[inline(always)]
    fn times(self, scales: Self::Floats, factor: f32) -> Self::Floats {
        scales.map(|scale| scale * factor)
    }

    #[inline(always)]
    fn add(self, mut sums: Self::Floats, products: Self::Ints, scales: Self::Floats) -> Self::Floats {
        for lane in 0..16 {
            sums[lane] = fused(sums[lane], products[lane] as f32, scales[lane]);
        }
        sums
    }

    #[inline(always)]
    fn store(self, lanes: Self::Floats) -> [f32; 16] {
        lanes
    }
}

/// The nibbles of four bytes times the eight activations of a lane.
#[inline(always)]
fn dot(bytes: &[u8; 4], state: &Step, lane: usize) -> i32 {
    let activation =
        |digits: &Digits, at: usize| 256 * i32::from(digits.coarse[lane][at]) + i32::from(digits.fine[lane][at]);
    let mut sum = 0;
    for (at, byte) in bytes.iter().enumerate() {
        sum += i32::from(byte & 15) * activation(&state.low, at) + i32::from(byte >> 4) * activation(&state.high, at);
    }
    sum
}
