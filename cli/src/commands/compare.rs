//! `tritone compare`: how far two models, or two settings of one, are apart on a text.

use crate::args::{CachePrecision, Gate, I2sBytes, Layout, ModelArgs, SharedBy, TextArgs, at_least_one, model_name};
use crate::commands::perplexity::{context, encode, progress, text, with_error};
use crate::failure::{Result, Stop};
use crate::interrupt;
use crate::load;
use crate::output::emit;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use tritone_runtime::evaluate::{Comparison, Cut, Likelihood, Windows, compare};
use tritone_runtime::isa::Level;
use tritone_runtime::model::Model;

/// Options of `compare`.
#[derive(Args)]
pub struct CompareArgs {
    /// The models A and B; without B it is A under other settings, without A (or -m) the model in the binary
    #[arg(value_name = "MODEL", num_args = 0..=2)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of context; left out: 512, or as many as the model was made for
    #[arg(short, long = "ctx", value_name = "TOKENS", value_parser = at_least_one)]
    context: Option<usize>,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    b: SettingsOfB,
    /// Stop after N chunks of --ctx tokens
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    chunks: Option<usize>,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Settings of the second model where they differ from the first one's.
#[derive(Args)]
#[command(next_help_heading = "Settings of B where they differ from A's")]
pub struct SettingsOfB {
    /// --isa of B
    #[arg(long, value_name = "LEVEL")]
    isa_b: Option<Level>,
    /// --layout of B
    #[arg(long, value_enum)]
    layout_b: Option<Layout>,
    /// --kernel of B
    #[arg(long, value_name = "NAME")]
    kernel_b: Option<String>,
    /// --threads of B
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads_b: Option<usize>,
    /// --cache-type of B
    #[arg(long, value_enum)]
    cache_type_b: Option<CachePrecision>,
    /// --i2s-layout of B
    #[arg(long, value_enum)]
    i2s_layout_b: Option<I2sBytes>,
    /// --ffn of B
    #[arg(long, value_enum, value_name = "FUNCTION")]
    ffn_b: Option<Gate>,
    /// --activations of B
    #[arg(long, value_enum, value_name = "SHARED_BY")]
    activations_b: Option<SharedBy>,
}

impl SettingsOfB {
    fn any(&self) -> bool {
        self.isa_b.is_some()
            || self.layout_b.is_some()
            || self.kernel_b.is_some()
            || self.threads_b.is_some()
            || self.cache_type_b.is_some()
            || self.i2s_layout_b.is_some()
            || self.ffn_b.is_some()
            || self.activations_b.is_some()
    }

    /// B's options, given A's.
    fn applied_to(&self, a: &ModelArgs) -> ModelArgs {
        ModelArgs {
            isa: self.isa_b.or(a.isa),
            layout: self.layout_b.unwrap_or(a.layout),
            kernel: self.kernel_b.clone().or_else(|| a.kernel.clone()),
            threads: self.threads_b.or(a.threads),
            cache_type: self.cache_type_b.unwrap_or(a.cache_type),
            i2s_layout: self.i2s_layout_b.unwrap_or(a.i2s_layout),
            ffn: self.ffn_b.or(a.ffn),
            activations: self.activations_b.or(a.activations),
            ..a.clone()
        }
    }
}

/// Runs the command.
pub fn run(args: &CompareArgs) -> Result<()> {
    interrupt::install()?;
    let mut files = args.files.iter().cloned();
    let mut args_a = args.model.clone();
    args_a.model = args_a.model.or_else(|| files.next());
    let mut args_b = args.b.applied_to(&args_a);
    match files.next() {
        Some(file) => args_b.model = Some(file),
        None if args.b.any() => {}
        None => {
            return Err(Stop::usage(
                "there is nothing to compare with",
                "give a second file, or a setting of B such as --isa-b scalar or --cache-type-b f32",
            ));
        }
    }
    if files.next().is_some() {
        return Err(Stop::usage("there are three models", "with -m FILE give one more file"));
    }
    let text = text(&args.text)?;
    let (a, b) = (load::model(&args_a)?, load::model(&args_b)?);
    let names = [&args_a, &args_b].map(|args| model_name(args.model.as_deref()));
    same_vocabulary(&a, &b, &names)?;
    let (ids, begin) = encode(&a, &text, args.text.special);
    let special = load::special(args.text.special);
    if b.tokenizer().encode(&text, special, begin.is_some()) != ids {
        return Err(Stop::runtime(format_args!(
            "{} and {} cut this text into different tokens, so their logits cannot be compared; \
             compare models with one tokenizer",
            names[0], names[1]
        )));
    }

    let context = context(args.context, &a).min(context(args.context, &b));
    let (mut session_a, mut session_b) = (a.session(Some(context))?, b.session(Some(context))?);
    let windows = Windows::new(ids.len(), context, Cut::Sliding(context.saturating_sub(1)))?;
    let n_windows = windows.len().min(args.chunks.unwrap_or(usize::MAX));
    let bar = progress(windows.iter().take(n_windows), args.model.quiet);
    let bytes = |id| a.tokenizer().token_bytes(id).len();
    let mut comparison = Comparison::default();
    for window in windows.iter().take(n_windows) {
        compare([&mut session_a, &mut session_b], &ids, &window, begin, &bytes, &mut comparison)?;
        bar.set_position(comparison.positions());
        bar.set_message(format!("KL {:.6}", comparison.mean_kl()));
    }
    bar.finish_and_clear();

    let sides = [(&args_a, &a), (&args_b, &b)].map(|(args, model)| Side {
        name: model_name(args.model.as_deref()),
        cache: match args.cache_type {
            CachePrecision::F16 => "f16",
            CachePrecision::F32 => "f32",
        },
        model,
    });
    if args.json {
        let result = to_json(&comparison, &sides, ids.len(), context);
        return emit(format_args!("{result}\n"));
    }
    print(&comparison, &sides)
}

/// One of the two that are compared.
struct Side<'m> {
    name: String,
    cache: &'static str,
    model: &'m Model,
}

/// Refuses models whose tokens are not the same.
fn same_vocabulary(a: &Model, b: &Model, names: &[String; 2]) -> Result<()> {
    let refused = |what: String| {
        Err(Stop::runtime(format_args!(
            "{} and {} have different vocabularies, so their logits cannot be compared: {what}",
            names[0], names[1]
        )))
    };
    let sizes = [a, b].map(|model| (model.tokenizer().vocab_size(), model.config().vocab_size));
    if sizes[0] != sizes[1] {
        return refused(format!(
            "{} tokens and {} logits against {} and {}",
            sizes[0].0, sizes[0].1, sizes[1].0, sizes[1].1
        ));
    }
    let tokens = 0..sizes[0].0 as u32;
    match tokens.into_iter().find(|&id| a.tokenizer().token_name(id) != b.tokenizer().token_name(id)) {
        Some(id) => {
            let name = |model: &Model| {
                let name = model.tokenizer().token_name(id).unwrap_or_default();
                String::from_utf8_lossy(name).escape_debug().to_string()
            };
            refused(format!("token {id} is '{}' in one and '{}' in the other", name(a), name(b)))
        }
        None => Ok(()),
    }
}

fn print(comparison: &Comparison, sides: &[Side; 2]) -> Result<()> {
    let positions = comparison.positions();
    for (side, letter) in sides.iter().zip(["A", "B"]) {
        let model = side.model;
        emit(format_args!(
            "{letter}           {} ({}, {}, gate {}, activations by the {}, cache {})\n",
            side.name,
            model.isa().level(),
            model.gemv_kernel(),
            model.config().activation,
            model.activation_scales(),
            side.cache
        ))?;
    }
    emit(format_args!("positions   {positions}, {} logits each\n", sides[0].model.config().vocab_size))?;
    if comparison.is_identical() {
        emit("bits        identical\n")?;
    } else {
        emit(format_args!(
            "bits        different; identical at {} of {positions} positions\n",
            comparison.identical_positions()
        ))?;
    }
    let share = |value: f64| 100.0 * relative(comparison, value).unwrap_or(0.0);
    let (largest, mean, rms) =
        (comparison.largest_difference(), comparison.mean_difference(), comparison.rms_difference());
    emit(format_args!(
        "difference  of logits: largest {largest:.6} ({:.4}% of their rms {:.4}), mean {mean:.6} ({:.4}%), rms {rms:.6} ({:.4}%)\n",
        share(largest),
        comparison.rms(),
        share(mean),
        share(rms),
    ))?;
    emit(format_args!("KL(A||B)    mean {:.6}, largest {:.6} nats\n", comparison.mean_kl(), comparison.largest_kl()))?;
    emit(format_args!(
        "top token   the same at {} of {positions} positions ({:.2}%)\n",
        comparison.same_top(),
        100.0 * comparison.same_top() as f64 / positions as f64
    ))?;
    emit(format_args!("perplexity  A {}, B {}\n", with_error(comparison.a()), with_error(comparison.b())))
}

/// A difference as a share of the logits' rms, if they have one.
fn relative(comparison: &Comparison, value: f64) -> Option<f64> {
    (comparison.rms() > 0.0).then(|| value / comparison.rms())
}

fn to_json(comparison: &Comparison, sides: &[Side; 2], text_tokens: usize, context: usize) -> Value {
    let side = |Side { name, cache, model }: &Side, likelihood: &Likelihood| {
        json!({
            "model": name,
            "cache_type": cache,
            "isa": model.isa().level().name(),
            "gemv_kernel": model.gemv_kernel(),
            "gemm_kernel": model.gemm_kernel(),
            "threads": model.threads(),
            "ffn": model.config().activation.to_string(),
            "activation_scales": model.activation_scales().to_string(),
            "mean_nll": likelihood.mean_nll(),
            "perplexity": likelihood.perplexity(),
            "standard_error": likelihood.standard_error(),
        })
    };
    json!({
        "a": side(&sides[0], comparison.a()),
        "b": side(&sides[1], comparison.b()),
        "text_tokens": text_tokens,
        "context": context,
        "positions": comparison.positions(),
        "vocab_size": sides[0].model.config().vocab_size,
        "identical": comparison.is_identical(),
        "identical_positions": comparison.identical_positions(),
        "rms": comparison.rms(),
        "max_difference": comparison.largest_difference(),
        "mean_difference": comparison.mean_difference(),
        "rms_difference": comparison.rms_difference(),
        "relative_max_difference": relative(comparison, comparison.largest_difference()),
        "relative_mean_difference": relative(comparison, comparison.mean_difference()),
        "relative_rms_difference": relative(comparison, comparison.rms_difference()),
        "mean_kl": comparison.mean_kl(),
        "max_kl": comparison.largest_kl(),
        "same_top": comparison.same_top(),
        "top1_agreement": comparison.same_top() as f64 / comparison.positions() as f64,
    })
}
