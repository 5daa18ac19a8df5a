//! What the machine gives at most: bytes from memory, products in cache.
//!
//! Each thread sums one contiguous range of 64-bit words into [`LANES`] sums, which the compiler
//! turns into vector additions; nothing but the loads can be the limit then.

use super::spread::Spread;
use crate::failure::{Result, Stop};
use indicatif::ProgressBar;
use std::hint::black_box;
use std::time::{Duration, Instant};
use tritone_runtime::budget::KernelRate;
use tritone_runtime::model::Model;
use tritone_runtime::threads::Pool;

/// Steps that the bar counts.
pub const STEPS: usize = 3;

/// Bytes that no cache in use holds.
const MEMORY: u64 = 256 << 20;

/// The largest buffer: larger ones are no slower.
const MAX_BUFFER: u64 = 4 << 30;

/// Independent sums: more would not stay in the 16 registers of baseline x86-64.
const LANES: usize = 16;

/// How often a buffer is read; the best time is the ceiling.
const REPEATS: usize = 9;

/// How long a kernel runs.
const KERNEL_TIME: Duration = Duration::from_millis(150);

/// Vectors that a prompt's kernel multiplies at once here.
const PROMPT_VECTORS: usize = 128;

/// A buffer and how fast it was read.
#[derive(Clone, Copy)]
pub struct Bandwidth {
    pub buffer_bytes: u64,
    pub bytes_per_second: Spread,
}

/// All ceilings at one number of threads.
pub struct Ceilings {
    /// From a buffer as large as the model's weights: out of the cache if they fit it.
    pub weights: Bandwidth,
    /// From a buffer that no cache holds, if that is another one.
    pub memory: Option<Bandwidth>,
    /// The decoding kernel on weights in cache, the sum of all threads.
    pub gemv: KernelRate,
    /// The prompt's kernel on weights in cache, the sum of all threads.
    pub gemm: KernelRate,
}

/// Measures with as many threads as the model has.
pub fn measure(model: &Model, bar: &ProgressBar) -> Result<Ceilings> {
    let mut pool = Pool::new(model.threads())?;
    let size = model.weight_bytes().min(MAX_BUFFER);
    let weights = bandwidth(&mut pool, size)?;
    bar.inc(1);
    let memory = if size < MEMORY { Some(bandwidth(&mut pool, MEMORY)?) } else { None };
    bar.inc(1);
    let gemv = kernel(&mut pool, model, 1);
    let gemm = kernel(&mut pool, model, PROMPT_VECTORS);
    bar.inc(1);
    Ok(Ceilings { weights, memory, gemv, gemm })
}

/// How fast all threads read a buffer of about `bytes`, a range each.
fn bandwidth(pool: &mut Pool, bytes: u64) -> Result<Bandwidth> {
    let n = pool.n_threads();
    let words = usize::try_from(bytes).unwrap_or(usize::MAX) / n / size_of::<u64>();
    let words = words.next_multiple_of(LANES);
    let mut ranges = Vec::with_capacity(n);
    for thread in 0..n {
        let mut range: Vec<u64> = Vec::new();
        range.try_reserve_exact(words).map_err(|_| {
            Stop::runtime(format_args!("there is no memory for a buffer of {bytes} bytes to read; close something"))
        })?;
        // Written, not only zeroed: pages that were never written are all the same one.
        range.extend((0..words as u64).map(|word| word ^ thread as u64));
        ranges.push(range);
    }
    let buffer_bytes = (n * words * size_of::<u64>()) as u64;
    // A small buffer is read several times, so that starting the threads does not count.
    let passes = usize::try_from((MEMORY / 4).div_ceil(buffer_bytes)).unwrap_or(1);
    let mut figures = Vec::new();
    // The first one warms up.
    for repeat in 0..=REPEATS {
        let began = Instant::now();
        ranges = pool.run(
            ranges,
            n,
            1,
            move |ranges: &Vec<Vec<u64>>, items, out: &mut Vec<u64>| {
                for range in &ranges[items] {
                    for _ in 0..passes {
                        out.push(sum(black_box(range)));
                    }
                }
            },
            |_, sums| {
                black_box(sums);
            },
        );
        let seconds = began.elapsed().as_secs_f64().max(1e-9);
        if repeat > 0 {
            figures.push((buffer_bytes * passes as u64) as f64 / seconds);
        }
    }
    Ok(Bandwidth { buffer_bytes, bytes_per_second: Spread::of(figures) })
}

/// The wrapping sum of all words.
#[inline(never)]
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; LANES];
    let (lines, rest) = words.as_chunks::<LANES>();
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |all, sum| all.wrapping_add(*sum))
}

/// The kernel on every thread at once.
fn kernel(pool: &mut Pool, model: &Model, n_vectors: usize) -> KernelRate {
    let mut all: Option<KernelRate> = None;
    pool.run(
        model.clone(),
        pool.n_threads(),
        1,
        move |model, items, out| out.extend(items.map(|_| model.kernel_rate(n_vectors, KERNEL_TIME))),
        |_, rates: &[KernelRate]| {
            for rate in rates {
                all = Some(match all {
                    None => *rate,
                    Some(so_far) => KernelRate {
                        kernel: rate.kernel,
                        macs_per_second: so_far.macs_per_second + rate.macs_per_second,
                        weight_bytes_per_second: so_far.weight_bytes_per_second + rate.weight_bytes_per_second,
                    },
                });
            }
        },
    );
    all.expect("a pool has at least one thread")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_have_every_word_once() {
        for n in [0, 1, 15, 16, 17, 1000] {
            let words: Vec<u64> = (0..n).map(|i| i * i + 1).collect();
            assert_eq!(sum(&words), words.iter().sum::<u64>(), "{n}");
        }
        assert_eq!(sum(&[u64::MAX; 40]), 0u64.wrapping_sub(40));
    }
}
