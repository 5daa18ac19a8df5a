//! Arbitrary weights, configurations and tokenizers of Hugging Face folders. Nothing may panic, hang or take memory out of
//! proportion to the files.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tritone_runtime::checkpoint::Bytes;
use tritone_runtime::safetensors::{check_file, check_metadata};

const CONFIG: &[u8] = include_bytes!("../../runtime/tests/data/models/llama-silu-bitlinear/config.json");
const TOKENIZER: &[u8] = include_bytes!("../../runtime/tests/data/models/llama-silu-bitlinear/tokenizer.json");
const NAMES: &[u8] = include_bytes!("../../runtime/tests/data/models/llama-silu-bitlinear/tokenizer_config.json");

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// A file as it is.
    File(&'a [u8]),
    /// A header with the right length before it and so much data behind it.
    Header { json: &'a str, data: u16 },
    /// A header with some tensors, so that offsets and shapes are reached.
    Tensors { tensors: Vec<Tensor>, data: u16 },
    /// The three files of words; one that is left out is a good one.
    Words { config: Option<&'a [u8]>, tokenizer: Option<&'a [u8]>, names: Option<&'a [u8]> },
    /// Damage to the good ones: which, where, what.
    Damaged { edits: Vec<(u8, u16, u8)> },
}

#[derive(Debug, Arbitrary)]
struct Tensor {
    name: u8,
    dtype: u8,
    shape: Vec<u16>,
    offsets: Option<(u64, u64)>,
}

fn file_of(json: &str, data: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

/// Tensors one after the other, unless they say otherwise.
fn header(tensors: &[Tensor]) -> String {
    let mut at = 0;
    let entries = tensors.iter().map(|tensor| {
        let (dtype, bytes) =
            [("U8", 1), ("F16", 2), ("BF16", 2), ("F32", 4), ("I64", 8)][usize::from(tensor.dtype) % 5];
        let size = tensor.shape.iter().fold(bytes, |size: u64, &dim| size.saturating_mul(u64::from(dim)));
        let (from, to) = tensor.offsets.unwrap_or((at, at.saturating_add(size)));
        at = to;
        format!(
            "\"t{}\":{{\"dtype\":\"{dtype}\",\"shape\":{:?},\"data_offsets\":[{from},{to}]}}",
            tensor.name, tensor.shape
        )
    });
    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
}

fuzz_target!(|input: Input<'_>| {
    let check = |file: Vec<u8>| {
        let len = file.len();
        if let Ok(tensors) = check_file("fuzz", &Bytes::from(file)) {
            // Every tensor that is accepted has data, and a name in the header.
            assert!(tensors * 2 <= len);
        }
    };
    match input {
        Input::File(bytes) => check(bytes.to_vec()),
        Input::Header { json, data } => check(file_of(json, data.into())),
        Input::Tensors { tensors, data } => check(file_of(&header(&tensors), data.into())),
        Input::Words { config, tokenizer, names } => {
            let _ = check_metadata(config.unwrap_or(CONFIG), tokenizer.unwrap_or(TOKENIZER), names.unwrap_or(NAMES));
        }
        Input::Damaged { edits } => {
            let mut files = [CONFIG, TOKENIZER, NAMES].map(<[u8]>::to_vec);
            for (file, at, byte) in edits {
                let file = &mut files[usize::from(file) % 3];
                let at = usize::from(at) % file.len();
                file[at] = byte;
            }
            let _ = check_metadata(&files[0], &files[1], &files[2]);
        }
    }
});
