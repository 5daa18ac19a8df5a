//! `gemm-*-amx`: `tdpbssd` on tiles; what it multiplies is decoded by
//! [`super::avx512`] and driven by [`super::avx2::strips`].
//!
//! ```text
//! for each 32 vectors (16 tile rows twice; the last group has fewer):
//!     for each 64 columns:
//!         A = activations, tiles of 16 vectors x 64 columns
//!         B = codes, tiles of 16 quads x (16 rows x 4 columns)
//!         C[vectors][rows] += A[vectors] B[rows], a tile of 16 x 16 for each pair
//!     sums += C
//! ```
//!
//! * A half of a quad (16 rows x 4 columns, 64 bytes) is a row of a tile as the instruction wants its second
//!   factor, so decoded strips are loaded as they are, at a stride of one quad. A prepared vector is a
//!   row of its first factor as it is.
//! * Codes are the trit plus one, 0 to 3, the same as signed bytes; the surplus is the total of the activations,
//!   taken off once.
//! * Four tiles of sums hide the latency of the instruction (52 cycles, one every 16); four loads serve four
//!   multiplications, and half of what they read is in the first cache.
//! * Most of a round's instructions do nothing, on purpose (`spacing`): they stand between loads and products.
//! * Bound: the instruction adds four products to 32 bits without saturating, 16 times. Sums of whole
//!   rows fit ([`crate::format::MAX_COLS`]).
//!
//! The shapes of tiles are state of the thread: [`Tiles`] sets them and clears them when it goes out of
//! scope. Nothing else here uses tiles, nor does compiled code.
//!
//! Source of the instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

use super::avx2::strips::{Ahead, Blocking, Packed, Quad, Strip, drive};
use super::avx512::decode_vbmi;
use super::avx512vnni::add;
use crate::format::Geometry;
use crate::line::Line;
use core::arch::asm;
use core::ops::Range;

/// 512 vectors have 640 KiB of columns in a panel; processors with AMX have a second cache of 2 MiB.
const BLOCKING: Blocking =
    Blocking { vectors: 512, together: 2 * ROWS, quads: ROWS, panel: 640, few_panel: 640, starts: true };

/// Rows of a tile at most, and its bytes in a row.
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// Instructions that do nothing. On an Emerald Rapids whose cores multiplied half as much as alone (it seems that others
/// used their second threads) tiles were loaded and multiplied one after the other, unless other instructions stood
/// between; which ones made no difference. Codes and columns from the second cache: 455 GMAC/s without, 600 with 32
/// of them in a round, 670 with 96; on a core that had all of itself 1,415, 1,450 and 1,510: there a round takes at
/// least 64 cycles, in each of which 6 instructions can begin.
macro_rules! spacing {
    () => {
        ".rept 16\nnop\n.endr"
    };
}

/// See [`crate::kernel::RunFn`].
///
/// # Safety
/// The processor has AMX-TILE and AMX-INT8, and the system lets this process use them.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(crate) unsafe fn run(
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    prepared: &[Line],
    n_vectors: usize,
    out: &mut [i32],
) {
    // SAFETY: the caller vouches for AMX.
    let mut shapes = unsafe { Tiles::new() };
    let multiply = |strip: &mut Strip, vectors: Range<usize>| multiply(&mut shapes, strip, vectors);
    let decode = |packed: &Packed, units, ahead: Ahead, codes: &mut _| decode_vbmi(packed, units, ahead, codes);
    drive(geometry, data, tiles, prepared, n_vectors, out, BLOCKING, decode, multiply);
}

/// Adds a strip's products.
#[target_feature(enable = "avx512f")]
fn multiply(tiles: &mut Tiles, strip: &mut Strip, vectors: Range<usize>) {
    let mut products = Products([[0; 2 * ROWS]; 2 * ROWS]);
    for v in vectors.clone().step_by(2 * ROWS) {
        let some = v..(v + 2 * ROWS).min(vectors.end);
        for v in some.clone() {
            strip.prefetch_sums(v);
        }
        let (columns, stride) = strip.all_columns(some.clone());
        tiles.multiply(strip.codes, columns, stride, some.len(), &mut products);
        for (v, products) in some.zip(&products.0) {
            let [low, high]: [[i32; 16]; 2] = bytemuck::cast(*products);
            add(strip, v, bytemuck::cast(low), bytemuck::cast(high));
        }
    }
}

/// `[vector][lane]`, the lanes of both halves.
#[repr(C, align(64))]
struct Products([[i32; 2 * ROWS]; 2 * ROWS]);

/// What `ldtilecfg` reads: palette 1 with eight tiles.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile; entries from 8 on are 0.
    row_bytes: [u16; 16],
    /// Rows of each tile; entries from 8 on are 0.
    rows: [u8; 16],
}

/// The shapes of this thread's tiles: 0 to 3 are products (vectors 0-15 with the first and second half of the
/// rows, vectors 16-31 with both), 4 and 5 activations, 6 and 7 codes.
///
/// Holding one is the proof that the processor has AMX and that this process may use it.
struct Tiles {
    /// Vectors that the shapes are for.
    n_vectors: usize,
    /// Raw pointers are of one thread, as the shapes are.
    _thread: core::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// No shapes yet.
    ///
    /// # Safety
    /// The processor has AMX-TILE and AMX-INT8, and the system lets this process use them.
    unsafe fn new() -> Tiles {
        Tiles { n_vectors: 0, _thread: core::marker::PhantomData }
    }

    /// Makes the tiles fit `n_vectors` vectors, from 1 to 32.
    fn shape(&mut self, n_vectors: usize) {
        assert!((1..=2 * ROWS).contains(&n_vectors), "one or two tiles of vectors");
        if self.n_vectors == n_vectors {
            return;
        }
        // A tile that is not used has to have rows all the same.
        let first = n_vectors.min(ROWS) as u8;
        let second = n_vectors.saturating_sub(ROWS).max(1) as u8;
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(ROW_BYTES as u16);
        config.rows[..8].copy_from_slice(&[first, first, second, second, first, second, ROWS as u8, ROWS as u8]);
        // SAFETY: `self` is the proof that the instruction exists and is allowed. It reads the 64 bytes of
        // `config`, which has the form it wants (palette 1, at most 16 rows of at most 64 bytes); nothing else
        // relies on the contents of tiles.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                config = in(reg) &raw const config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(readonly, nostack, preserves_flags),
            );
        }
        self.n_vectors = n_vectors;
    }

    /// Codes times activations for `n_vectors` vectors, `stride` bytes apart: the first `n_vectors` rows of `out`.
    ///
    /// # Panics
    /// The codes are not whole tiles, or the activations are not those of as many columns.
    fn multiply(&mut self, codes: &[Quad], columns: &[u8], stride: usize, n_vectors: usize, out: &mut Products) {
        self.shape(n_vectors);
        let n_tiles = codes.len() / ROWS;
        assert!(n_tiles > 0 && codes.len().is_multiple_of(ROWS), "whole tiles of codes");
        let last = (n_vectors - 1) * stride;
        assert!(columns.len() == last + n_tiles * ROW_BYTES, "the activations of these codes");
        let first = columns.as_ptr();
        if n_vectors <= ROWS {
            // SAFETY: `self` is the proof that the instructions exist and are allowed, and `shape` has set the
            // tiles. The loop runs `n_tiles` times, at least once. Round i reads 16 rows of tile 6 and of
            // tile 7, 64 bytes each: the halves of quads 16 i to 16 i + 15, at a stride of the 128 bytes of
            // a quad; and `n_vectors` rows of tile 4, 64 bytes at 64 i of each vector, `stride` apart, which
            // the second assertion has as the whole of `columns`. At the end `n_vectors` rows of 64 bytes are
            // written twice, to the halves of the 128-byte rows of `out`.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "2:",
                    "tileloadd tmm6, [{codes} + {row}*1]",
                    "tileloadd tmm4, [{first} + {stride}*1]",
                    "tileloadd tmm7, [{codes} + {row}*1 + 64]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "add {codes}, 2048",
                    "add {first}, 64",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{out} + {row}*1], tmm0",
                    "tilestored [{out} + {row}*1 + 64], tmm1",
                    codes = inout(reg) codes.as_ptr() => _,
                    first = inout(reg) first => _,
                    stride = in(reg) stride,
                    row = in(reg) size_of::<Quad>(),
                    n = inout(reg) n_tiles => _,
                    out = in(reg) out.0.as_mut_ptr(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        } else {
            // SAFETY: as above; besides, tile 5 has the rows of vectors 16 to `n_vectors - 1`, which begin 16
            // strides on, and tiles 2 and 3 are written to as many rows of `out` from its row 16 on.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm6, [{codes} + {row}*1]",
                    spacing!(),
                    "tileloadd tmm4, [{first} + {stride}*1]",
                    spacing!(),
                    "tileloadd tmm7, [{codes} + {row}*1 + 64]",
                    spacing!(),
                    "tdpbssd tmm0, tmm4, tmm6",
                    spacing!(),
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{second} + {stride}*1]",
                    spacing!(),
                    "tdpbssd tmm2, tmm5, tmm6",
                    spacing!(),
                    "tdpbssd tmm3, tmm5, tmm7",
                    "add {codes}, 2048",
                    "add {first}, 64",
                    "add {second}, 64",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{out} + {row}*1], tmm0",
                    "tilestored [{out} + {row}*1 + 64], tmm1",
                    "tilestored [{out} + {row}*1 + 2048], tmm2",
                    "tilestored [{out} + {row}*1 + 2112], tmm3",
                    codes = inout(reg) codes.as_ptr() => _,
                    first = inout(reg) first => _,
                    second = inout(reg) first.add(ROWS * stride) => _,
                    stride = in(reg) stride,
                    row = in(reg) size_of::<Quad>(),
                    n = inout(reg) n_tiles => _,
                    out = in(reg) out.0.as_mut_ptr(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `self` is the proof that the instruction exists and is allowed; nothing relies on the
        // contents of tiles any more.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}
