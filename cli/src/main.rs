//! The command `tritone`: runs ternary language models, and looks into them.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod interrupt;
mod load;
mod model_file;
mod output;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    failure::exit_code(commands::dispatch(cli))
}
