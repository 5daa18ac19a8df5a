//! How a command ends when it does not end well, and the status for each.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;
use tritone_runtime::error::Error;

/// The status when something went wrong at run time.
pub const RUNTIME: u8 = 1;
/// The status when the command was not used as it can be.
const USAGE: u8 = 2;
/// The status when all was done that could be, but some of it could not.
pub const INCOMPLETE: u8 = 3;
/// The status after Ctrl-C, as shells have it: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Why a command stops early.
#[derive(Debug)]
pub enum Stop {
    /// An error to be shown.
    Error {
        /// One sentence.
        message: String,
        /// What else may help.
        hint: Option<&'static str>,
        /// The exit status.
        status: u8,
    },
    /// Whoever read our output has read enough.
    ClosedPipe,
    /// Ctrl-C.
    Interrupted,
}

/// What commands return.
pub type Result<T> = std::result::Result<T, Stop>;

impl Stop {
    /// An error at run time.
    pub fn runtime(message: impl Display) -> Stop {
        Stop::Error { message: message.to_string(), hint: None, status: RUNTIME }
    }

    /// The command was used wrongly.
    pub fn usage(message: impl Display, hint: &'static str) -> Stop {
        Stop::Error { message: message.to_string(), hint: Some(hint), status: USAGE }
    }

    /// A file or a pipe, `name`, could not be read.
    pub fn unreadable(name: impl Display, error: &io::Error) -> Stop {
        Stop::runtime(format_args!("cannot read {name}: {error}{}", read_fix(error)))
    }

    /// What happened on writing to standard output.
    pub fn stdout(error: io::Error) -> Stop {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Stop::ClosedPipe
        } else {
            Stop::runtime(format_args!("cannot write to standard output: {error}"))
        }
    }
}

/// What helps against an error of reading, after a semicolon; nothing where that is not known.
pub fn read_fix(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied => "; check the file's permissions",
        io::ErrorKind::IsADirectory => "; name a file in it",
        _ => "",
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        let status = match error {
            Error::InvalidOption { .. } | Error::Threads { .. } | Error::Isa { .. } => USAGE,
            _ => RUNTIME,
        };
        let hint = match error {
            Error::PromptTooLong { context, limit, .. } if context < limit => {
                Some("-c TOKENS sets the length of the context")
            }
            _ => None,
        };
        Stop::Error { message: error.to_string(), hint, status }
    }
}

/// Shows the error, if there is one, and gives the exit status.
pub fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) | Err(Stop::ClosedPipe) => ExitCode::SUCCESS,
        Err(Stop::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(Stop::Error { message, hint, status }) => {
            crate::output::note(format_args!("error: {message}"));
            if let Some(hint) = hint {
                crate::output::note(format_args!("hint: {hint}"));
            }
            ExitCode::from(status)
        }
    }
}
