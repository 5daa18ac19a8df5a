//! The command as a process of its own.

use std::process::{Child, Command, Stdio};

/// Starts the command with pipes at all ends.
pub fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tritone"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
