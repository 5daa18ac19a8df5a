//! `gemm-*-avx2`: `vpmaddubsw` with rows as lanes; what it multiplies is decoded by [`strips`]. I2_S with few vectors has columns
//! as lanes ([`few`]).
//!
//! ```text
//! for octets 0 and 1, then 2 and 3, each four vectors, each run of quads:
//!     for each quad, octet, vector:
//!         sum16[vector][octet] += maddubs(codes[quad][octet], the vector's 4 activations in all lanes)
//!     sum32 += madd(sum16, 1), which leaves one row's sum in each lane
//! one or two vectors that are left: the same with all four octets at once
//! ```
//!
//! * Codes are the trit plus one, so they are unsigned, as `vpmaddubsw` wants its first factor; the
//!   surplus is the total of the activations, taken off once.
//! * Lanes are rows, so no sum is ever taken across a register, however short a block is. Eight sums
//!   stay in registers, and 6 loads serve 8 multiplications, 2 of them loads of codes.
//! * The codes of two octets of a panel are 20 KiB and stay in the first cache while all vectors
//!   pass by; the columns of 128 vectors, 160 KiB, stay in the second.
//! * Bound: a lane of 16 bits gets one pair of products of a quad. I2_S and C2 have codes up to 3, so a pair
//!   is within 2 * 3 * 128 = 768 and the 42 quads of a run within 32,256; in the other layouts it is
//!   within 2 * 2 * 128 = 512 and the 62 quads of a run within 31,744. Sums of whole rows fit 32 bits
//!   ([`crate::format::MAX_COLS`]).

pub(super) mod decode;
mod few;
mod listed;
pub(super) mod strips;

use crate::format::{Geometry, Layout};
use crate::line::Line;
use core::arch::asm;
use core::arch::x86_64::*;
use core::ops::Range;
use decode::decode;
pub(crate) use few::MOST as MOST_FEW;
pub(crate) use listed::run_listed;
use strips::{Ahead, Blocking, Columns, Packed, Quad, STRIP, Strip, drive};

const BLOCKING: Blocking = Blocking { vectors: 128, together: 4, quads: 2, panel: 320, few_panel: 224, starts: false };

/// Two quads: what one round of the inner loop takes.
type Pair = [Quad; 2];

/// The activations of a vector for a strip's pairs.
type Pairs<'a> = &'a [[[u8; strips::QUAD]; 2]];

/// Pairs of quads whose products a 16-bit lane holds.
const fn run_pairs(layout: Layout) -> usize {
    match layout {
        Layout::I2S | Layout::C2 => 21,
        Layout::T3 | Layout::T5 => 31,
    }
}

/// See [`crate::kernel::RunFn`].
#[target_feature(enable = "avx2")]
pub(crate) fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    if geometry.layout == Layout::I2S && n_vectors <= MOST_FEW {
        return few::run(geometry, data, tiles, prepared, n_vectors, out);
    }
    let most = run_pairs(geometry.layout);
    let decode = |packed: &Packed, units, ahead: Ahead, codes: &mut _| decode(packed, units, ahead, codes);
    let multiply = |strip: &mut Strip, vectors| multiply(strip, vectors, most);
    drive(geometry, data, tiles, prepared, n_vectors, out, BLOCKING, decode, multiply);
}

/// Adds a strip's products, in runs of at most `most_pairs`.
#[target_feature(enable = "avx2")]
fn multiply(strip: &mut Strip, vectors: Range<usize>, most_pairs: usize) {
    // As even as the bound allows.
    let n_pairs = strip.codes.len() / 2;
    let run_pairs = n_pairs.div_ceil(n_pairs.div_ceil(most_pairs));
    let fours = vectors.start + vectors.len() / 4 * 4;
    for half in 0..2 {
        for v in (vectors.start..fours).step_by(4) {
            let next = (v + 4).min(vectors.end - 4);
            for next in next..next + 4 {
                strip.prefetch_sums(next);
            }
            multiply_four(strip, run_pairs, half, v);
        }
    }
    match vectors.end - fours {
        0 => {}
        1 => multiply_few::<1>(strip, run_pairs, fours),
        2 => multiply_few::<2>(strip, run_pairs, fours),
        _ => {
            multiply_few::<2>(strip, run_pairs, fours);
            multiply_few::<1>(strip, run_pairs, fours + 2);
        }
    }
}

/// Adds codes times activations for one or two vectors from `v` on, all octets at once.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply_few<const N: usize>(strip: &mut Strip, run_pairs: usize, v: usize) {
    let mut vectors: [Columns; N] = [&[]; N];
    for (i, vector) in vectors.iter_mut().enumerate() {
        *vector = strip.columns(v + i);
    }
    let ones = _mm256_set1_epi16(1);
    let mut wide = [[_mm256_setzero_si256(); 4]; N];
    for (i, codes) in strip.codes.chunks(2 * run_pairs).enumerate() {
        let mut run = [&[][..]; N];
        for (run, vector) in run.iter_mut().zip(vectors) {
            *run = &vector[i * 2 * run_pairs..][..codes.len()];
        }
        let mut narrow = [[_mm256_setzero_si256(); 4]; N];
        for (q, codes) in codes.iter().enumerate() {
            let mut a = [ones; N];
            for (a, run) in a.iter_mut().zip(run) {
                *a = _mm256_set1_epi32(i32::from_le_bytes(run[q]));
            }
            for (octet, codes) in codes.iter().enumerate() {
                let codes = load(codes);
                for (narrow, a) in narrow.iter_mut().zip(a) {
                    narrow[octet] = _mm256_add_epi16(narrow[octet], _mm256_maddubs_epi16(codes, a));
                }
            }
        }
        widen(wide.as_flattened_mut(), narrow.as_flattened());
    }
    for (i, [a, b, c, d]) in wide.into_iter().enumerate() {
        add(strip, v + i, 0, a, b);
        add(strip, v + i, 8, c, d);
    }
}

/// Adds codes times activations for four vectors from `v` on and the first two or the last two octets, which
/// are one cache line of each quad.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply_four(strip: &mut Strip, run_pairs: usize, half: usize, v: usize) {
    let codes: &[Pair] = strip.codes.as_chunks().0;
    let [a, b, c, d] = [v, v + 1, v + 2, v + 3].map(|v| strip.columns(v).as_chunks().0);
    let mut wide = [[_mm256_setzero_si256(); 2]; 4];
    for (i, codes) in codes.chunks(run_pairs).enumerate() {
        let run = i * run_pairs..i * run_pairs + codes.len();
        let vectors = [&a[run.clone()], &b[run.clone()], &c[run.clone()], &d[run]];
        widen(wide.as_flattened_mut(), run_of_four(codes, half, vectors).as_flattened());
    }
    for (i, [a, b]) in wide.into_iter().enumerate() {
        add(strip, v + i, 8 * half, a, b);
    }
}

/// One run of four vectors and two octets (the first two or the last two), in 16 bits:
/// `[vector][octet]`.
///
/// Written in assembly because it needs 15 of the 16 registers: the compiler moves loads up and
/// then keeps a sum in memory, where each addition waits for the one before.
///
/// # Panics
/// There are no codes, or not as many activations.
#[inline]
#[target_feature(enable = "avx2")]
fn run_of_four(codes: &[Pair], half: usize, vectors: [Pairs; 4]) -> [[__m256i; 2]; 4] {
    assert!(!codes.is_empty() && half < 2, "a run of a half");
    assert!(vectors.iter().all(|vector| vector.len() == codes.len()), "as many activations as codes");
    let mut s = [[_mm256_setzero_si256(); 2]; 4];
    let [[s00, s01], [s10, s11], [s20, s21], [s30, s31]] = &mut s;
    let [v0, v1, v2, v3] = vectors.map(<[_]>::as_ptr);
    // SAFETY: the loop runs `codes.len()` times, at least once (first assertion). Round `i` reads, of
    // `codes[i]`, 64 of the 128 bytes of each quad, from byte 0 or 64 on (`half` is 0 or 1), and the 8
    // bytes of `vector[i]` of each vector, which has as many elements (second assertion). It writes
    // nothing but the registers named here.
    unsafe {
        asm!(
            "2:",
            "vpbroadcastd {a0}, dword ptr [{v0} + 8*{i}]",
            "vpbroadcastd {a1}, dword ptr [{v1} + 8*{i}]",
            "vpbroadcastd {a2}, dword ptr [{v2} + 8*{i}]",
            "vpbroadcastd {a3}, dword ptr [{v3} + 8*{i}]",
            "vmovdqu {c}, ymmword ptr [{codes}]",
            "vpmaddubsw {p}, {c}, {a0}",
            "vpmaddubsw {q}, {c}, {a1}",
            "vpaddw {s00}, {s00}, {p}",
            "vpaddw {s10}, {s10}, {q}",
            "vpmaddubsw {p}, {c}, {a2}",
            "vpmaddubsw {q}, {c}, {a3}",
            "vpaddw {s20}, {s20}, {p}",
            "vpaddw {s30}, {s30}, {q}",
            "vmovdqu {c}, ymmword ptr [{codes} + 32]",
            "vpmaddubsw {p}, {c}, {a0}",
            "vpmaddubsw {q}, {c}, {a1}",
            "vpaddw {s01}, {s01}, {p}",
            "vpaddw {s11}, {s11}, {q}",
            "vpmaddubsw {p}, {c}, {a2}",
            "vpmaddubsw {q}, {c}, {a3}",
            "vpaddw {s21}, {s21}, {p}",
            "vpaddw {s31}, {s31}, {q}",
            "vpbroadcastd {a0}, dword ptr [{v0} + 8*{i} + 4]",
            "vpbroadcastd {a1}, dword ptr [{v1} + 8*{i} + 4]",
            "vpbroadcastd {a2}, dword ptr [{v2} + 8*{i} + 4]",
            "vpbroadcastd {a3}, dword ptr [{v3} + 8*{i} + 4]",
            "vmovdqu {c}, ymmword ptr [{codes} + 128]",
            "vpmaddubsw {p}, {c}, {a0}",
            "vpmaddubsw {q}, {c}, {a1}",
            "vpaddw {s00}, {s00}, {p}",
            "vpaddw {s10}, {s10}, {q}",
            "vpmaddubsw {p}, {c}, {a2}",
            "vpmaddubsw {q}, {c}, {a3}",
            "vpaddw {s20}, {s20}, {p}",
            "vpaddw {s30}, {s30}, {q}",
            "vmovdqu {c}, ymmword ptr [{codes} + 160]",
            "vpmaddubsw {p}, {c}, {a0}",
            "vpmaddubsw {q}, {c}, {a1}",
            "vpaddw {s01}, {s01}, {p}",
            "vpaddw {s11}, {s11}, {q}",
            "vpmaddubsw {p}, {c}, {a2}",
            "vpmaddubsw {q}, {c}, {a3}",
            "vpaddw {s21}, {s21}, {p}",
            "vpaddw {s31}, {s31}, {q}",
            "add {codes}, 256",
            "inc {i}",
            "cmp {i}, {n}",
            "jne 2b",
            codes = inout(reg) codes.as_ptr().cast::<u8>().add(64 * half) => _,
            i = inout(reg) 0usize => _,
            n = in(reg) codes.len(),
            v0 = in(reg) v0,
            v1 = in(reg) v1,
            v2 = in(reg) v2,
            v3 = in(reg) v3,
            s00 = inout(ymm_reg) *s00,
            s01 = inout(ymm_reg) *s01,
            s10 = inout(ymm_reg) *s10,
            s11 = inout(ymm_reg) *s11,
            s20 = inout(ymm_reg) *s20,
            s21 = inout(ymm_reg) *s21,
            s30 = inout(ymm_reg) *s30,
            s31 = inout(ymm_reg) *s31,
            a0 = out(ymm_reg) _,
            a1 = out(ymm_reg) _,
            a2 = out(ymm_reg) _,
            a3 = out(ymm_reg) _,
            c = out(ymm_reg) _,
            p = out(ymm_reg) _,
            q = out(ymm_reg) _,
            options(readonly, nostack),
        );
    }
    s
}

/// Adds pairs of 16-bit lanes to 32-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(wide: &mut [__m256i], narrow: &[__m256i]) {
    let ones = _mm256_set1_epi16(1);
    for (wide, narrow) in wide.iter_mut().zip(narrow) {
        *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(*narrow, ones));
    }
}

/// Adds two octets to the sums of vector `v`, as far as there are rows. Unpacking took rows `r..r + 4` and
/// `r + 16..r + 20` into the first, the next fours into the second.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add(strip: &mut Strip, v: usize, r: usize, first: __m256i, second: __m256i) {
    let sums = strip.sums(v);
    let sums = &mut strip.out[sums][..strip.n_rows];
    add_eight(sums, r, _mm256_permute2x128_si256::<0x20>(first, second));
    add_eight(sums, r + STRIP / 2, _mm256_permute2x128_si256::<0x31>(first, second));
}

/// Adds the products of 8 rows to the sums from `r` on, as far as there are any.
#[inline]
#[target_feature(enable = "avx2")]
fn add_eight(sums: &mut [i32], r: usize, products: __m256i) {
    if let Some(sums) = sums.get_mut(r..r + 8).and_then(<[i32]>::as_mut_array) {
        let bytes: &mut [u8; 32] = bytemuck::cast_mut::<[i32; 8], _>(sums);
        store(bytes, _mm256_add_epi32(load(bytes), products));
    } else if r < sums.len() {
        let products: [i32; 8] = bytemuck::cast(products);
        for (sum, product) in sums[r..].iter_mut().zip(products) {
            *sum += product;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 bytes, twice.
#[inline]
#[target_feature(enable = "avx2")]
fn load_twice(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(out: &mut [u8; 32], x: __m256i) {
    // SAFETY: the reference is to 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
}
