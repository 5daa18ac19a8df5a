//! How fast an engine is under load:
//!
//! ```console
//! cargo run --release -p tritone-server --example load -- model.gguf [chunk ...]
//! ```
//!
//! Prints the tokens per second of one stream and of several, and for each chunk how fast a long prompt is read, how long
//! a stream beside it waits for a token at most, and how long a short prompt beside it waits for its first one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::sampler::SamplerConfig;
use tritone_server::engine::job::{Event, Job};
use tritone_server::engine::{Engine, EngineOptions};

type Failed = Box<dyn std::error::Error>;

/// Streams at once.
const STREAMS: [usize; 4] = [1, 2, 4, 8];

/// Tokens of each.
const TOKENS: usize = 48;

/// Tokens of the long prompt, or as many as the model takes.
const LONG: usize = 2000;

fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("name a model file")?);
    let chunks = args.map(|chunk| chunk.parse()).collect::<Result<Vec<usize>, _>>()?;
    let model = Model::load(Source::File(path), &LoadOptions::default(), &mut |_| {})?;
    println!("{}, {}, {} threads", model.gemv_kernel(), model.gemm_kernel(), model.threads());
    streams(&model)?;
    for chunk in if chunks.is_empty() { vec![EngineOptions::default().chunk] } else { chunks } {
        beside_a_long_prompt(&model, chunk)?;
    }
    Ok(())
}

/// A greedy job whose prompt begins like no other one's.
fn job(model: &Model, seed: usize, n_prompt: usize, max_tokens: usize) -> Job {
    let vocab = model.config().vocab_size;
    Job {
        prompt: (0..n_prompt).map(|i| ((i * i * 31 + i * 17 + (seed + 1) * 7919) % vocab) as u32).collect(),
        n: 1,
        max_tokens: Some(max_tokens),
        sampler: SamplerConfig { temperature: 0.0, ..SamplerConfig::default() },
        logit_bias: Vec::new(),
        stop: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        constraint: None,
        deadline: None,
    }
}

/// The next token's time; nothing at the end.
fn token(receiver: &mut UnboundedReceiver<Event>) -> Result<Option<Instant>, Failed> {
    loop {
        match receiver.blocking_recv() {
            Some(Event::Token(_)) => return Ok(Some(Instant::now())),
            Some(Event::Finished { .. }) => {}
            Some(Event::Failed(failure)) => return Err(failure.into()),
            Some(Event::Done(_)) | None => return Ok(None),
        }
    }
}

/// Tokens per second of several streams, from the moment on when each has its first one.
fn streams(model: &Model) -> Result<(), Failed> {
    let engine = Engine::start(model.clone(), &EngineOptions::default())?;
    let mut rates = BTreeMap::new();
    // The first round brings everything into memory.
    for n in STREAMS.iter().take(1).chain(&STREAMS) {
        let submit = |i| engine.submit(job(model, n * 100 + i, 8, TOKENS));
        let mut receivers = (0..*n).map(submit).collect::<Result<Vec<_>, _>>()?;
        for receiver in &mut receivers {
            token(receiver)?;
        }
        let began = Instant::now();
        let mut n_tokens = 0;
        for receiver in &mut receivers {
            while token(receiver)?.is_some() {
                n_tokens += 1;
            }
        }
        rates.insert(*n, n_tokens as f64 / began.elapsed().as_secs_f64());
    }
    for (n, rate) in &rates {
        println!("{n} streams: {rate:.1} tokens/s, {:.2} times one stream", rate / rates[&1]);
    }
    Ok(())
}

/// A stream and a short prompt beside a long prompt.
fn beside_a_long_prompt(model: &Model, chunk: usize) -> Result<(), Failed> {
    let engine = Engine::start(model.clone(), &EngineOptions { chunk, ..EngineOptions::default() })?;
    let n_prompt = LONG.min(engine.context_length() - 1);
    let mut stream = engine.submit(job(model, 1, 8, 2000.min(engine.context_length() - 8)))?;
    let before: Vec<Instant> =
        (0..30).map(|_| token(&mut stream)).collect::<Result<Option<_>, _>>()?.unwrap_or_default();
    let alone = gaps(&before[before.len() / 2..]).1;
    let began = Instant::now();
    let mut long = engine.submit(job(model, 2, n_prompt, 1))?;
    let mut times = Vec::new();
    while (began.elapsed().as_secs_f64() < 2.0 && times.len() < 4) || times.len() < 2 {
        times.extend(token(&mut stream)?);
    }
    let asked = Instant::now();
    let mut short = engine.submit(job(model, 3, 12, 1))?;
    let first = token(&mut short)?.ok_or("no token")? - asked;
    // While the stream was not listened to its tokens have piled up: their times are not those of its steps.
    while stream.try_recv().is_ok() {}
    let mut times = Vec::new();
    let read = loop {
        times.extend(token(&mut stream)?);
        if let Ok(Event::Token(_)) = long.try_recv() {
            break began.elapsed();
        }
    };
    let (mean, longest) = gaps(&times);
    println!(
        "chunk {chunk}: prompt {:.1} tokens/s; a stream waits {:.0} ms on average and {:.0} ms at most ({:.0} ms alone); \
         a short prompt has its first token after {:.0} ms",
        n_prompt as f64 / read.as_secs_f64(),
        1e3 * mean,
        1e3 * longest,
        1e3 * alone,
        1e3 * first.as_secs_f64()
    );
    Ok(())
}

/// Seconds between some times: their mean and the longest.
fn gaps(times: &[Instant]) -> (f64, f64) {
    let gaps: Vec<f64> = times.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect();
    (gaps.iter().sum::<f64>() / gaps.len().max(1) as f64, gaps.iter().copied().fold(0.0, f64::max))
}
