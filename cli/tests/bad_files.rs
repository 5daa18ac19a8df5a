//! Damaged, foreign and contradictory model files, through the command: one sentence that says what
//! is wrong, status 1, no panic, no hang.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tritone_runtime::checkpoint::{Array, Value};
use tritone_runtime::gguf::{Gguf, Writer};

fn small_model() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime/tests/data/models/bitnet-relu2/model-i2_s.gguf");
    fs::read(path).unwrap()
}

fn temporary(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// What the command says about the file; it must refuse it properly.
fn refusal(path: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tritone"))
        .args(["logits", "--ids", "1,2,3", "-t", "1", "-m"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}: {message}", path.display());
    assert!(output.stdout.is_empty());
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    message
}

fn refused(name: &str, bytes: &[u8], says: &str) {
    let path = temporary(name);
    fs::write(&path, bytes).unwrap();
    let message = refusal(&path);
    assert!(message.contains(says), "{name}: {message}");
    fs::remove_file(&path).unwrap();
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = small_model();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// Where the description of a tensor has its type and its offset.
fn type_and_offset(file: &[u8], name: &str) -> (usize, usize) {
    let mut described = (name.len() as u64).to_le_bytes().to_vec();
    described.extend(name.as_bytes());
    let start = file.windows(described.len()).position(|part| part == described).unwrap() + described.len();
    let n_dims = u32::from_le_bytes(file[start..start + 4].try_into().unwrap()) as usize;
    let type_at = start + 4 + 8 * n_dims;
    (type_at, type_at + 4)
}

/// The small model with its metadata changed.
fn with_metadata(change: impl Fn(&mut Vec<(String, Value)>)) -> Vec<u8> {
    rewritten(change, &|_| true)
}

/// The same without the tensors that `keep` refuses.
fn rewritten(change: impl Fn(&mut Vec<(String, Value)>), keep: &dyn Fn(&str) -> bool) -> Vec<u8> {
    let file = Gguf::from_bytes(small_model().into(), "small").unwrap();
    let mut metadata = file.metadata().to_vec();
    change(&mut metadata);
    let mut writer = Writer::new();
    for (key, value) in metadata {
        writer.key(&key, value);
    }
    let kept = || file.tensors().iter().filter(|tensor| keep(tensor.name()));
    for tensor in kept() {
        writer.tensor(tensor.name(), tensor.dims(), tensor.tensor_type().id(), tensor.data().len());
    }
    let mut data = writer.begin(Vec::new()).unwrap();
    for tensor in kept() {
        data.write(tensor.data()).unwrap();
    }
    data.finish().unwrap()
}

#[test]
fn a_file_cut_at_any_page_is_refused() {
    let model = small_model();
    let path = temporary("cut.gguf");
    // The last page may hold nothing but padding.
    for at in (0..model.len() - 4096).step_by(4096) {
        fs::write(&path, &model[..at]).unwrap();
        let message = refusal(&path);
        assert!(message.contains("cut.gguf"), "cut at {at}: {message}");
    }
    fs::remove_file(&path).unwrap();
}

#[test]
fn wrong_headers_are_refused() {
    refused("magic.gguf", &with(0, b"GGML"), "GGML");
    refused("version1.gguf", &with(4, &1u32.to_le_bytes()), "version 1");
    refused("endian.gguf", &with(4, &3u32.to_be_bytes()), "big-endian");
    refused("tensors.gguf", &with(8, &(1u64 << 60).to_le_bytes()), "tensors");
    refused("keys.gguf", &with(16, &(1u64 << 60).to_le_bytes()), "keys");
}

#[test]
fn wrong_tensors_are_refused() {
    let model = small_model();
    let (type_at, _) = type_and_offset(&model, "blk.0.attn_q.weight");
    refused("type.gguf", &with(type_at, &999u32.to_le_bytes()), "type 999");
    let (_, first) = type_and_offset(&model, "blk.0.attn_q.weight");
    let (_, second) = type_and_offset(&model, "blk.0.ffn_up.weight");
    let offset = u64::from_le_bytes(model[first..first + 8].try_into().unwrap());
    refused("overlap.gguf", &with(second, &(offset + 32).to_le_bytes()), "overlap");
    refused("outside.gguf", &with(second, &(1u64 << 50).to_le_bytes()), "byte ");
    let last = Gguf::from_bytes(model.clone().into(), "small").unwrap();
    let last = last.tensors().iter().max_by_key(|tensor| tensor.offset()).unwrap();
    let (_, at) = type_and_offset(&model, last.name());
    refused("past.gguf", &with(at, &(1u64 << 50).to_le_bytes()), "past the end");
}

#[test]
fn wrong_metadata_is_refused() {
    let no_alignment = with_metadata(|keys| keys.push(("general.alignment".into(), Value::U32(0))));
    refused("alignment.gguf", &no_alignment, "general.alignment");
    let no_tokenizer = with_metadata(|keys| keys.retain(|(key, _)| !key.starts_with("tokenizer.")));
    refused("tokenizer.gguf", &no_tokenizer, "tokenizer.ggml");
    let other = with_metadata(|keys| {
        let name = keys.iter_mut().find(|(key, _)| key == "general.architecture").unwrap();
        name.1 = Value::String("mamba".into());
    });
    refused("architecture.gguf", &other, "'mamba'");
    let vocabulary = with_metadata(|keys| {
        for (key, value) in keys {
            let Value::Array(array) = value else { continue };
            if key == "tokenizer.ggml.tokens" {
                let more = (0..5000).map(|i| format!("more{i}"));
                let tokens: Vec<String> = array.strings().unwrap().map(str::to_owned).chain(more).collect();
                *value = Value::Array(Array::from_strings(tokens));
            } else if key == "tokenizer.ggml.token_type" {
                *value = Value::Array(Array::from_i32s(&vec![1; array.len() + 5000]));
            }
        }
    });
    refused("vocabulary.gguf", &vocabulary, "the embedding only");
}

/// `convert` could copy them, but what it wrote would no longer say that it is not whole.
#[test]
fn incomplete_models_are_not_converted() {
    let push = |key: &'static str, value: Value| with_metadata(move |keys| keys.push((key.into(), value.clone())));
    let part = with_metadata(|keys| {
        keys.push(("split.no".into(), Value::U16(0)));
        keys.push(("split.count".into(), Value::U16(2)));
    });
    let layer = rewritten(|_| {}, &|name| name != "blk.1.ffn_up.weight");
    let experts = push("bitnet-b1.58.expert_count", Value::U32(4));
    let source = temporary("incomplete.gguf");
    let target = temporary("incomplete-out.gguf");
    for (bytes, says) in [(part, "part 1 of 2"), (layer, "blk.1.ffn_up.weight"), (experts, "expert_count")] {
        fs::write(&source, bytes).unwrap();
        refusal(&source);
        let output =
            Command::new(env!("CARGO_BIN_EXE_tritone")).arg("convert").args([&source, &target]).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(says), "{message}");
        assert!(!target.exists());
    }
    fs::remove_file(&source).unwrap();
}

/// In a terminal the talk goes on; a script has to hear of it.
#[test]
fn a_piped_chat_ends_with_the_error_of_a_message() {
    let path = temporary("raises.gguf");
    let raises = with_metadata(|keys| {
        keys.retain(|(key, _)| key != "tokenizer.chat_template");
        let template = "{{ raise_exception('roles must alternate') }}";
        keys.push(("tokenizer.chat_template".into(), Value::String(template.into())));
    });
    fs::write(&path, raises).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tritone"))
        .args(["chat", "-q", "-t", "1", "-m"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.starts_with("error: ") && message.contains("roles must alternate"), "{message}");
    assert!(output.stdout.is_empty());
    fs::remove_file(&path).unwrap();
}

#[test]
fn what_is_no_file_is_refused() {
    assert!(refusal(&temporary("")).contains("directory"));
    assert!(refusal(&temporary("none.gguf")).contains("none.gguf"));
    refused("empty.gguf", b"", "empty");
}
