//! What can be said on the command line.

use crate::commands::{
    batch::BatchArgs, bench::BenchArgs, chat::ChatArgs, check::CheckArgs, compare::CompareArgs, convert::ConvertArgs,
    embed::EmbedArgs, inspect::InspectArgs, logits::LogitsArgs, perplexity::PerplexityArgs, run::RunArgs,
    serve::ServeArgs, synth::SynthArgs, tokenize::TokenizeArgs,
};
use crate::failure::{Result, Stop};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use tritone_runtime::checkpoint::I2sLayout;
use tritone_runtime::config::{Activation, ActivationScales};
use tritone_runtime::generate::Speculation;
use tritone_runtime::isa::Level;
use tritone_runtime::sampler::SamplerConfig;
use tritone_server::engine::{EngineOptions, StartError};

/// The longest prompt that is read from a file or a pipe.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

/// What standard input is called.
const STDIN: &str = "standard input";

const EXIT_STATUS: &str = "Exit status:
  0    it went well, or the reader of a pipe had enough
  1    an error while running: a file, the model, the disk
  2    the command was not used as it can be
  130  interrupted by Ctrl-C";

/// The one command that has a status of its own.
fn batch_exit_status() -> String {
    EXIT_STATUS.replace("  130", "  3    the output is complete, but has lines that are no answers\n  130")
}

const EXAMPLES: &str = "Examples:
  tritone                                      a story from the model in the binary
  tritone run -m model.gguf -p 'The sky is'    continue a text
  tritone chat -m model.gguf                   talk
  tritone serve -m model.gguf                  let programs and browsers ask, over HTTP
  tritone batch -i asked.jsonl -o said.jsonl   answer a file of requests
  tritone embed -m model.gguf -f lines.txt     texts to vectors
  tritone logits -p 'Once upon' --all --hash   a fingerprint of what the model says
  tritone inspect model.gguf                   what a file holds
  tritone tokenize -p 'Once upon a time'       text to tokens
  tritone perplexity -m model.gguf -f book.txt how well a model predicts a text
  tritone compare a.gguf b.gguf -f book.txt    how far two models are apart
  tritone check -m model.gguf                  is something wrong with it, or with this machine
  tritone bench                                how fast it is here, and what is in the way

Without a subcommand the options are those of `run`.
";

/// Runs ternary language models on plain CPUs, with the same bits on every one of them.
#[derive(Parser)]
#[command(name = "tritone", version, args_conflicts_with_subcommands = true)]
#[command(after_help = format!("{EXAMPLES}\n{EXIT_STATUS}"))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Without a subcommand: run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Continue a text; without one, tell a story
    #[command(after_help = format!("Examples:
  tritone run
  tritone run -p 'Once there was a bear' -n 100 -s 7
  tritone run -m model.gguf -f prompt.txt --temp 0
  echo 'The old king' | tritone run --json -q\n\n{EXIT_STATUS}"))]
    Run(RunArgs),
    /// Talk with a model
    #[command(after_help = format!("Commands in the chat:
  /system TEXT   give the model its role     /clear   forget the conversation
  /regen         another answer              /help    this list
  /exit          end (or Ctrl-D); Ctrl-C stops an answer, twice ends

Examples:
  tritone chat -m model.gguf
  tritone chat -m model.gguf --system 'You answer in one sentence.' --temp 0
  echo 'Who was Aesop?' | tritone chat -m model.gguf -q\n\n{EXIT_STATUS}"))]
    Chat(ChatArgs),
    /// Turn texts into vectors whose angles tell how alike they are
    #[command(after_help = format!("{}\n\n{EXIT_STATUS}", crate::commands::embed::HELP))]
    Embed(EmbedArgs),
    /// Serve a model to programs and browsers, over HTTP
    #[command(after_help = format!("{}\n\n{EXIT_STATUS}", crate::commands::serve::HELP))]
    Serve(ServeArgs),
    /// Answer a file of requests, in the format of OpenAI's Batch API
    #[command(after_help = format!("{}\n\n{}", crate::commands::batch::HELP, batch_exit_status()))]
    Batch(BatchArgs),
    /// Show what the model says after a prompt, for comparing engines
    #[command(after_help = format!("Examples:
  tritone logits -p 'Once upon a time'
  tritone logits -m model.gguf --ids 1,2,3 --all --hash
  tritone logits -p 'Once upon a time' --all -o logits.npy\n\n{EXIT_STATUS}"))]
    Logits(LogitsArgs),
    /// Show what a model file or folder holds
    #[command(after_help = format!("Examples:
  tritone inspect model.gguf
  tritone inspect model.gguf --json | jq .sha256\n\n{EXIT_STATUS}"))]
    Inspect(InspectArgs),
    /// Write a model in another tensor type
    #[command(after_help = format!("Examples:
  tritone convert model.gguf model-t5.gguf --to t5
  tritone convert model.gguf small.gguf --to tq1_0 --embedding q6_k
  tritone convert folder model.gguf\n\n{EXIT_STATUS}"))]
    Convert(ConvertArgs),
    /// Make a random model of a real shape, to measure speed without a download
    #[command(after_help = format!("{}\n\n{EXIT_STATUS}", crate::commands::synth::HELP))]
    Synth(SynthArgs),
    /// Turn text into tokens and back
    #[command(after_help = format!("Examples:
  tritone tokenize -p 'Once upon a time'
  tritone tokenize -m model.gguf -f book.txt --ids
  tritone tokenize --decode 0,49,80\n\n{EXIT_STATUS}"))]
    Tokenize(TokenizeArgs),
    /// Measure how well a model predicts a text
    #[command(after_help = format!("The text is cut into chunks of --ctx tokens (512), and the second half of each is
scored: the definition that most published figures have.

Examples:
  tritone perplexity -m model.gguf -f wiki.test.raw
  tritone perplexity -m model.gguf -f book.txt --stride 256 --ctx 1024
  tritone perplexity -f story.txt --full --json\n\n{EXIT_STATUS}"))]
    Perplexity(PerplexityArgs),
    /// Measure how far two models, or two settings of one, are apart on a text
    #[command(after_help = format!("Examples:
  tritone compare model-i2_s.gguf model-tq2_0.gguf -f book.txt
  tritone compare model.gguf -f book.txt --isa scalar --isa-b avx2
  tritone compare -p 'Once upon a time there was a king' --cache-type-b f32\n\n{EXIT_STATUS}"))]
    Compare(CompareArgs),
    /// Test the machine, a model file, and whether the model makes sense
    #[command(after_help = format!("The status is 1 if something is wrong, and with -q only that is printed.

Examples:
  tritone check
  tritone check -m model.gguf
  tritone check -m model.gguf --try-all\n\n{EXIT_STATUS}"))]
    Check(CheckArgs),
    /// Measure speed, memory and the machine's own limits
    #[command(after_help = format!("{}\n\n{EXIT_STATUS}", crate::commands::bench::HELP))]
    Bench(BenchArgs),
}

/// Which model, and how it is to be run.
#[derive(Args, Clone)]
pub struct ModelArgs {
    /// The model, a GGUF file or a folder with safetensors; left out: the story model in the binary
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Threads; left out: one for each physical core
    #[arg(short, long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Highest instruction set to use: scalar, avx2, ...; left out: TRITONE_ISA, or the best there is
    #[arg(long, value_name = "LEVEL")]
    pub isa: Option<Level>,
    /// How weights are laid out in memory
    #[arg(long, value_enum, default_value_t = Layout::Auto)]
    pub layout: Layout,
    /// A kernel to use in place of the best, and its layout: gemv-* decodes, gemm-* reads prompts; a wrong name lists them
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
    /// Read the whole output head for every token and make no 8-bit copy that tells which rows matter
    #[arg(long)]
    pub full_head: bool,
    /// Leave weights in the mapped file, so that processes share their memory, and do not move them to large pages
    #[arg(long)]
    pub in_place: bool,
    /// How keys and values are stored
    #[arg(long, value_enum, default_value_t = CachePrecision::F16)]
    pub cache_type: CachePrecision,
    /// Where weights lie in the bytes of I2_S tensors, which the file does not tell
    #[arg(long, value_enum, default_value_t = I2sBytes::Published)]
    pub i2s_layout: I2sBytes,
    /// Gate function of the feed-forward blocks; left out: the architecture's own
    #[arg(long, value_enum, value_name = "FUNCTION")]
    pub ffn: Option<Gate>,
    /// What shares a scale among int8 activations; left out: what the model was trained for
    #[arg(long, value_enum, value_name = "SHARED_BY")]
    pub activations: Option<SharedBy>,
    /// Only the output, no lines about the run
    #[arg(short, long)]
    pub quiet: bool,
    /// More lines about the run: the model, the seed, guessed tokens
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
}

/// How many tokens of a text the model sees, and how many go through it at once.
#[derive(Args)]
pub struct ContextArgs {
    /// Tokens of context; left out: as many as the model was made for (512 where a text is measured)
    #[arg(short = 'c', long = "ctx", value_name = "TOKENS", value_parser = at_least_one)]
    pub length: Option<usize>,
    /// Prompt tokens that go through the layers at once; 0: the default
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub chunk: usize,
}

/// How many answers a model gives at once, how long they are, and what requests call it.
#[derive(Args)]
pub struct EngineArgs {
    #[command(flatten)]
    context: ContextArgs,
    /// Answers at once; others wait
    #[arg(long, value_name = "N", value_parser = parallel, default_value_t = EngineOptions::default().parallel)]
    parallel: usize,
    /// What the model is called; left out: the file's name
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
}

impl EngineArgs {
    /// The engine's options.
    pub fn options(&self) -> EngineOptions {
        let ContextArgs { length, chunk } = self.context;
        let mut options = EngineOptions { parallel: self.parallel, context: length, ..EngineOptions::default() };
        if chunk > 0 {
            options.chunk = chunk;
        }
        options
    }

    /// What the model is called.
    pub fn name(&self, path: Option<&Path>) -> String {
        let stem = path.and_then(|path| if path.is_dir() { path.file_name() } else { path.file_stem() });
        let given = || stem.map_or_else(|| "story".to_owned(), |stem| stem.to_string_lossy().into_owned());
        self.alias.clone().unwrap_or_else(given)
    }
}

/// Why an engine with these options is not started.
pub fn not_started(error: StartError) -> Stop {
    match error {
        StartError::Option { .. } => Stop::usage(error, "--help has the options"),
        error => Stop::runtime(error),
    }
}

/// Packed layouts by name.
#[derive(Clone, Copy, ValueEnum)]
pub enum Layout {
    /// What is fastest here
    Auto,
    /// Two bits a weight
    I2s,
    /// Three weights in five bits
    T3,
    /// Five weights in a byte
    T5,
}

/// Byte layouts of I2_S by name.
#[derive(Clone, Copy, ValueEnum)]
pub enum I2sBytes {
    /// As the published files, written on x86
    Published,
    /// As builds on Arm wrote it
    Arm,
    /// Four rows in a byte
    Rows4,
}

impl From<I2sBytes> for I2sLayout {
    fn from(name: I2sBytes) -> I2sLayout {
        match name {
            I2sBytes::Published => I2sLayout::Published,
            I2sBytes::Arm => I2sLayout::Arm,
            I2sBytes::Rows4 => I2sLayout::Rows4,
        }
    }
}

/// Gate functions by name.
#[derive(Clone, Copy, ValueEnum)]
pub enum Gate {
    /// relu(x)^2, as in BitNet-b1.58-2B-4T
    Relu2,
    /// x * sigmoid(x), as in Llama
    Silu,
}

impl From<Gate> for Activation {
    fn from(name: Gate) -> Activation {
        match name {
            Gate::Relu2 => Activation::ReluSquared,
            Gate::Silu => Activation::Silu,
        }
    }
}

/// What shares an activation scale, by name.
#[derive(Clone, Copy, ValueEnum)]
pub enum SharedBy {
    /// All of a token's activations: models trained as BitNet
    Token,
    /// As many as weights share one: other ternary models
    Block,
}

impl From<SharedBy> for ActivationScales {
    fn from(name: SharedBy) -> ActivationScales {
        match name {
            SharedBy::Token => ActivationScales::Token,
            SharedBy::Block => ActivationScales::Block,
        }
    }
}

/// Precisions of the cache by name.
#[derive(Clone, Copy, ValueEnum)]
pub enum CachePrecision {
    /// Two bytes a number
    F16,
    /// Four bytes a number, and the logits nearer to a float32 reference
    F32,
}

/// How the next token is chosen.
#[derive(Args)]
pub struct SamplingArgs {
    /// Randomness; 0 always takes the likeliest token
    #[arg(long = "temp", value_name = "T", default_value_t = 0.8)]
    pub temperature: f32,
    /// Choose among the K likeliest tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: usize,
    /// Choose among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Leave out tokens less probable than this share of the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Make tokens that came lately less likely; 1: do not
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Subtracted from a token's logit for each time it came lately
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of a token that came lately
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// The same seed, the same text; left out: another one each time
    #[arg(short, long)]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// The settings, with `seed` where none was given.
    pub fn config(&self, seed: u64) -> SamplerConfig {
        SamplerConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed.unwrap_or(seed),
            ..SamplerConfig::default()
        }
    }
}

/// Whether tokens are guessed ahead.
#[derive(Args)]
pub struct SpeculationArgs {
    /// Do not guess tokens ahead from what the text repeats; it never changes the output, only the speed
    #[arg(long)]
    no_speculation: bool,
}

impl SpeculationArgs {
    /// The setting.
    pub fn choice(&self) -> Speculation {
        if self.no_speculation { Speculation::Off } else { Speculation::Adaptive }
    }
}

/// Where a text comes from.
#[derive(Args)]
pub struct TextArgs {
    /// The text
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A file with the text; without -p and -f it is read from standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Names of control tokens in the text, such as <|eot_id|>, mean those tokens
    #[arg(long)]
    pub special: bool,
}

impl TextArgs {
    /// The text, or none where none was given and standard input is a terminal or, as of processes that nobody feeds, a
    /// device without contents such as /dev/null.
    pub fn read(&self) -> Result<Option<String>> {
        if let Some(text) = &self.prompt {
            return Ok(Some(text.clone()));
        }
        if let Some(path) = &self.file {
            let file = std::fs::File::open(path).map_err(|error| Stop::unreadable(path.display(), &error))?;
            return read_text(file, &path.display()).map(Some);
        }
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Ok(None);
        }
        let text = read_text(stdin.lock(), &STDIN)?;
        Ok(if text.is_empty() && is_device(&stdin) { None } else { Some(text) })
    }

    /// Where [`TextArgs::read`] has its text from.
    pub fn source(&self) -> String {
        match (&self.prompt, &self.file) {
            (Some(_), _) => "the text of -p".to_owned(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => STDIN.to_owned(),
        }
    }
}

/// Whether standard input is a character device.
#[cfg(unix)]
fn is_device(stdin: &io::Stdin) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let file = stdin.as_fd().try_clone_to_owned().map(std::fs::File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|meta| meta.file_type().is_char_device())
}

/// Elsewhere the system does not tell.
#[cfg(not(unix))]
fn is_device(_: &io::Stdin) -> bool {
    false
}

fn read_text(input: impl Read, name: &dyn std::fmt::Display) -> Result<String> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells that there is more.
    input.take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| Stop::unreadable(name, &error))?;
    if bytes.len() as u64 > MAX_PROMPT_BYTES {
        return Err(Stop::runtime(format_args!("{name} has more than {MAX_PROMPT_BYTES} bytes; give a shorter text")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Stop::runtime(format_args!("{name} is not UTF-8 at byte {at}; convert it first"))
    })
}

/// Token ids as the command line has them.
pub fn token_ids(list: &str) -> std::result::Result<Vec<u32>, String> {
    let parts = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    let ids = parts.map(|part| part.parse().map_err(|_| format!("'{part}' is not a token id; ids look like 1,2,3")));
    ids.collect()
}

/// A number of answers at once.
fn parallel(number: &str) -> std::result::Result<usize, String> {
    let most = EngineOptions::MAX_PARALLEL;
    let number = number.parse::<usize>().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("it must be a whole number from 1 to {most}"))
}

/// A count of which there is at least one.
pub fn at_least_one(number: &str) -> std::result::Result<usize, String> {
    match number.parse() {
        Ok(0) => Err("it must be 1 or more; leave the option out for the default".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("it must be a whole number, 1 or more".to_owned()),
    }
}

/// How a model is called in messages.
pub fn model_name(model: Option<&Path>) -> String {
    model.map_or_else(|| "the model in the binary".to_owned(), |path| path.display().to_string())
}
