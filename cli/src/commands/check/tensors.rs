//! The file: every weight is read once, and the tokenizer is held against the vocabulary.

use super::Report;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use tritone_runtime::checkpoint::{Checkpoint, Tensor};
use tritone_runtime::threads::{MAX_THREADS, default_threads};
use tritone_runtime::tokenizer::{SpecialTokens, Tokenizer};

/// Weights that a thread reads before it asks for more work.
const AT_ONCE: usize = 1 << 22;

/// Longer rows belong to no model; one would take gigabytes when read.
const LONGEST_ROW: usize = 1 << 24;

/// Above this share of zeros a ternary matrix says nearly nothing; trained ones have 0.2 to 0.6.
const MANY_ZEROS: f64 = 0.95;

/// What a file holds.
pub struct Contents {
    format: String,
    bytes: u64,
    kinds: Vec<Kind>,
    n_tensors: usize,
    pub has_i2s: bool,
    seconds: f64,
    n_tokens: Option<usize>,
}

/// Tensors of one role in all layers: `blk.*.attn_q.weight`.
#[derive(Default)]
struct Kind {
    name: String,
    types: Vec<&'static str>,
    n_tensors: u64,
    weights: u64,
    ternary: bool,
    zeros: u64,
    rows: u64,
    dead_rows: u64,
}

/// What was counted in a tensor or a part of it.
#[derive(Clone, Default)]
struct Counts {
    zeros: u64,
    dead_rows: u64,
    not_finite: u64,
    /// The first row that could not be read, and why.
    broken: Option<(usize, String)>,
}

impl Counts {
    fn merge(&mut self, other: Counts) {
        self.zeros += other.zeros;
        self.dead_rows += other.dead_rows;
        self.not_finite += other.not_finite;
        if let Some(found) = other.broken
            && self.broken.as_ref().is_none_or(|known| found.0 < known.0)
        {
            self.broken = Some(found);
        }
    }
}

impl Contents {
    /// Reads everything, on `threads` threads.
    pub fn read(checkpoint: &Checkpoint, threads: Option<usize>, report: &mut Report) -> Contents {
        let began = Instant::now();
        let tensors = checkpoint.tensors();
        let counts = count_all(tensors, threads.unwrap_or_else(default_threads).clamp(1, MAX_THREADS));
        let mut kinds: Vec<Kind> = Vec::new();
        let mut places = HashMap::new();
        for (tensor, counts) in tensors.iter().zip(counts) {
            judge(tensor, &counts, report);
            let name = kind_name(tensor.name());
            let place = *places.entry(name.clone()).or_insert(kinds.len());
            if place == kinds.len() {
                kinds.push(Kind { name, ..Kind::default() });
            }
            let kind = &mut kinds[place];
            let type_name = tensor.tensor_type().name();
            if !kind.types.contains(&type_name) {
                kind.types.push(type_name);
            }
            kind.ternary |= tensor.is_ternary();
            kind.n_tensors += 1;
            kind.weights += (tensor.rows() * tensor.cols()) as u64;
            kind.rows += tensor.rows() as u64;
            kind.zeros += counts.zeros;
            // A tensor of nothing but zeros is a finding of its own.
            kind.dead_rows += if counts.dead_rows < tensor.rows() as u64 { counts.dead_rows } else { 0 };
        }
        for kind in &kinds {
            note_zeros(kind, report);
        }
        let n_tokens = check_tokenizer(checkpoint, report);
        Contents {
            format: checkpoint.format().to_owned(),
            bytes: checkpoint.bytes(),
            kinds,
            n_tensors: tensors.len(),
            has_i2s: tensors.iter().any(|tensor| tensor.tensor_type().is_i2s()),
            seconds: began.elapsed().as_secs_f64(),
            n_tokens,
        }
    }

    pub fn to_json(&self) -> Value {
        let kind = |kind: &Kind| {
            json!({
                "name": kind.name,
                "types": kind.types,
                "tensors": kind.n_tensors,
                "weights": kind.weights,
                "share_of_zeros": kind.share_of_zeros(),
                "rows": kind.rows,
                "dead_rows": kind.dead_rows,
            })
        };
        json!({
            "format": self.format,
            "bytes": self.bytes,
            "tensors": self.n_tensors,
            "tokens": self.n_tokens,
            "kinds": self.kinds.iter().map(kind).collect::<Vec<_>>(),
            "seconds": self.seconds,
        })
    }
}

impl Kind {
    /// Of ternary weights, those that are 0.
    fn share_of_zeros(&self) -> Option<f64> {
        self.ternary.then(|| self.zeros as f64 / self.weights as f64)
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {}, {} bytes, {} tensors, all read in {:.2} s",
            self.format, self.bytes, self.n_tensors, self.seconds
        )?;
        let widest = self.kinds.iter().map(|kind| kind.name.len()).max().unwrap_or(0).min(48);
        for kind in &self.kinds {
            let share = kind.share_of_zeros().map(|share| format!("  {:.1}% zeros", share * 100.0)).unwrap_or_default();
            writeln!(f, "  {:widest$}  {:>5} x {}{share}", kind.name, kind.n_tensors, kind.types.join(", "))?;
        }
        match self.n_tokens {
            Some(n) => writeln!(f, "  tokenizer: {n} tokens"),
            None => Ok(()),
        }
    }
}

/// The name without the layer's number, as it may be printed.
fn kind_name(name: &str) -> String {
    let role = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match role {
        Some((number, role)) if number.parse::<u32>().is_ok() => format!("blk.*.{}", role.escape_debug()),
        _ => name.escape_debug().to_string(),
    }
}

/// Counts in all tensors, in their order. Each thread takes the next part that nobody has.
fn count_all(tensors: &[Tensor], threads: usize) -> Vec<Counts> {
    let mut parts: Vec<(usize, Range<usize>)> = Vec::new();
    for (i, tensor) in tensors.iter().enumerate() {
        // Floats are all read to know their scales, so they are not cut.
        let step = if tensor.ternarise().is_some() { tensor.rows() } else { (AT_ONCE / tensor.cols()).max(1) };
        parts.extend((0..tensor.rows()).step_by(step).map(|start| (i, start..(start + step).min(tensor.rows()))));
    }
    let next = AtomicUsize::new(0);
    let all = Mutex::new(vec![Counts::default(); tensors.len()]);
    let work = || {
        while let Some((i, rows)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let counts = count(&tensors[*i], rows.clone());
            all.lock().unwrap_or_else(PoisonError::into_inner)[*i].merge(counts);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(parts.len()) {
            // Where the system refuses a thread the others have its share.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Counts in some rows of a tensor.
fn count(tensor: &Tensor, rows: Range<usize>) -> Counts {
    let mut counts = Counts::default();
    if tensor.cols() > LONGEST_ROW {
        let error = format!(
            "{}: rows of {} weights are longer than any model's; the file is damaged, download it again",
            tensor.place(),
            tensor.cols()
        );
        counts.broken = Some((rows.start, error));
        return counts;
    }
    if !tensor.is_ternary() {
        let mut values = vec![0.0f32; tensor.cols()];
        for row in rows {
            if let Err(error) = tensor.dequantize_row(row, &mut values) {
                counts.broken = Some((row, error.to_string()));
                return counts;
            }
            counts.not_finite += values.iter().filter(|value| !value.is_finite()).count() as u64;
            counts.dead_rows += u64::from(values.iter().all(|value| *value == 0.0));
        }
        return counts;
    }
    let ternary = match tensor.ternary() {
        Ok(ternary) => ternary,
        Err(error) => {
            counts.broken = Some((rows.start, error.to_string()));
            return counts;
        }
    };
    let mut trits = vec![0i8; tensor.cols()];
    for row in rows {
        let read = ternary.row_trits(row, &mut trits).and_then(|()| {
            let mut alive = false;
            for block in 0..ternary.blocks_per_row() {
                alive |= ternary.scale(row, block)? != 0.0;
            }
            Ok(alive)
        });
        match read {
            Ok(alive) => {
                let zeros = trits.iter().map(|trit| u32::from(*trit == 0)).sum::<u32>() as usize;
                counts.zeros += zeros as u64;
                counts.dead_rows += u64::from(zeros == trits.len() || !alive);
            }
            Err(error) => {
                counts.broken = Some((row, error.to_string()));
                return counts;
            }
        }
    }
    counts
}

/// What is wrong with one tensor.
fn judge(tensor: &Tensor, counts: &Counts, report: &mut Report) {
    if let Some((_, error)) = &counts.broken {
        report.problem(error.clone());
    }
    if counts.not_finite > 0 {
        report.problem(format!(
            "{}: {} of its numbers are NaN or infinite; the file is damaged, download it again",
            tensor.place(),
            counts.not_finite
        ));
    }
    if counts.broken.is_none() && counts.dead_rows == tensor.rows() as u64 {
        report.problem(format!(
            "{}: every weight is 0; the file was not written to its end or its conversion failed, get it again",
            tensor.place()
        ));
    }
}

fn note_zeros(kind: &Kind, report: &mut Report) {
    if kind.dead_rows > 0 {
        report.note(format!("{}: {} of {} rows have only zeros", kind.name, kind.dead_rows, kind.rows));
    }
    if let Some(share) = kind.share_of_zeros()
        && share > MANY_ZEROS
    {
        report.note(format!("{}: {:.1}% of the weights are 0, more than training leaves", kind.name, share * 100.0));
    }
}

/// Holds the tokenizer against the embedding; returns the number of tokens if there is a tokenizer.
/// Building it finds rules that name unknown tokens, missing bytes and special tokens out of range.
fn check_tokenizer(checkpoint: &Checkpoint, report: &mut Report) -> Option<usize> {
    let tokenizer = match Tokenizer::from_checkpoint(checkpoint) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            report.problem(error.to_string());
            return None;
        }
    };
    let tokens = tokenizer.vocab_size();
    match checkpoint.find_tensor("token_embd.weight").map(Tensor::rows) {
        Some(rows) if rows < tokens => report.problem(format!(
            "the tokenizer has {tokens} tokens but the embedding only {rows} rows: \
             they are of different models, convert the model again"
        )),
        Some(rows) if rows > tokens => {
            report.note(format!("the embedding has {rows} rows for {tokens} tokens; the rest stand for nothing"));
        }
        _ => {}
    }
    for (key, id, named) in [
        ("tokenizer.ggml.add_bos_token", tokenizer.bos(), "a token that begins a text"),
        ("tokenizer.ggml.add_eos_token", tokenizer.eos(), "a token that ends a text"),
    ] {
        if matches!(checkpoint.find::<bool>(key), Ok(Some(true))) && id.is_none() {
            report.problem(format!(
                "`{key}` asks for {named}, but the metadata does not say which it is; convert the model again"
            ));
        }
    }
    if tokenizer.end_tokens().is_empty() {
        report.note("no token is known to end a text, so the model stops only at --max-tokens or a full context");
    }
    if tokenizer.decode(&tokenizer.encode(super::mind::TEXT, SpecialTokens::Plain, false))
        != super::mind::TEXT.as_bytes()
    {
        report.problem("plain English does not come back from the tokenizer as it went in: the vocabulary is damaged");
    }
    Some(tokens)
}
