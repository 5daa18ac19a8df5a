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
    // Before the model is loaded: it is not there.
    for parallel in ["0", "1025", "5000", "many"] {
        refused(&["serve", "-m", "none.gguf", "--port", "0", "--parallel", parallel], 2, "from 1 to 1024");
    }
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
fn what_cannot_be_read_comes_with_a_fix() {
    let missing = temporary("none.txt");
    let missing = missing.to_str().unwrap();
    for args in [
        &["run", "-f", missing][..],
        &["embed", "-f", missing],
        &["batch", "-i", missing, "-o", "-"],
        &["serve", "--api-key-file", missing],
        &["bench", "--shape", "none.json", "--cache", "."],
    ] {
        refused(args, 1, "; check the path");
    }
    #[cfg(unix)]
    refused(&["run", "-f", "."], 1, "; name a file in it");
}

#[test]
fn help_says_what_there_is() {
    let help = |command: &str| String::from_utf8(tritone(&[command, "--help"]).stdout).unwrap();
    assert!(help("batch").contains("\n  3    the output is complete"));
    assert!(!help("run").contains("\n  3 "));
    for command in ["run", "bench"] {
        assert!(
            help(command).contains("or a folder with safetensors") && help(command).contains("gemm-* reads prompts")
        );
    }
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
    // Where there is no longer one, nobody is told to ask for it.
    let long = "king ".repeat(3000);
    let output = tritone(&["run", "-p", &long]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("the most that this model was made for; shorten the prompt"), "{message}");
    assert!(!message.contains("raise") && !message.contains("-c TOKENS"), "{message}");
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
