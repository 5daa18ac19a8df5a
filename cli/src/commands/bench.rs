//! `tritone bench`: how fast a model is on this machine, and what the machine could give.

mod ceilings;
mod cold;
mod markdown;
mod measure;
mod report;
mod shape;
mod spread;

use crate::args::{CachePrecision, Layout, ModelArgs, at_least_one};
use crate::failure::{Result, Stop};
use crate::interrupt::{self, LOOK, Watch};
use crate::load;
use crate::model_file::{Embedding, ModelFile, Ternary};
use crate::output::emit;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use measure::Plan;
use report::{Report, Run};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use tritone_runtime::isa::Level;
use tritone_runtime::model::Model;
use tritone_runtime::threads::default_threads;

/// What `--help` says after the options.
pub const HELP: &str = "What is measured, -r times each, the kinds in turn; shown are median, least and most:
  prefill      -p tokens read into an empty context, logits for the last one
  decode       -n tokens, one after the other, each the likeliest after the last
  batch of B   steps that read B tokens of one sequence at once, with logits for each of them, as when a
               guess of B tokens is verified; several sequences at once are not measured
  first token  from the start of a new process to its first token after a short prompt, the file in the
               system's cache
  peak memory  of a new process that loads, reads -p and decodes up to 16 tokens; mapped weights count
  ceilings     bytes per second that the threads read from a buffer as large as the weights, from one that
               fits no cache if the weights are smaller than that, and the rate of the matrix kernels on
               a few tiles of weights that stay in each core's cache

Examples:
  tritone bench
  tritone bench -m model.gguf -t 1,2,4 --profile
  tritone bench --shape bitnet-2b-4t -p 64 -n 32 -r 3
  tritone bench -m model.gguf --price-per-hour 0.40 --watts 65 -o json";

/// The prompt where the user does not say, as far as it fits the context.
const PROMPT: usize = 512;

/// The same for generated tokens.
const GENERATED: usize = 128;

/// The batches that are measured where the user does not say.
const BATCHES: [usize; 4] = [1, 2, 4, 8];

/// Options of `bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// The model, a GGUF file or a folder with safetensors; left out: the story model in the binary
    #[arg(short, long, value_name = "FILE", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// A random model of this shape, made for the occasion: bitnet-2b-4t, bonsai-8b, llama3-8b, story, or a FILE.json
    #[arg(long, value_name = "SHAPE")]
    shape: Option<String>,
    // Each of these names `model`, too: it conflicts with `shape`, and clap does not ask for what conflicts with an
    // argument that is there.
    /// Type of the ternary weights of a --shape
    #[arg(long = "type", value_enum, value_name = "TYPE", requires = "shape", conflicts_with = "model")]
    ternary: Option<Ternary>,
    /// Type of embedding and head of a --shape
    #[arg(long, value_enum, value_name = "TYPE", requires = "shape", conflicts_with = "model")]
    embedding: Option<Embedding>,
    /// Share of gates that are positive in a --shape with relu^2
    #[arg(long, value_name = "SHARE", requires = "shape", conflicts_with = "model")]
    relu_density: Option<f64>,
    /// Folder to keep the model of a --shape in, for the next time; left out: a temporary file
    #[arg(long, value_name = "FOLDER", requires = "shape", conflicts_with = "model")]
    cache: Option<PathBuf>,
    /// Tokens of the prompt; left out: 512, or what fits the context
    #[arg(short, long = "prompt", value_name = "TOKENS", value_parser = at_least_one)]
    prompt: Option<usize>,
    /// Tokens to decode; left out: 128, or what fits the context
    #[arg(short = 'n', long = "generate", value_name = "TOKENS", value_parser = at_least_one)]
    generate: Option<usize>,
    /// Tokens that stand in the context before decoding begins
    #[arg(short, long, value_name = "TOKENS", default_value_t = 0)]
    depth: usize,
    /// Numbers of threads; left out: 1 and one for each physical core
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one)]
    threads: Vec<usize>,
    /// Repeats
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    repeats: usize,
    /// Tokens of one sequence that a step reads at once; left out: 1,2,4,8
    #[arg(long, value_name = "B,...", value_delimiter = ',', value_parser = at_least_one)]
    batch: Vec<usize>,
    /// Time the parts of a layer too, in runs of their own
    #[arg(long)]
    profile: bool,
    /// What an hour of this machine costs, in any currency: adds the cost of a million tokens
    #[arg(long, value_name = "X", value_parser = positive)]
    price_per_hour: Option<f64>,
    /// What this machine draws under load: adds the energy of a million tokens
    #[arg(long, value_name = "W", value_parser = positive)]
    watts: Option<f64>,
    /// How the figures are written
    #[arg(short, long, value_enum, default_value_t = Format::Md)]
    output: Format,
    /// Highest instruction set to use: scalar, avx2, ...; left out: TRITONE_ISA, or the best there is
    #[arg(long, value_name = "LEVEL")]
    isa: Option<Level>,
    /// How weights are laid out in memory
    #[arg(long, value_enum, default_value_t = Layout::Auto)]
    layout: Layout,
    /// Read the whole output head for every token
    #[arg(long)]
    full_head: bool,
    /// Leave weights in the mapped file
    #[arg(long)]
    in_place: bool,
    /// A kernel to use in place of the best, and its layout: gemv-* decodes, gemm-* reads prompts; a wrong name lists them
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// How keys and values are stored
    #[arg(long, value_enum, default_value_t = CachePrecision::F16)]
    cache_type: CachePrecision,
    /// Prompt tokens that go through the layers at once; 0: the default
    #[arg(long, value_name = "N", default_value_t = 0)]
    chunk: usize,
    /// No bar
    #[arg(short, long)]
    quiet: bool,
    /// What this command starts itself with, to measure a new process.
    #[arg(long, hide = true)]
    cold: bool,
}

/// Ways to write figures.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Tables for people
    Md,
    /// One JSON object
    Json,
    /// A line for each figure
    Csv,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    interrupt::install()?;
    if args.cold {
        return cold::child(args);
    }
    let watch = Watch::start();
    let made = args.shape.as_deref().map(|shape| shape::make(shape, args, &watch)).transpose()?;
    let path = made.as_ref().map(shape::Made::path).or(args.model.as_deref());
    let threads = args.thread_counts();

    let bar = args.bar();
    let result = measure_all(args, path, &threads, &watch, &bar);
    bar.finish_and_clear();
    let report = result?;
    match args.output {
        Format::Md => emit(markdown::Markdown(&report)),
        Format::Json => emit(format_args!("{}\n", report.to_json())),
        Format::Csv => emit(report.to_csv()),
    }
}

fn measure_all(
    args: &BenchArgs,
    path: Option<&Path>,
    threads: &[usize],
    watch: &Watch,
    bar: &ProgressBar,
) -> Result<Report> {
    let mut report: Option<Report> = None;
    for &n_threads in threads {
        bar.set_message(format!("{n_threads} threads: load"));
        let model_args = args.model_args(path, n_threads);
        let model = watched(watch, move || load::model(&model_args))?;
        let plan = Plan::new(args, &model)?;
        if report.is_none() {
            bar.set_length((threads.len() * (plan.n_steps() + cold::starts(args.repeats) + ceilings::STEPS)) as u64);
        }
        let report = report.get_or_insert_with(|| Report::new(args, &model, &plan));

        bar.set_message(format!("{n_threads} threads: new processes"));
        let cold = cold::measure(args, path, n_threads, &plan, watch, bar)?;
        bar.set_message(format!("{n_threads} threads: speed"));
        let context = plan.mean_context();
        let (measured, its_bar) = (model.clone(), bar.clone());
        let speeds = watched(watch, move || measure::measure(&measured, &plan, &its_bar))?;
        // After decoding, which may have made a copy of the output head: it counts as weights.
        bar.set_message(format!("{n_threads} threads: the machine"));
        let (of_machine, its_bar) = (model.clone(), bar.clone());
        let ceilings = watched(watch, move || ceilings::measure(&of_machine, &its_bar))?;
        let token_bytes = model.bytes_per_token(context, speeds.density);
        report.weight_bytes = model.weight_bytes();
        report.runs.push(Run { threads: n_threads, cold, ceilings, speeds, token_bytes });
    }
    report.ok_or_else(|| Stop::usage("no number of threads was given", "-t takes numbers such as 1,2"))
}

/// Does `work` on a thread of its own while this one watches for Ctrl-C, which ends the command
/// without waiting for the thread, unless that has begun a model file: it removes that first.
fn watched<T: Send + 'static>(watch: &Watch, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("bench".to_owned())
        // Nobody listens after Ctrl-C.
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| Stop::runtime(format_args!("the system refused to start a thread: {error}")))?;
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) if watch.pressed() && !ModelFile::is_open() => {
                return Err(Stop::Interrupted);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("the thread sends a result or panics"),
            },
        }
    }
}

impl BenchArgs {
    fn model_args(&self, path: Option<&Path>, threads: usize) -> ModelArgs {
        ModelArgs {
            model: path.map(Path::to_owned),
            threads: Some(threads),
            isa: self.isa,
            layout: self.layout,
            full_head: self.full_head,
            in_place: self.in_place,
            kernel: self.kernel.clone(),
            cache_type: self.cache_type,
            i2s_layout: crate::args::I2sBytes::Published,
            ffn: None,
            activations: None,
            quiet: true,
            verbose: false,
        }
    }

    fn thread_counts(&self) -> Vec<usize> {
        let mut counts = if self.threads.is_empty() { vec![1, default_threads()] } else { self.threads.clone() };
        // Each once, in the order given.
        let all = counts.clone();
        let mut at = 0;
        counts.retain(|count| {
            at += 1;
            !all[..at - 1].contains(count)
        });
        counts
    }

    fn bar(&self) -> ProgressBar {
        if self.quiet || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(1).with_style(style)
    }
}

/// How a model is called in reports.
fn name_of(args: &BenchArgs, model: &Model) -> String {
    match (&args.shape, &args.model) {
        (Some(_), _) => model.config().name.clone(),
        (None, path) => crate::args::model_name(path.as_deref()),
    }
}

/// How a value of an option is called on the command line.
fn value_name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn positive(number: &str) -> std::result::Result<f64, String> {
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("it must be a positive number, such as 0.5".to_owned()),
    }
}
