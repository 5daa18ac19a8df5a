//! Packed weights as codes (trit plus one) in the order of the product: quads of columns, octets of rows.

use super::strips::{Ahead, Packed, QUAD, Quad, STRIP};
use super::{load, load_twice, store};
use crate::format::{c2, i2s, t3, t5};
use core::arch::x86_64::*;
use core::array::from_fn;
use core::ops::Range;

/// Decodes units of packed weights, the first into the first of `codes`.
#[target_feature(enable = "avx2")]
pub(in crate::gemm) fn decode(packed: &Packed, units: Range<usize>, ahead: Ahead, codes: &mut [Quad]) {
    match *packed {
        Packed::I2s { data, row_bytes, ref rows } => decode_i2s(data, row_bytes, rows.clone(), units, ahead, codes),
        Packed::C2 { lines, r } => decode_c2(lines, r, units, codes),
        Packed::T3 { block } => decode_t3(block, units, ahead, codes),
        Packed::T5 { block, r } => decode_t5(block, r, units, ahead, codes),
    }
}

/// Decodes units of at most [`STRIP`] neighbouring rows; where there are fewer, the last one stands
/// in for those that are missing.
#[target_feature(enable = "avx2")]
fn decode_i2s(
    data: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    units: Range<usize>,
    ahead: Ahead,
    codes: &mut [Quad],
) {
    let three = _mm256_set1_epi8(3);
    let bytes = units.start * (i2s::BLOCK / 4)..units.end * (i2s::BLOCK / 4);
    let octets: [[&[[u8; 32]]; 8]; 4] = from_fn(|octet| {
        from_fn(|i| {
            let row = rows.start + i / 4 * 16 + octet * 4 + i % 4;
            data[row.min(rows.end - 1) * row_bytes..][bytes.clone()].as_chunks::<32>().0
        })
    });
    for (u, codes) in codes.as_chunks_mut::<{ i2s::BLOCK / QUAD }>().0.iter_mut().enumerate() {
        ahead.prefetch(u);
        for (octet, rows) in octets.iter().enumerate() {
            let mut bytes = [three; 8];
            for (bytes, row) in bytes.iter_mut().zip(rows) {
                *bytes = load(&row[u]);
            }
            // Four bytes of a row are a quad of each of the unit's quarters.
            for (d, quads) in transpose(bytes).into_iter().enumerate() {
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
fn transpose([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> [__m256i; 8] {
    let [a, b, c, d] = transpose_halves([a, b, c, d]);
    let [e, f, g, h] = transpose_halves([e, f, g, h]);
    [
        _mm256_permute2x128_si256::<0x20>(a, e),
        _mm256_permute2x128_si256::<0x20>(b, f),
        _mm256_permute2x128_si256::<0x20>(c, g),
        _mm256_permute2x128_si256::<0x20>(d, h),
        _mm256_permute2x128_si256::<0x31>(a, e),
        _mm256_permute2x128_si256::<0x31>(b, f),
        _mm256_permute2x128_si256::<0x31>(c, g),
        _mm256_permute2x128_si256::<0x31>(d, h),
    ]
}

/// Columns `d` and `d + 4` of a 4 x 8 matrix, for all `d`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_halves([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Decodes units of four columns, of the rows of a tile from `r` on. Columns past the last are read as code 0.
#[target_feature(enable = "avx2")]
fn decode_c2(lines: &[[u8; c2::LINE]], r: usize, units: Range<usize>, codes: &mut [Quad]) {
    let three = _mm256_set1_epi8(3);
    // A half of a line is a block of I2_S: a quarter of its bits is 32 rows.
    let (half, quarter) = (r / i2s::BLOCK, r % i2s::BLOCK / STRIP);
    let shift = _mm_cvtsi32_si128(6 - 2 * quarter as i32);
    let lines = &lines[units.start * QUAD..lines.len().min(units.end * QUAD)];
    for (quad, columns) in codes.iter_mut().zip(lines.chunks(QUAD)) {
        let mut planes = [_mm256_setzero_si256(); QUAD];
        for (plane, line) in planes.iter_mut().zip(columns) {
            let bytes = load(&line.as_chunks::<32>().0[half]);
            *plane = _mm256_and_si256(_mm256_srl_epi16(bytes, shift), three);
        }
        interleave(planes, quad);
    }
}

/// The trits of each magnitude up to 13, 0 for 14 and 15: digit `j` of magnitude `m` at `[j][m]`.
pub(in crate::gemm) static T3_DIGITS: [[u8; 16]; t3::GROUP] = {
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

/// Planes of a super-group: one of signs, and one of nibbles for each pair of groups.
pub(in crate::gemm) const SUPER_PLANES: usize = 1 + t3::SUPER / 2;

/// Decodes super-groups of a tile's block.
#[target_feature(enable = "avx2")]
fn decode_t3(block: &[u8], units: Range<usize>, ahead: Ahead, codes: &mut [Quad]) {
    let (planes, _) = block.as_chunks::<{ t3::PLANE }>();
    let digits = T3_DIGITS.each_ref().map(|table| load_twice(table));
    let (one, low_nibble) = (_mm256_set1_epi8(1), _mm256_set1_epi8(15));
    for (u, codes) in codes.as_chunks_mut::<{ t3::SUPER * t3::GROUP / QUAD }>().0[..units.len()].iter_mut().enumerate()
    {
        ahead.prefetch(u);
        let unit = units.start + u;
        let planes = &planes[unit * SUPER_PLANES..];
        let mut signs = load(&planes[0]);
        let mut columns = [one; t3::SUPER * t3::GROUP];
        for pair in (0..t3::SUPER / 2).rev() {
            // The last super-group may be shorter; its missing groups have no sign set.
            let nibbles = load(planes.get(1 + pair).unwrap_or(&[0; t3::PLANE]));
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
fn decode_t5(block: &[u8], r: usize, units: Range<usize>, ahead: Ahead, codes: &mut [Quad]) {
    let tables = T5Tables {
        first: load_twice(&T5_QUOTIENTS.0),
        last: load_twice(&T5_QUOTIENTS.1),
        digits: T3_DIGITS.each_ref().map(|table| load_twice(table)),
        high: T5_HIGH.each_ref().map(|table| load_twice(table)),
    };
    let (halves, _) = block.as_chunks::<STRIP>();
    const STRIPS: usize = t5::TILE_ROWS / STRIP;
    for (u, codes) in codes.as_chunks_mut::<{ t5::GROUP }>().0[..units.len()].iter_mut().enumerate() {
        ahead.prefetch(u);
        let unit = units.start + u;
        let mut columns = [[_mm256_setzero_si256(); t5::GROUP]; 4];
        for (i, columns) in columns.iter_mut().enumerate() {
            // The last unit may have fewer groups.
            let bytes = halves.get((unit * 4 + i) * STRIPS + r / STRIP);
            *columns = tables.codes(load(bytes.unwrap_or(&[0; STRIP])));
        }
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
        let [d0, d1, d2] = self.digits;
        let [_, d3, d4] = self.high;
        [
            _mm256_add_epi8(one, _mm256_sign_epi8(_mm256_shuffle_epi8(d0, magnitude), r)),
            _mm256_add_epi8(one, _mm256_sign_epi8(_mm256_shuffle_epi8(d1, magnitude), r)),
            _mm256_add_epi8(one, _mm256_sign_epi8(_mm256_shuffle_epi8(d2, magnitude), r)),
            _mm256_add_epi8(one, _mm256_sign_epi8(_mm256_shuffle_epi8(d3, q), sign)),
            _mm256_add_epi8(one, _mm256_sign_epi8(_mm256_shuffle_epi8(d4, q), sign)),
        ]
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
