//! `tritone check`: is something wrong, and is it the machine, the file or the settings?

mod machine;
mod meaning;
mod mind;
mod tensors;

use crate::args::{ModelArgs, model_name};
use crate::failure::{RUNTIME, Result, Stop};
use crate::interrupt;
use crate::load;
use crate::output::emit;
use clap::Args;
use machine::Machine;
use meaning::Meaning;
use mind::Mind;
use serde_json::json;
use tensors::Contents;
use tritone_runtime::model::Model;

/// Options of `check`.
#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Try the other I2_S layouts and gate functions even if the model seems sound
    #[arg(long)]
    try_all: bool,
    /// Everything as one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Default)]
struct Report {
    /// Things that are wrong.
    problems: Vec<String>,
    /// Things that are worth knowing.
    notes: Vec<String>,
}

impl Report {
    fn problem(&mut self, what: impl Into<String>) {
        self.problems.push(what.into());
    }

    fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }
}

/// Runs the command.
pub fn run(args: &CheckArgs) -> Result<()> {
    interrupt::install()?;
    let source = load::source(args.model.model.as_deref())?;
    let quiet = args.model.quiet;
    let show = |text: String| if args.json || quiet { Ok(()) } else { emit(text) };
    let mut report = Report::default();

    let machine = Machine::examine(&mut report);
    show(machine.to_string())?;

    let name = model_name(args.model.model.as_deref());
    let contents = match source.open() {
        Ok(mut checkpoint) => {
            checkpoint.set_i2s_layout(args.model.i2s_layout.into());
            Some(Contents::read(&checkpoint, args.model.threads, &mut report))
        }
        Err(error) => {
            report.problem(error.to_string());
            None
        }
    };
    let (mut mind, mut meaning) = (None, None);
    if let Some(contents) = &contents {
        show(format!("\nmodel {name}\n{contents}"))?;
        if let Some(model) = load(args, &mut report)? {
            show(format!("  {}\n", rules(&model)))?;
            if model.config().pooling.is_some() {
                if args.try_all {
                    report
                        .note("--try-all tries nothing here: an embedding model predicts no text to tell settings by");
                }
                let found = Meaning::examine(&model, &mut report)?;
                show(found.to_string())?;
                meaning = Some(found);
            } else {
                let found = Mind::examine(&model, args, contents.has_i2s, &mut report)?;
                show(found.to_string())?;
                mind = Some(found);
            }
        }
    }

    if args.json {
        let result = json!({
            "machine": machine.to_json(),
            "model": name,
            "contents": contents.as_ref().map(Contents::to_json),
            "mind": mind.as_ref().map(Mind::to_json),
            "meaning": meaning.as_ref().map(Meaning::to_json),
            "problems": report.problems,
            "notes": report.notes,
            "ok": report.problems.is_empty(),
        });
        emit(format_args!("{result}\n"))?;
    } else if quiet {
        for problem in &report.problems {
            emit(format_args!("wrong: {problem}\n"))?;
        }
    } else {
        for note in &report.notes {
            emit(format_args!("\nnote: {note}\n"))?;
        }
        for problem in &report.problems {
            emit(format_args!("\nwrong: {problem}\n"))?;
        }
        if report.problems.is_empty() {
            emit("\nnothing is wrong\n")?;
        }
    }
    match report.problems.len() {
        0 => Ok(()),
        1 => Err(Stop::runtime("the check found something wrong")),
        n => Err(Stop::runtime(format_args!("the check found {n} things wrong"))),
    }
}

/// Loads the model; that it cannot be loaded is a finding, options that cannot be used are not.
fn load(args: &CheckArgs, report: &mut Report) -> Result<Option<Model>> {
    match load::model(&args.model) {
        Ok(model) => Ok(Some(model)),
        Err(Stop::Error { message, status: RUNTIME, .. }) => {
            // The reason is among the findings already if the tensors or the tokenizer are bad.
            if report.problems.is_empty() {
                report.problem(message);
            } else {
                report.note(format!("the model does not load, so its mind was not tested: {message}"));
            }
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

fn rules(model: &Model) -> String {
    format!(
        "runs with {} and {}, gate {}, one scale for the activations of a {}",
        model.gemv_kernel(),
        model.gemm_kernel(),
        model.config().activation,
        model.activation_scales()
    )
}
