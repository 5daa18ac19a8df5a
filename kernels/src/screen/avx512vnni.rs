//! `screen` with `vpdpbusd`: 64 bytes of nibbles at a time.
//!
//! * High halves of bytes are multiplied where they are, as `16 * nibble`, and their sums shifted: exact, and
//!   saves a shift for each line. Bound: `8 * 4 * 240 * 128` is below 2^20 for a digit.
//! * Four states take two tiles at a time: each four digits are loaded once for both, else loads would take longer than products.
//! * One state is held up by memory, and asks for it line by line, if at all ([`Ask::Foreseen`]): in tens of lines at once one core of a
//!   Zen 5 read 31 GB/s, like that 36. Several are not, and take less time without requests between their products.
//! * Each half has a sum of its own, and so has each digit of 15-bit activations; blocks do not wait for each other.

use super::lanes::{Nibbles, Operation, Short, Simd, Step};
use crate::ask::{Ask, Nothing, avx512};
use crate::isa::{Isa, Level};
use core::arch::x86_64::*;

/// Proof that the CPU has AVX-512 with VNNI.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512Vnni(());

impl Avx512Vnni {
    /// The proof, if `isa` allows it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        isa.supports(Level::Avx512Vnni).then_some(Self(()))
    }
}

impl Simd for Avx512Vnni {
    type Ints = __m512i;
    type Floats = __m512;
    const TILES_AHEAD: usize = 96 * 64;
    const FORESEEN: bool = true;

    #[inline(always)]
    fn tile_block<const N: usize>(self, block: &[Nibbles; 8], states: [&Short; N], half: usize) -> [Self::Ints; N] {
        self.tile_blocks::<Nothing, 1, N>([block], states, half, 0)[0]
    }

    const PAIRS: bool = true;

    #[inline(always)]
    fn tile_blocks<A: Ask, const T: usize, const N: usize>(
        self,
        blocks: [&[Nibbles; 8]; T],
        states: [&Short; N],
        half: usize,
        ahead: usize,
    ) -> [[Self::Ints; N]; T] {
        // In line, since results in memory would be read there one lane at a time.
        // SAFETY: all need AVX-512 with VNNI; `self` exists only if `Avx512Vnni::new` saw it.
        unsafe {
            let mut sums = [[[_mm512_setzero_si512(); 2]; N]; T];
            for i in 0..8 {
                let mut nibbles = [[_mm512_setzero_si512(); 2]; T];
                for (nibbles, block) in nibbles.iter_mut().zip(blocks) {
                    A::ask(block[i].as_ptr().wrapping_add(ahead));
                    *nibbles = halves(load(&block[i]));
                }
                let lane = 8 * half + i;
                for n in 0..N {
                    let digits = [all(states[n].low[lane]), all(states[n].high[lane])];
                    for t in 0..T {
                        for part in 0..2 {
                            sums[t][n][part] = _mm512_dpbusd_epi32(sums[t][n][part], nibbles[t][part], digits[part]);
                        }
                    }
                }
            }
            let mut out = [[_mm512_setzero_si512(); N]; T];
            for n in 0..N {
                let less = _mm512_set1_epi32(states[n].less[half]);
                for t in 0..T {
                    out[t][n] = _mm512_add_epi32(_mm512_slli_epi32::<1>(joined(sums[t][n])), less);
                }
            }
            out
        }
    }

    #[inline(always)]
    fn row_step(self, line: &Nibbles, state: &Step) -> Self::Ints {
        // SAFETY: needs AVX-512 with VNNI; `self` exists only if `Avx512Vnni::new` saw it.
        unsafe { row_step(line, state) }
    }

    #[inline(always)]
    fn zeros(self) -> Self::Floats {
        bytemuck::cast([0.0f32; 16])
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; 16]) -> Self::Floats {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512Vnni::new` saw a level with it.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytemuck::cast(*bytes))) }
    }

    #[inline(always)]
    fn widen_two(self, bytes: [u8; 2]) -> Self::Floats {
        // SAFETY: needs AVX-512 F and BW; `self` exists only if `Avx512Vnni::new` saw a level with them.
        unsafe {
            let each = _mm_set_epi64x(0x0101_0101_0101_0101, 0);
            let bytes = _mm_shuffle_epi8(_mm_set1_epi16(i16::from_le_bytes(bytemuck::cast(bytes))), each);
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
        }
    }

    #[inline(always)]
    fn times(self, scales: Self::Floats, factor: f32) -> Self::Floats {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512Vnni::new` saw a level with it.
        unsafe { _mm512_mul_ps(scales, _mm512_set1_ps(factor)) }
    }

    #[inline(always)]
    fn add(self, sums: Self::Floats, products: Self::Ints, scales: Self::Floats) -> Self::Floats {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512Vnni::new` saw a level with it.
        unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scales, sums) }
    }

    #[inline(always)]
    fn touch(self, lines: &[Nibbles]) {
        // SAFETY: needs AVX-512 F; `self` exists only if `Avx512Vnni::new` saw a level with it.
        unsafe { avx512::touch(lines) }
    }

    #[inline(always)]
    fn store(self, lanes: Self::Floats) -> [f32; 16] {
        bytemuck::cast(lanes)
    }
}

/// Runs `operation` compiled for AVX-512 with VNNI.
#[inline]
pub(super) fn run<O: Operation>(proof: Avx512Vnni, operation: O) -> O::Output {
    // SAFETY: `proof` exists only if `Avx512Vnni::new` saw the level with the features below.
    unsafe { instance(proof, operation) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn instance<O: Operation>(proof: Avx512Vnni, operation: O) -> O::Output {
    operation.run(proof)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn row_step(line: &Nibbles, state: &Step) -> __m512i {
    let [low, high] = halves(load(line));
    let zero = _mm512_setzero_si512();
    let dot =
        |nibbles: __m512i, digits: &[[i8; 4]; 16]| _mm512_dpbusd_epi32(zero, nibbles, load(bytemuck::cast_ref(digits)));
    let coarse = joined([dot(low, &state.low.coarse), dot(high, &state.high.coarse)]);
    let fine = joined([dot(low, &state.low.fine), dot(high, &state.high.fine)]);
    let less = load(bytemuck::cast_ref(&state.less));
    _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32::<9>(coarse), _mm512_slli_epi32::<1>(fine)), less)
}

/// Sums of the low halves, and of the high ones, which are 16 times as large.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined([low, high]: [__m512i; 2]) -> __m512i {
    _mm512_add_epi32(low, _mm512_srai_epi32::<4>(high))
}

/// The low halves of bytes, and 16 times the high ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(line: __m512i) -> [__m512i; 2] {
    let mask = _mm512_set1_epi8(0x0f);
    [_mm512_and_si512(line, mask), _mm512_andnot_si512(mask, line)]
}

/// Four digits in all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn all(digits: [i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes(bytemuck::cast(digits)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
