//! What skipping rows and columns costs from memory, on one core: `skips [ROUNDS]`.
//!
//! For some shares of the rows of a matrix of BitNet-b1.58-2B-4T's up, and of the columns of its down, prints the time of
//! the product and the bytes per second of what it reads; beside them a loop that only reads the same lines in the
//! same order, asked for ahead. That loop is the ceiling of this access pattern: memory gives lines that lie apart more
//! slowly than lines in order, whoever reads them. Share 1 reads everything.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;
use tritone_benches::{LARGE, MEMORY};
use tritone_kernels::format::{Geometry, Layout};
use tritone_kernels::isa::Isa;
use tritone_kernels::kernel::Operation;
use tritone_kernels::line::Line;
use tritone_kernels::matrix::MatrixPlan;
use tritone_kernels::probe::read_lines;
use tritone_kernels::testing::{Random, pack};

const SHARES: [f64; 6] = [0.04, 0.08, 0.15, 0.33, 0.5, 1.0];

fn main() -> ExitCode {
    let rounds = match std::env::args().nth(1).map(|rounds| rounds.parse()) {
        None => 31,
        Some(Ok(rounds)) if rounds > 0 => rounds,
        Some(_) => {
            eprintln!("usage: skips [ROUNDS]");
            return ExitCode::FAILURE;
        }
    };
    println!("Median of {rounds} rounds, one core, weights from memory\n");
    println!("| product | share | us | GB/s | GB/s of reading alone |");
    println!("|---|---:|---:|---:|---:|");
    for (what, layout, shape) in [("rows of", Layout::I2S, LARGE[1]), ("columns of", Layout::C2, LARGE[2])] {
        let plan = Geometry::new(layout, shape.0, shape.1, shape.1).expect("a shape of this layout");
        let plan = MatrixPlan::new(plan, Isa::detect()).expect("a kernel for every layout");
        let mut random = Random::new(1);
        let matrix = pack(plan.geometry(), &random.trits(shape.0 * shape.1));
        // As lines, since a matrix begins at one and ends at one.
        let matrix_lines = matrix.len() / size_of::<Line>();
        let mut ring = vec![Line::ZERO; MEMORY.div_ceil(matrix.len()) * matrix_lines];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut ring);
        bytes.chunks_exact_mut(matrix.len()).for_each(|part| part.copy_from_slice(&matrix));
        for share in SHARES {
            let chosen = |random: &mut Random| f64::from(random.bits() as u32) < share * f64::from(u32::MAX);
            let mut codes = random.codes(shape.1);
            let mut rows = Vec::new();
            if layout == Layout::C2 {
                codes.iter_mut().for_each(|code| *code = if chosen(&mut random) { (*code).max(1) } else { 0 });
            } else {
                rows.extend((0..shape.0 as u32).filter(|_| chosen(&mut random)));
            }
            let lines = lines(layout, shape, &rows, &codes);
            let mut prepared = vec![Line::ZERO; plan.prepared_lines(Operation::Gemv)];
            plan.prepare(Operation::Gemv, &codes, &mut prepared);
            let tiles = 0..plan.geometry().n_tiles();
            let mut sums = vec![0; plan.n_sums(tiles.len(), 1)];
            let (mut product, mut reading) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                let matrices = ring.chunks_exact(matrix_lines);
                // The two take turns on different matrices.
                let data = |i: usize| matrices.clone().nth((2 * round + i) % matrices.len()).expect("within the ring");
                let began = Instant::now();
                if layout == Layout::C2 {
                    plan.sums(Operation::Gemv, bytemuck::cast_slice(data(0)), tiles.clone(), &prepared, 1, &mut sums);
                } else {
                    plan.row_sums(bytemuck::cast_slice(data(0)), &rows, &prepared, &mut sums[..rows.len()]);
                }
                black_box(&sums);
                product.push(began.elapsed().as_secs_f64());
                let began = Instant::now();
                black_box(read_lines(plan.isa(), data(1), &lines));
                reading.push(began.elapsed().as_secs_f64());
            }
            let bytes = (lines.len() * LINE) as f64;
            let (product, reading) = (median(product), median(reading));
            println!(
                "| {what} {} x {}, {} | {share} | {:.0} | {:.1} | {:.1} |",
                shape.0,
                shape.1,
                plan.kernel(Operation::Gemv).name,
                product * 1e6,
                bytes / product / 1e9,
                bytes / reading / 1e9
            );
        }
    }
    ExitCode::SUCCESS
}

/// Bytes that come from memory together.
const LINE: usize = size_of::<Line>();

/// The lines that a product reads, in its order.
fn lines(layout: Layout, (n_rows, cols): (usize, usize), rows: &[u32], codes: &[i8]) -> Vec<u32> {
    let row_lines = (cols / 4 / LINE) as u32;
    match layout {
        Layout::C2 => {
            let listed = || (0u32..).zip(codes).filter(|(_, code)| **code != 0).map(|(column, _)| column);
            (0..n_rows.div_ceil(256))
                .flat_map(|tile| listed().map(move |column| (tile * cols) as u32 + column))
                .collect()
        }
        _ => rows.iter().flat_map(|row| row * row_lines..(row + 1) * row_lines).collect(),
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
