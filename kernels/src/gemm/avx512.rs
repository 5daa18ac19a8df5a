//! Packed weights as codes (trit plus one) in the order of the product, with 512-bit registers: what
//! [`super::avx2::decode`] gives, for the kernels that have AVX-512 anyway.
//!
//! A half of a quad, 64 bytes, is 16 rows x 4 columns. Its four lanes have four rows each; for half `h` those from
//! `8 h`, `8 h + 16`, `8 h + 4` and `8 h + 20` on, as unpacking 32 rows makes them.
//!
//! I2_S: a unit's row is 32 bytes, eight numbers of 32 bits, each of which has a quad of every quarter of the unit.
//!
//! ```text
//! for each half:
//!     eight registers of two rows each, 16 rows x 8 numbers        (a load, and one that fills the upper half)
//!     transpose them: register d = number d of all 16 rows         (24 shuffles)
//!     for each d, each quarter: codes[8 quarter + d][half] = register d >> shift & 3
//! ```
//!
//! Shifts are of 16 bits; what they bring into a byte from its neighbour is above its two low bits, which are all
//! that is kept.
//!
//! C2 and T3: columns are planes of 32 rows, as with AVX2, but of two units, one in each half of a register. Unpacking
//! bytes of two columns makes words, and one shuffle of words from two registers makes a half of a quad.
//!
//! T5, with VBMI: a unit has four groups of five columns and so five quads. Two units go side by side, one in each half
//! of a register.
//!
//! ```text
//! for each group, 32 rows of two units:
//!     bytes in the order of the codes' rows                                  (vpermb)
//!     first, second = the codes of its columns that belong to quad g, g + 1  (two vpermi2b, two bits a code)
//!     where the sign is set: 2 - code for each code                          (a masked subtraction)
//! for each quad: packed = second of the group before | first of the group
//!     for each unit, each half: codes = each two bits of packed              (vpmultishiftqb, vpandd)
//! ```
//!
//! * `vpermi2b` ignores the top bit of an index, which is the sign here, and has 128 entries.
//! * Codes of two bits are 0 to 2, so subtracting a byte of them from a byte of twos borrows nothing.
//! * `vpmultishiftqb` makes each byte from any eight neighbouring bits of its lane of 64: a row's byte becomes four of
//!   16 rows' bytes without another shuffle, where it lies in the right lane, which is what the first step is for.

use super::avx2::decode as avx2;
use super::avx2::strips::{Ahead, Packed, QUAD, Quad, STRIP};
use super::avx512vnni::load;
use super::unit;
use crate::format::{Layout, c2, i2s, t3, t5};
use core::arch::x86_64::*;
use core::ops::Range;

/// Bytes of a row of a unit of I2_S, and quads of its codes.
const UNIT: usize = i2s::BLOCK / 4;
const UNIT_QUADS: usize = i2s::BLOCK / QUAD;

/// See [`avx2::decode`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
pub(super) fn decode(packed: &Packed, units: Range<usize>, ahead: Ahead, codes: &mut [Quad]) {
    match *packed {
        // The last strip may be shorter.
        Packed::I2s { data, row_bytes, ref rows } if rows.len() == STRIP => {
            decode_i2s(data, row_bytes, rows.start, units, ahead, codes);
        }
        Packed::C2 { lines, r } => decode_c2(lines, r, units, codes),
        Packed::T3 { block } => decode_t3(block, units, ahead, codes),
        _ => avx2::decode(packed, units, ahead, codes),
    }
}

/// The same where there is VBMI.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn decode_vbmi(packed: &Packed, units: Range<usize>, ahead: Ahead, codes: &mut [Quad]) {
    match *packed {
        Packed::T5 { block, r } => decode_t5(block, r, units, ahead, codes),
        _ => decode(packed, units, ahead, codes),
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
fn decode_i2s(data: &[u8], row_bytes: usize, row: usize, units: Range<usize>, ahead: Ahead, codes: &mut [Quad]) {
    let three = _mm512_set1_epi8(3);
    assert!(units.end * UNIT <= row_bytes, "units of a row");
    let first = data[row * row_bytes..][..STRIP * row_bytes][units.start * UNIT..].as_ptr();
    let (codes, _) = codes.as_chunks_mut::<UNIT_QUADS>();
    for (u, codes) in codes[..units.len()].iter_mut().enumerate() {
        ahead.prefetch(u);
        for half in 0..2 {
            let two = |r: usize| {
                // SAFETY: `first` is the first byte of `units` in the first of the strip's rows, which are `row_bytes`
                // apart and all in `data`; `r` is less than 16, and the assertion has all units in the row.
                unsafe {
                    load_two(
                        first.add(r * row_bytes + u * UNIT).cast(),
                        first.add((r + 16) * row_bytes + u * UNIT).cast(),
                    )
                }
            };
            let r = 8 * half;
            let a = transpose([two(r), two(r + 1), two(r + 2), two(r + 3)]);
            let b = transpose([two(r + 4), two(r + 5), two(r + 6), two(r + 7)]);
            for d in 0..8 {
                let quads = if d < 4 {
                    _mm512_shuffle_i32x4::<0b10_00_10_00>(a[d], b[d])
                } else {
                    _mm512_shuffle_i32x4::<0b11_01_11_01>(a[d - 4], b[d - 4])
                };
                let quarters = [
                    _mm512_srli_epi16::<6>(quads),
                    _mm512_srli_epi16::<4>(quads),
                    _mm512_srli_epi16::<2>(quads),
                    quads,
                ];
                for (i, quarter) in quarters.into_iter().enumerate() {
                    store(&mut codes[8 * i + d], half, _mm512_and_si512(quarter, three));
                }
            }
        }
    }
}

/// Groups of a unit of T5.
const GROUPS: usize = unit(Layout::T5) / t5::GROUP;

/// A group's codes by its magnitude, two bits each: `[group][0]` has those of quad `group` where they stand in it,
/// `[group][1]` those of the next quad.
static T5_CODES: [[[u8; t5::TABLE]; 2]; GROUPS] = {
    let mut table = [[[0; t5::TABLE]; 2]; GROUPS];
    let mut i = 0;
    while i < GROUPS * t5::GROUP * t5::TABLE {
        let (column, m) = (i / t5::TABLE, i % t5::TABLE);
        let group = column / t5::GROUP;
        let code = t5::digits(t5::value(m as u8))[column % t5::GROUP] + 1;
        table[group][column / QUAD - group][m] |= (code as u8) << (2 * (column % QUAD));
        i += 1;
    }
    table
};

/// Code 2 wherever [`T5_CODES`] has a code.
const T5_TWOS: [[u8; 2]; GROUPS] = {
    let mut twos = [[0; 2]; GROUPS];
    let mut column = 0;
    while column < GROUPS * t5::GROUP {
        let group = column / t5::GROUP;
        twos[group][column / QUAD - group] |= 2 << (2 * (column % QUAD));
        column += 1;
    }
    twos
};

/// Row `i` of a half.
const fn row(half: usize, i: usize) -> usize {
    8 * half + i / 8 * 4 + i / 4 % 2 * 16 + i % 4
}

/// Which row's byte of two units stands where: in lane `i` of 64 bits rows `2 i` and `2 i + 1` of the first unit's first
/// half, of its second half, and the same of the second unit.
static ROWS_TO_LANES: [u8; 64] = {
    let mut from = [0; 64];
    let mut to = 0;
    while to < 64 {
        let (unit, half) = (to % 8 / 4, to % 4 / 2);
        from[to] = (32 * unit + row(half, to / 8 * 2 + to % 2)) as u8;
        to += 1;
    }
    from
};

/// The bits that make each byte of a half: `[2 unit + half]`, four codes of two rows in each lane.
static LANES_TO_CODES: [[u8; 64]; 4] = {
    let mut bits = [[0; 64]; 4];
    let mut i = 0;
    while i < 4 * 64 {
        bits[i / 64][i % 64] = (i / 64 * 16 + i % 8 / 4 * 8 + i % 4 * 2) as u8;
        i += 1;
    }
    bits
};

/// Decodes units of the rows of a tile's block from `r` on. Groups past the last are read as zeros.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vbmi")]
fn decode_t5(block: &[u8], r: usize, units: Range<usize>, ahead: Ahead, codes: &mut [Quad]) {
    const STRIPS: usize = t5::TILE_ROWS / STRIP;
    let three = _mm512_set1_epi8(3);
    let tables = T5_CODES.each_ref().map(|parts| {
        parts.each_ref().map(|table| {
            let (halves, _) = table.as_chunks::<64>();
            [load(&halves[0]), load(&halves[1])]
        })
    });
    let (rows_to_lanes, lanes_to_codes) = (load(&ROWS_TO_LANES), LANES_TO_CODES.each_ref().map(|bits| load(bits)));
    let (halves, _) = block.as_chunks::<STRIP>();
    let (codes, _) = codes.as_chunks_mut::<{ t5::GROUP }>();
    for (i, codes) in codes[..units.len()].chunks_mut(2).enumerate() {
        let unit = units.start + 2 * i;
        ahead.prefetch(2 * i);
        ahead.prefetch(2 * i + 1);
        let mut packed = [_mm512_setzero_si512(); t5::GROUP];
        for group in 0..GROUPS {
            let bytes = |unit: usize| {
                let bytes = halves.get((unit * GROUPS + group) * STRIPS + r / STRIP);
                bytes.unwrap_or(&[0; STRIP])
            };
            let bytes = _mm512_permutexvar_epi8(rows_to_lanes, load_both(bytes(unit), bytes(unit + 1)));
            let negative = _mm512_movepi8_mask(bytes);
            for part in 0..2 {
                let [low, high] = tables[group][part];
                let codes = _mm512_permutex2var_epi8(low, bytes, high);
                let twos = _mm512_set1_epi8(T5_TWOS[group][part] as i8);
                let codes = _mm512_mask_sub_epi8(codes, negative, twos, codes);
                packed[group + part] = _mm512_or_si512(packed[group + part], codes);
            }
        }
        for (u, codes) in codes.iter_mut().enumerate() {
            for (quad, packed) in codes.iter_mut().zip(packed) {
                for half in 0..2 {
                    let bits = _mm512_multishift_epi64_epi8(lanes_to_codes[2 * u + half], packed);
                    store(quad, half, _mm512_and_si512(bits, three));
                }
            }
        }
    }
}

/// The 4 x 4 numbers of 32 bits of each lane of four registers, rows for columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// # Safety
/// The pointers are to readable memory.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_two(low: *const [u8; 32], high: *const [u8; 32]) -> __m512i {
    // SAFETY: the caller vouches for 32 readable bytes each; the loads need no alignment.
    unsafe {
        let (low, high) = (_mm256_loadu_si256(low.cast()), _mm256_loadu_si256(high.cast()));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// Decodes units of four columns, of the rows of a tile from `r` on. Columns past the last are read as code 0.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
fn decode_c2(lines: &[[u8; c2::LINE]], r: usize, units: Range<usize>, codes: &mut [Quad]) {
    let three = _mm512_set1_epi8(3);
    // A half of a line is a block of I2_S: a quarter of its bits is 32 rows.
    let (half, quarter) = (r / i2s::BLOCK, r % i2s::BLOCK / STRIP);
    let shift = _mm_cvtsi32_si128(6 - 2 * quarter as i32);
    for (i, codes) in codes[..units.len()].chunks_mut(2).enumerate() {
        let column = (units.start + 2 * i) * QUAD;
        let mut planes = [_mm512_setzero_si512(); QUAD];
        for (j, plane) in planes.iter_mut().enumerate() {
            let bytes = |column: usize| lines.get(column).map_or(&[0; 32], |line| &line.as_chunks().0[half]);
            let bytes = load_both(bytes(column + j), bytes(column + QUAD + j));
            *plane = _mm512_and_si512(_mm512_srl_epi16(bytes, shift), three);
        }
        interleave(planes, codes.iter_mut());
    }
}

/// Decodes super-groups of a tile's block.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
fn decode_t3(block: &[u8], units: Range<usize>, ahead: Ahead, codes: &mut [Quad]) {
    let (one, two, low_nibble) = (_mm512_set1_epi8(1), _mm512_set1_epi8(2), _mm512_set1_epi8(15));
    let tables = avx2::T3_DIGITS.each_ref().map(|digits| {
        let digits = _mm512_broadcast_i32x4(bytemuck::cast(*digits));
        _mm512_add_epi8(digits, one)
    });
    let (planes, _) = block.as_chunks::<{ t3::PLANE }>();
    let (codes, _) = codes.as_chunks_mut::<{ unit(Layout::T3) / QUAD }>();
    for (i, codes) in codes[..units.len()].chunks_mut(2).enumerate() {
        let unit = units.start + 2 * i;
        ahead.prefetch(2 * i);
        ahead.prefetch(2 * i + 1);
        // The last super-group may be shorter; its missing groups are read as zeros.
        let plane = |i: usize| {
            let plane = |unit: usize| planes.get(unit * avx2::SUPER_PLANES + i).unwrap_or(&[0; t3::PLANE]);
            load_both(plane(unit), plane(unit + 1))
        };
        let mut signs = plane(0);
        let mut columns = [one; t3::SUPER * t3::GROUP];
        for pair in (0..t3::SUPER / 2).rev() {
            let nibbles = plane(1 + pair);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), low_nibble);
            let low = _mm512_and_si512(nibbles, low_nibble);
            for (group, magnitudes) in [(2 * pair + 1, high), (2 * pair, low)] {
                // The group's bit is the top bit now.
                let negative = _mm512_movepi8_mask(signs);
                for (j, table) in tables.into_iter().enumerate() {
                    let codes = _mm512_shuffle_epi8(table, magnitudes);
                    columns[group * t3::GROUP + j] = _mm512_mask_sub_epi8(codes, negative, two, codes);
                }
                signs = _mm512_add_epi8(signs, signs);
            }
        }
        for (q, planes) in columns.as_chunks::<QUAD>().0.iter().enumerate() {
            interleave(*planes, codes.iter_mut().map(|codes| &mut codes[q]));
        }
    }
}

/// Where each row's word is in two registers whose first and second half have those of two quads: unpacking leaves rows
/// 0-7 in one lane and 16-23 in the next (or 8-15 and 24-31).
static WORDS: [[u16; 32]; 2] = {
    let mut words = [[0; 32]; 2];
    let mut i = 0;
    while i < 64 {
        let (quad, row) = (i / 32, row(0, i % 32 / 2));
        words[quad][i % 32] = (32 * (i % 2) + 16 * quad + row / 16 * 8 + row % 8) as u16;
        i += 1;
    }
    words
};

/// Makes quads of four columns of 32 rows, one of each half of the registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave<'a>([a, b, c, d]: [__m512i; QUAD], quads: impl Iterator<Item = &'a mut Quad>) {
    let halves = [
        (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d)),
        (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d)),
    ];
    for (quad, words) in quads.zip(&WORDS) {
        for (half, (ab, cd)) in halves.into_iter().enumerate() {
            store(quad, half, _mm512_permutex2var_epi16(ab, bytemuck::cast(*words), cd));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_both(low: &[u8; 32], high: &[u8; 32]) -> __m512i {
    // SAFETY: the references are to readable bytes.
    unsafe { load_two(low, high) }
}

/// Writes a half of a quad.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(quad: &mut Quad, half: usize, x: __m512i) {
    let halves: &mut [[u8; 64]; 2] = bytemuck::cast_mut(quad);
    // SAFETY: the reference is to 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(halves[half].as_mut_ptr().cast(), x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Geometry;
    use crate::gemv::tile_block;
    use crate::isa::Level;
    use crate::testing::{Random, any_bytes, can_run};
    use std::vec;
    use std::vec::Vec;

    /// Two strips at least, the last one of I2_S short.
    const ROWS: usize = 75;

    /// The last unit is short, except in I2_S, which has none such.
    const fn cols(layout: Layout) -> usize {
        match layout {
            Layout::I2S => 640,
            Layout::C2 | Layout::T3 | Layout::T5 => 650,
        }
    }

    /// Compares a decoder with AVX2's on all strips of random bytes and several ranges of units.
    fn check(layout: Layout, decode: unsafe fn(&Packed, Range<usize>, Ahead, &mut [Quad])) {
        let cols = cols(layout);
        let geometry = Geometry::new(layout, ROWS, cols, cols).unwrap();
        let mut random = Random::new(layout as u64);
        let data = any_bytes(&geometry, &mut random);
        let (tile_rows, quads) = (geometry.tile_rows(), unit(layout) / QUAD);
        let units = cols.div_ceil(unit(layout));
        for slot in (0..geometry.n_tiles() * tile_rows).step_by(STRIP) {
            let (tile, r) = (slot / tile_rows, slot % tile_rows);
            let packed = match layout {
                Layout::I2S => {
                    let rows = slot..(slot + STRIP).min(ROWS);
                    Packed::I2s { data: &data, row_bytes: cols / 4, rows }
                }
                Layout::C2 => Packed::C2 { lines: c2::tile_lines(&geometry, &data, tile), r },
                Layout::T3 => Packed::T3 { block: tile_block(&geometry, &data, tile, 0) },
                Layout::T5 => Packed::T5 { block: tile_block(&geometry, &data, tile, 0), r },
            };
            for units in [0..units, 0..1, 1..units - 1, units - 2..units, units - 1..units] {
                // What no decoder writes stays as it is: there is a quad too many.
                let before: Vec<Quad> = vec![[[0x55; 32]; 4]; units.len() * quads + 1];
                let (mut expected, mut codes) = (before.clone(), before);
                let ahead = Ahead::new(&data, units.len());
                // SAFETY: the callers have found the levels of both decoders.
                unsafe {
                    avx2::decode(&packed, units.clone(), ahead, &mut expected[..units.len() * quads]);
                    decode(&packed, units.clone(), ahead, &mut codes[..units.len() * quads]);
                }
                assert!(codes == expected, "{layout:?}, strip at row {slot}, units {units:?}");
            }
        }
    }

    #[test]
    fn decoding_with_avx512_is_decoding_with_avx2() {
        if can_run(Level::Avx512) {
            for layout in [Layout::I2S, Layout::C2, Layout::T3, Layout::T5] {
                check(layout, super::decode);
            }
        }
        if can_run(Level::Avx512Vbmi) {
            for layout in [Layout::I2S, Layout::C2, Layout::T3, Layout::T5] {
                check(layout, decode_vbmi);
            }
        }
    }
}
