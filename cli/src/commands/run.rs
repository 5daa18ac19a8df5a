//! `tritone run`: continues a text, or tells a story.

use crate::args::{ContextArgs, ModelArgs, SamplingArgs, SpeculationArgs, TextArgs};
use crate::failure::{Result, Stop};
use crate::interrupt::{self, Watch};
use crate::load;
use crate::output::{Bold, emit, note};
use clap::Args;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use tritone_runtime::generate::{Finish, GenerateOptions, Generation, Stats};
use tritone_runtime::model::Model;
use tritone_runtime::skipped::Density;

/// How stories begin when the user does not say.
const BEGINNINGS: [&str; 6] = [
    "Once upon a time",
    "Once upon a time there was a little girl who",
    "There was once a king who had three sons.",
    "Long ago, in a deep forest, there lived an old bear",
    "One day a hungry fox",
    "A poor woodcutter and his wife",
];

/// Options of `run`.
#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Most tokens to generate; left out: until the model ends or the context is full
    #[arg(short = 'n', long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the token that ends a text
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    speculation: SpeculationArgs,
    /// One JSON object per token and a last one that sums up
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &RunArgs) -> Result<()> {
    interrupt::install()?;
    let seed = args.sampling.seed.unwrap_or_else(random_seed);
    let prompt = match args.text.read()? {
        Some(text) if text.is_empty() => {
            return Err(Stop::usage(
                format_args!("there is nothing to continue: {} is empty", args.text.source()),
                "give a text with -p TEXT, -f FILE or through a pipe",
            ));
        }
        Some(text) => text,
        None => BEGINNINGS[(seed % BEGINNINGS.len() as u64) as usize].to_owned(),
    };
    let sampler = args.sampling.config(seed);
    let model = load::model(&args.model)?;
    if args.model.verbose {
        note(format_args!("seed {seed}"));
    }
    let tokenizer = model.tokenizer();
    let ids = tokenizer.encode(&prompt, load::special(args.text.special), tokenizer.adds_bos());
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampler,
        stop: args.stop.clone(),
        ignore_eos: args.ignore_eos,
        chunk: args.context.chunk,
        logprobs: args.json,
        speculation: args.speculation.choice(),
    };
    let mut session = model.session(args.context.length)?;
    let mut generation = Generation::new(&mut session, &ids, &options)?;

    if !args.json {
        emit(Bold(&prompt))?;
    }
    let watch = Watch::start();
    for piece in generation.by_ref() {
        let piece = piece?;
        if args.json {
            let token = json!({"type": "token", "id": piece.id, "text": piece.text, "logprob": piece.logprob});
            emit(format_args!("{token}\n"))?;
        } else {
            emit(&piece.text)?;
        }
        if watch.pressed() {
            break;
        }
    }
    let interrupted = watch.pressed();
    drop(watch);

    let stats = generation.stats();
    if args.json {
        let finish = generation.finish().map(finish_name);
        emit(format_args!("{}\n", summary(&stats, finish, seed, &prompt, &model)))?;
    } else {
        emit("\n")?;
    }
    if !args.model.quiet {
        note(speed(&stats, &model));
    }
    if args.model.verbose {
        note(speculation(&stats));
    }
    if args.model.verbose
        && let Some(sentence) = skipped(session.skipped().density())
    {
        note(sentence);
    }
    if interrupted { Err(Stop::Interrupted) } else { Ok(()) }
}

/// What was needed of up, down and the head, where something was not.
pub fn skipped(density: Density) -> Option<String> {
    let up = density.up_rows.map(|share| format!("{:.1}% of the rows of up", 100.0 * share));
    let down = density.down_columns.map(|share| format!("{:.1}% of the columns of down", 100.0 * share));
    let head = density.head_rows.map(|share| format!("{:.2}% of the rows of the head", 100.0 * share));
    let low =
        density.head_low_rows.map(|share| format!("{:.2}% of the rows of the head's second nibbles", 100.0 * share));
    let parts: Vec<_> = [up, down, low, head].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("needed {}", parts.join(", ")))
}

/// The line after a run.
pub fn speed(stats: &Stats, model: &Model) -> String {
    format!(
        "prompt {} tokens, {:.1} tokens/s; generated {} tokens, {:.1} tokens/s; {}, {}, {} threads",
        stats.prompt_tokens,
        rate(stats.prompt_tokens, stats.prompt_seconds),
        stats.generated_tokens,
        rate(stats.generated_tokens, stats.generated_seconds),
        model.isa().level(),
        model.gemv_kernel(),
        model.threads(),
    )
}

/// How guesses at tokens went.
pub fn speculation(stats: &Stats) -> String {
    format!(
        "speculation: {} of {} drafted tokens accepted, {} steps",
        stats.accepted_tokens, stats.drafted_tokens, stats.steps
    )
}

/// A seed that nobody chose; short enough to be typed.
pub fn random_seed() -> u64 {
    // The standard library keys its hash maps from the system's random numbers.
    RandomState::new().hash_one(0u8) >> 32
}

fn summary(stats: &Stats, finish: Option<&str>, seed: u64, prompt: &str, model: &Model) -> serde_json::Value {
    json!({
        "type": "summary",
        "finish": finish.unwrap_or("interrupted"),
        "seed": seed,
        "prompt": prompt,
        "prompt_tokens": stats.prompt_tokens,
        "prompt_tokens_per_second": rate(stats.prompt_tokens, stats.prompt_seconds),
        "generated_tokens": stats.generated_tokens,
        "generated_tokens_per_second": rate(stats.generated_tokens, stats.generated_seconds),
        "steps": stats.steps,
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "load_seconds": model.load_seconds(),
        "isa": model.isa().level().name(),
        "gemv_kernel": model.gemv_kernel(),
        "gemm_kernel": model.gemm_kernel(),
        "threads": model.threads(),
    })
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::EndToken => "end-token",
        Finish::StopString => "stop-string",
        Finish::MaxTokens => "max-tokens",
        Finish::ContextFull => "context-full",
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}
