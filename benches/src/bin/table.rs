//! Compares the kernels of this processor on one core: `table [ROWS COLS [ROUNDS [NAME]]]`, with a name only
//! those whose names it is a part of.
//!
//! The kernels take turns, so that another process's load or a change of clock meets all of them
//! alike, and the median round of each counts. Criterion, which measures one after the other, is the
//! better tool on a quiet machine.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;
use tritone_benches::{LARGE, MEMORY, Place, Product};
use tritone_kernels::isa::Level;
use tritone_kernels::kernel::{Kernel, Operation};
use tritone_kernels::testing::runnable_kernels;

/// Vectors of the batched rows: speculation and small batches, and a part of a prompt.
const BATCHES: [usize; 6] = [2, 4, 8, 16, 64, 512];

struct Row {
    name: String,
    product: Product,
    seconds: Vec<f64>,
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = if arguments.len() == 4 { arguments.remove(3) } else { String::new() };
    let numbers: Option<Vec<usize>> = arguments.iter().map(|argument| argument.parse().ok()).collect();
    let (shape, rounds) = match numbers.as_deref() {
        Some([]) => (LARGE[1], 101),
        Some(&[rows, cols]) => ((rows, cols), 101),
        Some(&[rows, cols, rounds]) if rounds > 0 => ((rows, cols), rounds),
        _ => {
            eprintln!("usage: table [ROWS COLS [ROUNDS [NAME]]]");
            return ExitCode::FAILURE;
        }
    };
    println!("{} x {}, median of {rounds} rounds, one core\n", shape.0, shape.1);
    println!("This core reads {} MiB at {:.1} GB/s.\n", MEMORY >> 20, read_bandwidth(rounds.min(21)) / 1e9);
    println!("| kernel | vectors | weights in | us | GB/s of weights | GMAC/s |");
    println!("|---|---:|---|---:|---:|---:|");
    let kernels: Vec<_> = runnable_kernels().into_iter().filter(|kernel| kernel.name.contains(&name)).collect();
    compare(&kernels, shape, rounds, Operation::Gemv, 1, Place::Cache);
    compare(&kernels, shape, rounds, Operation::Gemv, 1, Place::Memory);
    for n_vectors in BATCHES {
        // Long products need fewer rounds.
        let rounds = rounds.div_ceil(4 + n_vectors / 16);
        for operation in [Operation::Gemv, Operation::Gemm] {
            compare(&kernels, shape, rounds, operation, n_vectors, Place::Cache);
            if n_vectors == 8 || n_vectors == 64 {
                compare(&kernels, shape, rounds, operation, n_vectors, Place::Memory);
            }
        }
    }
    ExitCode::SUCCESS
}

/// Bytes per second of a plain pass over memory that no cache holds, the median: what a product from memory can
/// reach at most.
fn read_bandwidth(rounds: usize) -> f64 {
    let memory = vec![1u64; MEMORY / size_of::<u64>()];
    let mut rates: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            // Many sums side by side, so that no addition waits for the one before.
            let mut sums = [0u64; 16];
            for part in black_box(&memory).as_chunks::<16>().0 {
                for (sum, x) in sums.iter_mut().zip(part) {
                    *sum ^= x;
                }
            }
            black_box(sums);
            MEMORY as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rounds / 2]
}

fn compare(
    kernels: &[&'static Kernel],
    shape: (usize, usize),
    rounds: usize,
    operation: Operation,
    n_vectors: usize,
    place: Place,
) {
    let mut rows: Vec<Row> = kernels
        .iter()
        .filter(|kernel| kernel.operation == operation && kernel.level != Level::Scalar)
        .map(|kernel| Row {
            name: kernel.name.to_owned(),
            product: Product::new(kernel, shape, n_vectors, place),
            seconds: Vec::with_capacity(rounds),
        })
        .collect();
    for _ in 0..rounds {
        for row in &mut rows {
            if place == Place::Cache {
                // The others have been here since; this brings the weights back.
                black_box(row.product.multiply());
            }
            let start = Instant::now();
            black_box(row.product.multiply());
            row.seconds.push(start.elapsed().as_secs_f64());
        }
    }
    for row in &mut rows {
        row.seconds.sort_by(f64::total_cmp);
        let seconds = row.seconds[rounds / 2];
        let (bytes, macs) = (row.product.bytes() as f64, row.product.macs() as f64);
        println!(
            "| {} | {n_vectors} | {} | {:.0} | {:.1} | {:.1} |",
            row.name,
            place.name(),
            seconds * 1e6,
            bytes / seconds / 1e9,
            macs / seconds / 1e9
        );
    }
}
