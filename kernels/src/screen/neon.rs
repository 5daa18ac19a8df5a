//! `screen` with NEON, and with its dot products where the processor has them: 16 bytes of nibbles at a time.
//!
//! Bound without dot products: a product is at most `15 * 128` in magnitude, and 16 of them, both halves of the bytes of a
//! block, are summed in 16 bits: 30,720. `sdot` takes nibbles as signed bytes, which are the same numbers; it is
//! written in assembly because its intrinsic is not stable yet.

use super::lanes::{Nibbles, Operation, Short, Simd, Step};
use crate::isa::{Isa, Level};
use core::arch::aarch64::*;
use core::arch::asm;

/// Proof that the CPU has NEON, and `sdot` if `DOTPROD`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neon<const DOTPROD: bool>(());

impl<const DOTPROD: bool> Neon<DOTPROD> {
    /// The proof, if `isa` allows it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        isa.supports(if DOTPROD { Level::NeonDotprod } else { Level::Neon }).then_some(Self(()))
    }
}

impl<const DOTPROD: bool> Simd for Neon<DOTPROD> {
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];

    #[inline(always)]
    fn tile_block<const N: usize>(self, block: &[Nibbles; 8], states: [&Short; N], half: usize) -> [Self::Ints; N] {
        if DOTPROD {
            // SAFETY: needs `dotprod`; this `self` exists only if `Neon::new` saw it.
            unsafe { tile_block_dotprod(block, states, half) }
        } else {
            // SAFETY: needs NEON; `self` exists only if `Neon::new` saw it.
            unsafe { tile_block(block, states, half) }
        }
    }

    #[inline(always)]
    fn row_step(self, line: &Nibbles, state: &Step) -> Self::Ints {
        if DOTPROD {
            // SAFETY: needs `dotprod`; this `self` exists only if `Neon::new` saw it.
            unsafe { row_step_dotprod(line, state) }
        } else {
            // SAFETY: needs NEON; `self` exists only if `Neon::new` saw it.
            unsafe { row_step(line, state) }
        }
    }

    #[inline(always)]
    fn zeros(self) -> Self::Floats {
        bytemuck::cast([0.0f32; 16])
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; 16]) -> Self::Floats {
        let words: [uint32x4_t; 4] = bytemuck::cast(bytes.map(u32::from));
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw it.
        words.map(|words| unsafe { vcvtq_f32_u32(words) })
    }

    #[inline(always)]
    fn widen_two(self, bytes: [u8; 2]) -> Self::Floats {
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw it.
        let [a, b] = bytes.map(|byte| unsafe { vdupq_n_f32(f32::from(byte)) });
        [a, a, b, b]
    }

    #[inline(always)]
    fn times(self, scales: Self::Floats, factor: f32) -> Self::Floats {
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw it.
        scales.map(|scales| unsafe { vmulq_n_f32(scales, factor) })
    }

    #[inline(always)]
    fn add(self, sums: Self::Floats, products: Self::Ints, scales: Self::Floats) -> Self::Floats {
        // SAFETY: needs NEON; `self` exists only if `Neon::new` saw it.
        core::array::from_fn(|i| unsafe { vfmaq_f32(sums[i], vcvtq_f32_s32(products[i]), scales[i]) })
    }

    #[inline(always)]
    fn store(self, lanes: Self::Floats) -> [f32; 16] {
        bytemuck::cast(lanes)
    }
}

/// Runs `operation` compiled for NEON.
#[inline]
pub(super) fn run<O: Operation>(proof: Neon<false>, operation: O) -> O::Output {
    // SAFETY: `proof` exists only if `Neon::new` saw the level with the feature below.
    unsafe { instance(proof, operation) }
}

#[target_feature(enable = "neon")]
fn instance<O: Operation>(proof: Neon<false>, operation: O) -> O::Output {
    operation.run(proof)
}

/// Runs `operation` compiled for NEON with dot products.
#[inline]
pub(super) fn run_dotprod<O: Operation>(proof: Neon<true>, operation: O) -> O::Output {
    // SAFETY: `proof` exists only if `Neon::new` saw the level with the features below.
    unsafe { instance_dotprod(proof, operation) }
}

#[target_feature(enable = "neon,dotprod")]
fn instance_dotprod<O: Operation>(proof: Neon<true>, operation: O) -> O::Output {
    operation.run(proof)
}

#[inline]
#[target_feature(enable = "neon")]
fn tile_block<const N: usize>(block: &[Nibbles; 8], states: [&Short; N], half: usize) -> [[int32x4_t; 4]; N] {
    let mut out = [[vdupq_n_s32(0); 4]; N];
    for four in 0..4 {
        let mut sums = [[vdupq_n_s16(0); 2]; N];
        for (line, lane) in block.iter().zip(8 * half..) {
            let [low, high] = halves(load(quarter(line, four)));
            for (sums, state) in sums.iter_mut().zip(states) {
                add(sums, low, all(state.low[lane]));
                add(sums, high, all(state.high[lane]));
            }
        }
        for ((out, sums), state) in out.iter_mut().zip(sums).zip(states) {
            out[four] = twice_and(widen(sums), vdupq_n_s32(state.less[half]));
        }
    }
    out
}

#[inline]
#[target_feature(enable = "neon")]
fn row_step(line: &Nibbles, state: &Step) -> [int32x4_t; 4] {
    let mut out = [vdupq_n_s32(0); 4];
    for (four, out) in out.iter_mut().enumerate() {
        let [low, high] = halves(load(quarter(line, four)));
        let mut sums = [[vdupq_n_s16(0); 2]; 2];
        add(&mut sums[0], low, load(quarter(&state.low.coarse, four)));
        add(&mut sums[1], low, load(quarter(&state.low.fine, four)));
        add(&mut sums[0], high, load(quarter(&state.high.coarse, four)));
        add(&mut sums[1], high, load(quarter(&state.high.fine, four)));
        *out = finish(widen(sums[0]), widen(sums[1]), load_ints(quarter(&state.less, four)));
    }
    out
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn tile_block_dotprod<const N: usize>(block: &[Nibbles; 8], states: [&Short; N], half: usize) -> [[int32x4_t; 4]; N] {
    let mut out = [[vdupq_n_s32(0); 4]; N];
    for four in 0..4 {
        // Of each state, of the two halves of the bytes: two chains, which hide some of the latency.
        let mut sums = [[vdupq_n_s32(0); 2]; N];
        for (line, lane) in block.iter().zip(8 * half..) {
            let [low, high] = halves(load(quarter(line, four)));
            for (sums, state) in sums.iter_mut().zip(states) {
                sums[0] = sdot(sums[0], low, all(state.low[lane]));
                sums[1] = sdot(sums[1], high, all(state.high[lane]));
            }
        }
        for ((out, [low, high]), state) in out.iter_mut().zip(sums).zip(states) {
            out[four] = twice_and(vaddq_s32(low, high), vdupq_n_s32(state.less[half]));
        }
    }
    out
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn row_step_dotprod(line: &Nibbles, state: &Step) -> [int32x4_t; 4] {
    let mut out = [vdupq_n_s32(0); 4];
    for (four, out) in out.iter_mut().enumerate() {
        let [low, high] = halves(load(quarter(line, four)));
        let dot = |low_digits: &[[i8; 4]; 16], high_digits: &[[i8; 4]; 16]| {
            let sums = sdot(vdupq_n_s32(0), low, load(quarter(low_digits, four)));
            sdot(sums, high, load(quarter(high_digits, four)))
        };
        let coarse = dot(&state.low.coarse, &state.high.coarse);
        let fine = dot(&state.low.fine, &state.high.fine);
        *out = finish(coarse, fine, load_ints(quarter(&state.less, four)));
    }
    out
}

/// Adds 16 products, those of neighbours kept apart.
#[inline]
#[target_feature(enable = "neon")]
fn add(sums: &mut [int16x8_t; 2], nibbles: int8x16_t, digits: int8x16_t) {
    sums[0] = vmlal_s8(sums[0], vget_low_s8(nibbles), vget_low_s8(digits));
    sums[1] = vmlal_high_s8(sums[1], nibbles, digits);
}

/// Sums of four neighbours.
#[inline]
#[target_feature(enable = "neon")]
fn widen(sums: [int16x8_t; 2]) -> int32x4_t {
    vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1]))
}

/// `2 * sum + less`
#[inline]
#[target_feature(enable = "neon")]
fn twice_and(sum: int32x4_t, less: int32x4_t) -> int32x4_t {
    vaddq_s32(vshlq_n_s32::<1>(sum), less)
}

/// `2 * (256 * coarse + fine) + less`
#[inline]
#[target_feature(enable = "neon")]
fn finish(coarse: int32x4_t, fine: int32x4_t, less: int32x4_t) -> int32x4_t {
    vaddq_s32(vaddq_s32(vshlq_n_s32::<9>(coarse), vshlq_n_s32::<1>(fine)), less)
}

/// `sums[i] += a[4i] * b[4i] + .. + a[4i + 3] * b[4i + 3]`
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction needs `dotprod`, which this function's attribute demands of its
    // callers; it reads and writes nothing but the three registers named here.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The low and the high halves of bytes.
#[inline]
#[target_feature(enable = "neon")]
fn halves(bytes: int8x16_t) -> [int8x16_t; 2] {
    let bytes = vreinterpretq_u8_s8(bytes);
    let low = vandq_u8(bytes, vdupq_n_u8(15));
    [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes))]
}

/// Sixteen of 64 bytes.
#[inline(always)]
fn quarter<T: bytemuck::Pod>(line: &T, i: usize) -> &[i8; 16] {
    &bytemuck::cast_ref::<T, [[i8; 16]; 4]>(line)[i]
}

/// Four digits in all lanes.
#[inline]
#[target_feature(enable = "neon")]
fn all(digits: [i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(bytemuck::cast(digits))))
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[i8; 16]) -> int8x16_t {
    // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_ints(bytes: &[i8; 16]) -> int32x4_t {
    vreinterpretq_s32_s8(load(bytes))
}
