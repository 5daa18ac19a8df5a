//! The header of a GGUF file: magic, counts, metadata, tensor descriptions.
//!
//! Nothing in the file is trusted. A count is compared with the bytes that are left, at the
//! smallest size an element can have, before anything is allocated for it; every length is
//! compared with the bytes that are left before they are taken.

use crate::checkpoint::{Array, Value, ValueType};
use crate::error::{Error, Place, Result};
use std::collections::{HashMap, HashSet};

/// Metadata and tensor descriptions of the largest models take a tenth of this.
const MAX_HEADER: usize = 256 << 20;
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;
const MAX_KEY_BYTES: u64 = 1 << 16;
/// Other readers stop at 64.
const MAX_NAME_BYTES: u64 = 256;
/// Key of one byte and its length, type, value of one byte.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Name of one byte and its length, number of dimensions, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;
const DEFAULT_ALIGNMENT: usize = 32;

const DOWNLOAD: &str = "the file is damaged or cut short, download it again";
const CONVERT: &str = "the file was not written correctly, download or convert it again";

/// A tensor description as it stands in the file; only the counts of dimensions and weights have
/// been checked.
pub(crate) struct RawTensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<usize>,
    pub(crate) weights: usize,
    pub(crate) type_id: u32,
    /// From the start of the tensor data.
    pub(crate) offset: u64,
    /// Where the description stands in the file.
    pub(crate) described_at: u64,
}

pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) keys: HashMap<String, usize>,
    pub(crate) tensors: Vec<RawTensor>,
    /// First byte of the tensor data; past the end of a file that has no tensors.
    pub(crate) data_start: usize,
}

pub(crate) fn header(file: &str, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { file, bytes, pos: 0 };
    let version = magic_and_version(&mut cursor)?;
    let n_tensors = cursor.u64("the number of tensors")?;
    let n_keys = cursor.u64("the number of metadata keys")?;
    cursor.check_count(n_tensors, MIN_TENSOR_BYTES, MAX_TENSORS, "tensors", 8)?;
    cursor.check_count(n_keys, MIN_KEY_BYTES, MAX_KEYS, "metadata keys", 16)?;

    let mut metadata = Vec::new();
    let mut keys = HashMap::new();
    for index in 0..n_keys as usize {
        let start = cursor.pos;
        let (key, value) = key_and_value(&mut cursor)?;
        if keys.insert(key.clone(), index).is_some() {
            let at = cursor.place(start).key(key);
            return Err(malformed(at, "the key occurs twice".into(), CONVERT));
        }
        metadata.push((key, value));
    }
    let alignment = match keys.get("general.alignment") {
        Some(&index) => alignment(file, &metadata[index].1)?,
        None => DEFAULT_ALIGNMENT,
    };

    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..n_tensors {
        let tensor = tensor(&mut cursor, alignment)?;
        if !names.insert(tensor.name.clone()) {
            let at = cursor.place(tensor.described_at as usize);
            let at = at.tensor(tensor.name);
            return Err(malformed(at, "the name occurs twice".into(), CONVERT));
        }
        tensors.push(tensor);
    }
    // `pos` is at most the length of a slice, so this cannot overflow for a sane alignment, but
    // the alignment comes from the file.
    let data_start = cursor.pos.checked_next_multiple_of(alignment);
    let Some(data_start) = data_start.filter(|&s| s <= bytes.len() || tensors.is_empty()) else {
        return Err(cursor.truncated(cursor.pos, "the tensor data", bytes.len() as u64 + 1));
    };
    Ok(Header { version, alignment, metadata, keys, tensors, data_start })
}

fn magic_and_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let bytes = cursor.bytes;
    if bytes.is_empty() {
        return Err(crate::mmap::empty(cursor.file));
    }
    let start = &bytes[..bytes.len().min(4)];
    if start == b"FUGG" {
        return Err(big_endian(cursor));
    }
    if !b"GGUF".starts_with(start) {
        return Err(Error::Unsupported {
            at: Box::new(cursor.place(0)),
            what: format!(
                "this is not a GGUF file: it starts with \"{}\" instead of \"GGUF\"{}",
                start.escape_ascii(),
                known_magic(bytes)
            ),
            fix: "give a model file in GGUF format".into(),
        });
    }
    cursor.take(4, "the magic \"GGUF\"")?;
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(Error::Unsupported {
            at: Box::new(cursor.place(4)),
            what: "GGUF version 1 is not read, only versions 2 and 3".into(),
            fix: "convert the model again with a current converter".into(),
        }),
        v if (1..=3).contains(&v.swap_bytes()) => Err(big_endian(cursor)),
        v => Err(Error::Unsupported {
            at: Box::new(cursor.place(4)),
            what: format!("GGUF version {v} is not read, only versions 2 and 3"),
            fix: "use a newer Tritone or an older converter".into(),
        }),
    }
}

fn big_endian(cursor: &Cursor<'_>) -> Error {
    Error::Unsupported {
        at: Box::new(cursor.place(4)),
        what: "the file is big-endian, and Tritone reads little-endian files".into(),
        fix: "convert the model again for a little-endian machine".into(),
    }
}

/// What the user may have given instead of a GGUF file.
fn known_magic(bytes: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 6] = [
        (b"version https://git-lfs", " (a Git LFS pointer: run `git lfs pull`)"),
        (b"<", " (a web page: the download went wrong)"),
        (b"PK\x03\x04", " (a zip archive or PyTorch checkpoint)"),
        (b"tjgg", " (the format before GGUF)"),
        (b"lmgg", " (the format before GGUF)"),
        (b"fmgg", " (the format before GGUF)"),
    ];
    if bytes.get(8) == Some(&b'{') && bytes.get(4..8) == Some(&[0; 4]) {
        return " (a safetensors file)";
    }
    KNOWN.iter().find(|(magic, _)| bytes.starts_with(magic)).map_or("", |(_, name)| name)
}

fn key_and_value(cursor: &mut Cursor<'_>) -> Result<(String, Value)> {
    let start = cursor.pos;
    let key = cursor.name(MAX_KEY_BYTES, "a metadata key")?;
    let type_at = cursor.pos;
    let ty = cursor.value_type(&key)?;
    let at = |cursor: &Cursor<'_>| cursor.place(start).key(key.clone());
    let value = match (ty, ty.fixed_size()) {
        (_, Some(size)) => {
            let bytes = cursor.take(size as u64, "a metadata value")?;
            Value::from_le(ty, bytes)
                .ok_or_else(|| malformed(at(cursor), "a bool is neither 0 nor 1".into(), CONVERT))?
        }
        (ValueType::Array, None) => {
            let element = cursor.value_type(&key)?;
            let len = cursor.u64("the length of an array")?;
            Value::Array(array(cursor, &key, type_at, element, len)?)
        }
        (_, None) => {
            let len = cursor.u64("the length of a string")?;
            let text = cursor.take(len, "a metadata string")?.to_vec();
            Value::String(
                String::from_utf8(text)
                    .map_err(|_| malformed(at(cursor), "the string is not UTF-8".into(), CONVERT))?,
            )
        }
    };
    Ok((key, value))
}

fn array(cursor: &mut Cursor<'_>, key: &str, type_at: usize, element: ValueType, len: u64) -> Result<Array> {
    let at = |cursor: &Cursor<'_>| cursor.place(type_at).key(key);
    let bytes = match element.fixed_size() {
        Some(size) => {
            let total = len.saturating_mul(size as u64);
            cursor.take(total, "an array")?
        }
        None if element == ValueType::Array => {
            return Err(Error::Unsupported {
                at: Box::new(at(cursor)),
                what: "arrays inside arrays are not read".into(),
                fix: "convert the model again without this key".into(),
            });
        }
        None => {
            let start = cursor.pos;
            cursor.check_count(len, 8, u64::MAX, "strings in an array", start - 8)?;
            for _ in 0..len {
                let text_len = cursor.u64("the length of a string in an array")?;
                cursor.take(text_len, "a string in an array")?;
            }
            &cursor.bytes[start..cursor.pos]
        }
    };
    // The copy is what is checked and used; see the paragraph on paranoia in mmap.rs.
    Array::new(element, len as usize, bytes.into()).map_err(|bad| {
        let what = format!("element {} of the array is bad: {}", bad.index, bad.why);
        malformed(at(cursor), what, CONVERT)
    })
}

fn alignment(file: &str, value: &Value) -> Result<usize> {
    let power = value
        .as_integer()
        .and_then(|v| usize::try_from(v).ok())
        .filter(|v| v.is_power_of_two() && (8..=1 << 30).contains(v));
    power.ok_or_else(|| Error::Metadata {
        at: Box::new(Place::file(file).key("general.alignment")),
        found: value.to_string(),
        expected: "a power of two from 8 to 2^30".into(),
    })
}

fn tensor(cursor: &mut Cursor<'_>, alignment: usize) -> Result<RawTensor> {
    let described_at = cursor.pos;
    let name = cursor.name(MAX_NAME_BYTES, "a tensor name")?;
    let at = |cursor: &Cursor<'_>| cursor.place(described_at).tensor(name.clone());
    let n_dims = cursor.u32("the number of dimensions of a tensor")?;
    if !(1..=4).contains(&n_dims) {
        let what = format!("the tensor has {n_dims} dimensions, but 1 to 4 are possible");
        return Err(malformed(at(cursor), what, DOWNLOAD));
    }
    let mut dims = Vec::with_capacity(4);
    let mut weights = Some(1_usize);
    for _ in 0..n_dims {
        let dim = usize::try_from(cursor.u64("a dimension of a tensor")?).unwrap_or(usize::MAX);
        weights = weights.and_then(|w| w.checked_mul(dim));
        dims.push(dim);
    }
    // No type has fewer than a bit per weight, so more than this cannot be in any file.
    let weights = weights.filter(|&w| w > 0 && w <= isize::MAX as usize);
    let Some(weights) = weights else {
        let what = format!("the tensor's dimensions {dims:?} are impossible");
        return Err(malformed(at(cursor), what, DOWNLOAD));
    };
    let type_id = cursor.u32("the type of a tensor")?;
    let offset = cursor.u64("the offset of a tensor")?;
    if !offset.is_multiple_of(alignment as u64) {
        let what = format!("the tensor's offset {offset} is no multiple of the alignment {alignment}");
        return Err(malformed(at(cursor), what, CONVERT));
    }
    Ok(RawTensor { name, dims, weights, type_id, offset, described_at: described_at as u64 })
}

pub(crate) fn malformed(at: Place, what: String, fix: &'static str) -> Error {
    Error::Malformed { at: Box::new(at), what, fix }
}

/// A tensor lies outside the file.
pub(crate) fn cut_short(at: Place, what: String) -> Error {
    malformed(at, what, DOWNLOAD)
}

struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    fn place(&self, offset: usize) -> Place {
        Place::file(self.file).at(offset as u64)
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.pos) as u64
    }

    fn truncated(&self, pos: usize, what: &str, needed: u64) -> Error {
        let what = format!(
            "the file ends inside {what}: {needed} bytes are needed here and {} are left",
            self.bytes.len() - pos
        );
        malformed(self.place(pos), what, DOWNLOAD)
    }

    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        if len > self.left() {
            return Err(self.truncated(self.pos, what, len));
        }
        let end = self.pos + len as usize;
        if end > MAX_HEADER {
            return Err(Error::Unsupported {
                at: Box::new(self.place(self.pos)),
                what: format!("{what} reaches past the first {MAX_HEADER} bytes, more metadata than any model has"),
                fix: "download or convert the file again".into(),
            });
        }
        let bytes = &self.bytes[self.pos..end];
        self.pos = end;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn name(&mut self, longest: u64, what: &str) -> Result<String> {
        let start = self.pos;
        let len = self.u64(what)?;
        if len == 0 || (len > longest && len <= self.left()) {
            let text = format!("{what} is {len} bytes long, but 1 to {longest} are possible");
            return Err(malformed(self.place(start), text, DOWNLOAD));
        }
        let bytes = self.take(len, what)?.to_vec();
        String::from_utf8(bytes).map_err(|_| malformed(self.place(start), format!("{what} is not UTF-8"), DOWNLOAD))
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType> {
        let start = self.pos;
        let id = self.u32("the type of a metadata value")?;
        ValueType::from_id(id).ok_or_else(|| {
            let what = format!("metadata type {id} is unknown, the types are 0 to 12");
            malformed(self.place(start).key(key), what, DOWNLOAD)
        })
    }

    /// Refuses a count of elements of at least `size` bytes that cannot be in the rest of the
    /// file, or is larger than `most`. The count stands at `offset`.
    fn check_count(&self, n: u64, size: u64, most: u64, what: &str, offset: usize) -> Result<()> {
        let possible = (self.left() / size).min(most);
        if n <= possible {
            return Ok(());
        }
        let what = format!(
            "the file claims to hold {n} {what}, but at most {possible} are possible in {} bytes",
            self.bytes.len()
        );
        Err(malformed(self.place(offset), what, DOWNLOAD))
    }
}
