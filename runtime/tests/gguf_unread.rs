//! What a GGUF file asks for and would not get: tensors that nobody reads, keys for arithmetic that is not here, and what its
//! activations share.

use std::path::PathBuf;
use tritone_runtime::checkpoint::{Bytes, Value};
use tritone_runtime::config::{ActivationScales, Config};
use tritone_runtime::error::{Error, Place};
use tritone_runtime::gguf::{Gguf, Writer};
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::quantize::{ScaleGrid, TernaryEncoder, TernaryFormat};

/// A tensor to write: its name, dimensions, type number and bytes.
type Written = (String, Vec<usize>, u32, Vec<u8>);

fn floats(name: &str, values: &[f32]) -> Written {
    (name.to_owned(), vec![values.len()], 0, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

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

fn with_tensor(file: &str, tensor: Written) -> Vec<u8> {
    edited(file, |_, tensors| tensors.push(tensor))
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

#[test]
fn tensors_that_nobody_reads() {
    for (name, is) in [
        ("blk.0.attn_q.bias", "bias"),
        ("blk.1.ffn_down.bias", "bias"),
        ("output.bias", "bias"),
        ("output_norm.bias", "bias"),
        ("blk.0.attn_sub_norm.weight", "norm"),
        ("blk.0.attn_q_norm.weight", "norm"),
        ("token_embd_norm.weight", "norm"),
        ("blk.0.ffn_gate_inp.weight", "experts"),
        ("output.scale", "scale"),
        ("position_embd.weight", "tensor"),
    ] {
        refused(with_tensor(LLAMA, floats(name, &[1.0; 256])), &["odd.gguf", name, "'llama'", is]);
    }
    refused(with_tensor(QWEN, floats("blk.0.attn_q.bias", &[0.0; 256])), &["blk.0.attn_q.bias", "'qwen3'"]);
    refused(with_tensor(BITNET, floats("blk.0.attn_q_norm.weight", &[1.0; 64])), &["attn_q_norm", "'bitnet"]);
    refused(with_tensor(LLAMA, floats("blk.77.attn_norm.weight", &[1.0; 256])), &["layer 77", "llama.block_count"]);
    // Factors that change frequencies are used under one name only.
    for name in ["rope_factors_long.weight", "rope_factors_short.weight", "blk.0.rope_freqs.weight"] {
        refused(with_tensor(LLAMA, floats(name, &[1.0, 2.0])), &[name, "'llama'"]);
    }
    // One norm before a matrix needs all of them.
    refused(with_tensor(LLAMA, floats("blk.0.attn_q_norm_in.weight", &[1.0; 256])), &["attn_k_norm_in", "missing"]);
}

#[test]
fn tensors_that_are_read_or_change_nothing() {
    let logits = |bytes| {
        let mut session = load(bytes).unwrap().session(None).unwrap();
        session.prefill(&[1, 2, 3], 0).unwrap().to_vec()
    };
    for file in [LLAMA, QWEN, BITNET] {
        let plain = logits(edited(file, |_, _| {}));
        let more = |tensor: Written| logits(with_tensor(file, tensor));
        for name in ["rope_factors_long.weight", "rope_factors_short.weight", "blk.0.rope_freqs.weight"] {
            assert_eq!(more(floats(name, &[1.0; 5])), plain, "{file} {name}");
        }
        assert_eq!(more(floats("blk.0.attn_q.scale", &[1.0])), plain, "{file}");
        assert_ne!(more(floats("blk.0.ffn_down.scale", &[2.0])), plain, "{file}");
    }
}

#[test]
fn missing_tensors_and_other_shapes() {
    let without = |name: &str| {
        edited(LLAMA, |_, tensors| {
            let n = tensors.len();
            tensors.retain(|(other, ..)| other != name);
            assert_eq!(tensors.len(), n - 1);
        })
    };
    for name in ["token_embd.weight", "output_norm.weight", "blk.1.ffn_norm.weight", "blk.0.attn_v.weight"] {
        refused(without(name), &[name, "missing"]);
    }
    let shaped = edited(LLAMA, |_, tensors| {
        let norm = tensors.iter_mut().find(|(name, ..)| name == "blk.1.ffn_norm.weight").unwrap();
        *norm = floats("blk.1.ffn_norm.weight", &[1.0; 255]);
    });
    refused(shaped, &["blk.1.ffn_norm.weight", "[255]", "[256]"]);
    refused(with_tensor(LLAMA, floats("blk.0.attn_q.scale", &[1.0; 2])), &["attn_q.scale", "[2]", "[1]"]);
}

#[test]
fn keys_for_what_is_not_here() {
    for (key, bad, neutral) in [
        ("expert_count", Value::U32(8), vec![Value::U32(0)]),
        ("logit_scale", Value::F32(0.5), vec![Value::F32(1.0), Value::F32(0.0)]),
        ("residual_scale", Value::F32(0.5), vec![Value::F32(1.0), Value::F32(0.0)]),
        ("embedding_scale", Value::F32(12.0), vec![Value::F32(1.0), Value::F32(0.0)]),
        ("attention.clamp_kqv", Value::F32(8.0), vec![Value::F32(0.0)]),
        ("attention.max_alibi_bias", Value::F32(8.0), vec![Value::F32(0.0)]),
        ("attn_logit_softcapping", Value::F32(50.0), vec![Value::F32(0.0)]),
        ("final_logit_softcapping", Value::F32(30.0), vec![Value::F32(0.0)]),
        ("use_parallel_residual", Value::Bool(true), vec![Value::Bool(false)]),
    ] {
        for (file, architecture) in [(LLAMA, "llama"), (QWEN, "qwen3")] {
            let key = format!("{architecture}.{key}");
            refused(with_key(file, &key, bad.clone()), &["odd.gguf", &key]);
            for neutral in &neutral {
                load(with_key(file, &key, neutral.clone())).unwrap();
            }
        }
    }
}

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
