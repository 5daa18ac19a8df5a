//! Where the time of a step goes, for one sequence and for several that share it:
//!
//! ```console
//! cargo run --release -p tritone-runtime --example streams -- model.gguf [sequences ...]
//! ```
//!
//! Prints the tokens per second of so many greedy sequences and the milliseconds of each part of a step, medians of rounds
//! in which all numbers of sequences take turns.

use std::path::PathBuf;
use std::time::Instant;
use tritone_runtime::batch::{Batch, Feed, Sequence};
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::profile::Part;
use tritone_runtime::scores::Need;

type Failed = Box<dyn std::error::Error>;

/// Tokens of each prompt.
const PROMPT: usize = 8;

/// Tokens that each sequence goes on for.
const TOKENS: usize = 48;

const ROUNDS: usize = 5;

fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("name a model file")?);
    let mut numbers = args.map(|number| number.parse()).collect::<Result<Vec<usize>, _>>()?;
    if numbers.is_empty() {
        numbers = vec![1, 8];
    }
    let model = Model::load(Source::File(path), &LoadOptions::default(), &mut |_| {})?;
    println!("{}, {}, {} threads", model.gemv_kernel(), model.gemm_kernel(), model.threads());
    let mut batch = Batch::new(&model)?;
    round(&model, &mut batch, 1)?;
    let mut found = vec![Vec::new(); numbers.len()];
    for _ in 0..ROUNDS {
        for (found, n) in found.iter_mut().zip(&numbers) {
            found.push(round(&model, &mut batch, *n)?);
        }
    }
    for (n, rounds) in numbers.iter().zip(found) {
        let parts = Part::ALL.iter().enumerate().map(|(i, part)| {
            format!("{} {:.2}", part.name(), median(rounds.iter().map(|(_, parts)| parts[i]).collect()))
        });
        let parts: Vec<String> = parts.collect();
        let step = median(rounds.iter().map(|(step, _)| *step).collect());
        println!("{n}: {:.1} tokens/s, {step:.2} ms a step: {}", *n as f64 * 1e3 / step, parts.join(", "));
    }
    Ok(())
}

/// Milliseconds of a step of so many sequences, and of its parts.
fn round(model: &Model, batch: &mut Batch, n: usize) -> Result<(f64, Vec<f64>), Failed> {
    let vocab = model.config().vocab_size;
    let mut sequences: Vec<Sequence> = (0..n).map(|_| batch.sequence()).collect();
    let token = |i: usize, seed: usize| ((i * i * 31 + i * 17 + (seed + 1) * 7919) % vocab) as u32;
    let mut next: Vec<Vec<u32>> = (0..n).map(|seed| (0..PROMPT).map(|i| token(i, n * 100 + seed)).collect()).collect();
    let mut began = Instant::now();
    for i in 0..=TOKENS {
        if i == 1 {
            batch.start_profile();
            began = Instant::now();
        }
        let mut feeds: Vec<Feed<'_>> = sequences
            .iter_mut()
            .zip(&next)
            .map(|(sequence, tokens)| Feed { sequence, tokens, need: Some(Need::top(1)) })
            .collect();
        let logits = batch.step(&mut feeds)?;
        for (next, logits) in next.iter_mut().zip(logits) {
            *next = vec![logits?.scores().best().ok_or("a model without tokens")?];
        }
    }
    let milliseconds = 1e3 / TOKENS as f64;
    let step = began.elapsed().as_secs_f64() * milliseconds;
    let profile = batch.take_profile().ok_or("a profile was started")?;
    Ok((step, Part::ALL.iter().map(|part| profile.seconds(*part) * milliseconds).collect()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
