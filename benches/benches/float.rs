//! The float operations on every instance of this machine, at the sizes of BitNet-b1.58-2B-4T:
//! hidden size 2560, FFN 6912, heads of 128 dimensions, four query heads to a key head.
//!
//! Bytes per second count what is streamed: the stored weights of a row, the keys and values of a
//! block, the input of an elementwise operation.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tritone_kernels::float::{ATTENTION_BLOCK, CachedBlock, FloatFormat, FloatKernels, Partial, rope_table};
use tritone_kernels::isa::Isa;

const HIDDEN: usize = 2560;
const FFN: usize = 6912;
const HEAD_DIM: usize = 128;

/// The portable instance and the best one.
fn instances() -> [FloatKernels; 2] {
    [Isa::scalar(), Isa::detect()].map(FloatKernels::new)
}

/// Values in [-1, 1].
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn halves(kernels: &FloatKernels, n: usize) -> Vec<u16> {
    let mut halves = vec![0; n];
    kernels.narrow_f16(&values(n), &mut halves);
    halves
}

fn dots(c: &mut Criterion) {
    for kernels in instances() {
        let name = kernels.name();
        let x = values(HIDDEN);
        let mut group = c.benchmark_group(format!("float-dot-{name}"));
        for format in [FloatFormat::F16, FloatFormat::Bf16, FloatFormat::F32] {
            let row = vec![0u8; HIDDEN * format.size()];
            group.throughput(Throughput::Bytes(row.len() as u64));
            group.bench_function(format!("{format:?}/{HIDDEN}"), |b| {
                b.iter(|| kernels.dot(format, black_box(&row), black_box(&x)));
            });
        }
        // 16 rows stay in cache; 32768 rows are 160 MiB and do not.
        for n_rows in [16, 32768] {
            let rows = halves(&kernels, n_rows * HIDDEN);
            let mut out = vec![0.0; n_rows];
            group.throughput(Throughput::Bytes(2 * rows.len() as u64));
            group.sample_size(if n_rows > 16 { 10 } else { 100 });
            group.bench_function(format!("rows-F16/{n_rows}x{HIDDEN}"), |b| {
                b.iter(|| kernels.rows_dot_f16(black_box(&rows), black_box(&x), &mut out));
            });
        }
        group.finish();
    }
}

fn attention(c: &mut Criterion) {
    for kernels in instances() {
        let mut group = c.benchmark_group(format!("float-attention-{}", kernels.name()));
        let keys = halves(&kernels, ATTENTION_BLOCK * HEAD_DIM);
        let block = CachedBlock {
            keys: &keys,
            values: &keys,
            first_key: 0,
            n_keys: ATTENTION_BLOCK,
            n_positions: 1,
            next: [&[]; 2],
        };
        group.throughput(Throughput::Bytes(4 * keys.len() as u64));
        for n_queries in [1, 4, 8, 16] {
            let queries = values(n_queries * HEAD_DIM);
            let mut out = vec![0.0; queries.len()];
            let mut partials = vec![Partial::default(); n_queries];
            group.bench_function(format!("{n_queries}x{ATTENTION_BLOCK}x{HEAD_DIM}"), |b| {
                b.iter(|| {
                    let queries = black_box(&queries);
                    kernels.attention_block(queries, 0.088, block, &mut out, &mut partials);
                });
            });
        }
        group.finish();
    }
}

fn elementwise(c: &mut Criterion) {
    for kernels in instances() {
        let mut group = c.benchmark_group(format!("float-elementwise-{}", kernels.name()));
        let (x, y) = (values(FFN), values(FFN));
        let mut out = vec![0.0; FFN];
        let mut codes = vec![0; FFN];
        group.throughput(Throughput::Bytes(4 * FFN as u64));
        group.bench_function("rms_norm", |b| {
            b.iter(|| kernels.rms_norm(black_box(&x), &y, 1e-5, &mut out));
        });
        group.bench_function("exp", |b| b.iter(|| kernels.exp(black_box(&x), &mut out)));
        group.bench_function("silu_gate", |b| {
            b.iter(|| kernels.silu_gate(black_box(&x), &y, &mut out));
        });
        group.bench_function("gelu_gate", |b| {
            b.iter(|| kernels.gelu_gate(black_box(&x), &y, &mut out));
        });
        group.bench_function("relu2_gate", |b| {
            b.iter(|| kernels.relu2_gate(black_box(&x), &y, &mut out));
        });
        group.bench_function("absmax", |b| b.iter(|| kernels.absmax(black_box(&x))));
        group.bench_function("quantize", |b| {
            b.iter(|| kernels.quantize(black_box(&x), 127.0, &mut codes));
        });
        let (mut cos, mut sin) = ([0.0; HEAD_DIM / 2], [0.0; HEAD_DIM / 2]);
        rope_table(1000.0, 500_000.0, None, &mut cos, &mut sin);
        group.bench_function("rope_neox", |b| {
            b.iter(|| kernels.rope_neox(black_box(&mut out), HEAD_DIM, &cos, &sin));
        });
        group.bench_function("rope_interleaved", |b| {
            b.iter(|| kernels.rope_interleaved(black_box(&mut out), HEAD_DIM, &cos, &sin));
        });
        group.finish();
    }
}

criterion_group!(benches, dots, attention, elementwise);
criterion_main!(benches);
