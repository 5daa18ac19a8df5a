//! The command as people and programs use it: JSON, pipes, a conversation, Ctrl-C.
#![cfg(feature = "embedded-model")]

mod process;

use process::start;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

fn with_input(args: &[&str], input: &str) -> Output {
    let mut child = start(args);
    // A command that ends early leaves the rest unread.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn without_arguments_it_tells_a_story() {
    let args = ["-s", "3", "--json", "--ignore-eos", "-n", "220"];
    let output = Command::new(env!("CARGO_BIN_EXE_tritone")).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    let last = text(&output.stdout).lines().last().unwrap();
    let summary: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(summary["prompt"], "Long ago, in a deep forest, there lived an old bear");
    assert!(text(&output.stdout).lines().count() > 200);
}

#[test]
fn an_empty_text_is_no_wish_for_a_story() {
    let empty = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("empty.txt");
    std::fs::write(&empty, "").unwrap();
    let empty = empty.to_str().unwrap();
    for (args, source) in
        [(&["run", "-p", ""][..], "the text of -p"), (&["-f", empty], "empty.txt"), (&["run"], "standard input")]
    {
        let output = with_input(args, "");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(output.stdout.is_empty() && message.contains(&format!("{source} is empty")), "{message}");
    }
}

#[test]
fn json_has_an_object_per_token_and_a_summary() {
    let output = with_input(&["run", "-p", "The old king", "-n", "12", "--temp", "0", "--json", "--ignore-eos"], "");
    assert!(output.status.success());
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, tokens) = lines.split_last().unwrap();
    let generated: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert!(tokens.iter().all(|token| token["type"] == "token" && token["logprob"].as_f64().unwrap() <= 0.0));
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["finish"], "max-tokens");
    assert_eq!(summary["generated_tokens"], 12);
    assert_eq!(summary["prompt"], "The old king");

    let plain = with_input(&["run", "-p", "The old king", "-n", "12", "--temp", "0", "--ignore-eos"], "");
    assert_eq!(text(&plain.stdout), format!("The old king{generated}\n"));
    let speed = text(&plain.stderr);
    assert_eq!(speed.lines().count(), 1);
    assert!(speed.contains("tokens/s") && speed.contains("gemv-"), "{speed}");
}

#[test]
fn a_reader_who_has_enough_ends_it_quietly() {
    let mut child = start(&["run", "-p", "Once", "--ignore-eos", "-n", "400"]);
    let mut first = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(!text(&output.stderr).contains("error"), "{}", text(&output.stderr));
}

#[test]
fn a_conversation_through_pipes() {
    let args = ["chat", "-q", "-n", "8", "--temp", "0", "-t", "1"];
    let one = with_input(&args, "Who is there?\n");
    assert!(one.status.success(), "{}", text(&one.stderr));
    let answer = text(&one.stdout);
    assert!(!answer.trim().is_empty());
    // A tenth turn works as well, and a cleared conversation starts as the first did.
    let turns = "And then?\n".repeat(9);
    let many = with_input(&args, &format!("Who is there?\n{turns}/clear\nWho is there?\n/nonsense\n/exit\nnot read\n"));
    assert!(many.status.success(), "{}", text(&many.stderr));
    assert!(text(&many.stdout).starts_with(answer));
    assert!(text(&many.stdout).ends_with(answer));
    assert!(text(&many.stderr).contains("/nonsense"));
}

#[test]
fn a_message_longer_than_the_context_does_not_end_the_talk() {
    let says = |args: &[&str]| {
        let input = format!("{}\nWho is there?\n", "king ".repeat(3000));
        let output = with_input(&[&["chat", "-q", "-n", "4"][..], args].concat(), &input);
        assert_eq!(output.status.code(), Some(1));
        assert!(!text(&output.stdout).trim().is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(says(&["-c", "64"]).contains("shorten it or raise the context with -c\n"));
    let longest = says(&[]);
    assert!(longest.ends_with("shorten it\nerror: 1 of the messages could not be answered\n"), "{longest}");
}

/// Ctrl-C while the logits are computed: no part of the file is left.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_part_of_a_file() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("logits-interrupted");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let files = || std::fs::read_dir(&folder).unwrap().count();
    let (prompt, output) = ("Once upon a time ".repeat(180), folder.join("l.npy"));
    let output = output.to_str().unwrap();
    let mut child = start(&["logits", "-p", &prompt, "--all", "-o", output, "-t", "1", "--isa", "scalar"]);
    while files() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    assert_eq!(files(), 0);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_story_with_its_own_status() {
    let mut child = start(&["run", "-p", "Once", "--json", "--ignore-eos", "-t", "1", "--isa", "scalar"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let last = lines.map(|line| line.unwrap()).last().unwrap();
    let summary: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&summary["type"], &summary["finish"]), (&"summary".into(), &"interrupted".into()));
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn hash_and_tokens() {
    let args = ["logits", "-p", "Once upon a time", "--hash"];
    let (one, two) = (with_input(&args, ""), with_input(&args, ""));
    assert!(one.status.success());
    assert_eq!(one.stdout, two.stdout);
    let ids = with_input(&["tokenize", "--ids", "-p", "Once upon a time"], "");
    let ids: Vec<&str> = text(&ids.stdout).split_whitespace().collect();
    let back = with_input(&["tokenize", "--decode", &ids.join(",")], "");
    assert!(text(&back.stdout).contains("Once upon a time"), "{}", text(&back.stdout));
}
