//! `tritone embed`: texts to vectors.
//!
//! Lines are read, turned and written some at a time, so a file may be longer than memory.

use crate::args::{ContextArgs, ModelArgs, at_least_one};
use crate::failure::{Result, Stop};
use crate::interrupt;
use crate::load;
use crate::output::{Listing, note};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tritone_runtime::config::Pooling;
use tritone_runtime::embedding::{EmbedOptions, Embedder};
use tritone_runtime::error::Error;
use tritone_runtime::model::Model;

/// What the command's help says after the options.
pub const HELP: &str = "Each text gives one line: its numbers with spaces between them, or with --json an object
{\"index\": 0, \"tokens\": 7, \"embedding\": [...]}. Vectors have length 1, so the sum of the
products of two is their cosine. Many models want an instruction before a query (not before what is
searched): see the model's card.

Examples:
  tritone embed -m model.gguf -p 'The king is old.'
  tritone embed -m folder -f lines.txt --json > vectors.jsonl
  tritone embed -m model.gguf -p 'a red fox' -p 'ein roter Fuchs' -p 'tax law' --similarity
  cat lines.txt | tritone embed -m model.gguf --dimensions 256";

/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Texts are turned together until they have so many tokens.
const BATCH_TOKENS: usize = 2048;

/// The most texts of which all pairs are compared.
const MAX_COMPARED: usize = 2048;

/// Work that takes longer than this shows a bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// Options of `embed`.
#[derive(Args)]
pub struct EmbedArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    context: ContextArgs,
    /// A text; may be given several times
    #[arg(short, long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A file with a text in each line; without -p and -f lines are read from standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Keep the first N numbers of each vector, for models that were trained for it
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    dimensions: Option<usize>,
    /// How a text's tokens become one vector; left out: as the model was trained
    #[arg(long, value_enum, value_name = "WAY")]
    pooling: Option<Way>,
    /// Print the cosine of each text with each other one in place of the vectors
    #[arg(long)]
    similarity: bool,
    /// One JSON object for each text; with --similarity one for all
    #[arg(long)]
    json: bool,
}

/// Ways of pooling by name.
#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// The mean of all tokens
    Mean,
    /// The first token
    First,
    /// The last token
    Last,
}

impl From<Way> for Pooling {
    fn from(way: Way) -> Pooling {
        match way {
            Way::Mean => Pooling::Mean,
            Way::First => Pooling::First,
            Way::Last => Pooling::Last,
        }
    }
}

/// Runs the command.
pub fn run(args: &EmbedArgs) -> Result<()> {
    interrupt::install()?;
    let mut texts = Texts::open(args)?;
    let model = load::model(&args.model)?;
    let options = EmbedOptions {
        pooling: args.pooling.map(Into::into),
        context_length: args.context.length,
        chunk: args.context.chunk,
    };
    let embedder = Embedder::with_options(&model, &options)?;
    if let Some(dimensions) = args.dimensions.filter(|dimensions| *dimensions > embedder.dimensions()) {
        return Err(Stop::usage(
            format_args!("{dimensions} dimensions are more than the {} of this model", embedder.dimensions()),
            "--dimensions keeps as many as are given or fewer",
        ));
    }
    if let Some(warning) = embedder.warning().filter(|_| !args.model.quiet) {
        note(format_args!("warning: {warning}"));
    }

    let mut work = Work { args, embedder, bar: Bar::new(&texts, args.model.quiet), n_texts: 0, n_tokens: 0 };
    let mut out = Listing::new();
    let mut compared = Vec::new();
    let began = Instant::now();
    loop {
        let first = work.n_texts;
        let Some(embedded) = work.next(&mut texts)? else { break };
        if args.similarity {
            compared.extend(embedded.into_iter().map(|one| one.vector));
            if compared.len() > MAX_COMPARED {
                return Err(Stop::usage(
                    format_args!("--similarity compares at most {MAX_COMPARED} texts"),
                    "leave it out and compare the vectors elsewhere",
                ));
            }
            continue;
        }
        for (index, Embedded { n_tokens, vector }) in (first..).zip(embedded) {
            if args.json {
                let numbers = array(&vector)?;
                out.line(format_args!(r#"{{"index":{index},"tokens":{n_tokens},"embedding":{numbers}}}"#))?;
            } else {
                out.line(spaced(&vector, |x| x.to_string()))?;
            }
        }
        out.flush()?;
    }
    let seconds = began.elapsed().as_secs_f64();
    work.bar.finish();
    if args.similarity {
        print_cosines(&work.embedder, &compared, args.json, &mut out)?;
    }
    out.finish()?;
    if !args.model.quiet {
        note(summary(&work, seconds, &model));
    }
    Ok(())
}

/// What came of a text.
struct Embedded {
    n_tokens: usize,
    vector: Vec<f32>,
}

/// What is done with the texts, and how far it is.
struct Work<'a> {
    args: &'a EmbedArgs,
    embedder: Embedder,
    bar: Bar,
    n_texts: usize,
    n_tokens: usize,
}

impl Work<'_> {
    /// The vectors of the next texts; nothing after the last.
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Vec<Embedded>>> {
        let (start, mut batch, mut n_tokens) = (texts.bytes(), Vec::new(), 0);
        while n_tokens < BATCH_TOKENS
            && let Some(text) = texts.next()?
        {
            let tokens = self.embedder.tokens(&text);
            n_tokens += tokens.len();
            batch.push(tokens);
        }
        if batch.is_empty() {
            return Ok(None);
        }
        let (bar, bytes) = (&mut self.bar, texts.bytes() - start);
        let mut done = 0;
        let vectors = self.embedder.embed_with(&batch, &mut |tokens| {
            done += tokens;
            bar.set(start + bytes * done as u64 / n_tokens as u64);
        });
        let mut vectors = vectors.map_err(|error| numbered(error, self.n_texts))?;
        if let Some(dimensions) = self.args.dimensions {
            for vector in &mut vectors {
                *vector = self.embedder.shorten(vector, dimensions)?;
            }
        }
        self.n_texts += batch.len();
        self.n_tokens += n_tokens;
        let embedded = batch.iter().zip(vectors).map(|(tokens, vector)| Embedded { n_tokens: tokens.len(), vector });
        Ok(Some(embedded.collect()))
    }
}

/// An error about a text, which counts those of its batch only, with the text's number among all.
fn numbered(error: Error, before: usize) -> Error {
    match error {
        Error::TextTooLong { text, tokens, context } => Error::TextTooLong { text: before + text, tokens, context },
        Error::EmptyText { text } => Error::EmptyText { text: before + text },
        other => other,
    }
}

/// Where texts come from.
enum Texts {
    Given(std::vec::IntoIter<String>),
    Lines { name: String, reader: Box<dyn BufRead>, n_lines: usize, bytes: u64, size: Option<u64> },
}

impl Texts {
    fn open(args: &EmbedArgs) -> Result<Texts> {
        if !args.prompt.is_empty() {
            return Ok(Texts::Given(args.prompt.clone().into_iter()));
        }
        if let Some(path) = &args.file {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|error| Stop::unreadable(&name, &error))?;
            let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len());
            return Ok(Texts::Lines { name, reader: Box::new(BufReader::new(file)), n_lines: 0, bytes: 0, size });
        }
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(Stop::usage(
                "there is no text",
                "give it with -p TEXT, or lines of texts with -f FILE or through a pipe",
            ));
        }
        let name = "standard input".to_owned();
        Ok(Texts::Lines { name, reader: Box::new(stdin.lock()), n_lines: 0, bytes: 0, size: None })
    }

    fn next(&mut self) -> Result<Option<String>> {
        let (name, reader, n_lines, bytes) = match self {
            Texts::Given(texts) => return Ok(texts.next()),
            Texts::Lines { name, reader, n_lines, bytes, .. } => (name, reader, n_lines, bytes),
        };
        let mut line = Vec::new();
        // One byte more than allowed tells that there is more.
        let read = reader.take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
        *bytes += read.map_err(|error| Stop::unreadable(&*name, &error))? as u64;
        if line.is_empty() {
            return Ok(None);
        }
        *n_lines += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
            line.pop_if(|last| *last == b'\r');
        }
        if line.len() as u64 > MAX_LINE_BYTES {
            return Err(Stop::runtime(format_args!(
                "line {n_lines} of {name} has more than {MAX_LINE_BYTES} bytes; cut it into parts"
            )));
        }
        String::from_utf8(line)
            .map(Some)
            .map_err(|_| Stop::runtime(format_args!("line {n_lines} of {name} is not UTF-8; convert it first")))
    }

    /// Bytes read so far.
    fn bytes(&self) -> u64 {
        match self {
            Texts::Given(_) => 0,
            Texts::Lines { bytes, .. } => *bytes,
        }
    }
}

/// A bar over the bytes of a file, on a terminal, once the work has taken a while.
struct Bar {
    began: Instant,
    /// Of the file; nothing where no bar is to be shown.
    size: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn new(texts: &Texts, quiet: bool) -> Bar {
        let size = match texts {
            Texts::Lines { size, .. } if !quiet && io::stderr().is_terminal() => *size,
            _ => None,
        };
        Bar { began: Instant::now(), size, bar: None }
    }

    fn set(&mut self, bytes: u64) {
        if let Some(size) = self.size
            && (self.bar.is_some() || self.began.elapsed() > PATIENCE)
        {
            let style = || {
                ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}, {eta} to go")
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
            };
            self.bar.get_or_insert_with(|| ProgressBar::new(size).with_style(style())).set_position(bytes);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn print_cosines(embedder: &Embedder, vectors: &[Vec<f32>], json: bool, out: &mut Listing) -> Result<()> {
    let row = |a: &Vec<f32>| vectors.iter().map(|b| embedder.similarity(a, b)).collect::<Vec<f32>>();
    if !json {
        for vector in vectors {
            out.line(spaced(&row(vector), |cosine| format!("{cosine:7.4}")))?;
        }
        return Ok(());
    }
    let rows = vectors.iter().map(|vector| array(&row(vector))).collect::<Result<Vec<_>>>()?;
    out.line(format_args!(r#"{{"similarity":[{}]}}"#, rows.join(",")))
}

/// Numbers as a JSON array, each with the fewest digits that stand for no other `f32`.
fn array(numbers: &[f32]) -> Result<String> {
    serde_json::to_string(numbers)
        .map_err(|error| Stop::runtime(format_args!("cannot put the numbers in JSON: {error}")))
}

fn spaced(numbers: &[f32], shown: impl Fn(f32) -> String) -> String {
    let mut line = String::with_capacity(numbers.len() * 12);
    for (i, number) in numbers.iter().enumerate() {
        let space = if i == 0 { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = write!(line, "{space}{}", shown(*number));
    }
    line
}

fn summary(work: &Work<'_>, seconds: f64, model: &Model) -> String {
    let rate = if seconds > 0.0 { work.n_tokens as f64 / seconds } else { 0.0 };
    format!(
        "{} text{}, {} tokens, {rate:.1} tokens/s; {}, {}, {} threads",
        work.n_texts,
        if work.n_texts == 1 { "" } else { "s" },
        work.n_tokens,
        model.isa().level(),
        model.gemm_kernel(),
        model.threads(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &'static [u8]) -> Texts {
        let reader = Box::new(BufReader::with_capacity(3, bytes));
        Texts::Lines { name: "memory".to_owned(), reader, n_lines: 0, bytes: 0, size: None }
    }

    #[test]
    fn a_text_is_a_line() {
        let mut texts = lines(b"one\r\n\n  two \nlast\r");
        for expected in ["one", "", "  two ", "last\r"] {
            assert_eq!(texts.next().unwrap().as_deref(), Some(expected));
        }
        assert_eq!((texts.next().unwrap(), texts.bytes()), (None, 18));
        assert_eq!(lines(b"").next().unwrap(), None);
    }

    #[test]
    fn lines_that_are_no_text_are_named() {
        let mut texts = lines(b"one\n\xff\n");
        texts.next().unwrap();
        let Err(Stop::Error { message, .. }) = texts.next() else { panic!("not UTF-8") };
        assert_eq!(message, "line 2 of memory is not UTF-8; convert it first");
    }

    #[test]
    fn numbers_read_back_are_the_same() {
        let numbers = [0.1f32, -1.0, 1e-9, 0.055838, f32::MIN_POSITIVE, 0.0];
        let line = spaced(&numbers, |x| x.to_string());
        let back: Vec<f32> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        assert_eq!(back, numbers);
        let back: Vec<f32> = serde_json::from_str(&array(&numbers).unwrap()).unwrap();
        assert_eq!(back, numbers);
    }
}
