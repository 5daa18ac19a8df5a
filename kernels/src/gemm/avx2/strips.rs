//! The driver of all x86 kernels that decode strips of 32 rows and multiply them with many vectors.
//!
//! ```text
//! for each group of vectors:
//!     for each panel (some quads of columns of a block), each strip of 32 rows     (few vectors: the other way round)
//!         decode the strip: codes[quad][octet] = 8 rows x 4 columns                (each instruction set its own way)
//!         multiply it with the group's vectors                                     (each instruction set its own way)
//! ```
//!
//! * The codes of a panel are 40 KiB and stay in the first cache (AVX2 takes one half of them after the other) while
//!   all vectors pass by; the vectors' columns of a panel stay in the second while all strips pass
//!   by, which is why vectors are taken in groups ([`Blocking::vectors`]): decoding again is a small
//!   part of the work.
//! * While a strip is decoded, the next one is asked for, a few lines at a time ([`Ahead`]). Asked for at once they are
//!   more than a core can wait for.
//! * Of few vectors the columns of all panels stay in the second cache. Then all panels of a strip come before the
//!   next strip, so that memory is read in order. Panels are shorter ([`Blocking::few_panel`]), so that what was asked
//!   for is still in the first cache.
//! * Interleaved layouts give planes of one column and 32 rows; unpacking four of them makes octets of
//!   rows 0-3 and 16-19, 4-7 and 20-23, and so on. I2_S is decoded into the same order, and the
//!   rows are put in order when sums are written.
//! * A panel is rounded up to [`Blocking::quads`] quads: what stands in the codes there is multiplied with the zeros
//!   that a block of activations is padded with.

use super::decode::SUPER_PLANES;
use crate::format::{Geometry, Layout, c2, i2s, t3, t5};
use crate::gemm::{Prepared, TOGETHER, unit};
use crate::gemv::tile_block;
use crate::line::Line;
use core::arch::x86_64::*;
use core::ops::Range;

/// Rows that are multiplied together.
pub(in crate::gemm) const STRIP: usize = 32;

/// Columns whose activations fill one lane of 32 bits.
pub(in crate::gemm) const QUAD: usize = 4;

/// Quads of a panel at most.
const MAX_PANEL: usize = 640;

/// The codes of one quad: four octets of 8 rows x 4 columns.
pub(in crate::gemm) type Quad = [[u8; 32]; 4];

#[repr(C, align(64))]
struct Panel([Quad; MAX_PANEL]);

/// How the work is cut for an instruction set.
#[derive(Clone, Copy)]
pub(in crate::gemm) struct Blocking {
    /// Vectors that share one decoding at most: their columns of a panel fit the second cache.
    pub(in crate::gemm) vectors: usize,
    /// Vectors that are multiplied together.
    pub(in crate::gemm) together: usize,
    /// A strip has a multiple of so many quads; divides [`TOGETHER`] columns.
    pub(in crate::gemm) quads: usize,
    /// Quads of a panel at most: 320 are 40 KiB, which the first cache holds.
    pub(in crate::gemm) panel: usize,
    /// The same for few vectors.
    pub(in crate::gemm) few_panel: usize,
    /// Whether it sets the sums of a block's first panel itself ([`Strip::start`]) instead of adding to them.
    pub(in crate::gemm) starts: bool,
}

/// The packed weights of a strip, all columns of a block.
pub(in crate::gemm) enum Packed<'a> {
    /// Neighbouring rows; where there are fewer than [`STRIP`], the last one stands in for those that are missing.
    I2s { data: &'a [u8], row_bytes: usize, rows: Range<usize> },
    /// The rows of a tile from `r` on. Columns past the last are read as code 0.
    C2 { lines: &'a [[u8; c2::LINE]], r: usize },
    /// A tile's block.
    T3 { block: &'a [u8] },
    /// The rows of a tile's block from `r` on.
    T5 { block: &'a [u8], r: usize },
}

/// Packed weights to ask for while others are decoded, some lines for each unit.
#[derive(Clone, Copy)]
pub(in crate::gemm) struct Ahead<'a> {
    bytes: &'a [u8],
    /// Lines for each unit.
    lines: usize,
    /// Bytes of a row where the lines are the first of [`STRIP`] rows, then the next ones; else all are neighbours.
    row_bytes: Option<usize>,
}

impl<'a> Ahead<'a> {
    /// All of `bytes` while `units` units are decoded.
    pub(in crate::gemm) fn new(bytes: &'a [u8], units: usize) -> Ahead<'a> {
        Ahead { bytes, lines: bytes.len().div_ceil(64 * units), row_bytes: None }
    }

    /// Asks for the share of the `u`-th unit.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::gemm) fn prefetch(&self, u: usize) {
        let Some(row_bytes) = self.row_bytes else {
            let bytes = self.bytes.get(u * self.lines * 64..).unwrap_or_default();
            return prefetch(&bytes[..bytes.len().min(self.lines * 64)]);
        };
        for line in u * self.lines..(u + 1) * self.lines {
            if let Some(byte) = self.bytes.get(line % STRIP * row_bytes + line / STRIP * 64) {
                _mm_prefetch::<_MM_HINT_T0>((&raw const *byte).cast());
            }
        }
    }
}

/// Decoded rows, the vectors they are multiplied with, and all sums.
pub(in crate::gemm) struct Strip<'a> {
    /// Trits plus one.
    pub(in crate::gemm) codes: &'a [Quad],
    /// Rows that exist; further ones have no sums, or such as stay 0.
    pub(in crate::gemm) n_rows: usize,
    /// Whether these are a block's first columns.
    pub(in crate::gemm) first: bool,
    /// Where the sums of all vectors are.
    pub(in crate::gemm) out: &'a mut [i32],
    prepared: Prepared<'a>,
    block: usize,
    quads: Range<usize>,
    /// Where those of the first vector begin, how many there are, and how far those of the next are.
    first_sum: usize,
    n_sums: usize,
    sums_per_vector: usize,
}

/// The activations of a vector that belong to a strip's codes.
pub(in crate::gemm) type Columns<'a> = &'a [[u8; QUAD]];

impl<'a> Strip<'a> {
    /// As many as there are codes.
    #[inline(always)]
    pub(in crate::gemm) fn columns(&self, v: usize) -> Columns<'a> {
        let block: &[u8] = bytemuck::cast_slice(self.prepared.activations(v, self.block));
        &block.as_chunks::<QUAD>().0[self.quads.clone()]
    }

    /// The columns of `vectors`, from the first's first to the last's last, and how far those of
    /// neighbours are apart.
    #[inline(always)]
    pub(in crate::gemm) fn all_columns(&self, vectors: Range<usize>) -> (&'a [u8], usize) {
        let columns = self.quads.start * QUAD..self.quads.end * QUAD;
        self.prepared.columns(vectors, self.block, columns)
    }

    /// Where a vector's sums are, [`STRIP`] of them or as many as the rows of the tiles.
    #[inline(always)]
    pub(in crate::gemm) fn sums(&self, v: usize) -> Range<usize> {
        let start = v * self.sums_per_vector + self.first_sum;
        start..start + self.n_sums
    }

    /// What a vector's sums begin with: minus the total of the block's activations.
    #[inline(always)]
    pub(in crate::gemm) fn start(&self, v: usize) -> i32 {
        -self.prepared.total(v, self.block)
    }

    /// Fetches a vector's sums.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::gemm) fn prefetch_sums(&self, v: usize) {
        prefetch(bytemuck::cast_slice(&self.out[self.sums(v)]));
    }
}

/// Calls `decode(packed, units, ahead, codes)` and `multiply(strip, vectors)` for all strips, panels and groups of vectors: the
/// one decodes units of packed weights and asks for what is `ahead`, the other adds the products to the strip's sums.
#[target_feature(enable = "avx2")]
#[allow(clippy::too_many_arguments, reason = "a kernel's inputs, as `RunFn` names them, and what differs")]
pub(in crate::gemm) fn drive(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
    blocking: Blocking,
    decode: impl Fn(&Packed, Range<usize>, Ahead, &mut [Quad]),
    mut multiply: impl FnMut(&mut Strip, Range<usize>),
) {
    const { assert!(TOGETHER.is_multiple_of(QUAD)) };
    let mut codes = Panel([[[0; 32]; 4]; MAX_PANEL]);
    // As even as whole numbers of vectors that are multiplied together allow.
    let n_groups = n_vectors.div_ceil(blocking.vectors).max(1);
    let group = n_vectors.div_ceil(n_groups).next_multiple_of(blocking.together).max(1);
    for start in (0..n_vectors).step_by(group) {
        let vectors = start..(start + group).min(n_vectors);
        drive_group(
            geometry,
            data,
            tiles.clone(),
            prepared,
            vectors,
            out,
            blocking,
            &mut codes,
            &decode,
            &mut multiply,
        );
    }
}

/// The same for one group of vectors.
#[target_feature(enable = "avx2")]
#[allow(clippy::too_many_arguments, reason = "as `drive`")]
fn drive_group(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    vectors: Range<usize>,
    out: &mut [i32],
    blocking: Blocking,
    codes: &mut Panel,
    decode: &impl Fn(&Packed, Range<usize>, Ahead, &mut [Quad]),
    multiply: &mut impl FnMut(&mut Strip, Range<usize>),
) {
    let (unit_quads, tile_rows) = (unit(geometry.layout) / QUAD, geometry.tile_rows());
    let few = vectors.len() * geometry.cols <= blocking.vectors * blocking.panel * QUAD;
    // Units of a panel: as even as whole numbers of the quads that are taken together allow.
    let units = geometry.block.div_ceil(unit_quads * QUAD);
    let step = blocking.quads / gcd(unit_quads, blocking.quads);
    let most = if few { blocking.few_panel } else { blocking.panel }.min(MAX_PANEL) / unit_quads / step * step;
    let panel_units = units.div_ceil(units.div_ceil(most)).next_multiple_of(step);
    let prepared = Prepared::new(geometry, prepared);
    // Rows as the output has them, those past the last included.
    let n_slots = tiles.len() * tile_rows;
    let n_blocks = geometry.n_blocks();
    let (n_strips, block_panels) = (n_slots.div_ceil(STRIP), units.div_ceil(panel_units));
    let n_panels = n_blocks * block_panels;
    for i in 0..n_panels * n_strips {
        let (panel, strip) = if few { (i % n_panels, i / n_panels) } else { (i / n_strips, i % n_strips) };
        let (b, start) = (panel / block_panels, panel % block_panels * panel_units);
        let panel = start..(start + panel_units).min(units);
        let quads = panel.start * unit_quads..(panel.end * unit_quads).next_multiple_of(blocking.quads);
        let codes = &mut codes.0[..quads.len()];
        let slot = strip * STRIP;
        let (t, r) = (slot / tile_rows, slot % tile_rows);
        let tile = tiles.start + t;
        let mut n_rows = STRIP;
        let packed = match geometry.layout {
            Layout::I2S => {
                let rows = geometry.rows_of(tile..tiles.end);
                let rows = rows.start..rows.end.min(rows.start + STRIP);
                n_rows = rows.len();
                Packed::I2s { data, row_bytes: geometry.cols / 4, rows }
            }
            Layout::C2 => Packed::C2 { lines: c2::tile_lines(geometry, data, tile), r },
            Layout::T3 => Packed::T3 { block: tile_block(geometry, data, tile, b) },
            Layout::T5 => Packed::T5 { block: tile_block(geometry, data, tile, b), r },
        };
        let ahead = ahead(geometry, data, tile..tiles.end, b, r, panel.clone(), few);
        decode(&packed, panel.clone(), ahead, codes);
        let mut strip = Strip {
            codes,
            n_rows,
            first: start == 0,
            out: &mut *out,
            prepared,
            block: b,
            quads: quads.clone(),
            first_sum: (t * n_blocks + b) * tile_rows + r,
            // A strip of I2_S may be two tiles: there is one block, so their sums are neighbours.
            n_sums: STRIP.min(n_slots - slot),
            sums_per_vector: n_slots * n_blocks,
        };
        if strip.first && !blocking.starts {
            for v in vectors.clone() {
                let (sums, total) = (strip.sums(v), strip.start(v));
                let sums = &mut strip.out[sums];
                sums[n_rows..].fill(0);
                sums[..n_rows].fill(total);
            }
        }
        multiply(&mut strip, vectors.clone());
    }
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What to ask for while `units` of a strip, the rows of the first of `tiles` from `r` on, are decoded: as many bytes of
/// the next strips, which are the same units or, where the strip's panels follow each other, may be others.
fn ahead<'a>(
    geometry: &Geometry,
    data: &'a [u8],
    tiles: Range<usize>,
    b: usize,
    r: usize,
    units: Range<usize>,
    in_order: bool,
) -> Ahead<'a> {
    const UNIT: usize = i2s::BLOCK / 4;
    let next = tiles.start + 1..tiles.end;
    let (bytes, unit_bytes) = match geometry.layout {
        Layout::I2S => {
            let row_bytes = geometry.cols / 4;
            let rows = geometry.rows_of(tiles);
            let bytes = &data[(rows.start + STRIP).min(rows.end) * row_bytes..rows.end * row_bytes];
            if !in_order {
                let bytes = bytes.get(units.start * UNIT..).unwrap_or_default();
                return Ahead { bytes, lines: STRIP * UNIT / 64, row_bytes: Some(row_bytes) };
            }
            (bytes, STRIP * UNIT)
        }
        // A strip takes a part of each line, in order, which the hardware foresees.
        Layout::C2 => (&[][..], 0),
        Layout::T3 | Layout::T5 if next.is_empty() => (&[][..], 0),
        Layout::T3 => (tile_block(geometry, data, next.start, b), SUPER_PLANES * t3::PLANE),
        Layout::T5 => (tile_block(geometry, data, next.start, b), 4 * t5::TILE_ROWS),
    };
    let bytes = &bytes[(units.start * unit_bytes).min(bytes.len())..(units.end * unit_bytes).min(bytes.len())];
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let bytes = match geometry.layout {
        // Two strips share a tile and its lines.
        Layout::T5 if r == 0 => first,
        Layout::T5 => second,
        Layout::I2S | Layout::C2 | Layout::T3 => bytes,
    };
    Ahead::new(bytes, units.len())
}

/// Fetches lines into the first cache.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
}
