//! Opens models: a file, or the one in the binary.

use crate::args::{CachePrecision, Layout, ModelArgs, model_name};
use crate::failure::{Result, Stop};
use crate::output::note;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};
use tritone_runtime::model::{CacheType, LayoutChoice, LoadOptions, LoadProgress, Model, Source};
use tritone_runtime::tokenizer::{SpecialTokens, Tokenizer};

#[cfg(feature = "embedded-model")]
const STORY: Option<&[u8]> = Some(include_bytes!("../../models/story.gguf"));
#[cfg(not(feature = "embedded-model"))]
const STORY: Option<&[u8]> = None;

const STORY_NAME: &str = "story.gguf";

/// Loading that takes longer than this shows a bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// Loads the model that `args` names.
pub fn model(args: &ModelArgs) -> Result<Model> {
    let source = source(args.model.as_deref())?;
    let options = LoadOptions {
        level: args.isa,
        threads: args.threads,
        layout: match args.layout {
            Layout::Auto => LayoutChoice::Auto,
            Layout::I2s => LayoutChoice::I2s,
            Layout::T3 => LayoutChoice::T3,
            Layout::T5 => LayoutChoice::T5,
        },
        kernel: args.kernel.clone(),
        cache_type: match args.cache_type {
            CachePrecision::F16 => CacheType::F16,
            CachePrecision::F32 => CacheType::F32,
        },
        full_head: args.full_head,
        in_place: args.in_place,
        i2s_layout: args.i2s_layout.into(),
        activation: args.ffn.map(Into::into),
        activations: args.activations.map(Into::into),
    };
    let may_show = std::io::stderr().is_terminal() && !args.quiet;
    let start = Instant::now();
    let mut bar: Option<ProgressBar> = None;
    let model = Model::load(source, &options, &mut |progress: LoadProgress| {
        if may_show && (bar.is_some() || start.elapsed() > PATIENCE) {
            let bar = bar.get_or_insert_with(|| loading_bar(progress.total_bytes));
            bar.set_position(progress.done_bytes);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let model = model?;
    if args.verbose {
        note(format_args!(
            "{}: {}, {} layers of {}, loaded in {:.2} s",
            model_name(args.model.as_deref()),
            model.config().architecture_name,
            model.config().n_layers,
            model.config().hidden,
            model.load_seconds(),
        ));
    }
    Ok(model)
}

/// The tokenizer of a model whose weights are not needed.
pub fn tokenizer(path: Option<&Path>) -> Result<Tokenizer> {
    Ok(Tokenizer::from_checkpoint(&source(path)?.open()?)?)
}

/// The model at `path`, or the one in the binary.
pub fn source(path: Option<&Path>) -> Result<Source> {
    Ok(match path {
        Some(path) => Source::File(path.to_owned()),
        None => Source::Static { name: STORY_NAME, bytes: story()? },
    })
}

/// How names of control tokens in a text are taken.
pub fn special(parse: bool) -> SpecialTokens {
    if parse { SpecialTokens::Parse } else { SpecialTokens::Plain }
}

fn story() -> Result<&'static [u8]> {
    STORY.ok_or_else(|| Stop::usage("this build has no model of its own", "give one with -m FILE"))
}

fn loading_bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("loading {wide_bar} {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style)
}
