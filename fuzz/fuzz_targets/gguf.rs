//! Parses arbitrary bytes as a GGUF file and reads every weight of it. Nothing may panic, hang or
//! take memory out of proportion to the file; and what is accepted keeps its promises.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tritone_runtime::checkpoint::{Bytes, Value};
use tritone_runtime::gguf::Gguf;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(Bytes::from(data.to_vec()), "fuzz") else {
        return;
    };
    for (key, value) in gguf.metadata() {
        assert_eq!(gguf.value(key).map(Value::value_type), Some(value.value_type()));
        if let Value::Array(array) = value {
            let read = match array.strings() {
                Some(strings) => strings.count(),
                None => array.scalars().map_or(0, Iterator::count),
            };
            assert_eq!(read, array.len());
        }
    }
    let mut ends: Vec<(u64, u64)> = Vec::new();
    for tensor in gguf.tensors() {
        assert!(std::ptr::eq(gguf.tensor(tensor.name()).unwrap(), tensor));
        assert_eq!(tensor.offset() % gguf.alignment() as u64, 0);
        ends.push((tensor.offset(), tensor.offset() + tensor.data().len() as u64));
        let values = tensor.to_f32();
        if let Ok(values) = &values {
            assert_eq!(values.len(), tensor.rows() * tensor.cols());
        }
        if tensor.tensor_type().is_ternary() {
            let checked = tensor.ternary().and_then(|t| {
                t.check()?;
                t.count_zeros()
            });
            assert_eq!(checked.is_ok(), values.is_ok());
        }
    }
    ends.sort_unstable();
    assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    assert!(ends.last().is_none_or(|last| last.1 <= data.len() as u64));
    assert_eq!(gguf.summary(true).tensors.len(), gguf.tensors().len());
});
