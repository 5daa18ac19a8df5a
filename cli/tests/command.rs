//! Drives the built command from outside: bad input gives one sentence and a status, no panic.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn tritone(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tritone")).args(args).stdin(Stdio::null()).output().expect("the command starts")
}

fn refused(args: &[&str], status: i32, says: &str) {
    let output = tritone(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(message.contains(says), "{args:?}: {message}");
}

fn temporary(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn wrong_options_are_usage_errors() {
    refused(&["run", "-t", "0", "-p", "x"], 2, "1 or more");
    refused(&["run", "--isa", "quantum", "-p", "x"], 2, "scalar");
    let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    refused(&["run", "--isa", foreign, "-p", "x"], 2, "scalar");
    refused(&["logits", "--ids", "1,two"], 2, "'two'");
    refused(&["run", "--frobnicate"], 2, "--frobnicate");
}

#[test]
fn files_that_are_no_models_are_refused() {
    let missing = temporary("none.gguf");
    refused(&["run", "-m", missing.to_str().unwrap(), "-p", "x"], 1, "none.gguf");
    let empty = temporary("empty.gguf");
    fs::write(&empty, b"").unwrap();
    refused(&["inspect", empty.to_str().unwrap()], 1, "empty.gguf");
}

#[test]
fn every_command_has_help_with_examples() {
    for command in
        ["run", "chat", "embed", "logits", "inspect", "tokenize", "convert", "synth", "bench", "serve", "batch"]
    {
        let output = tritone(&[command, "--help"]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("Examples:"), "{command}");
    }
}

#[cfg(all(feature = "embedded-model", target_os = "linux"))]
#[test]
fn a_full_disk_is_one_sentence() {
    refused(&["logits", "-p", "Once", "-o", "/dev/full"], 1, "cannot write /dev/full");
}

#[cfg(feature = "embedded-model")]
#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    refused(&["run", "-c", "3", "-p", "Once upon a time there was a king"], 1, "-c TOKENS");
}

#[cfg(feature = "embedded-model")]
#[test]
fn chunks_and_threads_do_not_change_the_logits() {
    let hash = |more: &[&str]| {
        let mut args = vec!["logits", "-p", "Once upon a time there was a king", "--all", "--hash"];
        args.extend(more);
        let output = tritone(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let plain = hash(&[]);
    assert_eq!(plain.len(), 65);
    for more in [["--chunk", "1"], ["--chunk", "7"], ["-t", "1"], ["-t", "3"], ["--isa", "scalar"]] {
        assert_eq!(hash(&more), plain, "{more:?}");
    }
}
