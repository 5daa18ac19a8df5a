//! `convert` and `synth` from outside: what they write opens, means the same, and appears whole or
//! not at all.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn tritone(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tritone")).args(args).stdin(Stdio::null()).output().expect("the command starts")
}

fn succeeds(args: &[&str]) -> Vec<u8> {
    let output = tritone(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn refused(args: &[&str], status: i32, says: &str) {
    let output = tritone(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    assert!(message.contains(says), "{args:?}: {message}");
}

fn model(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/data/models").join(path).display().to_string()
}

/// An empty folder.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn logits(model: &str, more: &[&str]) -> Vec<u8> {
    let mut args = vec!["logits", "-m", model, "-p", "The old king said that he would go", "--all", "--hash"];
    args.extend(more);
    succeeds(&args)
}

#[test]
fn conversions_keep_the_logits() {
    let folder = folder("convert-logits");
    for (source, targets) in [
        ("bitnet-relu2/model-i2_s.gguf", &["t5", "i2_s"][..]),
        ("llama-silu-bitlinear/model-i2_s.gguf", &["t5", "i2_s"]),
        ("llama-silu-bitlinear/model-tq1_0.gguf", &["tq2_0", "t5", "tq1_0"]),
        ("qwen3-group128/model-q2_0.gguf", &["t5"]),
        // All blocks have one scale: they are added up as integers, in every type, as those of I2_S are.
        ("bitnet-relu2/model-tq2_0.gguf", &["tq1_0", "tq2_0", "t5", "i2_s"]),
        // Folders of safetensors.
        ("bitnet-relu2", &["i2_s", "t5"]),
        ("llama-silu-bitlinear", &["t5", "i2_s"]),
        ("qwen3-group128", &["t5"]),
    ] {
        let expected = logits(&model(source), &[]);
        let mut from = model(source);
        for to in targets {
            let target = folder.join(format!("{}-{to}.gguf", source.replace('/', "-"))).display().to_string();
            succeeds(&["convert", &from, &target, "--to", to]);
            assert_eq!(logits(&target, &[]), expected, "{from} to {to}");
            if *to == "t5" {
                for more in [["--isa", "scalar"], ["--layout", "t3"], ["--layout", "i2s"]] {
                    assert_eq!(logits(&target, &more), expected, "{target} {more:?}");
                }
            }
            from = target;
        }
    }
    // What came back is the published layout byte for byte.
    let back = fs::read(folder.join("bitnet-relu2-model-i2_s.gguf-i2_s.gguf")).unwrap();
    let source = fs::read(model("bitnet-relu2/model-i2_s.gguf")).unwrap();
    assert_eq!(back[back.len() - 900_000..], source[source.len() - 900_000..]);
}

/// One scale for a tensor becomes equal scales of blocks, rounded to halves: the activations still
/// have one scale for a token, so only the rounding moves the logits.
#[test]
fn models_with_one_scale_keep_their_activations() {
    let folder = folder("convert-token");
    let target = folder.join("tq.gguf").display().to_string();
    succeeds(&["convert", &model("llama-silu-bitlinear/model-i2_s.gguf"), &target, "--to", "tq1_0"]);
    let inspect = String::from_utf8(succeeds(&["inspect", &target])).unwrap();
    assert!(inspect.contains("tritone.activations"));
    assert_eq!(logits(&target, &[]), logits(&target, &["--activations", "token"]));
    assert_ne!(logits(&target, &[]), logits(&target, &["--activations", "block"]));
}

/// One matrix of a folder with scales for blocks has a single scale, which the type of the new file would show.
#[test]
fn models_with_scales_for_blocks_keep_their_activations() {
    let folder = folder("convert-block");
    let source = folder.join("mixed");
    fs::create_dir(&source).unwrap();
    for file in fs::read_dir(model("qwen3-group128")).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|extension| extension != "gguf") {
            fs::copy(&file, source.join(file.file_name().unwrap())).unwrap();
        }
    }
    let weights = source.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header_len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let tensor = &header["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!(tensor["dtype"], "F16");
    let offset = |end: usize| 8 + header_len + tensor["data_offsets"][end].as_u64().unwrap() as usize;
    for weight in bytes[offset(0)..offset(1)].chunks_exact_mut(2) {
        let bits = u16::from_le_bytes([weight[0], weight[1]]);
        // Of the same sign, 2^-4.
        let other = if bits & 0x7fff == 0 { bits } else { bits & 0x8000 | 0x2c00 };
        weight.copy_from_slice(&other.to_le_bytes());
    }
    fs::write(&weights, bytes).unwrap();

    let source = source.display().to_string();
    let tq = model("llama-silu-bitlinear/model-tq2_0.gguf");
    for (name, source) in [("mixed", &source), ("tq", &tq)] {
        let target = folder.join(format!("{name}.gguf")).display().to_string();
        succeeds(&["convert", source, &target]);
        assert_eq!(logits(&target, &[]), logits(source, &[]), "{name}");
        assert_ne!(logits(&target, &[]), logits(source, &["--activations", "token"]), "{name}");
        let inspect = String::from_utf8(succeeds(&["inspect", &target])).unwrap();
        assert!(inspect.contains("one scale for the activations of a block"), "{inspect}");
        assert!(inspect.contains("tritone.activations  string  \"block\""), "{inspect}");
    }
    // All blocks have one scale, which i2_s could hold, but not what the activations share.
    let target = folder.join("i2_s.gguf").display().to_string();
    refused(&["convert", &tq, &target, "--to", "i2_s"], 1, "t5 keeps");
    refused(&["convert", &source, &target, "--to", "i2_s"], 1, "t5 keeps");
    assert!(!Path::new(&target).exists());
}

#[test]
fn targets_that_are_no_files() {
    let folder = folder("convert-targets");
    let source = model("bitnet-relu2/model-i2_s.gguf");
    let directory = folder.display().to_string();
    refused(&["convert", &source, &directory], 2, "such as model.gguf");
    refused(&["synth", "--shape", "story", "-o", &directory], 2, "such as model.gguf");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[cfg(unix)]
#[test]
fn a_reader_who_has_enough_of_a_model_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tritone"))
        .args(["convert", &model("bitnet-relu2/model-i2_s.gguf"), "/dev/stdout", "-q"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    assert!(message.is_empty(), "{message}");
    assert_eq!(&first[..4], b"GGUF");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let folder = folder("convert-refused");
    let target = folder.join("out.gguf").display().to_string();
    let grouped = model("qwen3-group128/model-q2_0.gguf");
    refused(&["convert", &grouped, &target, "--to", "i2_s"], 1, "t5 keeps");
    refused(&["convert", &grouped, &target, "--to", "tq1_0"], 1, "t5 keeps");
    let whole = fs::read(model("bitnet-relu2/model-i2_s.gguf")).unwrap();
    let cut = folder.join("cut.gguf");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    refused(&["convert", cut.to_str().unwrap(), &target], 1, "cut.gguf");
    refused(&["convert", folder.join("none.gguf").to_str().unwrap(), &target], 1, "none.gguf");
    fs::remove_file(&cut).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left behind");

    let source = folder.join("source.gguf");
    fs::write(&source, &whole).unwrap();
    let source = source.to_str().unwrap();
    refused(&["convert", source, source, "--force"], 2, "another name");
    fs::write(&target, b"mine").unwrap();
    refused(&["convert", source, &target], 2, "--force");
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    succeeds(&["convert", source, &target, "--force", "--embedding", "q8_0"]);
    logits(&target, &[]);
}

#[test]
fn random_models_run_in_every_type() {
    let folder = folder("synth");
    let mut files = Vec::new();
    for (ternary, embedding) in [("i2_s", "f16"), ("tq1_0", "q8_0"), ("tq2_0", "q6_k"), ("t5", "f16")] {
        let file = folder.join(format!("{ternary}.gguf")).display().to_string();
        succeeds(&["synth", "--shape", "story", "-o", &file, "--type", ternary, "--embedding", embedding]);
        logits(&file, &[]);
        files.push(file);
    }
    // The same numbers in another order of bytes.
    assert_eq!(logits(&files[0], &[]), logits(&files[3], &[]));
    let again = folder.join("again.gguf").display().to_string();
    succeeds(&["synth", "--shape", "story", "-o", &again]);
    assert!(fs::read(&again).unwrap() == fs::read(&files[0]).unwrap(), "the same seed, the same file");
    refused(&["synth", "--shape", "story", "-o", &again], 2, "--force");
    succeeds(&["synth", "--shape", "story", "-o", &again, "--force", "--seed", "1"]);
    assert!(fs::read(&again).unwrap() != fs::read(&files[0]).unwrap());

    // Any text can be encoded and comes back.
    let ids = succeeds(&["tokenize", "-m", &again, "-p", "Ünïcödé, 12345 and\ttabs 🦊", "--ids"]);
    let ids = String::from_utf8(ids).unwrap();
    let list = ids.split_whitespace().collect::<Vec<_>>().join(",").replace(",,", ",");
    let text = String::from_utf8(succeeds(&["tokenize", "-m", &again, "--decode", &list])).unwrap();
    assert!(text.contains("Ünïcödé, 12345 and\ttabs 🦊"), "{text}");
}

/// A layer of this size is worth large pages. Weights move while the tokens go through one by one, where the system has such pages.
#[test]
fn weights_that_move_to_large_pages_are_the_same() {
    let folder = folder("large-pages");
    let shape = folder.join("shape.json");
    let text = r#"{"model_type": "bitnet", "hidden_act": "relu2", "num_hidden_layers": 3, "hidden_size": 1024,
        "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1024}"#;
    fs::write(&shape, text).unwrap();
    for ternary in ["i2_s", "t5"] {
        let file = folder.join(format!("{ternary}.gguf")).display().to_string();
        succeeds(&["synth", "--shape", shape.to_str().unwrap(), "-o", &file, "--type", ternary]);
        assert_eq!(logits(&file, &["--chunk", "1"]), logits(&file, &["--in-place"]), "{ternary}");
    }
}

#[test]
fn shapes_from_files_with_other_architectures_run() {
    let folder = folder("synth-shapes");
    for (model_type, act) in [("llama", "silu"), ("qwen3", "silu"), ("bitnet", "silu")] {
        let shape = folder.join(format!("{model_type}.json"));
        let text = format!(
            r#"{{"model_type": "{model_type}", "hidden_act": "{act}", "num_hidden_layers": 3, "hidden_size": 256,
                "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024}}"#
        );
        fs::write(&shape, text).unwrap();
        let file = folder.join(format!("{model_type}.gguf")).display().to_string();
        succeeds(&["synth", "--shape", shape.to_str().unwrap(), "-o", &file]);
        logits(&file, &[]);
        refused(&["synth", "--shape", shape.to_str().unwrap(), "-o", "x.gguf", "--relu-density", "0.1"], 2, "relu^2");
    }
    refused(&["synth", "--shape", "gpt-5", "-o", "x.gguf"], 2, "bonsai-8b");
    refused(&["synth", "--shape", "none.json", "-o", "x.gguf"], 1, "none.json");
}
