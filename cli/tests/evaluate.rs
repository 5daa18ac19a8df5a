//! `perplexity`, `compare` and `check`, driven from outside on the model in the binary and on copies of it that
//! were spoilt on purpose.
#![cfg(feature = "embedded-model")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tritone_runtime::checkpoint::TensorType;
use tritone_runtime::gguf::Gguf;

const TEXT: &str = "Once upon a time there was an old king who lived in a great castle by the sea. He had \
    three sons, and the youngest of them was called Hans. One day the king fell ill, and no doctor in the \
    land could help him. Then an old woman came to the gate and said that far away, beyond the mountains, \
    there grew a tree with golden apples, and whoever ate of them would be well again.";

fn tritone(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tritone")).args(args).stdin(Stdio::null()).output().expect("the command starts")
}

/// What a command that succeeds prints.
fn stdout(args: &[&str]) -> String {
    let output = tritone(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

fn refused(args: &[&str], status: i32, says: &str) {
    let output = tritone(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(message.contains(says), "{args:?}: {message}");
}

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/story.gguf")
}

fn small(model: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/data/models");
    folder.join(model).to_str().unwrap().to_owned()
}

fn ids() -> Vec<u32> {
    let list = stdout(&["tokenize", "-p", TEXT, "--ids"]);
    list.trim().split(',').map(|id| id.parse().unwrap()).collect()
}

/// `-ln p` of each token given those before it, by the naive sum over `tritone logits`.
fn naive_nll(ids: &[u32]) -> Vec<Option<f64>> {
    let list: Vec<String> = ids.iter().map(u32::to_string).collect();
    let lines = stdout(&["logits", "--ids", &list.join(","), "--json"]);
    let summary: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    summary["nll"].as_array().unwrap().iter().map(Value::as_f64).collect()
}

fn near(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap();
    assert!((value / expected - 1.0).abs() < 1e-5, "{value} instead of {expected}");
}

fn check_perplexity(result: &Value, nll: &[f64], bytes: usize) {
    let n = nll.len() as f64;
    let mean = nll.iter().sum::<f64>() / n;
    let variance = nll.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    assert_eq!(result["scored_tokens"], nll.len());
    assert_eq!(result["scored_bytes"], bytes);
    near(&result["perplexity"], mean.exp());
    near(&result["standard_error"], mean.exp() * (variance / (n - 1.0)).sqrt());
    near(&result["bits_per_token"], mean / std::f64::consts::LN_2);
    near(&result["bits_per_byte"], mean * n / std::f64::consts::LN_2 / bytes as f64);
}

fn bytes_of(ids: &[u32]) -> usize {
    let list: Vec<String> = ids.iter().map(u32::to_string).collect();
    stdout(&["tokenize", "--decode", &list.join(",")]).len() - 1
}

#[test]
fn perplexity_of_second_halves() {
    let ids = ids();
    let (mut nll, mut scored) = (Vec::new(), Vec::new());
    for chunk in ids.chunks_exact(32) {
        let mut chunk = chunk.to_vec();
        // The token that begins a text takes the place of the first.
        chunk[0] = ids[0];
        nll.extend(naive_nll(&chunk)[17..].iter().map(|nll| nll.unwrap()));
        scored.extend_from_slice(&chunk[17..]);
    }
    assert!(nll.len() >= 30, "{}", ids.len());
    let result = json(&["perplexity", "-p", TEXT, "--ctx", "32", "--json"]);
    check_perplexity(&result, &nll, bytes_of(&scored));
    let first = json(&["perplexity", "-p", TEXT, "--ctx", "32", "--chunks", "1", "--json"]);
    check_perplexity(&first, &nll[..15], bytes_of(&scored[..15]));
}

#[test]
fn perplexity_of_every_token() {
    let ids = ids();
    let mut nll = Vec::new();
    for start in (0..ids.len() - 1).step_by(31) {
        let mut window = ids[start..ids.len().min(start + 32)].to_vec();
        window[0] = ids[0];
        nll.extend(naive_nll(&window)[1..].iter().map(|nll| nll.unwrap()));
    }
    let result = json(&["perplexity", "-p", TEXT, "--ctx", "32", "--full", "--json"]);
    check_perplexity(&result, &nll, TEXT.len());
    assert_eq!(
        json(&["perplexity", "-p", TEXT, "--ctx", "32", "--stride", "31", "--json"])["mean_nll"],
        result["mean_nll"]
    );
    // More context for each token, and still every token once.
    let sliding = json(&["perplexity", "-p", TEXT, "--ctx", "32", "--stride", "8", "--json"]);
    assert_eq!(sliding["scored_tokens"], nll.len());
    assert_ne!(sliding["mean_nll"], result["mean_nll"]);
}

#[test]
fn texts_and_options_that_cannot_be_measured() {
    let short = ["perplexity", "-p", "Once upon a time"];
    refused(&short, 2, "512 are needed");
    refused(&["perplexity", "-p", TEXT, "--ctx", "32", "--stride", "32"], 2, "from 1 to 31");
    refused(&["perplexity", "-p", TEXT, "--ctx", "1000000"], 2, "the context length");
    refused(&["perplexity", "-p", "", "--full"], 2, "2 are needed");
    refused(&["perplexity", "-f", "no such file"], 1, "no such file");
    refused(&["compare", "-p", TEXT], 2, "nothing to compare");
    let story = models();
    let story = story.to_str().unwrap();
    refused(&["compare", "-m", story, story, story, "-p", TEXT], 2, "three models");
}

#[test]
fn a_model_equals_itself_on_every_instruction_set() {
    let story = models();
    let story = story.to_str().unwrap();
    for args in [vec![story, story], vec![story, "--isa", "scalar", "--isa-b", "scalar", "--layout-b", "t5"]] {
        let result = json(&[&["compare", "-p", TEXT, "--ctx", "40", "--json"][..], &args].concat());
        assert_eq!(result["identical"], true);
        assert_eq!(result["positions"], ids().len() - 1);
        for zero in ["max_difference", "mean_difference", "rms_difference", "mean_kl", "max_kl"] {
            assert_eq!(result[zero], 0.0, "{zero}");
        }
        assert_eq!(result["top1_agreement"], 1.0);
        assert_eq!(result["a"]["perplexity"], result["b"]["perplexity"]);
    }
    assert!(stdout(&["compare", "-p", TEXT, "--threads-b", "1"]).contains("identical"));
}

#[test]
fn another_precision_is_another_model() {
    let result = json(&["compare", "-p", TEXT, "--cache-type-b", "f32", "--ctx", "40", "--json"]);
    assert_eq!(result["identical"], false);
    let value = |key: &str| result[key].as_f64().unwrap();
    assert!(0.0 < value("mean_difference") && value("mean_difference") <= value("rms_difference"));
    assert!(value("rms_difference") <= value("max_difference"));
    assert!(0.0 < value("relative_rms_difference") && value("relative_rms_difference") < 0.2);
    assert!(0.0 < value("mean_kl") && value("mean_kl") < value("max_kl"));
    // The perplexity of one side is what `perplexity` measures.
    let alone = json(&["perplexity", "-p", TEXT, "--cache-type", "f32", "--ctx", "40", "--full", "--json"]);
    near(&result["b"]["perplexity"], alone["perplexity"].as_f64().unwrap());
}

#[test]
fn models_with_other_vocabularies_are_not_compared() {
    let story = models();
    let other = small("bitnet-relu2/model-i2_s.gguf");
    refused(&["compare", story.to_str().unwrap(), &other, "-p", TEXT], 1, "different vocabularies");
}

/// `check --json` of a model that has something wrong.
fn problems(args: &[&str]) -> String {
    let output = tritone(&[&["check", "--json"][..], args].concat());
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["ok"], false);
    result["problems"].to_string()
}

/// A copy of the story model with something done to it, gone after the test.
struct Spoilt(PathBuf);

impl Spoilt {
    fn new(name: &str, spoil: impl FnOnce(&Gguf, &mut Vec<u8>)) -> Spoilt {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.gguf", std::process::id()));
        let gguf = Gguf::open(models()).unwrap();
        let mut bytes = fs::read(models()).unwrap();
        spoil(&gguf, &mut bytes);
        fs::write(&path, bytes).unwrap();
        Spoilt(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Spoilt {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn the_model_in_the_binary_is_sound() {
    let result = json(&["check", "--json", "--try-all"]);
    assert_eq!(result["ok"], true);
    assert!(result["mind"]["bits_per_token"].as_f64().unwrap() < 9.0);
    assert_eq!(result["mind"]["tried"].as_array().unwrap().len(), 5);
    let kernels = result["machine"]["kernels"].as_array().unwrap();
    assert!(kernels.len() >= 6 && kernels.iter().all(|kernel| kernel["agrees"] == true));
    assert!(stdout(&["check"]).ends_with("nothing is wrong\n"));
    assert_eq!(stdout(&["check", "-q"]), "");
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    for option in [["-c", "32"], ["--ctx", "999999"], ["--chunk", "7"]] {
        refused(&[&["check"][..], &option].concat(), 2, "unexpected argument");
    }
    refused(&["compare", "-p", TEXT, "--threads-b", "1", "--chunk", "7"], 2, "unexpected argument '--chunk'");
    for option in ["--special", "--no-bos"] {
        refused(&["tokenize", "--decode", "1", option], 2, "cannot be used with");
    }
    refused(&["logits", "--ids", "1", "--special"], 2, "cannot be used with");
}

#[test]
fn damaged_tensors_are_named() {
    let zeroed = Spoilt::new("zeroed", |gguf, bytes| {
        let tensor = gguf.tensor("blk.1.ffn_up.weight").unwrap();
        let packed = tensor.rows() * tensor.cols() / 4;
        bytes[tensor.offset() as usize..][..packed].fill(0x55);
    });
    let quiet = tritone(&["check", "-q", "-m", zeroed.path()]);
    assert_eq!(quiet.status.code(), Some(1));
    let lines = String::from_utf8(quiet.stdout).unwrap();
    assert!(lines.contains("blk.1.ffn_up.weight") && lines.lines().all(|line| line.starts_with("wrong: ")), "{lines}");
    let found = problems(&["-m", zeroed.path()]);
    assert!(found.contains("blk.1.ffn_up.weight") && found.contains("every weight is 0"), "{found}");

    let nan = Spoilt::new("nan", |gguf, bytes| {
        let at = gguf.tensor("blk.0.attn_norm.weight").unwrap().offset() as usize;
        bytes[at + 8..at + 12].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let found = problems(&["-m", nan.path()]);
    assert!(found.contains("blk.0.attn_norm.weight") && found.contains("1 of its numbers"), "{found}");

    let scale = Spoilt::new("scale", |gguf, bytes| {
        let tensor = gguf.tensor("blk.2.attn_q.weight").unwrap();
        let at = tensor.offset() as usize + tensor.rows() * tensor.cols() / 4;
        bytes[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    let found = problems(&["-m", scale.path()]);
    assert!(found.contains("blk.2.attn_q.weight") && found.contains("scale"), "{found}");

    let short = Spoilt::new("short", |_, bytes| bytes.truncate(bytes.len() / 2));
    let found = problems(&["-m", short.path()]);
    assert!(found.contains("past the end"), "{found}");
}

#[test]
fn the_layout_of_arm_builds_is_recognised() {
    let arm = Spoilt::new("arm", |gguf, bytes| {
        for tensor in gguf.tensors().iter().filter(|tensor| tensor.tensor_type() == TensorType::I2S) {
            let (ternary, cols) = (tensor.ternary().unwrap(), tensor.cols());
            let mut trits = vec![0i8; cols];
            for row in 0..tensor.rows() {
                ternary.row_trits(row, &mut trits).unwrap();
                let out = &mut bytes[tensor.offset() as usize + row * cols / 4..][..cols / 4];
                out.fill(0);
                for (c, trit) in trits.iter().enumerate() {
                    out[c / 64 * 16 + c % 16] |= ((trit + 1) as u8) << (6 - 2 * (c % 64 / 16));
                }
            }
        }
    });
    let found = problems(&["-m", arm.path()]);
    assert!(found.contains("with --i2s-layout arm it needs"), "{found}");
    assert_eq!(json(&["check", "-m", arm.path(), "--i2s-layout", "arm", "--json"])["ok"], true);
}

#[test]
fn a_random_model_has_no_mind_in_any_layout() {
    let found = problems(&["-m", &small("bitnet-relu2/model-i2_s.gguf")]);
    assert!(found.contains("nothing tried helps") && found.contains("--i2s-layout rows4"), "{found}");
    let found = problems(&["-m", &small("qwen3-group128/model-q2_0.gguf")]);
    assert!(found.contains("knows nothing") && found.contains("--ffn relu2"), "{found}");
}
