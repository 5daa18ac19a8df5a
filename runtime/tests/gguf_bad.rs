//! Files that are missing, damaged, hostile or of another kind: each gets one clear sentence.

use proptest::prelude::*;
use std::path::{Path, PathBuf};
use tritone_runtime::checkpoint::{Array, Bytes, Value};
use tritone_runtime::error::Error;
use tritone_runtime::gguf::{Gguf, Writer};

/// A tensor of a test file: name, dimensions, type number, bytes.
type Spec<'a> = (&'a str, &'a [usize], u32, usize);

/// A file without metadata whose tensor data is all zero bytes.
fn file_of(tensors: &[Spec<'_>]) -> Vec<u8> {
    let mut writer = Writer::new();
    for &(name, dims, type_id, len) in tensors {
        writer.tensor(name, dims, type_id, len);
    }
    let mut out = writer.begin(Vec::new()).unwrap();
    for &(_, _, _, len) in tensors {
        if len > 0 {
            out.write(&vec![0; len]).unwrap();
        }
    }
    out.finish().unwrap()
}

/// A file with one tensor of every type, and a few kinds of metadata.
fn small_file() -> Vec<u8> {
    let tensors: [Spec<'_>; 14] = [
        ("f32", &[3], 0, 12),
        ("f16", &[2, 2], 1, 8),
        ("bf16", &[2, 1, 1, 2], 30, 8),
        ("q4_0", &[32], 2, 18),
        ("q5_0", &[32], 6, 22),
        ("q8_0", &[32], 8, 34),
        ("q4_k", &[256], 12, 144),
        ("q5_k", &[256], 13, 176),
        ("q6_k", &[256], 14, 210),
        ("tq1_0", &[256], 34, 54),
        ("tq2_0", &[256], 35, 66),
        ("q2_0", &[64, 2], 42, 36),
        ("pq2_0", &[128], 142, 34),
        ("i2_s", &[128, 2], 36, 96),
    ];
    let mut writer = Writer::new();
    writer
        .key("general.architecture", Value::String("bitnet".into()))
        .key("general.alignment", Value::U32(32))
        .key("flag", Value::Bool(true))
        .key("tokens", Value::Array(Array::from_strings(["a", "bc"])))
        .key("types", Value::Array(Array::from_u32s(&[1, 2])));
    for (name, dims, type_id, len) in tensors {
        writer.tensor(name, dims, type_id, len);
    }
    let mut out = writer.begin(Vec::new()).unwrap();
    for (n, (_, _, _, len)) in tensors.iter().enumerate() {
        // 0x55 and 0x16 hold no code 3, and the floats made of them are finite.
        out.write(&vec![if n % 2 == 0 { 0x55 } else { 0x16 }; *len]).unwrap();
    }
    out.finish().unwrap()
}

fn open(bytes: Vec<u8>) -> Result<Gguf, Error> {
    Gguf::from_bytes(Bytes::from(bytes), "bad.gguf")
}

fn sentence(bytes: Vec<u8>) -> String {
    let sentence = open(bytes).unwrap_err().to_string();
    assert!(!sentence.contains('\n'), "{sentence}");
    sentence
}

/// Puts `new` in place of the only occurrence of `old`, which has the same length.
fn replace(mut bytes: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let places: Vec<_> = (0..=bytes.len() - old.len()).filter(|&at| &bytes[at..at + old.len()] == old).collect();
    assert_eq!(places.len(), 1, "{old:?}");
    bytes[places[0]..][..new.len()].copy_from_slice(new);
    bytes
}

/// Overwrites bytes from `at` on.
fn patch(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Reads everything that a file offers; only panics matter.
fn read_everything(gguf: &Gguf) {
    for (key, value) in gguf.metadata() {
        if let Value::Array(array) = value {
            array.strings().map(Iterator::count);
            array.scalars().map(Iterator::count);
        }
        let _ = gguf.find::<u32>(key);
    }
    for tensor in gguf.tensors() {
        let _ = tensor.to_f32();
        if let Ok(ternary) = tensor.ternary() {
            let _ = ternary.check();
        }
    }
    gguf.summary(true);
}

#[test]
fn the_small_file_is_good() {
    let gguf = open(small_file()).unwrap();
    assert_eq!(gguf.tensors().len(), 14);
    for tensor in gguf.tensors() {
        assert!(tensor.to_f32().unwrap().iter().all(|v| v.is_finite()));
    }
    let summary = gguf.summary(true);
    assert!(summary.tensors.iter().all(|t| t.problem.is_none()));
    // 0x16: two of the four codes are 1.
    let tq1 = &summary.tensors[9];
    let q2_0 = &summary.tensors[11];
    assert_eq!((tq1.tensor_type, q2_0.tensor_type), ("TQ1_0", "Q2_0"));
    assert_eq!(q2_0.share_of_zeros(), Some(0.5));
    assert_eq!(summary.metadata[3].value_type, "array of string");
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!(json["metadata"][3]["value"], serde_json::json!(["a", "bc"]));
    assert_eq!(json["tensors"][13]["type"], "I2_S");
}

#[test]
fn version_2_is_read() {
    let gguf = open(patch(small_file(), 4, &[2])).unwrap();
    assert_eq!((gguf.version(), gguf.tensors().len()), (2, 14));
}

fn temporary(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()))
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot map files")]
fn missing_empty_and_irregular_files() {
    let missing = temporary("missing.gguf");
    let error = Gguf::open(&missing).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot open {}: ", missing.display())), "{error}");
    assert!(error.ends_with("; check the path"), "{error}");

    let empty = temporary("empty.gguf");
    std::fs::write(&empty, []).unwrap();
    assert_eq!(
        Gguf::open(&empty).unwrap_err().to_string(),
        format!("{}: the file is empty; download it again", empty.display())
    );
    std::fs::remove_file(&empty).unwrap();

    let folder = env!("CARGO_TARGET_TMPDIR");
    assert_eq!(
        Gguf::open(folder).unwrap_err().to_string(),
        format!("{folder}: this is a directory, not a file; give the path of a model file")
    );
    #[cfg(unix)]
    assert_eq!(
        Gguf::open("/dev/null").unwrap_err().to_string(),
        "/dev/null: this is a pipe or a device, not a regular file; \
         give the path of a model file"
    );
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot map files")]
fn a_mapped_file_outlives_its_reader_and_its_name() {
    let path = temporary("small.gguf");
    std::fs::write(&path, small_file()).unwrap();
    let tensor = Gguf::open(&path).unwrap().tensor("f32").unwrap().clone();
    #[cfg(unix)]
    std::fs::remove_file(&path).unwrap();
    assert_eq!(tensor.data().as_slice(), [0x55; 12]);
}

#[test]
fn an_empty_file_in_memory() {
    assert_eq!(sentence(vec![]), "bad.gguf: the file is empty; download it again");
}

#[test]
fn truncated_at_every_byte() {
    let whole = small_file();
    // Miri takes a second for each.
    for len in (1..whole.len()).step_by(if cfg!(miri) { 61 } else { 1 }) {
        let Err(error) = open(whole[..len].to_vec()) else {
            panic!("opened with {len} of {} bytes", whole.len());
        };
        let text = error.to_string();
        assert!(text.starts_with("bad.gguf, byte "), "{len}: {text}");
        assert!(text.ends_with("; the file is damaged or cut short, download it again"), "{len}: {text}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "too many bytes for Miri")]
fn models_truncated_at_every_4096th_byte() {
    for model in ["bitnet-relu2/model-i2_s", "bitnet-relu2/model-tq1_0", "qwen3-group128/model-q2_0"] {
        let path = format!("{}/tests/data/models/{model}.gguf", env!("CARGO_MANIFEST_DIR"));
        let whole = std::fs::read(path).unwrap();
        for len in (4096..whole.len()).step_by(4096) {
            let text = sentence(whole[..len].to_vec());
            assert!(text.ends_with("; the file is damaged or cut short, download it again"), "{model}, {len}: {text}");
        }
    }
}

#[test]
fn truncation_says_what_is_cut() {
    let whole = small_file();
    assert_eq!(
        sentence(whole[..2].to_vec()),
        "bad.gguf, byte 0: the file ends inside the magic \"GGUF\": 4 bytes are needed here and \
         2 are left; the file is damaged or cut short, download it again"
    );
    assert_eq!(
        sentence(whole[..whole.len() - 1].to_vec()),
        "bad.gguf, byte 715, tensor `i2_s`: the tensor's 96 bytes at offset 1088 reach past the \
         end of the file, which has 1183 bytes of tensor data; the file is damaged or cut short, \
         download it again"
    );
}

#[test]
fn parts_of_a_split_model() {
    let part = |keys: &[(&str, Value)]| {
        let mut writer = Writer::new();
        for (key, value) in keys {
            writer.key(key, value.clone());
        }
        writer.begin(Vec::new()).unwrap().finish().unwrap()
    };
    assert_eq!(
        sentence(part(&[("split.no", Value::U16(1)), ("split.count", Value::U16(3))])),
        "bad.gguf, key `split.count`: this is part 2 of 3 of a model; \
         join them first, with `llama-gguf-split --merge FIRST-PART NEW-FILE`"
    );
    assert!(sentence(part(&[("split.count", Value::U16(2))])).contains("one part of 2"));
    assert!(sentence(part(&[("split.count", Value::Bool(true))])).contains("expected an"));
    // What is left of a split that has been undone.
    for count in [0, 1] {
        open(part(&[("split.no", Value::U16(0)), ("split.count", Value::U16(count))])).unwrap();
    }
}

#[test]
fn wrong_magic() {
    assert_eq!(
        sentence(patch(small_file(), 0, b"GGXF")),
        "bad.gguf, byte 0: this is not a GGUF file: it starts with \"GGXF\" instead of \"GGUF\"; \
         give a model file in GGUF format"
    );
    let hints: [(&[u8], &str); 5] = [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"PK\x03\x04....", "PyTorch"),
        (b"tjgg\x03\0\0\0", "before GGUF"),
        (b"\x40\0\0\0\0\0\0\0{\"x\":", "safetensors"),
    ];
    for (bytes, hint) in hints {
        let text = sentence(bytes.to_vec());
        assert!(text.contains(hint), "{text}");
    }
}

#[test]
fn versions_and_byte_order() {
    assert_eq!(
        sentence(patch(small_file(), 4, &[1])),
        "bad.gguf, byte 4: GGUF version 1 is not read, only versions 2 and 3; \
         convert the model again with a current converter"
    );
    assert_eq!(
        sentence(patch(small_file(), 4, &[9])),
        "bad.gguf, byte 4: GGUF version 9 is not read, only versions 2 and 3; \
         use a newer Tritone or an older converter"
    );
    let big_endian = "bad.gguf, byte 4: the file is big-endian, and Tritone reads little-endian \
                      files; convert the model again for a little-endian machine";
    assert_eq!(sentence(patch(small_file(), 4, &[0, 0, 0, 3])), big_endian);
    assert_eq!(sentence(patch(small_file(), 0, b"FUGG")), big_endian);
}

#[test]
fn counts_that_no_file_can_hold() {
    let n = file_of(&[]).len();
    let mut huge = file_of(&[("x", &[8], 0, 32)]);
    huge = patch(huge, 8, &(1_u64 << 60).to_le_bytes());
    assert_eq!(
        sentence(huge.clone()),
        "bad.gguf, byte 8: the file claims to hold 1152921504606846976 tensors, but at most 2 are \
         possible in 96 bytes; the file is damaged or cut short, download it again"
    );
    huge.extend_from_slice(&vec![0; 4 << 20]);
    assert!(sentence(huge).contains("at most 65536 are possible"));
    let keys = patch(file_of(&[]), 16, &u64::MAX.to_le_bytes());
    assert!(sentence(keys).contains(&format!("18446744073709551615 metadata keys, but at most {} are", (n - 24) / 14)),);
}

#[test]
fn metadata_lengths_that_reach_out_of_the_file() {
    let key = |value| {
        let mut writer = Writer::new();
        writer.key("the.key", value);
        writer.begin(Vec::new()).unwrap().finish().unwrap()
    };
    // The value starts after 24 bytes of counts, the key with its length, and its type.
    let value_at = 24 + 8 + 7 + 4;
    for length in [64, 1 << 40, u64::MAX] {
        let string = key(Value::String("text".into()));
        assert!(
            sentence(patch(string, value_at, &length.to_le_bytes())).contains("the file ends inside a metadata string")
        );
        let array = key(Value::Array(Array::from_u32s(&[1, 2])));
        assert!(sentence(patch(array, value_at + 4, &length.to_le_bytes())).contains("the file ends inside an array"));
        let strings = key(Value::Array(Array::from_strings(["a", "b"])));
        assert!(
            sentence(patch(strings.clone(), value_at + 4, &length.to_le_bytes()))
                .contains("strings in an array, but at most")
        );
        assert!(
            sentence(patch(strings, value_at + 12, &length.to_le_bytes()))
                .contains("the file ends inside a string in an array")
        );
        let long_key = patch(key(Value::U8(1)), 24, &length.to_le_bytes());
        assert!(sentence(long_key).contains("the file ends inside a metadata key"));
    }
    assert_eq!(
        sentence(patch(key(Value::U8(1)), 24, &[0; 8])),
        "bad.gguf, byte 24: a metadata key is 0 bytes long, but 1 to 65536 are possible; \
         the file is damaged or cut short, download it again"
    );
}

#[test]
fn metadata_types_and_contents() {
    let key = |value| {
        let mut writer = Writer::new();
        writer.key("k", value);
        writer.begin(Vec::new()).unwrap().finish().unwrap()
    };
    let type_at = 24 + 8 + 1;
    assert_eq!(
        sentence(patch(key(Value::U8(1)), type_at, &[13])),
        "bad.gguf, byte 33, key `k`: metadata type 13 is unknown, the types are 0 to 12; \
         the file is damaged or cut short, download it again"
    );
    let array = key(Value::Array(Array::from_u32s(&[1, 2])));
    assert_eq!(
        sentence(patch(array.clone(), type_at + 4, &[9])),
        "bad.gguf, byte 33, key `k`: arrays inside arrays are not read; \
         convert the model again without this key"
    );
    assert!(sentence(patch(array.clone(), type_at + 4, &[77])).contains("metadata type 77"));
    assert!(
        sentence(patch(array, type_at + 4, &[7, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 5]))
            .contains("element 1 of the array is bad: a bool is neither 0 nor 1")
    );
    assert!(sentence(patch(key(Value::Bool(true)), type_at + 4, &[2])).contains("a bool is neither 0 nor 1"));
    let text = key(Value::String("ab".into()));
    assert!(sentence(replace(text, b"ab", b"a\xff")).contains("the string is not UTF-8"));
    let strings = key(Value::Array(Array::from_strings(["x", "ab"])));
    assert!(sentence(replace(strings, b"ab", b"\xc3\x28")).contains("element 1 of the array is bad: it is not UTF-8"));
    let mut twice = Writer::new();
    twice.key("k", Value::U8(1)).key("k", Value::U8(1));
    let twice = twice.begin(Vec::new()).unwrap().finish().unwrap();
    assert_eq!(
        sentence(twice),
        "bad.gguf, byte 38, key `k`: the key occurs twice; \
         the file was not written correctly, download or convert it again"
    );
}

#[test]
fn getters_name_the_key_and_both_types() {
    let gguf = open(small_file()).unwrap();
    let text = |error: Error| error.to_string();
    assert_eq!(
        text(gguf.u32("general.architecture").unwrap_err()),
        "bad.gguf, key `general.architecture`: found string \"bitnet\", expected an integer from \
         0 to 4294967295; convert the model again"
    );
    assert_eq!(
        text(gguf.bool("general.alignment").unwrap_err()),
        "bad.gguf, key `general.alignment`: found u32 32, expected a bool; \
         convert the model again"
    );
    assert_eq!(
        text(gguf.array_str("types").unwrap_err()),
        "bad.gguf, key `types`: found array of 2 u32s, expected an array of strings; \
         convert the model again"
    );
    assert_eq!(
        text(gguf.f32("rope").unwrap_err()),
        "bad.gguf, key `rope`: the key is missing; \
         convert the model again with a converter that writes it"
    );
    assert_eq!(
        text(gguf.tensor("output").unwrap_err()),
        "bad.gguf, tensor `output`: the tensor is missing; the file is incomplete or of another \
         architecture, `tritone inspect` lists what it holds"
    );
    let tensor = gguf.tensor("f16").unwrap();
    assert!(
        text(tensor.expect_dims(&[4, 1]).unwrap_err())
            .contains("tensor `f16`: shape is [2, 2], but the model's configuration needs [4, 1]")
    );
    assert!(
        text(tensor.ternary().unwrap_err()).contains("the tensor has type F16, but ternary weights are needed here")
    );
}

#[test]
fn alignments() {
    for (value, shown) in [
        (Value::U32(0), "u32 0"),
        (Value::U32(4), "u32 4"),
        (Value::U32(48), "u32 48"),
        (Value::I32(-32), "i32 -32"),
        (Value::U64(1 << 63), "u64 9223372036854775808"),
        (Value::String("32".into()), "string \"32\""),
    ] {
        let mut writer = Writer::new();
        writer.key("general.alignment", value);
        let bytes = writer.begin(Vec::new()).unwrap().finish().unwrap();
        assert_eq!(
            sentence(bytes),
            format!(
                "bad.gguf, key `general.alignment`: found {shown}, expected a power of two from \
                 8 to 2^30; convert the model again"
            )
        );
    }
}

#[test]
fn tensor_descriptions() {
    let file = || file_of(&[("tensor.a", &[8, 2], 0, 64)]);
    // Name with its length, number of dimensions, two dimensions, type, offset.
    let (dims_at, type_at) = (24 + 16, 24 + 16 + 4 + 16);
    let text = |at: usize, new: &[u8]| sentence(patch(file(), at, new));
    assert!(text(dims_at, &[0]).contains("has 0 dimensions, but 1 to 4 are possible"));
    assert!(text(dims_at, &[5]).contains("tensor `tensor.a`: the tensor has 5 dimensions"));
    assert!(text(dims_at + 4, &[0]).contains("dimensions [0, 2] are impossible"));
    assert!(
        text(dims_at + 4, &[255; 16])
            .contains("dimensions [18446744073709551615, 18446744073709551615] are impossible")
    );
    assert!(text(dims_at + 4 + 7, &[0x30]).contains("are impossible"));
    assert!(text(dims_at + 4 + 6, &[0x10]).contains("reach past the end of the file"));
    assert!(text(type_at + 4, &[16]).contains("the tensor's offset 16 is no multiple of the alignment 32"));
    assert!(text(type_at + 4, &[64]).contains("64 bytes at offset 64 reach past the end"));
    assert!(text(type_at + 4 + 7, &[255]).contains("reach past the end"));
    let long = "n".repeat(257);
    assert!(
        sentence(file_of(&[(&long, &[8], 0, 32)]))
            .contains("byte 24: a tensor name is 257 bytes long, but 1 to 256 are possible")
    );
    open(file_of(&[(&long[..256], &[8], 0, 32)])).unwrap();

    let twice = file_of(&[("x", &[8], 0, 32), ("x", &[8], 0, 32)]);
    assert!(sentence(twice).contains("tensor `x`: the name occurs twice"));
    let blocks = file_of(&[("x", &[100], 36, 57)]);
    assert!(sentence(blocks).contains("rows of 100 weights cannot be cut in the blocks of 128 that type I2_S has"));
}

#[test]
fn overlapping_tensors() {
    let file = file_of(&[("a", &[32], 0, 64), ("b", &[16], 0, 64)]);
    assert_eq!(
        sentence(file),
        "bad.gguf, byte 24, tensor `a`: the tensor's 128 bytes overlap tensor `b`, 64 bytes \
         further; the file is damaged or cut short, download it again"
    );
    let same = file_of(&[("a", &[8], 0, 0), ("b", &[8], 0, 64)]);
    assert!(sentence(same).contains("tensor `a`: the tensor's 32 bytes overlap tensor `b`, 0"));
}

#[test]
fn types_that_are_not_read() {
    let text = |id, len| sentence(file_of(&[("x", &[256, 2], id, len)]));
    assert_eq!(
        text(200, 512),
        "bad.gguf, byte 24, tensor `x`: type 200 is unknown (512 weights in 512 bytes, \
         architecture `none`); Tritone reads I2_S, TQ1_0, TQ2_0, Q2_0, PQ2_0 and T5 for ternary \
         weights, and F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K, Q5_K and Q6_K for the others: \
         convert the model to one of these"
    );
    assert!(text(11, 256).contains("type 11 (Q3_K) is not read"));
    assert!(text(38, 128).contains("is TL1, whose layout"));
    let tl2 = text(39, 128);
    assert!(tl2.contains("is TL2") && tl2.ends_with("use the same model's I2_S file"));
    assert!(text(39, 272).contains("is MXFP4"));
    assert!(text(143, 128).contains("is PTQ1_0, whose order of trits is not known"));
}

#[test]
fn number_36_is_decided_by_size() {
    // 512 weights: 160 bytes as I2_S, 288 as the other type.
    open(file_of(&[("x", &[256, 2], 36, 160), ("y", &[8], 0, 32)])).unwrap();
    let with = |len| sentence(file_of(&[("x", &[256, 2], 36, len), ("y", &[8], 0, 32)]));
    assert_eq!(
        with(288),
        "bad.gguf, byte 24, tensor `x`: type 36 with 512 weights in 288 bytes (I2_S needs 160), \
         architecture `none`, has the size of IQ4_NL_4_4, which is not read; \
         use the model's I2_S file as its makers published it"
    );
    assert!(with(128).contains("neither the size of I2_S nor that of IQ4_NL_4_4"));
    assert!(with(192).contains("neither the size of I2_S nor that of IQ4_NL_4_4"));
    let last = sentence(file_of(&[("x", &[256, 2], 36, 288)]));
    assert!(last.contains("has the size of IQ4_NL_4_4"));
}

#[test]
fn number_42_is_decided_by_size() {
    let name = |len| {
        let file = file_of(&[("x", &[4096], 42, len), ("y", &[128], 42, 36)]);
        open(file).map(|g| (g.tensors()[0].tensor_type().name(), g.tensors()[1].data().len()))
    };
    assert_eq!(name(1152).unwrap(), ("Q2_0", 36));
    // The second tensor fits both sizes and follows the first.
    assert_eq!(name(1088).unwrap(), ("Q2_0 (groups of 128)", 34));
    assert!(name(1056).unwrap_err().to_string().contains(
        "type 42 (Q2_0) with 4096 weights in 1056 bytes fits neither groups of 64 (1152 bytes) \
         nor of 128 (1088 bytes)"
    ));
    let mixed = file_of(&[("x", &[4096], 42, 1152), ("y", &[4096], 42, 1088)]);
    assert!(
        sentence(mixed)
            .contains("tensor `y`: the tensor has the size of Q2_0 (groups of 128) but tensor `x` that of Q2_0")
    );
}

#[test]
fn codes_and_scales_that_are_not_ternary() {
    let ternary = |id, cols: usize, bytes: Vec<u8>| {
        let mut writer = Writer::new();
        writer.tensor("x", &[cols, 2], id, bytes.len());
        let mut out = writer.begin(Vec::new()).unwrap();
        out.write(&bytes).unwrap();
        let gguf = open(out.finish().unwrap()).unwrap();
        let tensor = gguf.tensor("x").unwrap().clone();
        tensor.ternary().and_then(|t| t.check()).map_err(|e| e.to_string())
    };
    for (id, cols, len, code_at, scale_at) in [
        (36, 128, 96, 40, 64..68),
        (35, 256, 132, 70, 64..66),
        (42, 64, 36, 22, 0..2),
        (142, 128, 68, 67, 34..36),
        (34, 256, 108, 54, 106..108),
    ] {
        assert_eq!(ternary(id, cols, vec![0x55; len]), Ok(()));
        let mut bad = vec![0x55; len];
        bad[code_at] = 0x5d;
        match ternary(id, cols, bad) {
            // Every byte of TQ1_0 decodes.
            Ok(()) => assert_eq!(id, 34),
            Err(text) => assert!(text.contains("tensor `x`: row 1 holds the code 3, so this"), "{text}"),
        }
        let mut bad = vec![0x55; len];
        bad[scale_at].fill(0x7f);
        // A NaN as f16 and as f32.
        if id == 36 {
            bad[66] = 0xff;
        }
        let text = ternary(id, cols, bad).unwrap_err();
        assert!(text.contains("the scale of"), "{text}");
        assert!(text.contains("is NaN"), "{text}");
    }
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 2 } else { 3000 }, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
    ) {
        let mut bytes = small_file();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(gguf) = open(bytes) {
            read_everything(&gguf);
        }
    }

    #[test]
    fn changed_numbers_never_panic(
        index in any::<prop::sample::Index>(),
        base in prop::sample::select(vec![0, 1 << 8, 1 << 31, 1 << 32, 1 << 60, 1 << 63, u64::MAX]),
        delta in 0..70_u64,
        wide in any::<bool>(),
    ) {
        let mut bytes = small_file();
        let at = index.index(1000);
        let number = base.wrapping_add(delta).to_le_bytes();
        let width = if wide { 8 } else { 4 };
        bytes[at..at + width].copy_from_slice(&number[..width]);
        if let Ok(gguf) = open(bytes) {
            read_everything(&gguf);
        }
    }
}
