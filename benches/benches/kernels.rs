//! Every kernel that this processor can run: the products in cache and from memory, and the
//! preparation of activations. Ids are `<kernel>/<rows>x<cols>/<place>`; bytes are packed weights.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use tritone_benches::{LARGE, Place, Product, STORY};
use tritone_kernels::isa::Level;
use tritone_kernels::kernel::{Kernel, Operation};
use tritone_kernels::testing::runnable_kernels;

/// Vectors of a GEMM.
const BATCH: usize = 16;

fn kernels(operation: Operation) -> impl Iterator<Item = &'static Kernel> {
    runnable_kernels().into_iter().filter(move |kernel| kernel.operation == operation)
}

fn multiply(c: &mut Criterion, kernel: &'static Kernel, shape: (usize, usize), n_vectors: usize, place: Place) {
    let mut product = Product::new(kernel, shape, n_vectors, place);
    let mut group = c.benchmark_group(kernel.name);
    group.throughput(Throughput::Bytes(product.bytes() as u64));
    group.bench_function(format!("{}x{}/{}", shape.0, shape.1, place.name()), |b| {
        b.iter(|| {
            black_box(product.multiply());
        });
    });
    group.finish();
}

fn gemv(c: &mut Criterion) {
    for kernel in kernels(Operation::Gemv) {
        for shape in LARGE.into_iter().chain(STORY) {
            multiply(c, kernel, shape, 1, Place::Cache);
        }
        // Portable code is bound by its instructions wherever the weights are.
        if kernel.level != Level::Scalar {
            for shape in LARGE {
                multiply(c, kernel, shape, 1, Place::Memory);
            }
        }
    }
}

fn gemm(c: &mut Criterion) {
    for kernel in kernels(Operation::Gemm) {
        for shape in [LARGE[1], STORY[1]] {
            multiply(c, kernel, shape, BATCH, Place::Cache);
        }
    }
}

fn prepare(c: &mut Criterion) {
    for kernel in kernels(Operation::Gemv) {
        let mut product = Product::new(kernel, (64, 2560), 1, Place::Cache);
        let mut group = c.benchmark_group(kernel.name);
        group.throughput(Throughput::Bytes(2560));
        group.bench_function("prepare/2560", |b| b.iter(|| black_box(&mut product).prepare()));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = gemv, gemm, prepare
}
criterion_main!(benches);
