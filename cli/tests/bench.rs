//! `bench` from outside: its outputs parse and are complete, bad options are refused, nothing is left behind.
//! No test looks at how long something took.
#![cfg(feature = "embedded-model")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Little work, all kinds of figures.
const SMALL: [&str; 12] = ["bench", "-p", "20", "-n", "9", "-r", "2", "-t", "1,2", "--batch", "1,3", "-q"];

const PARTS: [&str; 11] =
    ["norms", "quantise", "qkv", "rope", "attention", "output", "gate_up", "activation", "down", "head", "other"];

fn tritone(args: &[&str], temporary: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tritone"))
        .args(args)
        .env("TMPDIR", temporary)
        .env("TMP", temporary)
        .stdin(Stdio::null())
        .output()
        .expect("the command starts")
}

/// An empty folder.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn files(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What a command that succeeds prints.
fn stdout(more: &[&str]) -> String {
    let args: Vec<&str> = SMALL.iter().chain(more).copied().collect();
    let output = tritone(&args, Path::new(env!("CARGO_TARGET_TMPDIR")));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(args: &[&str], says: &str) {
    let output = tritone(args, Path::new(env!("CARGO_TARGET_TMPDIR")));
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(message.contains(says), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

fn positive(value: &Value) -> f64 {
    let number = value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
    assert!(number > 0.0 && number.is_finite(), "{number}");
    number
}

/// Positive, and in order.
fn spread(value: &Value) -> f64 {
    let [min, median, max] = ["min", "median", "max"].map(|name| positive(&value[name]));
    assert!(min <= median && median <= max, "{value}");
    median
}

#[test]
fn json_has_every_figure() {
    let text = stdout(&["-o", "json", "--profile", "--price-per-hour", "0.36", "--watts", "36"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["options"]["prompt_tokens"], 20);
    assert_eq!(report["options"]["decode_tokens"], 9);
    assert_eq!(report["options"]["repeats"], 2);
    assert!(report["model"]["name"].as_str().unwrap().contains("in the binary"));
    assert!(report["kernels"]["gemv"].as_str().unwrap().starts_with("gemv-"));

    let bytes = report["bytes_per_token"].as_object().unwrap();
    let parts = ["attention", "gate", "up", "down", "head", "embedding", "norms", "cache"];
    let sum: f64 = parts.iter().map(|part| positive(&bytes[*part])).sum();
    assert_eq!(sum, positive(&bytes["total"]));
    assert_eq!(bytes["context"], 4);

    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|run| run["threads"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for run in runs {
        let first_token = spread(&run["first_token_seconds"]);
        assert!(spread(&run["load_seconds"]) < first_token);
        assert_eq!(run["peak_memory_context"], 29);
        positive(&run["weights_and_cache_bytes"]);
        if cfg!(target_os = "linux") {
            positive(&run["peak_memory_bytes"]);
        }
        let weights = &run["ceilings"]["weights"];
        assert!(positive(&weights["buffer_bytes"]) >= positive(&report["model"]["weight_bytes"]));
        let ceiling = positive(&weights["bytes_per_second"]["max"]);
        // The story model is small, so memory is measured apart.
        assert_eq!(run["ceilings"]["memory"]["buffer_bytes"], 256 << 20);
        spread(&run["ceilings"]["memory"]["bytes_per_second"]);
        for kernel in ["gemv_in_cache", "gemm_in_cache"] {
            let rate = &run["ceilings"][kernel];
            assert!(rate["kernel"].as_str().unwrap().starts_with(&kernel[..4]));
            positive(&rate["macs_per_second"]);
            positive(&rate["weight_bytes_per_second"]);
        }
        for kind in ["prefill", "decode"] {
            let speed = spread(&run[kind]["tokens_per_second"]);
            // 0.36 an hour are 0.0001 a second; 36 watts are 0.00001 kWh a second.
            let cost = positive(&run[kind]["cost_per_million"]);
            assert!((cost * speed / 1e6 - 0.0001).abs() < 1e-12, "{cost} {speed}");
            let energy = positive(&run[kind]["kwh_per_million"]);
            assert!((energy * speed / 1e6 - 0.00001).abs() < 1e-13, "{energy} {speed}");
        }
        let share = positive(&run["decode"]["bandwidth_share"]);
        let reads = &run["decode_reads"];
        let read = positive(&reads["total"]) * positive(&run["decode"]["tokens_per_second"]["median"]);
        assert!((share - read / ceiling).abs() < 1e-9, "{share}");
        // The model gates with relu^2.
        for (part, needed) in [("up", "up_rows"), ("down", "down_columns")] {
            let density = positive(&run["density"][needed]);
            let expected = positive(&bytes[part]) * density;
            assert!(density < 1.0 && (positive(&reads[part]) - expected).abs() < 1e3, "{part}: {density}");
        }
        assert_eq!(reads["gate"], bytes["gate"]);
        let batches = run["batches"].as_array().unwrap();
        assert_eq!(batches.iter().map(|batch| batch["tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
        for batch in batches {
            spread(&batch["tokens_per_second"]);
        }
        for kind in ["prefill", "decode"] {
            let profile = &run["profile"][kind];
            // relu^2 is applied while up is multiplied.
            for part in PARTS.into_iter().filter(|part| *part != "activation") {
                positive(&profile["seconds_per_token"][part]);
            }
            let density = positive(&profile["positive_gates"]);
            assert!(density < 1.0);
        }
    }
}

#[test]
fn what_was_not_asked_for_is_not_there() {
    let report: Value = serde_json::from_str(&stdout(&["-o", "json"])).unwrap();
    let run = &report["runs"][0];
    assert!(run["profile"].is_null() && run["decode"]["cost_per_million"].is_null());
    assert!(run["decode"]["kwh_per_million"].is_null());
}

#[test]
fn csv_has_a_line_for_each_figure() {
    let text = stdout(&["-o", "csv", "--profile", "--watts", "36"]);
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap(), "model,threads,figure,unit,median,min,max");
    let mut seen = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), 7, "{line}");
        let [median, min, max] = [4, 5, 6].map(|i| fields[i].parse::<f64>().unwrap());
        let may_be_none = fields[2].starts_with("profile_") && fields[2].ends_with("_activation");
        assert!((0.0 < min || may_be_none) && min <= median && median <= max && max.is_finite(), "{line}");
        seen.push((fields[1].to_owned(), fields[2].to_owned()));
    }
    for threads in ["1", "2"] {
        for figure in [
            "prefill",
            "decode",
            "batch_1",
            "batch_3",
            "decode_bandwidth_share",
            "decode_reads",
            "density_up_rows",
            "density_down_columns",
            "first_token",
            "load",
            "ceiling_weights",
            "ceiling_memory",
            "ceiling_gemv_in_cache",
            "ceiling_gemm_in_cache",
            "decode_energy",
            "profile_prefill_attention",
            "profile_decode_positive_gates",
        ] {
            let times = seen.iter().filter(|(t, f)| t == threads && f == figure).count();
            assert_eq!(times, 1, "{figure} of {threads} threads");
        }
    }
    assert!(!text.contains("_cost"), "{text}");
}

#[test]
fn tables_are_whole() {
    let text = stdout(&["--profile", "--price-per-hour", "2"]);
    assert!(text.contains("tokens/s, 2 repeats"), "{text}");
    let mut columns = None;
    for line in text.lines() {
        let n = line.starts_with('|').then(|| line.matches('|').count());
        assert!(n.is_none() || columns.is_none() || n == columns, "{line}");
        columns = n;
    }
    for says in [
        "| prefill 20 | 1 |",
        "| decode 9 | 2 |",
        "| batch of 3 | 2 |",
        "| total |",
        "| gate_up |",
        "Positive gates:",
        "share of the bandwidth",
        "in cache, GMAC/s",
        "first token of a new process",
        "peak memory, MB",
        "cost of 1 M",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    assert!(!text.contains("kWh"), "{text}");
}

#[test]
fn impossible_options_are_usage_errors() {
    for option in ["-r", "-t", "-p", "-n", "--batch"] {
        refused(&["bench", option, "0"], "1 or more");
        refused(&["bench", option, "many"], "whole number");
    }
    refused(&["bench", "-t", "1,0"], "1 or more");
    refused(&["bench", "-t", "5000"], "from 1 to 1024");
    refused(&["bench", "-p", "100000"], "-p is 100000 tokens");
    refused(&["bench", "-n", "100000"], "--depth and -n");
    refused(&["bench", "-d", "100000", "-n", "1"], "--depth and -n");
    refused(&["bench", "-d", "18446744073709551615"], "--depth and -n");
    refused(&["bench", "--batch", "100000"], "--batch");
    refused(&["bench", "-o", "xml"], "xml");
    for price in ["0", "-1", "nan", "inf", "much"] {
        refused(&["bench", &format!("--price-per-hour={price}")], "positive number");
        refused(&["bench", &format!("--watts={price}")], "positive number");
    }
    refused(&["bench", "--kernel", "gemv-none"], "--kernel");
    refused(&["bench", "--shape", "cube"], "there is no shape 'cube'");
    refused(&["bench", "--shape", "story", "-m", "x.gguf"], "cannot be used with");
    refused(&["bench", "--cache", "."], "--shape");
    for [option, value] in [["--type", "t5"], ["--embedding", "q6_k"], ["--relu-density", "0.1"], ["--cache", "."]] {
        refused(&["bench", "-m", "x.gguf", option, value], "cannot be used with");
    }
    refused(&["bench", "--shape", "story", "--cache", "none/of/that"], "is no folder");
    refused(&["bench", "--shape", "story", "--relu-density", "7"], "--relu-density");
}

#[test]
fn a_missing_file_is_named() {
    let output = tritone(&["bench", "-m", "none.gguf"], Path::new(env!("CARGO_TARGET_TMPDIR")));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("none.gguf"));
}

#[test]
fn models_of_a_shape_are_removed_or_kept() {
    let (temporary, kept) = (folder("bench-temporary"), folder("bench-kept"));
    let small = ["bench", "-q", "-p", "5", "-n", "3", "-r", "1", "-t", "2", "--batch", "2", "-o", "json"];
    let run = |more: &[&str]| {
        let args: Vec<&str> = small.iter().chain(&["--shape", "story"]).chain(more).copied().collect();
        let output = tritone(&args, &temporary);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["model"]["name"], "random story, seed 0");
        report
    };
    let i2s = run(&[]);
    assert_eq!(files(&temporary), [""; 0]);

    let folder = kept.to_str().unwrap();
    let t5 = run(&["--type", "t5", "--embedding", "q8_0", "--cache", folder]);
    // Another type, another head.
    let head = |report: &Value| positive(&report["bytes_per_token"]["head"]);
    assert!(head(&t5) < head(&i2s));
    let names = files(&kept);
    assert_eq!(names.len(), 1);
    let path = kept.join(&names[0]);
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    run(&["--type", "t5", "--embedding", "q8_0", "--cache", folder]);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written, "made again");
    run(&["--type", "i2_s", "--cache", folder]);
    assert_eq!(files(&kept).len(), 2);
    assert_eq!(files(&temporary), [""; 0]);
}

/// Ctrl-C in the middle of the work: the status of an interrupted command, and no file left.
#[cfg(unix)]
#[test]
fn ctrl_c_removes_the_model() {
    let temporary = folder("bench-interrupted");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tritone"))
        .args(["bench", "-q", "--shape", "story", "-r", "100000"])
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The file is complete once it has its name; what follows takes hours.
    while !files(&temporary).iter().any(|name| name.starts_with("tritone-bench")) {
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stdout.is_empty());
    assert_eq!(files(&temporary), [""; 0]);
}

/// The largest vocabulary takes many seconds to make up: Ctrl-C does not wait for it.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_the_planning_of_a_model() {
    let temporary = folder("bench-planning");
    let shape = temporary.join("large.json");
    let config = serde_json::json!({
        "model_type": "bitnet", "hidden_act": "relu2", "num_hidden_layers": 1, "hidden_size": 256,
        "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1 << 20,
    });
    fs::write(&shape, config.to_string()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tritone"))
        .args(["bench", "-q", "--shape", shape.to_str().unwrap()])
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let wait = || std::thread::sleep(std::time::Duration::from_millis(5));
    // Once SIGINT, the second signal, is caught.
    let caught = |status: String| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() & 2 != 0
    };
    while !caught(fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        wait();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > end {
            child.kill().unwrap();
            panic!("it goes on planning");
        }
        wait();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(&temporary), ["large.json"]);
}
