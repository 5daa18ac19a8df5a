//! What activations of a GGUF file share.

use std::path::PathBuf;
use tritone_runtime::checkpoint::{Bytes, Value};
use tritone_runtime::config::{ActivationScales, Config};
use tritone_runtime::error::{Error, Place};
use tritone_runtime::gguf::{Gguf, Writer};
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::quantize::{ScaleGrid, TernaryEncoder, TernaryFormat};

/// A tensor to write: its name, dimensions, type number and bytes.
type Written = (String, Vec<usize>, u32, Vec<u8>);

/// A file of the test data after `edit`.
fn edited(file: &str, edit: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<Written>)) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(file);
    let gguf = Gguf::open(path).unwrap();
    let mut metadata = gguf.metadata().to_vec();
    let tensors = gguf.tensors().iter();
    let mut tensors = tensors
        .map(|tensor| {
            let (name, id) = (tensor.name().to_owned(), tensor.tensor_type().id());
            (name, tensor.dims().to_vec(), id, tensor.data().to_vec())
        })
        .collect();
    edit(&mut metadata, &mut tensors);
    let mut writer = Writer::new();
    for (key, value) in metadata {
        writer.key(&key, value);
    }
    for (name, dims, id, bytes) in &tensors {
        writer.tensor(name, dims, *id, bytes.len());
    }
    let mut data = writer.begin(Vec::new()).unwrap();
    tensors.iter().for_each(|(_, _, _, bytes)| data.write(bytes).unwrap());
    data.finish().unwrap()
}

fn load(bytes: Vec<u8>) -> Result<Model, Error> {
    let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
    Model::load(Source::Static { name: "odd.gguf", bytes: bytes.leak() }, &options, &mut |_| {})
}

#[track_caller]
fn refused(bytes: Vec<u8>, says: &[&str]) {
    let message = load(bytes).err().expect("this must be refused").to_string();
    assert!(!message.contains('\n') && message.len() < 400, "{message}");
    for says in says {
        assert!(message.contains(says), "`{says}` is not in: {message}");
    }
}

fn with_key(file: &str, key: &str, value: Value) -> Vec<u8> {
    edited(file, |metadata, _| {
        metadata.retain(|(other, _)| other != key);
        metadata.push((key.to_owned(), value));
    })
}

const LLAMA: &str = "llama-silu-bitlinear/model-i2_s.gguf";
const QWEN: &str = "qwen3-group128/model-q2_0.gguf";
const BITNET: &str = "bitnet-relu2/model-i2_s.gguf";

fn expected(bytes: Vec<u8>) -> ActivationScales {
    let checkpoint = Gguf::from_bytes(Bytes::from(bytes), "odd.gguf").unwrap().into_checkpoint();
    ActivationScales::expected(&checkpoint, &Config::from_checkpoint(&checkpoint).unwrap()).unwrap()
}

#[test]
fn what_activations_share() {
    const KEY: &str = "tritone.activations";
    const BLOCKS: &str = "llama-silu-bitlinear/model-tq2_0.gguf";
    let plain = |file: &str| expected(edited(file, |_, _| {}));
    assert_eq!(plain(LLAMA), ActivationScales::Token);
    assert_eq!(plain(BLOCKS), ActivationScales::Block);
    assert_eq!(plain(QWEN), ActivationScales::Block);
    assert_eq!(plain("bitnet-relu2/model-tq2_0.gguf"), ActivationScales::Token);

    // The key wins over what the weights look like.
    for file in [LLAMA, BLOCKS, QWEN, BITNET] {
        for (said, scales) in [("token", ActivationScales::Token), ("block", ActivationScales::Block)] {
            let model = load(with_key(file, KEY, Value::String(said.into()))).unwrap();
            assert_eq!(model.activation_scales(), scales, "{file} {said}");
        }
        refused(with_key(file, KEY, Value::String("row".into())), &[KEY, "'row'", "'token' or 'block'"]);
        refused(with_key(file, KEY, Value::Bool(true)), &[KEY, "a string"]);
    }

    // One matrix with one scale among many with blocks, and one with blocks among many with one scale, decide nothing.
    let lone = |file: &str, others: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(others);
        let others = Gguf::open(path).unwrap();
        edited(file, |_, tensors| {
            let lone = tensors.iter_mut().find(|(name, ..)| name == "blk.0.attn_q.weight").unwrap();
            let other = others.tensor("blk.0.attn_q.weight").unwrap();
            (lone.2, lone.3) = (other.tensor_type().id(), other.data().to_vec());
        })
    };
    assert_eq!(expected(lone(BLOCKS, LLAMA)), ActivationScales::Block);
    assert_eq!(expected(lone(LLAMA, BLOCKS)), ActivationScales::Token);
    // Nor do embedding and head.
    let ternary_head = edited(BLOCKS, |_, tensors| {
        for (name, dims, id, bytes) in tensors.iter_mut() {
            if name == "output.weight" || name == "token_embd.weight" {
                let (cols, rows) = (dims[0], dims[1]);
                let mut encoder =
                    TernaryEncoder::new(TernaryFormat::I2S, rows, cols, ScaleGrid::Tensor, Place::file("memory"))
                        .unwrap();
                bytes.clear();
                (0..rows).for_each(|_| encoder.push_row(&vec![1; cols], &[0.5], bytes).unwrap());
                encoder.finish(bytes);
                *id = TernaryFormat::I2S.type_id();
            }
        }
    });
    assert_eq!(expected(ternary_head), ActivationScales::Block);
}
