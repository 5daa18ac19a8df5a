//! One file per command.

pub mod batch;
pub mod bench;
pub mod chat;
pub mod check;
pub mod compare;
pub mod convert;
pub mod embed;
pub mod inspect;
pub mod logits;
pub mod perplexity;
pub mod run;
pub mod serve;
pub mod synth;
pub mod tokenize;

use crate::args::{Cli, Command};
use crate::failure::Result;

/// Does what the command line says.
pub fn dispatch(cli: Cli) -> Result<()> {
    match cli.command {
        None => run::run(&cli.run),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Batch(args)) => batch::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Chat(args)) => chat::run(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Embed(args)) => embed::run(&args),
        Some(Command::Logits(args)) => logits::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Serve(args)) => serve::run(&args),
        Some(Command::Synth(args)) => synth::run(&args),
        Some(Command::Tokenize(args)) => tokenize::run(&args),
        Some(Command::Perplexity(args)) => perplexity::run(&args),
        Some(Command::Compare(args)) => compare::run(&args),
        Some(Command::Check(args)) => check::run(&args),
    }
}
