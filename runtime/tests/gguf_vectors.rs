//! The reader against files and blocks that other programs wrote.

use std::path::{Path, PathBuf};
use tritone_runtime::checkpoint::{Array, Bytes, TensorType, Value, dequantize_row};
use tritone_runtime::gguf::{Gguf, Writer};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// Rows of one type as bytes, and their values.
fn block_vectors(name: &str) -> (Vec<u8>, Vec<f32>) {
    let bytes = std::fs::read(data(&format!("blocks/{name}.bin"))).unwrap();
    let values = std::fs::read(data(&format!("blocks/{name}.f32"))).unwrap();
    let (values, rest) = values.as_chunks();
    assert!(rest.is_empty());
    (bytes, values.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A file in memory with one matrix of 1024 columns.
fn file_of(ty: TensorType, bytes: &[u8], rows: usize) -> Gguf {
    let mut writer = Writer::new();
    writer.tensor("x", &[1024, rows], ty.id(), bytes.len());
    let mut out = writer.begin(Vec::new()).unwrap();
    out.write(bytes).unwrap();
    Gguf::from_bytes(Bytes::from(out.finish().unwrap()), "memory").unwrap()
}

#[test]
fn blocks_decode_to_the_same_bits() {
    let types = [
        ("q4_0", TensorType::Q4_0),
        ("q5_0", TensorType::Q5_0),
        ("q8_0", TensorType::Q8_0),
        ("q4_K", TensorType::Q4K),
        ("q5_K", TensorType::Q5K),
        ("q6_K", TensorType::Q6K),
    ];
    for (name, ty) in types {
        let (bytes, expected) = block_vectors(name);
        let mut values = vec![f32::NAN; expected.len()];
        dequantize_row(ty, &bytes, &mut values);
        assert_eq!(bits(&values), bits(&expected), "{name}");

        let gguf = file_of(ty, &bytes, expected.len() / 1024);
        let tensor = gguf.tensor("x").unwrap();
        assert_eq!(tensor.tensor_type(), ty);
        assert_eq!(bits(&tensor.to_f32().unwrap()), bits(&expected), "{name}");
    }
}

#[test]
fn ternary_blocks_decode_to_the_same_bits() {
    let types = [
        ("i2_s", TensorType::I2S, 1024),
        ("tq1_0", TensorType::Tq1_0, 256),
        ("tq2_0", TensorType::Tq2_0, 256),
        ("q2_0", TensorType::Q2_0, 64),
    ];
    for (name, ty, block) in types {
        let (bytes, expected) = block_vectors(name);
        let gguf = file_of(ty, &bytes, expected.len() / 1024);
        let tensor = gguf.tensor("x").unwrap();
        assert_eq!(tensor.tensor_type(), ty);
        let ternary = tensor.ternary().unwrap();
        assert_eq!(ternary.block(), block, "{name}");
        let mut trits = vec![0; 1024];
        let mut zeros = 0;
        for (row, expected) in expected.chunks_exact(1024).enumerate() {
            ternary.row_trits(row, &mut trits).unwrap();
            for (b, trits) in trits.chunks_exact(block).enumerate() {
                let scale = ternary.scale(row, b).unwrap();
                let values: Vec<f32> = trits.iter().map(|&t| f32::from(t) * scale).collect();
                let expected = &expected[b * block..][..block];
                assert_eq!(bits(&values), bits(expected), "{name}, row {row}, block {b}");
            }
            zeros += trits.iter().filter(|&&t| t == 0).count() as u64;
        }
        assert_eq!(bits(&tensor.to_f32().unwrap()), bits(&expected), "{name}");
        assert_eq!(ternary.count_zeros().unwrap(), zeros, "{name}");
        ternary.check().unwrap();
    }
}

#[test]
fn i2s_is_read_in_place() {
    let (bytes, _) = block_vectors("i2_s");
    let gguf = file_of(TensorType::I2S, &bytes, 8);
    let ternary = gguf.tensor("x").unwrap().ternary().unwrap();
    let packed = ternary.i2s().unwrap();
    assert_eq!(&*packed, &bytes[..8 * 1024 / 4]);
    assert!(gguf.data().as_ptr_range().contains(&packed.as_ptr()));
    let scale = f32::from_le_bytes(*bytes[8 * 1024 / 4..].first_chunk().unwrap());
    assert_eq!(ternary.tensor_scale(), Some(scale));
}

#[test]
fn float_rows() {
    let values = [1.0_f32, -2.5, 0.15625, -0.0];
    let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let f16s: Vec<u8> = [0x3c00_u16, 0xc100, 0x3100, 0x8000].iter().flat_map(|v| v.to_le_bytes()).collect();
    let bf16s: Vec<u8> = [0x3f80_u16, 0xc020, 0x3e20, 0x8000].iter().flat_map(|v| v.to_le_bytes()).collect();
    for (ty, bytes) in [(TensorType::F32, f32s), (TensorType::F16, f16s), (TensorType::BF16, bf16s)] {
        let mut out = [f32::NAN; 4];
        dequantize_row(ty, &bytes, &mut out);
        assert_eq!(bits(&out), bits(&values), "{}", ty.name());
    }
}

/// Every layer's trits must be the same in all files of one model, and each tensor's scales must
/// be the same number.
#[test]
fn models_hold_the_same_trits_in_every_format() {
    for (model, layers) in [("bitnet-relu2", 3), ("llama-silu-bitlinear", 2)] {
        let open = |format| Gguf::open(data(&format!("models/{model}/model-{format}.gguf"))).unwrap();
        let files = [open("i2_s"), open("tq1_0"), open("tq2_0")];
        let [i2s, others @ ..] = &files;
        let mut compared = 0;
        for tensor in i2s.tensors() {
            for other in others {
                let other = other.tensor(tensor.name()).unwrap();
                other.expect_dims(tensor.dims()).unwrap();
                if !tensor.tensor_type().is_ternary() {
                    assert_eq!(other.data().as_slice(), tensor.data().as_slice());
                    continue;
                }
                let (a, b) = (tensor.ternary().unwrap(), other.ternary().unwrap());
                let (mut x, mut y) = (vec![0; a.cols()], vec![9; a.cols()]);
                for row in 0..a.rows() {
                    a.row_trits(row, &mut x).unwrap();
                    b.row_trits(row, &mut y).unwrap();
                    assert_eq!(x, y, "{model} {} row {row}", tensor.name());
                    for block in 0..b.blocks_per_row() {
                        // The other formats round the scale to f16.
                        let rounded = half::f16::from_f32(a.scale(row, 0).unwrap()).to_f32();
                        assert_eq!(b.scale(row, block).unwrap(), rounded);
                    }
                }
                compared += 1;
            }
        }
        assert_eq!(compared, 2 * 7 * layers);
    }
}

#[test]
fn metadata_of_the_models() {
    let gguf = Gguf::open(data("models/bitnet-relu2/model-i2_s.gguf")).unwrap();
    assert_eq!((gguf.version(), gguf.alignment()), (3, 32));
    assert_eq!(gguf.metadata().len(), 23);
    assert_eq!(gguf.tensors().len(), 35);
    assert_eq!(gguf.str("general.architecture").unwrap(), "bitnet-b1.58");
    assert_eq!(gguf.u32("bitnet-b1.58.block_count").unwrap(), 3);
    assert_eq!(gguf.f32("bitnet-b1.58.rope.freq_base").unwrap(), 500_000.0);
    assert!(gguf.bool("tokenizer.ggml.add_bos_token").unwrap());
    let tokens = gguf.array_str("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.len(), 768);
    assert_eq!(tokens.clone().next(), Some("<|begin_of_text|>"));
    assert_eq!(tokens.count(), 768);
    let types: Vec<i32> = gguf.get("tokenizer.ggml.token_type").unwrap();
    assert_eq!((types.len(), types[0]), (768, 3));
    assert_eq!(gguf.find::<u32>("no.such.key").unwrap(), None);
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!((embedding.rows(), embedding.cols()), (768, 256));
    assert_eq!(embedding.tensor_type(), TensorType::F16);
}

#[test]
fn groups_of_64_are_told_from_groups_of_128() {
    let gguf = Gguf::open(data("models/qwen3-group128/model-q2_0.gguf")).unwrap();
    let tensor = gguf.tensor("blk.0.ffn_down.weight").unwrap();
    assert_eq!(tensor.tensor_type(), TensorType::Q2_0);
    tensor.ternary().unwrap().check().unwrap();

    // The same trits in both sizes of group: 128 weights of which each pair of groups of 64
    // shares a scale.
    let (bytes, expected) = block_vectors("q2_0");
    let mut wide = Vec::new();
    for pair in bytes.as_chunks::<36>().0 {
        wide.extend_from_slice(&pair[..18]);
        wide.extend_from_slice(&pair[20..]);
    }
    let gguf = file_of(TensorType::Q2_0, &wide, expected.len() / 1024);
    let tensor = gguf.tensor("x").unwrap();
    assert_eq!(tensor.tensor_type(), TensorType::Q2_0G128);
    let ternary = tensor.ternary().unwrap();
    assert_eq!(ternary.block(), 128);
    let mut trits = vec![0; 1024];
    ternary.row_trits(5, &mut trits).unwrap();
    for (t, v) in trits.iter().zip(&expected[5 * 1024..]) {
        assert_eq!(*t, v.partial_cmp(&0.0).unwrap() as i8);
    }

    let gguf = file_of(TensorType::Pq2_0, &wide, expected.len() / 1024);
    assert_eq!(gguf.tensors()[0].tensor_type(), TensorType::Pq2_0);
    assert_eq!(gguf.tensors()[0].to_f32().unwrap(), tensor.to_f32().unwrap());
}

/// What the writer writes, the reader reads: every type of value, order kept, data in place.
#[test]
fn written_files_come_back() {
    let mut writer = Writer::new();
    writer.align(64);
    let values = [
        Value::U8(255),
        Value::I8(-128),
        Value::U16(65535),
        Value::I16(-2),
        Value::U32(7),
        Value::I32(-7),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("Ġ words".into()),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(1e300),
        Value::Array(Array::from_strings(["a", "", "b\n"])),
        Value::Array(Array::from_u32s(&[1, 2])),
        Value::Array(Array::from_i32s(&[-1])),
        Value::Array(Array::from_f32s(&[])),
    ];
    for (n, value) in values.iter().enumerate() {
        writer.key(&format!("key.{n}"), value.clone());
    }
    writer.tensor("b", &[3], 0, 12).tensor("a", &[2, 2], 1, 8);
    let mut out = writer.begin(Vec::new()).unwrap();
    out.write(&[1; 12]).unwrap();
    out.write(&[2; 8]).unwrap();
    let gguf = Gguf::from_bytes(Bytes::from(out.finish().unwrap()), "memory").unwrap();
    assert_eq!(gguf.alignment(), 64);
    let back: Vec<_> = gguf.metadata()[1..].iter().map(|(_, v)| v).collect();
    assert_eq!(back, values.iter().collect::<Vec<_>>());
    assert_eq!(gguf.metadata()[3].0, "key.2");
    assert_eq!(&**gguf.tensor("b").unwrap().data(), [1; 12]);
    let a = gguf.tensor("a").unwrap();
    assert_eq!((&**a.data(), a.dims()), (&[2; 8][..], &[2, 2][..]));
    assert_eq!(a.offset() % 64, 0);
}

#[test]
fn vocabularies_of_128_thousand_tokens() {
    let shared = std::env::var_os("TRITONE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let folder = shared.join("vectors/tokenizer");
    if !folder.is_dir() {
        assert!(std::env::var_os("TRITONE_SHARED").is_none(), "{} is not there", folder.display());
        println!("skipped: {} is not there", folder.display());
        return;
    }
    for (name, tokens, merges) in
        [("llama-bpe", 128_256, Some(280_147)), ("llama-spm", 32_000, None), ("qwen2", 151_936, Some(151_387))]
    {
        let gguf = Gguf::open(folder.join(format!("ggml-vocab-{name}.gguf"))).unwrap();
        assert_eq!(gguf.array_str("tokenizer.ggml.tokens").unwrap().count(), tokens);
        let found = gguf.find::<tritone_runtime::checkpoint::Strings>("tokenizer.ggml.merges");
        assert_eq!(found.unwrap().map(Iterator::count), merges, "{name}");
        assert!(gguf.tensors().is_empty());
    }
}
