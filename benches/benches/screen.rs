//! Screening an output head of 2560 columns: the plane of all rows' high nibbles, and low nibbles of a share of the rows.
//! Ids are `screen-<plane>-<instruction set>/<states or share>/<place>`; bytes are those of the rows read.

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use std::hint::black_box;
use std::time::Duration;
use tritone_benches::{MEMORY, Place};
use tritone_kernels::isa::{Detected, Isa, Level};
use tritone_kernels::line::Line;
use tritone_kernels::screen::{LIMIT, STEP, Shape, Step, TILE, pack_row, prepare, rows, tiles};
use tritone_kernels::testing::Random;

const COLS: usize = 2560;

/// Rows whose planes stay in the second cache.
const FEW: usize = 256;

/// States that share a pass.
const STATES: [usize; 4] = [1, 2, 4, 8];

/// Of so many rows one is read.
const SHARES: [usize; 5] = [100, 20, 5, 2, 1];

fn levels() -> Vec<Isa> {
    let levels = [Level::Avx512Vnni, Level::Avx2, Level::NeonDotprod, Level::Neon];
    levels.into_iter().filter_map(|level| Isa::with_level(level, Detected::here()).ok()).collect()
}

fn states(n: usize) -> Vec<Step> {
    let mut random = Random::new(2);
    let mut steps = vec![Step::ZERO; n * COLS.div_ceil(STEP)];
    for steps in steps.chunks_exact_mut(COLS.div_ceil(STEP)) {
        let codes: Vec<i16> = (0..COLS).map(|_| (random.bits() as i16).clamp(-LIMIT, LIMIT)).collect();
        prepare(&codes, steps);
    }
    steps
}

/// Both planes of random rows, repeated.
fn planes(n_rows: usize) -> (Vec<Line>, Vec<Line>) {
    let (shape, mut random) = (Shape::new(COLS), Random::new(1));
    let (mut high, mut low) = (vec![0; FEW / TILE * shape.tile_bytes()], vec![0; FEW * shape.row_bytes()]);
    for (i, row) in low.chunks_exact_mut(shape.row_bytes()).enumerate() {
        let weights: Vec<f32> = (0..COLS).map(|_| random.bits() as i32 as f32).collect();
        let tile = &mut high[i / TILE * shape.tile_bytes()..][..shape.tile_bytes()];
        let _ = pack_row(Isa::detect(), shape, &weights, i % TILE, tile, row);
    }
    (repeated(&high, n_rows / FEW), repeated(&low, n_rows / FEW))
}

/// Some bytes several times, from the start of a line on.
fn repeated(bytes: &[u8], times: usize) -> Vec<Line> {
    let mut lines = vec![Line::ZERO; Line::count_for(bytes.len() * times)];
    for place in bytemuck::cast_slice_mut::<Line, u8>(&mut lines).chunks_exact_mut(bytes.len()) {
        place.copy_from_slice(bytes);
    }
    lines
}

fn group<'c>(c: &'c mut Criterion, plane: &str, isa: Isa, bytes: usize) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(format!("screen-{plane}-{}", isa.level()));
    group.throughput(Throughput::Bytes(bytes as u64));
    group
}

fn screen(c: &mut Criterion) {
    let shape = Shape::new(COLS);
    for (place, n_rows) in [(Place::Cache, FEW), (Place::Memory, MEMORY / shape.row_bytes() / FEW * FEW)] {
        let planes = planes(n_rows);
        let (high, low): (&[u8], &[u8]) = (bytemuck::cast_slice(&planes.0), bytemuck::cast_slice(&planes.1));
        for isa in levels() {
            for n in STATES {
                let (states, mut out) = (states(n), vec![0.0; n * n_rows]);
                group(c, "high", isa, high.len()).bench_function(format!("{n}/{}", place.name()), |b| {
                    // As an engine has it: parts that stay in the cache for all states.
                    let part = 16 * shape.tile_bytes();
                    b.iter(|| {
                        for (tile, out) in high.chunks(part).zip(out.chunks_mut(n * 16 * TILE)) {
                            tiles(isa, shape, black_box(tile), &states, out);
                        }
                    });
                });
            }
            let state = states(1);
            for share in SHARES {
                let mut random = Random::new(share as u64);
                let wanted: Vec<u32> = (0..n_rows as u32).filter(|_| random.below(share) == 0).collect();
                let mut out = vec![0.0; wanted.len()];
                let bytes = wanted.len() * shape.row_bytes();
                group(c, "low", isa, bytes).bench_function(format!("1-in-{share}/{}", place.name()), |b| {
                    b.iter(|| rows(isa, shape, black_box(low), &wanted, &state, &mut out));
                });
            }
        }
    }
}

fn pack(c: &mut Criterion) {
    let (shape, mut random) = (Shape::new(COLS), Random::new(3));
    let weights: Vec<f32> = (0..COLS).map(|_| random.bits() as i32 as f32).collect();
    let (mut tile, mut row) = (vec![0; shape.tile_bytes()], vec![0; shape.row_bytes()]);
    for isa in levels() {
        group(c, "pack", isa, 4 * COLS).bench_function("row", |b| {
            b.iter(|| pack_row(isa, shape, black_box(&weights), 3, &mut tile, &mut row));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = screen, pack
}
criterion_main!(benches);
