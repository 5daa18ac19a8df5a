//! `tritone logits`: what the model says after a prompt, for comparing engines.

use crate::args::{ContextArgs, ModelArgs, TextArgs, token_ids};
use crate::failure::{Result, Stop};
use crate::interrupt::{self, LOOK, Watch};
use crate::load;
use crate::output::{Listing, OutputFile};
use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use tritone_runtime::session::Session;
use tritone_runtime::tokenizer::Tokenizer;

/// How many of the likeliest next tokens are listed.
const LISTED: usize = 10;

/// Options of `logits`.
#[derive(Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    text: TextArgs,
    /// The prompt as token ids: 1,2,3
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file", "special"])]
    ids: Option<String>,
    /// All positions instead of the last one
    #[arg(long)]
    all: bool,
    /// Only the sha256 of the logits as little-endian f32
    #[arg(long, conflicts_with = "json")]
    hash: bool,
    /// One JSON object for each position shown, and a last one that sums up
    #[arg(long)]
    json: bool,
    /// Write the logits to a NumPy file
    #[arg(short, long, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &LogitsArgs) -> Result<()> {
    interrupt::install()?;
    let given = match &args.ids {
        Some(list) => Prompt::Ids(token_ids(list).map_err(|message| Stop::usage(message, "example: --ids 1,2,3"))?),
        None => Prompt::Text(args.text.read()?.ok_or_else(|| {
            Stop::usage("there is no prompt", "give it with -p TEXT, -f FILE, --ids 1,2,3 or through a pipe")
        })?),
    };
    let model = load::model(&args.model)?;
    let tokenizer = model.tokenizer();
    let ids = match given {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text) => tokenizer.encode(&text, load::special(args.text.special), tokenizer.adds_bos()),
    };
    let vocab = model.config().vocab_size;
    let session = model.session(args.context.length)?;
    let mut out = Listing::new();
    // Before the file, so that it outlives it.
    let watch = Watch::start();
    let mut sink = Sink {
        hash: Sha256::new(),
        file: None,
        bytes: Vec::with_capacity(vocab * 4),
        nll: vec![None; ids.len()],
        best: Vec::new(),
    };
    if let Some(path) = &args.output {
        let shape = if args.all { format!("({}, {vocab})", ids.len()) } else { format!("({vocab},)") };
        let mut file = OutputFile::create(path)?;
        file.write(&npy_header(&shape))?;
        sink.file = Some(file);
    }

    each_position(session, &ids, args.context.chunk, &watch, |position, logits| {
        let shown = args.all || position + 1 == ids.len();
        let json_out = (args.json && shown).then_some(&mut out);
        sink.position(&ids, position, logits, shown, json_out)
    })?;

    if let Some(file) = sink.file.take() {
        file.finish()?;
    }
    drop(watch);
    let sha256 = hex(&sink.hash.finalize());
    let known: Vec<f64> = sink.nll.iter().flatten().copied().collect();
    let mean = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
    if args.json {
        out.line(json!({
            "type": "summary",
            "ids": ids,
            "nll": sink.nll,
            "mean_nll": mean,
            "perplexity": mean.map(f64::exp),
            "positions": if args.all { ids.len() } else { 1 },
            "vocab_size": vocab,
            "sha256": sha256,
            "isa": model.isa().level().name(),
            "gemv_kernel": model.gemv_kernel(),
        }))?;
    } else if args.hash {
        out.line(sha256)?;
    } else {
        for (&id, nll) in ids.iter().zip(&sink.nll) {
            let nll = nll.map(|nll| format!("{nll:9.4}")).unwrap_or_else(|| format!("{:>9}", "-"));
            out.line(format_args!("{id:>7}  {nll}  {}", shown(tokenizer, id)))?;
        }
        if let Some(mean) = mean {
            out.line(format_args!("mean NLL {mean:.4}, perplexity {:.3}", mean.exp()))?;
        }
        out.line("next")?;
        for &(logit, id) in &sink.best {
            out.line(format_args!("{id:>7}  {logit:9.4}  {}", shown(tokenizer, id)))?;
        }
        out.line(format_args!("sha256 {sha256}"))?;
    }
    out.finish()
}

/// Hands over the logits of each position. They are computed on a thread of their own, so that neither Ctrl-C nor an
/// error of `each` has to wait until the prompt is through.
fn each_position(
    mut session: Session,
    ids: &[u32],
    chunk: usize,
    watch: &Watch,
    mut each: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let (sender, rows) = mpsc::sync_channel(1);
    let ids = ids.to_vec();
    let thread = thread::Builder::new()
        .name("logits".to_owned())
        .spawn(move || {
            session.prefill_all(&ids, chunk, &mut |position, logits| {
                // Nobody listens after Ctrl-C or an error.
                let _ = sender.send((position, logits.to_vec()));
            })
        })
        .map_err(|error| Stop::runtime(format_args!("the system refused to start a thread: {error}")))?;
    loop {
        let row = rows.recv_timeout(LOOK);
        if watch.pressed() {
            return Err(Stop::Interrupted);
        }
        match row {
            Ok((position, logits)) => each(position, &logits)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(())
}

enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// Where logits go, position by position: only one row of them is held at a time.
struct Sink {
    hash: Sha256,
    file: Option<OutputFile>,
    bytes: Vec<u8>,
    /// Of each prompt token given those before it; of the first nothing is known.
    nll: Vec<Option<f64>>,
    /// The likeliest tokens after the prompt, best first.
    best: Vec<(f32, u32)>,
}

impl Sink {
    fn position(
        &mut self,
        ids: &[u32],
        position: usize,
        logits: &[f32],
        shown: bool,
        json_out: Option<&mut Listing>,
    ) -> Result<()> {
        match ids.get(position + 1) {
            Some(&next) => self.nll[position + 1] = Some(nll(logits, next as usize)),
            None => self.best = best(logits),
        }
        if shown {
            self.bytes.clear();
            self.bytes.extend(logits.iter().flat_map(|logit| logit.to_le_bytes()));
            self.hash.update(&self.bytes);
            if let Some(file) = &mut self.file {
                file.write(&self.bytes)?;
            }
        }
        match json_out {
            Some(out) => out.line(json!({
                "type": "logits",
                "position": position,
                "id": ids[position],
                "nll": self.nll[position],
                "logits": logits,
            })),
            None => Ok(()),
        }
    }
}

/// -ln of the probability that the logits give to `token`.
fn nll(logits: &[f32], token: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    sum.ln() + max - f64::from(logits[token])
}

/// The best tokens, by falling logit and rising id.
fn best(logits: &[f32]) -> Vec<(f32, u32)> {
    let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if all.len() > LISTED {
        all.select_nth_unstable_by(LISTED, order);
        all.truncate(LISTED);
    }
    all.sort_unstable_by(order);
    all
}

fn shown(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_name(id).unwrap_or_default()).escape_debug().to_string()
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The head of a NumPy file, version 1.0, of little-endian f32 in C order. Its length is a
/// multiple of 64, as the format asks.
fn npy_header(shape: &str) -> Vec<u8> {
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    // Magic, version, the length in two bytes; a newline ends the text.
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    // A shape has two numbers: the text stays far below 64 KiB.
    header.extend((padded as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header.resize(10 + padded - 1, b' ');
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihood_of_equal_logits_is_the_share() {
        assert!((nll(&[3.0; 8], 5) - 8f64.ln()).abs() < 1e-12);
        assert!((nll(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn best_tokens_are_ordered_by_logit_then_id() {
        let mut logits = vec![0.0; 50];
        logits[7] = 2.0;
        logits[3] = 2.0;
        logits[40] = 5.0;
        let ids: Vec<u32> = best(&logits).iter().map(|one| one.1).collect();
        assert_eq!(ids, [40, 3, 7, 0, 1, 2, 4, 5, 6, 8]);
    }

    #[test]
    fn headers_are_aligned_and_say_their_length() {
        for shape in ["(5,)", "(123456, 128256)", "(1, 2)"] {
            let header = npy_header(shape);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
            assert!(String::from_utf8_lossy(&header).contains(shape));
        }
    }
}
