//! The naive oracle and the generators that tests, benches and fuzzing share.

use crate::format::{Geometry, Layout, t5};
use crate::isa::{Isa, Level};
use crate::kernel::{Kernel, Operation};
use crate::line::Line;
use crate::matrix::MatrixPlan;
use core::ops::Range;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

/// A small generator (splitmix64, Steele, Lea and Flood 2014), so that a seed means the same
/// everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers depend on the seed only.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// `n` trits.
    pub fn trits(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| self.below(3) as i8 - 1).collect()
    }

    /// `n` bytes, all values equally likely.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.bits() as u8).collect()
    }

    /// `n` activations, all values equally likely, -128 included.
    pub fn codes(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| self.bits() as i8).collect()
    }
}

/// Packs `rows x cols` trits, row-major.
///
/// # Panics
/// The number of trits is not that of the shape.
#[must_use]
pub fn pack(geometry: &Geometry, trits: &[i8]) -> Vec<u8> {
    assert_eq!(trits.len(), geometry.rows * geometry.cols, "rows x cols trits");
    let mut data = vec![0; geometry.data_len()];
    let (bodies, trailer) = data.split_at_mut(geometry.trailer_offset());
    let mut trailers = trailer.chunks_mut(geometry.tile_trailer_bytes().max(1));
    for (tile, body) in bodies.chunks_mut(geometry.tile_bytes()).enumerate() {
        let rows = geometry.rows_of(tile..tile + 1);
        let mut padded = vec![0; geometry.tile_rows() * geometry.cols];
        padded[..rows.len() * geometry.cols]
            .copy_from_slice(&trits[rows.start * geometry.cols..rows.end * geometry.cols]);
        geometry.pack_tile(&padded, body, trailers.next().unwrap_or_default());
    }
    data
}

/// A packed matrix of arbitrary bytes: what no packing writes is in it too. Only the trailer of
/// `t5` is made to fit.
#[must_use]
pub fn any_bytes(geometry: &Geometry, random: &mut Random) -> Vec<u8> {
    let mut data = random.bytes(geometry.data_len());
    if geometry.layout == Layout::T5 {
        let (bodies, trailer) = data.split_at_mut(geometry.trailer_offset());
        let trailers = trailer.chunks_exact_mut(geometry.tile_trailer_bytes());
        for (body, trailer) in bodies.chunks_exact(geometry.tile_bytes()).zip(trailers) {
            t5::negatives(geometry, body, trailer);
        }
    }
    data
}

/// Sums by the definition: `[vector][tile][block][row in tile]`. For packed bytes that are no
/// packing's, the weights of padding rows count too where a layout interleaves them, as every
/// kernel reads them; of `I2S` there are none.
#[must_use]
pub fn naive_sums(geometry: &Geometry, data: &[u8], tiles: Range<usize>, vectors: &[Vec<i8>]) -> Vec<i32> {
    // A matrix with all rows of the tiles, so that padding rows can be unpacked.
    let whole = Geometry { rows: geometry.n_tiles() * geometry.tile_rows(), ..*geometry };
    let whole = if geometry.layout == Layout::I2S { *geometry } else { whole };
    let (n_blocks, tile_rows) = (geometry.n_blocks(), geometry.tile_rows());
    let mut sums = vec![0; vectors.len() * tiles.len() * n_blocks * tile_rows];
    let mut row = vec![0; geometry.cols];
    for (t, tile) in tiles.clone().enumerate() {
        for r in 0..tile_rows {
            let index = tile * tile_rows + r;
            if index >= whole.rows {
                continue;
            }
            whole.unpack_row(data, index, &mut row);
            for (v, codes) in vectors.iter().enumerate() {
                let blocks = row.chunks_exact(geometry.block).zip(codes.chunks_exact(geometry.block));
                for (b, (weights, codes)) in blocks.enumerate() {
                    let products = weights.iter().zip(codes).map(|(w, a)| i32::from(*w) * i32::from(*a));
                    sums[((v * tiles.len() + t) * n_blocks + b) * tile_rows + r] = products.sum();
                }
            }
        }
    }
    sums
}

/// Sums as a kernel computes them, whatever it is told to ask memory for.
///
/// # Panics
/// The kernel can't run here or reads another layout.
#[must_use]
pub fn kernel_sums(
    kernel: &'static Kernel,
    isa: Isa,
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    vectors: &[Vec<i8>],
) -> Vec<i32> {
    let plan = MatrixPlan::new(*geometry, isa)
        .and_then(|plan| plan.with_kernel(kernel))
        .expect("a kernel of this layout and processor");
    let prepared = prepared(&plan, kernel.operation, vectors);
    let mut out = vec![0x5a5a_5a5a; plan.n_sums(tiles.len(), vectors.len())];
    plan.sums(kernel.operation, data, tiles.clone(), &prepared, vectors.len(), &mut out);
    let next = &data[..data.len().min(97 * vectors.len())];
    on_each_processor(|| {
        let mut asking = vec![0x5a5a_5a5a; out.len()];
        plan.sums_asking(kernel.operation, data, tiles.clone(), &prepared, vectors.len(), next, &mut asking);
        assert!(out == asking, "{} gives other sums if it asks for {} bytes", kernel.name, next.len());
    });
    out
}

/// Vectors as a kernel reads them; what it does not write or read is not 0.
fn prepared(plan: &MatrixPlan, operation: Operation, vectors: &[Vec<i8>]) -> Vec<Line> {
    let lines = plan.prepared_lines(operation);
    let mut prepared = vec![Line([0xa5; 64]); lines * vectors.len()];
    for (codes, out) in vectors.iter().zip(prepared.chunks_exact_mut(lines)) {
        plan.prepare(operation, codes, out);
        let used = plan.used_lines(operation, out);
        out[used..].fill(Line([0x5a; 64]));
    }
    prepared
}

/// Asserts that a kernel gives the naive sums.
///
/// # Panics
/// It does not.
pub fn check_kernel(
    kernel: &'static Kernel,
    isa: Isa,
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    vectors: &[Vec<i8>],
) {
    let expected = naive_sums(geometry, data, tiles.clone(), vectors);
    let got = kernel_sums(kernel, isa, geometry, data, tiles.clone(), vectors);
    if let Some(at) = expected.iter().zip(&got).position(|(expected, got)| expected != got) {
        panic!(
            "{} on {geometry:?}, tiles {tiles:?}, {} vectors: sum {at} is {}, should be {}",
            kernel.name,
            vectors.len(),
            got[at],
            expected[at]
        );
    }
    if let Some(listed) = listed_sums(kernel, isa, geometry, data, tiles.clone(), vectors) {
        let (n_slots, rows) = (tiles.len() * geometry.tile_rows(), geometry.rows_of(tiles));
        let whole = rows.enumerate().flat_map(|(i, row)| {
            let expected = &expected;
            list(row, vectors.len()).map(move |v| expected[v as usize * n_slots + i])
        });
        assert!(listed.iter().copied().eq(whole), "{} on {geometry:?}: sums of listed vectors", kernel.name);
    }
}

/// Vectors for a row, the last one first: all, or fewer in other rows.
fn list(row: usize, n_vectors: usize) -> impl Iterator<Item = u32> {
    (0..(n_vectors + 3).saturating_sub(row % 7).min(n_vectors) as u32).rev()
}

/// The sums of the rows of `tiles`, each with some of the vectors, if the kernel has them.
fn listed_sums(
    kernel: &'static Kernel,
    isa: Isa,
    geometry: &Geometry,
    data: &[u8],
    tiles: Range<usize>,
    vectors: &[Vec<i8>],
) -> Option<Vec<i32>> {
    let plan =
        MatrixPlan::new(*geometry, isa).and_then(|plan| plan.with_kernel(kernel)).expect("a kernel for this plan");
    if kernel.operation != Operation::Gemm || !plan.has_listed_sums() {
        return None;
    }
    let prepared = prepared(&plan, Operation::Gemm, vectors);
    let rows = geometry.rows_of(tiles);
    let (mut ends, mut listed) = (Vec::new(), Vec::new());
    for row in rows.clone() {
        listed.extend(list(row, vectors.len()));
        ends.push(listed.len() as u32);
    }
    let mut sums = vec![0x5a5a_5a5a; listed.len()];
    plan.listed_sums(data, rows, &ends, &listed, &prepared, &mut sums);
    Some(sums)
}

/// Calls `check` once for each way in which kernels ask for memory on processors of this architecture, as if it ran on one that
/// wants it so: nothing else may differ. This thread's and all others' kernels ask so meanwhile.
pub fn on_each_processor(check: impl FnMut()) {
    crate::cpu::on_each(check);
}

/// The best level of this processor, for tests of what levels have of their own. Those named in the environment variable
/// `TRITONE_REQUIRE` (with commas) must run, so that nothing is passed over where it should be tested.
///
/// # Panics
/// A required level can't run here, or there is none of that name.
#[must_use]
pub fn required_isa() -> Isa {
    crate::cpu::request_amx();
    let isa = Isa::detect();
    if let Err(reason) = require(isa, &std::env::var("TRITONE_REQUIRE").unwrap_or_default()) {
        panic!("TRITONE_REQUIRE names {reason}");
    }
    isa
}

/// Whether `isa` supports each level of a list, and what of it it does not.
fn require(isa: Isa, list: &str) -> Result<(), String> {
    for name in list.split(',').filter(|name| !name.is_empty()) {
        let level = name.parse::<Level>().map_err(|error| format!("'{name}': {error}"))?;
        if !isa.supports(level) {
            return Err(format!("{level}, which this processor can't run"));
        }
    }
    Ok(())
}

/// Whether this processor can run a level; if not, a line on standard error says that what needs it is skipped.
///
/// # Panics
/// As [`required_isa`].
#[must_use]
pub fn can_run(level: Level) -> bool {
    let can = required_isa().supports(level);
    if !can {
        std::eprintln!("skipped: this processor lacks {level}");
    }
    can
}

/// Kernels that this processor can run, with a line on standard error for each that it can't.
///
/// # Panics
/// As [`required_isa`].
#[must_use]
pub fn runnable_kernels() -> Vec<&'static Kernel> {
    let isa = required_isa();
    let (can, can_not): (Vec<_>, Vec<_>) = crate::registry::all().iter().partition(|kernel| isa.supports(kernel.level));
    for kernel in can_not {
        std::eprintln!("skipped: {} needs {}, which this processor lacks", kernel.name, kernel.level);
    }
    can
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_of_a_list_is_required() {
        let scalar = |list| require(Isa::scalar(), list);
        assert_eq!((scalar(""), scalar("scalar"), scalar("scalar,")), (Ok(()), Ok(()), Ok(())));
        for list in ["avx2", "scalar,avx512vbmi", "neon-dotprod,scalar", "gemv-t5-scalar", "scalar,avx9"] {
            assert!(scalar(list).is_err(), "{list}");
        }
    }
}
