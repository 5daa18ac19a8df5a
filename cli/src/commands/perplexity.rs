//! `tritone perplexity`: how well a model predicts a text.

use crate::args::{ContextArgs, ModelArgs, TextArgs, at_least_one, model_name};
use crate::failure::{Result, Stop};
use crate::interrupt;
use crate::load;
use crate::output::emit;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::time::Instant;
use tritone_runtime::evaluate::{Cut, Likelihood, Window, Windows, score};
use tritone_runtime::model::Model;

/// Tokens of context where the user does not say: what published figures have.
const CONTEXT: usize = 512;

/// Options of `perplexity`.
#[derive(Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    text: TextArgs,
    /// Score every token once, in windows of --ctx tokens that move on by N
    #[arg(long, value_name = "N", conflicts_with = "full")]
    stride: Option<usize>,
    /// Score every token once, in chunks; the same as a --stride of one token less than --ctx
    #[arg(long)]
    full: bool,
    /// Stop after N chunks or windows
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    chunks: Option<usize>,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &PerplexityArgs) -> Result<()> {
    interrupt::install()?;
    let text = text(&args.text)?;
    let model = load::model(&args.model)?;
    let (ids, begin) = encode(&model, &text, args.text.special);
    let context = context(args.context.length, &model);
    let cut = match args.stride {
        Some(stride) => Cut::Sliding(stride),
        None if args.full => Cut::Sliding(context.saturating_sub(1)),
        None => Cut::SecondHalves,
    };
    let mut session = model.session(Some(context))?;
    let windows = Windows::new(ids.len(), context, cut)?;
    let n_windows = windows.len().min(args.chunks.unwrap_or(usize::MAX));
    let bar = progress(windows.iter().take(n_windows), args.model.quiet);

    let began = Instant::now();
    let tokenizer = model.tokenizer();
    let mut likelihood = Likelihood::default();
    for window in windows.iter().take(n_windows) {
        score(&mut session, &ids, &window, begin, args.context.chunk, &mut |index, nll| {
            likelihood.add(nll, tokenizer.token_bytes(ids[index]).len());
            bar.inc(1);
        })?;
        bar.set_message(format!("perplexity {:.4}", likelihood.perplexity().unwrap_or(f64::NAN)));
    }
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();

    if args.json {
        let result = json!({
            "model": model_name(args.model.model.as_deref()),
            "text_tokens": ids.len(),
            "context": context,
            "definition": match cut {
                Cut::SecondHalves => "second halves of chunks",
                Cut::Sliding(_) => "every token once",
            },
            "stride": match cut {
                Cut::SecondHalves => context,
                Cut::Sliding(stride) => stride,
            },
            "chunks": n_windows,
            "scored_tokens": likelihood.tokens(),
            "scored_bytes": likelihood.bytes(),
            "mean_nll": likelihood.mean_nll(),
            "perplexity": likelihood.perplexity(),
            "standard_error": likelihood.standard_error(),
            "bits_per_token": likelihood.bits_per_token(),
            "bits_per_byte": likelihood.bits_per_byte(),
            "seconds": seconds,
            "isa": model.isa().level().name(),
            "gemv_kernel": model.gemv_kernel(),
            "gemm_kernel": model.gemm_kernel(),
        });
        return emit(format_args!("{result}\n"));
    }
    let how = match cut {
        Cut::SecondHalves => format!("second halves of {n_windows} chunks of {context}"),
        Cut::Sliding(stride) => format!("{n_windows} windows of {context}, {stride} further each"),
    };
    emit(format_args!("text        {} tokens, {} of them scored: {how}\n", ids.len(), likelihood.tokens()))?;
    emit(format_args!("perplexity  {}\n", with_error(&likelihood)))?;
    emit(format_args!(
        "bits        {} per token, {} per byte\n",
        number(likelihood.bits_per_token()),
        number(likelihood.bits_per_byte())
    ))
}

/// The text to be measured.
pub fn text(args: &TextArgs) -> Result<String> {
    args.read()?.ok_or_else(|| Stop::usage("there is no text", "give it with -f FILE, -p TEXT or through a pipe"))
}

/// The tokens of a text, with the begin token first and on its own if the model expects it.
pub fn encode(model: &Model, text: &str, special: bool) -> (Vec<u32>, Option<u32>) {
    let tokenizer = model.tokenizer();
    let begin = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    (tokenizer.encode(text, load::special(special), begin.is_some()), begin)
}

/// The context to measure in: what was asked for, or the usual one as far as the model has it.
pub fn context(asked: Option<usize>, model: &Model) -> usize {
    asked.unwrap_or(CONTEXT.min(model.config().context_length))
}

/// A perplexity and its standard error.
pub fn with_error(likelihood: &Likelihood) -> String {
    let error = likelihood.standard_error().map(|error| format!(" +/- {error:.4}")).unwrap_or_default();
    format!("{}{error}", number(likelihood.perplexity()))
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

/// A bar over the scored tokens of some windows; it shows on a terminal only.
pub fn progress(windows: impl Iterator<Item = Window>, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let tokens = windows.map(|window| window.scored.len() as u64).sum();
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} tokens, {eta} to go  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(tokens).with_style(style)
}
