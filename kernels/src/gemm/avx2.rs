//! `gemm-*-avx2`: `vpmaddubsw` with rows as lanes.
//!
//! ```text
//! for each panel (at most 320 quads of columns of one block), each strip of 32 rows:
//!     decode the strip: codes[quad][octet] = 8 rows x 4 columns                     (once)
//!     for octets 0 and 1, then 2 and 3, each four vectors, each run of quads:
//!         for each quad, octet, vector:
//!             sum16[vector][octet] += maddubs(codes[quad][octet], the vector's 4 activations in all lanes)
//!         sum32 += madd(sum16, 1), which leaves one row's sum in each lane
//! one or two vectors that are left: the same with all four octets at once
//! ```
//!
//! * Codes are the trit plus one, so they are unsigned, as `vpmaddubsw` wants its first factor; the
//!   surplus is the total of the activations, taken off once.
//! * Lanes are rows, so no sum is ever taken across a register, however short a block is. Eight sums
//!   stay in registers, and 6 loads serve 8 multiplications, 2 of them loads of codes.
//! * The codes of two octets of a panel are 20 KiB and stay in the first cache while all vectors
//!   pass by; their columns, 160 KiB of 128 vectors, stay in the second while all strips pass by.
//!   More vectors than that are taken in groups: decoding again is a small part of the work.
//! * Interleaved layouts give planes of one column and 32 rows; unpacking four of them makes octets of
//!   rows 0-3 and 16-19, 4-7 and 20-23, and so on. I2_S is decoded into the same order, and the
//!   rows are put in order when sums are written.
//! * Bound: a lane of 16 bits gets one pair of products of a quad. I2_S has codes up to 3, so a pair
//!   is within 2 * 3 * 128 = 768 and the 42 quads of a run within 32,256; in the other layouts it is
//!   within 2 * 2 * 128 = 512 and the 62 quads of a run within 31,744. Sums of whole rows fit 32 bits
//!   ([`crate::format::MAX_COLS`]).

mod decode;

use super::{NOT_C2, Prepared, unit};
use crate::format::{Geometry, Layout, i2s, t3, t5};
use crate::gemv::tile_block;
use crate::line::Line;
use core::arch::asm;
use core::arch::x86_64::*;
use core::ops::Range;
use decode::{SUPER_PLANES, decode_i2s, decode_t3, decode_t5};

/// Rows that are multiplied together.
const STRIP: usize = 32;

/// Columns whose activations fill one lane of 32 bits.
const QUAD: usize = 4;

/// Quads of a panel at most.
const PANEL: usize = 320;

/// Vectors that share one decoding at most: their columns of a panel fit the second cache.
const VECTORS: usize = 128;

/// The codes of one quad: four octets of 8 rows x 4 columns.
type Quad = [[u8; 32]; 4];

#[repr(C, align(64))]
struct Panel([Quad; PANEL]);

/// Two quads: what one round of the inner loop takes.
type Pair = [Quad; 2];

/// Pairs of quads whose products a 16-bit lane holds.
const fn run_pairs(layout: Layout) -> usize {
    match layout {
        Layout::I2S => 21,
        Layout::C2 => panic!("{}", NOT_C2),
        Layout::T3 | Layout::T5 => 31,
    }
}

pub(crate) fn prepare(geometry: &Geometry, codes: &[i8], out: &mut [Line]) {
    super::prepare(geometry, codes, out);
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
    // As even as whole fours allow.
    let n_groups = n_vectors.div_ceil(VECTORS).max(1);
    let group = n_vectors.div_ceil(n_groups).next_multiple_of(4).max(4);
    for start in (0..n_vectors).step_by(group) {
        run_vectors(geometry, data, tiles.clone(), prepared, start..(start + group).min(n_vectors), out);
    }
}

/// The same for some of the vectors.
#[target_feature(enable = "avx2")]
fn run_vectors(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    vectors: Range<usize>,
    out: &mut [i32],
) {
    let mut codes = Panel([[[0; 32]; 4]; PANEL]);
    let (unit_quads, tile_rows) = (unit(geometry.layout) / QUAD, geometry.tile_rows());
    // Units of a panel, and quads of a run: as even as the bounds allow.
    let units = geometry.block.div_ceil(unit_quads * QUAD);
    let panel_units = units.div_ceil(units.div_ceil(PANEL / unit_quads)).next_multiple_of(1 + unit_quads % 2);
    let panel_pairs = panel_units * unit_quads / 2;
    let run_pairs = panel_pairs.div_ceil(panel_pairs.div_ceil(run_pairs(geometry.layout)));
    let prepared = Prepared::new(geometry, prepared);
    // Rows as the output has them, those past the last included.
    let n_slots = tiles.len() * tile_rows;
    let n_blocks = geometry.n_blocks();
    for b in 0..n_blocks {
        for start in (0..units).step_by(panel_units) {
            let panel = start..(start + panel_units).min(units);
            // All panels but the last have an even number of quads; the activations of one more are 0.
            let quads = panel.start * unit_quads..(panel.end * unit_quads).next_multiple_of(2);
            let codes = &mut codes.0[..quads.len()];
            for slot in (0..n_slots).step_by(STRIP) {
                let (t, r) = (slot / tile_rows, slot % tile_rows);
                let tile = tiles.start + t;
                let mut n_rows = STRIP;
                match geometry.layout {
                    Layout::I2S => {
                        let rows = geometry.rows_of(tile..tiles.end);
                        let rows = rows.start..rows.end.min(rows.start + STRIP);
                        n_rows = rows.len();
                        decode_i2s(data, geometry.cols / 4, rows, panel.clone(), codes);
                    }
                    Layout::C2 => unreachable!("{NOT_C2}"),
                    Layout::T3 => decode_t3(tile_block(geometry, data, tile, b), panel.clone(), codes),
                    Layout::T5 => decode_t5(tile_block(geometry, data, tile, b), r, panel.clone(), codes),
                }
                prefetch_weights(geometry, data, tile + STRIP.div_ceil(tile_rows)..tiles.end, b, panel.clone());
                let columns = |v| {
                    let block: &[u8] = bytemuck::cast_slice(prepared.activations(v, b));
                    block.as_chunks::<QUAD>().0[quads.clone()].as_chunks::<2>().0
                };
                // A strip of I2_S may be two tiles: there is one block, so their sums are neighbours.
                let n_sums = STRIP.min(n_slots - slot);
                let first_sum = (t * n_blocks + b) * tile_rows + r;
                let sums_of = |v| {
                    let start = v * n_slots * n_blocks + first_sum;
                    start..start + n_sums
                };
                let mut strip = Strip { codes: codes.as_chunks::<2>().0, run_pairs, n_rows, out };
                if start == 0 {
                    for v in vectors.clone() {
                        let sums = &mut strip.out[sums_of(v)];
                        sums[n_rows..].fill(0);
                        sums[..n_rows].fill(-prepared.total(v, b));
                    }
                }
                let fours = vectors.start + vectors.len() / 4 * 4;
                for half in 0..2 {
                    for v in (vectors.start..fours).step_by(4) {
                        let next = (v + 4).min(vectors.end - 4);
                        for next in next..next + 4 {
                            prefetch(bytemuck::cast_slice(&strip.out[sums_of(next)]));
                        }
                        let columns = [columns(v), columns(v + 1), columns(v + 2), columns(v + 3)];
                        let sums = [sums_of(v), sums_of(v + 1), sums_of(v + 2), sums_of(v + 3)];
                        strip.multiply_four(half, columns, sums);
                    }
                }
                match vectors.end - fours {
                    0 => {}
                    1 => strip.multiply([columns(fours)], [sums_of(fours)]),
                    2 => strip.multiply([columns(fours), columns(fours + 1)], [sums_of(fours), sums_of(fours + 1)]),
                    _ => {
                        strip.multiply([columns(fours), columns(fours + 1)], [sums_of(fours), sums_of(fours + 1)]);
                        strip.multiply([columns(fours + 2)], [sums_of(fours + 2)]);
                    }
                }
            }
        }
    }
}

/// Decoded rows, and all sums.
struct Strip<'a> {
    codes: &'a [Pair],
    run_pairs: usize,
    /// Rows that exist; further ones have no sums, or such as stay 0.
    n_rows: usize,
    out: &'a mut [i32],
}

/// The activations of a vector that belong to a strip's codes.
type Columns<'a> = &'a [[[u8; QUAD]; 2]];

impl Strip<'_> {
    /// Adds codes times activations for one or two vectors, all octets at once.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn multiply<const N: usize>(&mut self, vectors: [Columns; N], sums: [Range<usize>; N]) {
        let ones = _mm256_set1_epi16(1);
        let mut wide = [[_mm256_setzero_si256(); 4]; N];
        for (i, codes) in self.codes.chunks(self.run_pairs).enumerate() {
            let mut run = [&[][..]; N];
            for (run, vector) in run.iter_mut().zip(vectors) {
                *run = vector[i * self.run_pairs..][..codes.len()].as_flattened();
            }
            let mut narrow = [[_mm256_setzero_si256(); 4]; N];
            for (q, codes) in codes.as_flattened().iter().enumerate() {
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
        for (wide, sums) in wide.into_iter().zip(sums) {
            let [a, b, c, d] = wide;
            add(&mut self.out[sums.clone()], self.n_rows, 0, a, b);
            add(&mut self.out[sums], self.n_rows, 8, c, d);
        }
    }

    /// Adds codes times activations for four vectors and the first two or the last two octets, which
    /// are one cache line of each quad.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn multiply_four(&mut self, half: usize, vectors: [Columns; 4], sums: [Range<usize>; 4]) {
        let mut wide = [[_mm256_setzero_si256(); 2]; 4];
        for (i, codes) in self.codes.chunks(self.run_pairs).enumerate() {
            let [a, b, c, d] = vectors;
            let run = i * self.run_pairs..i * self.run_pairs + codes.len();
            let vectors = [&a[run.clone()], &b[run.clone()], &c[run.clone()], &d[run]];
            widen(wide.as_flattened_mut(), run_of_four(codes, half, vectors).as_flattened());
        }
        for ([a, b], sums) in wide.into_iter().zip(sums) {
            add(&mut self.out[sums], self.n_rows, 8 * half, a, b);
        }
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
fn run_of_four(codes: &[Pair], half: usize, vectors: [Columns; 4]) -> [[__m256i; 2]; 4] {
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

/// Adds two octets to the sums, as far as the first `n_rows` go. Unpacking took rows `r..r + 4` and
/// `r + 16..r + 20` into the first, the next fours into the second.
#[inline]
#[target_feature(enable = "avx2")]
fn add(sums: &mut [i32], n_rows: usize, r: usize, first: __m256i, second: __m256i) {
    add_eight(sums, n_rows, r, _mm256_permute2x128_si256::<0x20>(first, second));
    add_eight(sums, n_rows, r + STRIP / 2, _mm256_permute2x128_si256::<0x31>(first, second));
}

/// Adds the products of 8 rows to the sums from `r` on, as far as the first `n_rows` go.
#[inline]
#[target_feature(enable = "avx2")]
fn add_eight(sums: &mut [i32], n_rows: usize, r: usize, products: __m256i) {
    if let Some(sums) = sums[..n_rows].get_mut(r..r + 8).and_then(<[i32]>::as_mut_array) {
        let bytes: &mut [u8; 32] = bytemuck::cast_mut::<[i32; 8], _>(sums);
        store(bytes, _mm256_add_epi32(load(bytes), products));
    } else if r < n_rows {
        let products: [i32; 8] = bytemuck::cast(products);
        for (sum, product) in sums[r..n_rows].iter_mut().zip(products) {
            *sum += product;
        }
    }
}

/// Fetches units of the first strip of `tiles`.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch_weights(geometry: &Geometry, data: &[u8], tiles: Range<usize>, b: usize, units: Range<usize>) {
    if tiles.is_empty() {
        return;
    }
    if geometry.layout == Layout::I2S {
        let row_bytes = geometry.cols / 4;
        let bytes = units.start * (i2s::BLOCK / 4)..units.end * (i2s::BLOCK / 4);
        for row in geometry.rows_of(tiles).take(STRIP) {
            prefetch(&data[row * row_bytes..][bytes.clone()]);
        }
    } else {
        let block = tile_block(geometry, data, tiles.start, b);
        let unit_bytes = match geometry.layout {
            Layout::T5 => 4 * t5::TILE_ROWS,
            _ => SUPER_PLANES * t3::PLANE,
        };
        let end = (units.end * unit_bytes).min(block.len());
        prefetch(&block[units.start * unit_bytes..end]);
    }
}

/// Fetches lines into the first cache.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
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
