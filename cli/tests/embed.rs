//! `tritone embed` from outside: the same vectors from every source of texts, file format and setting; what it refuses.

#[path = "../../runtime/tests/embedding_models/mod.rs"]
mod embedding_models;
mod process;

use embedding_models::{Folder, HIDDEN, KINDS, Written, cosine, references};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Output;

fn tritone(args: &[&str], input: &[u8]) -> Output {
    let mut child = process::start(args);
    // A command that ends early leaves the rest unread.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn output_of(args: &[&str], input: &[u8]) -> String {
    let output = tritone(args, input);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(args: &[&str], input: &[u8], status: i32, says: &str) {
    let output = tritone(args, input);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    assert!(message.contains(says) && !message.contains("panicked"), "{args:?}: {message}");
}

fn numbers(line: &str) -> Vec<f32> {
    line.split(' ').map(|number| number.parse().unwrap()).collect()
}

fn made(kind: &str) -> (Written, String) {
    let folder = Folder::new(kind).write();
    let path = folder.0.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn a_line_for_each_text_from_every_source() {
    let (folder, model) = made("qwen3");
    let references = references("qwen3");
    let given = output_of(&["embed", "-q", "-m", &model, "-p", &references[0].0, "-p", ""], b"");
    let lines: Vec<&str> = given.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(cosine(&numbers(lines[0]), &references[0].2) > 0.995);
    assert!(cosine(&numbers(lines[1]), &references[2].2) > 0.995);

    let text = format!("{}\r\n\n", references[0].0);
    assert_eq!(output_of(&["embed", "-q", "-m", &model], text.as_bytes()), given);
    let file = folder.0.join("lines.txt");
    std::fs::write(&file, &text).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(output_of(&["embed", "-q", "-m", &model, "-f", file], b""), given);
    assert_eq!(output_of(&["embed", "-q", "-m", &model], b""), "");

    let json = output_of(&["embed", "-m", &model, "-f", file, "--json"], b"");
    for ((i, line), plain) in json.lines().enumerate().zip(&lines) {
        let object: Value = serde_json::from_str(line).unwrap();
        assert_eq!(object["index"], i);
        assert_eq!(object["tokens"], references[if i == 0 { 0 } else { 2 }].1.len());
        let vector: Vec<f32> = serde_json::from_value(object["embedding"].clone()).unwrap();
        assert_eq!(vector, numbers(plain));
    }
}

/// More lines than fit a batch, of many lengths.
#[test]
fn formats_threads_and_chunks_change_nothing() {
    for kind in KINDS {
        let (folder, model) = made(kind);
        let line = |i: usize| format!("{} and {i}\n", "The king said that he would go. ".repeat(i % 7));
        let text: String = (0..70).map(line).collect();
        let expected = output_of(&["embed", "-q", "-m", &model], text.as_bytes());
        assert_eq!(expected.lines().count(), 70);
        let check = |model: &str, more: &[&str]| {
            let args = [&["embed", "-q", "-m", model][..], more].concat();
            assert!(output_of(&args, text.as_bytes()) == expected, "{kind} {args:?}");
        };
        for more in [["-t", "1"], ["-t", "3"], ["--chunk", "9"], ["--isa", "scalar"]] {
            check(&model, &more);
        }
        for to in ["i2_s", "t5"] {
            let file = folder.0.join(format!("{to}.gguf"));
            let file = file.to_str().unwrap();
            output_of(&["convert", "-q", &model, file, "--to", to], b"");
            check(file, &[]);
        }
        // Alone as in company.
        let last = text.lines().next_back().unwrap();
        assert_eq!(output_of(&["embed", "-q", "-m", &model, "-p", last], b"").lines().next(), expected.lines().last());
    }
}

#[test]
fn shorter_vectors_and_cosines() {
    let (_folder, model) = made("gemma3");
    let args = ["embed", "-q", "-m", &model, "-p", "one fox", "-p", "one fox", "-p", "Who goes there?"];
    let with = |more: &[&str]| output_of(&[&args[..], more].concat(), b"");
    let whole: Vec<Vec<f32>> = with(&[]).lines().map(numbers).collect();
    let short: Vec<Vec<f32>> = with(&["--dimensions", "16"]).lines().map(numbers).collect();
    for (whole, short) in whole.iter().zip(&short) {
        assert_eq!((whole.len(), short.len()), (HIDDEN, 16));
        assert!((cosine(&whole[..16], short) - 1.0).abs() < 1e-6);
        assert!((short.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    let json: Value = serde_json::from_str(&with(&["--similarity", "--json"])).unwrap();
    let plain = with(&["--similarity"]);
    for (i, line) in plain.lines().enumerate() {
        for (j, shown) in line.split_whitespace().enumerate() {
            let expected = cosine(&whole[i], &whole[j]);
            assert!((json["similarity"][i][j].as_f64().unwrap() - expected).abs() < 1e-5);
            assert!((shown.parse::<f64>().unwrap() - expected).abs() < 1e-4);
        }
    }
    assert_eq!(plain.lines().count(), 3);
    let pooled = with(&["--pooling", "mean"]);
    assert!(cosine(&numbers(pooled.lines().next().unwrap()), &whole[0]) < 0.99);
}

#[test]
fn what_cannot_be_embedded_is_named() {
    let (_folder, model) = made("qwen3");
    let embed = |more: &[&str], input: &[u8], status, says: &str| {
        refused(&[&["embed", "-m", &model][..], more].concat(), input, status, says);
    };
    let long = "fox ".repeat(600);
    // Line numbers count from the beginning, also behind a batch that went well.
    let many = "The king said that he would go.\n".repeat(300);
    embed(&[], format!("{many}{long}\n").as_bytes(), 1, "text 301 has");
    embed(&["-p", &long], b"", 1, "the context holds 512");
    embed(&["-p", "The king said so.", "-c", "3"], b"", 1, "the context holds 3");
    embed(&["-c", "513", "-p", "x"], b"", 2, "from 1 to 512");
    embed(&[], b"one\n\xff\xfe\n", 1, "line 2 of standard input is not UTF-8");
    embed(&["-f", "/nonexistent/lines"], b"", 1, "cannot read /nonexistent/lines");
    embed(&["-p", "x", "--dimensions", "129"], b"", 2, "more than the 128");
    embed(&["-p", "x", "--dimensions", "0"], b"", 2, "1 or more");
    embed(&["-p", "x", "--pooling", "max"], b"", 2, "mean, first, last");
    embed(&["--similarity"], "x\n".repeat(3000).as_bytes(), 2, "at most 2048");
    for command in ["run", "logits", "perplexity"] {
        refused(&[command, "-m", &model, "-p", "x"], b"", 1, "`tritone embed`");
    }
    refused(&["chat", "-m", &model], b"x\n", 1, "`tritone embed`");
}

#[test]
fn files_are_shown_and_checked() {
    for kind in KINDS {
        let (folder, model) = made(kind);
        let file = folder.0.join("model.gguf");
        let file = file.to_str().unwrap();
        output_of(&["convert", "-q", &model, file], b"");
        for path in [&*model, file] {
            let shown = output_of(&["inspect", path], b"");
            assert!(shown.contains("vectors of 128 numbers, pooled by the last token"), "{shown}");
            assert!(shown.contains("blk.1.ffn_down_norm_in.weight"));
            assert_eq!(shown.contains("sha256"), Path::new(path).is_file());
            // Whether random weights make sense is chance; that they can be judged is not.
            let output = tritone(&["check", "-m", path, "--json", "--try-all"], b"");
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((&found["meaning"]["dimensions"], &found["mind"]), (&HIDDEN.into(), &Value::Null));
            let cosine = |name: &str| found["meaning"][name].as_f64().unwrap();
            let sound = cosine("cosine_of_partners") > cosine("cosine_of_others");
            assert_eq!(found["ok"], sound, "{found}");
            assert!(found["notes"].to_string().contains("--try-all tries nothing here"), "{found}");
            assert_eq!(output.status.code(), Some(if sound { 0 } else { 1 }));
        }
    }
}

#[cfg(feature = "embedded-model")]
#[test]
fn a_model_that_tells_stories_is_pooled_with_a_warning() {
    let output = tritone(&["embed", "-p", "Once there was a king."], b"");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning: this model was not trained for embeddings"));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
    assert!(tritone(&["embed", "-q", "-p", "x"], b"").stderr.is_empty());
}
