//! The header of one `.safetensors` file: eight bytes of length, little-endian, that many bytes of
//! JSON, then the tensors' data without a gap.

use super::malformed;
use crate::checkpoint::Bytes;
use crate::error::{Error, Place, Result};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::ops::Range;

/// The limit of the format's own reader.
const MAX_HEADER: u64 = 100_000_000;

/// No published model comes near.
const MAX_TENSORS: usize = 1 << 16;

/// How numbers are stored. Others exist; they are refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    U8,
    F16,
    Bf16,
    F32,
}

impl Dtype {
    fn parse(name: &str) -> Option<Dtype> {
        Some(match name {
            "U8" => Dtype::U8,
            "F16" => Dtype::F16,
            "BF16" => Dtype::Bf16,
            "F32" => Dtype::F32,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Dtype::U8 => 1,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
        }
    }
}

/// A tensor that lies in the file, apart from the others, with as many bytes as its shape needs.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    /// The slowest first, at least one; none is 0.
    pub(super) shape: Vec<usize>,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
}

/// Tensors in the order of their data.
///
/// # Errors
/// `Malformed` or `Unsupported` with the name of the tensor.
pub(super) fn read(file: &str, bytes: &Bytes) -> Result<Vec<Entry>> {
    let at = |offset: u64| Place::file(file).at(offset);
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(malformed(at(0), format!("the file has {} bytes, less than any header", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    let left = bytes.len() as u64 - 8;
    if length > MAX_HEADER || length > left {
        let what = format!("the header is to have {length} bytes, but {left} follow and {MAX_HEADER} are the limit");
        return Err(malformed(at(0), what));
    }
    let start = 8 + length as usize;
    let json = &bytes[8..start];
    // The reader's own error names a line and a column of the header.
    let Raw(raw) = serde_json::from_slice(json)
        .map_err(|error| malformed(at(8), format!("the header is not the JSON that belongs here: {error}")))?;
    let mut entries = Vec::with_capacity(raw.len());
    for (name, fields) in raw {
        entries.push(entry(file, name, &fields, start, bytes.len())?);
    }
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    let mut end = start;
    for entry in &entries {
        if entry.range.start != end {
            let relation = if entry.range.start < end { "overlaps the one before" } else { "leaves a gap before it" };
            let place = at(entry.range.start as u64).tensor(entry.name.clone());
            return Err(malformed(place, format!("the tensor {relation}, which ends at byte {end}")));
        }
        end = entry.range.end;
    }
    if end != bytes.len() {
        return Err(malformed(at(end as u64), format!("{} bytes follow the last tensor", bytes.len() - end)));
    }
    Ok(entries)
}

fn entry(file: &str, name: String, fields: &Fields, start: usize, file_len: usize) -> Result<Entry> {
    let place = || Place::file(file).tensor(name.clone());
    let Some(dtype) = Dtype::parse(&fields.dtype) else {
        return Err(Error::Unsupported {
            at: Box::new(place()),
            what: format!("numbers of type {}", crate::error::shown(&fields.dtype)),
            fix: "U8, F16, BF16 and F32 are read; use the model's BF16 files".into(),
        });
    };
    let mut size = Some(dtype.bytes());
    let mut shape = Vec::with_capacity(fields.shape.len().min(4));
    for &dim in &fields.shape {
        let dim = usize::try_from(dim).ok().filter(|&dim| dim > 0);
        size = size.zip(dim).and_then(|(size, dim)| size.checked_mul(dim));
        shape.push(dim.unwrap_or_default());
    }
    // A single value has no dimensions.
    if shape.is_empty() {
        shape.push(1);
    }
    let [from, to] = fields.data_offsets;
    let span = to.checked_sub(from);
    if size.is_none() || span != size.map(|size| size as u64) || shape.len() > 4 {
        let what = format!("a shape of {:?} does not have the {from}..{to} bytes it is given", fields.shape);
        return Err(malformed(place(), what));
    }
    let end = to.checked_add(start as u64).filter(|&end| end <= file_len as u64);
    let Some(end) = end else {
        return Err(malformed(place(), format!("bytes {from}..{to} reach past the end of the file")));
    };
    // `from <= to`, and `end` is at most the length of a slice.
    let range = (start as u64 + from) as usize..end as usize;
    Ok(Entry { name, dtype, shape, range })
}

#[derive(serde::Deserialize)]
struct Fields {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's object: a map would forget which names occur twice.
struct Raw(Vec<(String, Fields)>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Raw, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a tensor for each name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Raw, A::Error> {
                let mut tensors = Vec::new();
                let mut names = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if !names.insert(name.clone()) {
                        let name = crate::error::shown(&name);
                        return Err(serde::de::Error::custom(format!("the name `{name}` occurs twice")));
                    }
                    if tensors.len() == MAX_TENSORS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let fields = map.next_value()?;
                    tensors.push((name, fields));
                }
                Ok(Raw(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}
