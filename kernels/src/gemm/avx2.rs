//! `gemm-*-avx2`: `vpmaddubsw` with rows as lanes.
//!
//! ```text
//! for each panel (at most 160 quads of columns of one block), each strip of 32 rows:
//!     decode the strip: codes[quad][octet] = 8 rows x 4 columns                    (once)
//!     for each pair of vectors, each run of quads, each quad:
//!         for octet in 0..4, vector in 0..2:
//!             sum16[vector][octet] += maddubs(codes[quad][octet], the vector's 4 activations in all lanes)
//!     at the end of a run: sum32 += madd(sum16, 1), which leaves one row's sum in each lane
//! ```
//!
//! * Codes are the trit plus one, so they are unsigned, as `vpmaddubsw` wants its first factor; the
//!   surplus is the total of the activations, taken off once.
//! * Lanes are rows, so no sum is ever taken across a register, however short a block is. Of one
//!   quad, 8 sums stay in registers and 6 loads serve 8 multiplications.
//! * A panel of codes takes 20 KiB and stays in the first cache while all vectors pass by; the
//!   columns of all vectors stay in the second cache while all strips pass by.
//! * Interleaved layouts give planes of one column and 32 rows; unpacking four of them makes octets of
//!   rows 0-3 and 16-19, 4-7 and 20-23, and so on. I2_S is decoded into the same order, and the
//!   rows are put in order when sums are written.
//! * Bound: a lane of 16 bits gets one pair of products of a quad. I2_S has codes up to 3, so a pair
//!   is within 2 * 3 * 128 = 768 and 42 of them within 32,256; in the other layouts it is within
//!   2 * 2 * 128 = 512 and 63 of them within 32,256. Sums of whole rows fit 32 bits
//!   ([`crate::format::MAX_COLS`]).

use super::{activations, total, unit};
use crate::format::{Geometry, Layout, i2s, t3, t5};
use crate::gemv::{sums_at, tile_block, vector};
use crate::line::Line;
use core::arch::x86_64::*;
use core::array::from_fn;
use core::ops::Range;

/// Rows that are multiplied together.
const STRIP: usize = 32;

/// Columns whose activations fill one lane of 32 bits.
const QUAD: usize = 4;

/// Quads of a panel at most.
const PANEL: usize = 160;

/// The codes of one quad: four octets of 8 rows x 4 columns.
type Quad = [[u8; 32]; 4];

#[repr(C, align(64))]
struct Panel([Quad; PANEL]);

/// Products of a quad that a 16-bit lane holds.
const fn run_quads(layout: Layout) -> usize {
    match layout {
        Layout::I2S => 42,
        Layout::T3 | Layout::T5 => 63,
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
    let mut codes = Panel([[[0; 32]; 4]; PANEL]);
    let (unit_quads, tile_rows) = (unit(geometry.layout) / QUAD, geometry.tile_rows());
    // Units of a panel, and quads of a run: as even as the bounds allow.
    let units = geometry.block.div_ceil(unit_quads * QUAD);
    let panel_units = units.div_ceil(units.div_ceil(PANEL / unit_quads));
    let panel_quads = panel_units * unit_quads;
    let run_quads = panel_quads.div_ceil(panel_quads.div_ceil(run_quads(geometry.layout)));
    // Rows as the output has them, those past the last included.
    let n_slots = tiles.len() * tile_rows;
    for b in 0..geometry.n_blocks() {
        for start in (0..units).step_by(panel_units) {
            let panel = start..(start + panel_units).min(units);
            let quads = panel.start * unit_quads..panel.end * unit_quads;
            let codes = &mut codes.0[..quads.len()];
            for slot in (0..n_slots).step_by(STRIP) {
                let (t, r) = (slot / tile_rows, slot % tile_rows);
                let n_rows = match geometry.layout {
                    Layout::I2S => {
                        let rows = geometry.rows_of(tiles.start + t..tiles.end);
                        let rows = rows.start..rows.end.min(rows.start + STRIP);
                        decode_i2s(data, geometry.cols / 4, rows.clone(), panel.clone(), codes);
                        rows.len()
                    }
                    Layout::T3 => {
                        decode_t3(tile_block(geometry, data, tiles.start + t, b), panel.clone(), codes);
                        STRIP
                    }
                    Layout::T5 => {
                        decode_t5(tile_block(geometry, data, tiles.start + t, b), r, panel.clone(), codes);
                        STRIP
                    }
                };
                // A strip of I2_S may be two tiles: there is one block, so their sums are neighbours.
                let n_sums = STRIP.min(n_slots - slot);
                let strip = Strip { codes, run_quads, n_rows };
                let columns = |v| {
                    let block = activations(geometry, vector(prepared, n_vectors, v), b);
                    &bytemuck::cast_slice::<i8, u8>(block).as_chunks::<QUAD>().0[quads.clone()]
                };
                let mut add = |v, products: &[i32; STRIP]| {
                    let sums = &mut out[sums_at(geometry, tiles.len(), v, t, b) + r..][..n_sums];
                    if start == 0 {
                        sums.fill(0);
                        sums[..n_rows].fill(-total(geometry, vector(prepared, n_vectors, v), b));
                    }
                    for (sum, product) in sums[..n_rows].iter_mut().zip(products) {
                        *sum += product;
                    }
                };
                let pairs = n_vectors / 2 * 2;
                for v in (0..pairs).step_by(2) {
                    let [first, second] = strip.products([columns(v), columns(v + 1)]);
                    add(v, &first);
                    add(v + 1, &second);
                }
                if pairs < n_vectors {
                    let [last] = strip.products([columns(pairs)]);
                    add(pairs, &last);
                }
            }
        }
    }
}

/// Decoded rows.
struct Strip<'a> {
    codes: &'a [Quad],
    run_quads: usize,
    n_rows: usize,
}

impl Strip<'_> {
    /// Codes times activations, row by row, for `N` vectors that have as many quads.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn products<const N: usize>(&self, vectors: [&[[u8; QUAD]]; N]) -> [[i32; STRIP]; N] {
        let ones = _mm256_set1_epi16(1);
        let mut wide = [[_mm256_setzero_si256(); 4]; N];
        for (i, codes) in self.codes.chunks(self.run_quads).enumerate() {
            let vectors = vectors.map(|vector| &vector[i * self.run_quads..][..codes.len()]);
            let mut narrow = [[_mm256_setzero_si256(); 4]; N];
            for (q, codes) in codes.iter().enumerate() {
                let a = vectors.map(|vector| _mm256_set1_epi32(i32::from_le_bytes(vector[q])));
                for (octet, codes) in codes.iter().enumerate() {
                    let codes = load(codes);
                    for (narrow, a) in narrow.iter_mut().zip(a) {
                        narrow[octet] = _mm256_add_epi16(narrow[octet], _mm256_maddubs_epi16(codes, a));
                    }
                }
            }
            for (wide, narrow) in wide.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
                *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(*narrow, ones));
            }
        }
        wide.map(|[a, b, c, d]| {
            let eights = [
                _mm256_permute2x128_si256::<0x20>(a, b),
                _mm256_permute2x128_si256::<0x20>(c, d),
                _mm256_permute2x128_si256::<0x31>(a, b),
                _mm256_permute2x128_si256::<0x31>(c, d),
            ];
            bytemuck::cast(eights)
        })
    }
}

/// Decodes units of at most [`STRIP`] neighbouring rows; where there are fewer, the last one stands
/// in for those that are missing.
#[target_feature(enable = "avx2")]
fn decode_i2s(data: &[u8], row_bytes: usize, rows: Range<usize>, units: Range<usize>, codes: &mut [Quad]) {
    let three = _mm256_set1_epi8(3);
    let bytes = units.start * (i2s::BLOCK / 4)..units.end * (i2s::BLOCK / 4);
    for octet in 0..4 {
        let rows: [&[[u8; 32]]; 8] = from_fn(|i| {
            let row = rows.start + i / 4 * 16 + octet * 4 + i % 4;
            data[row.min(rows.end - 1) * row_bytes..][bytes.clone()].as_chunks::<32>().0
        });
        for (u, codes) in codes.as_chunks_mut::<{ i2s::BLOCK / QUAD }>().0.iter_mut().enumerate() {
            // Four bytes of a row are a quad of each of the unit's quarters.
            for (d, quads) in transpose(rows.map(|row| load(&row[u]))).into_iter().enumerate() {
                let quarters = [
                    _mm256_srli_epi16::<6>(quads),
                    _mm256_srli_epi16::<4>(quads),
                    _mm256_srli_epi16::<2>(quads),
                    quads,
                ];
                for (i, quarter) in quarters.into_iter().enumerate() {
                    store(&mut codes[8 * i + d][octet], _mm256_and_si256(quarter, three));
                }
            }
        }
    }
}

/// Column `d` of an 8 x 8 matrix of 32-bit numbers, for all `d`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let four = |[a, b, c, d]: [__m256i; 4]| {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    };
    let [a, b, c, d, e, f, g, h] = rows;
    let (first, second) = (four([a, b, c, d]), four([e, f, g, h]));
    from_fn(|d| {
        if d < 4 {
            _mm256_permute2x128_si256::<0x20>(first[d], second[d])
        } else {
            _mm256_permute2x128_si256::<0x31>(first[d - 4], second[d - 4])
        }
    })
}

/// The trits of each magnitude up to 13, 0 for 14 and 15: digit `j` of magnitude `m` at `[j][m]`.
static T3_DIGITS: [[u8; 16]; t3::GROUP] = {
    let mut table = [[0; 16]; t3::GROUP];
    let mut m = 0;
    while m <= t3::MAX_VALUE {
        let trits = t3::digits(m as i8);
        let mut j = 0;
        while j < t3::GROUP {
            table[j][m as usize] = trits[j] as u8;
            j += 1;
        }
        m += 1;
    }
    table
};

/// Decodes super-groups of a tile's block.
#[target_feature(enable = "avx2")]
fn decode_t3(block: &[u8], units: Range<usize>, codes: &mut [Quad]) {
    const SUPER_PLANES: usize = 1 + t3::SUPER / 2;
    let (planes, _) = block.as_chunks::<{ t3::PLANE }>();
    let digits = T3_DIGITS.each_ref().map(|table| load_twice(table));
    let (one, low_nibble) = (_mm256_set1_epi8(1), _mm256_set1_epi8(15));
    for (unit, codes) in units.zip(codes.as_chunks_mut::<{ t3::SUPER * t3::GROUP / QUAD }>().0) {
        let planes = &planes[unit * SUPER_PLANES..];
        let mut signs = load(&planes[0]);
        let mut columns = [one; t3::SUPER * t3::GROUP];
        for pair in (0..t3::SUPER / 2).rev() {
            // The last super-group may be shorter; its missing groups have no sign set.
            let nibbles = planes.get(1 + pair).map_or(_mm256_setzero_si256(), |plane| load(plane));
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(nibbles), low_nibble);
            let low = _mm256_and_si256(nibbles, low_nibble);
            for (group, magnitudes) in [(2 * pair + 1, high), (2 * pair, low)] {
                // The group's bit is the top bit now; any other bit tells -1 or +1 from 0.
                let sign = _mm256_or_si256(signs, one);
                for (j, digits) in digits.into_iter().enumerate() {
                    let trits = _mm256_sign_epi8(_mm256_shuffle_epi8(digits, magnitudes), sign);
                    columns[group * t3::GROUP + j] = _mm256_add_epi8(trits, one);
                }
                signs = _mm256_add_epi8(signs, signs);
            }
        }
        for (columns, quad) in columns.as_chunks::<QUAD>().0.iter().zip(codes) {
            interleave(*columns, quad);
        }
    }
}

/// A magnitude `m` of T5 is `27 q + r` with `q` from 0 to 4 and `r` from -13 to 13, so `q` is
/// `(m + 13) / 27`. It changes at most once in a run of 16 magnitudes, so a run has a first `q` and
/// the last magnitude (127 at most) that has it.
static T5_QUOTIENTS: ([u8; 16], [u8; 16]) = {
    let (mut first, mut last) = ([0; 16], [127; 16]);
    let mut run = 0;
    while run < 8 {
        first[run] = ((16 * run + 13) / 27) as u8;
        let mut m = 16 * run;
        while m < 16 * run + 16 {
            if (m + 13) / 27 == first[run] as usize {
                last[run] = m as u8;
            }
            m += 1;
        }
        run += 1;
    }
    (first, last)
};

/// `27 q`, and the two trits of `q`.
static T5_HIGH: [[u8; 16]; 3] = {
    let mut table = [[0; 16]; 3];
    let mut q = 0;
    while q <= 4 {
        let trits = t3::digits(q as i8);
        table[0][q] = 27 * q as u8;
        table[1][q] = trits[0] as u8;
        table[2][q] = trits[1] as u8;
        q += 1;
    }
    table
};

/// Decodes units of four groups, of the rows of a tile's block from `r` on.
#[target_feature(enable = "avx2")]
fn decode_t5(block: &[u8], r: usize, units: Range<usize>, codes: &mut [Quad]) {
    let tables = T5Tables {
        first: load_twice(&T5_QUOTIENTS.0),
        last: load_twice(&T5_QUOTIENTS.1),
        digits: T3_DIGITS.each_ref().map(|table| load_twice(table)),
        high: T5_HIGH.each_ref().map(|table| load_twice(table)),
    };
    let (halves, _) = block.as_chunks::<STRIP>();
    const STRIPS: usize = t5::TILE_ROWS / STRIP;
    for (unit, codes) in units.zip(codes.as_chunks_mut::<{ t5::GROUP }>().0) {
        let columns: [[__m256i; t5::GROUP]; 4] = from_fn(|i| {
            // The last unit may have fewer groups.
            let bytes = halves.get((unit * 4 + i) * STRIPS + r / STRIP);
            tables.codes(bytes.map_or(_mm256_setzero_si256(), |bytes| load(bytes)))
        });
        for (columns, quad) in columns.as_flattened().as_chunks::<QUAD>().0.iter().zip(codes) {
            interleave(*columns, quad);
        }
    }
}

struct T5Tables {
    first: __m256i,
    last: __m256i,
    digits: [__m256i; t3::GROUP],
    high: [__m256i; 3],
}

impl T5Tables {
    /// The five codes of each byte.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn codes(&self, bytes: __m256i) -> [__m256i; t5::GROUP] {
        let one = _mm256_set1_epi8(1);
        let m = _mm256_and_si256(bytes, _mm256_set1_epi8(127));
        let m = _mm256_and_si256(m, _mm256_cmpgt_epi8(_mm256_set1_epi8(t5::MAX_VALUE as i8 + 1), m));
        let run = _mm256_and_si256(_mm256_srli_epi16::<4>(m), _mm256_set1_epi8(7));
        let above = _mm256_cmpgt_epi8(m, _mm256_shuffle_epi8(self.last, run));
        let q = _mm256_sub_epi8(_mm256_shuffle_epi8(self.first, run), above);
        let sign = _mm256_or_si256(bytes, one);
        let r = _mm256_sub_epi8(m, _mm256_shuffle_epi8(self.high[0], q));
        let (r, magnitude) = (_mm256_sign_epi8(r, sign), _mm256_abs_epi8(r));
        // Where `r` is 0, so are its digits and what `vpsignb` makes of them.
        let [t0, t1, t2] = self.digits.map(|digits| _mm256_sign_epi8(_mm256_shuffle_epi8(digits, magnitude), r));
        let [t3, t4] =
            [self.high[1], self.high[2]].map(|digits| _mm256_sign_epi8(_mm256_shuffle_epi8(digits, q), sign));
        [t0, t1, t2, t3, t4].map(|trits| _mm256_add_epi8(trits, one))
    }
}

/// Makes octets of four columns of 32 rows.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave([a, b, c, d]: [__m256i; QUAD], quad: &mut Quad) {
    let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
    store(&mut quad[0], _mm256_unpacklo_epi16(ab, cd));
    store(&mut quad[1], _mm256_unpackhi_epi16(ab, cd));
    store(&mut quad[2], _mm256_unpacklo_epi16(ab_high, cd_high));
    store(&mut quad[3], _mm256_unpackhi_epi16(ab_high, cd_high));
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
