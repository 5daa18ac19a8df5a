//! Writes GGUF files, version 3: metadata in order, tensor descriptions, then the tensor data as a
//! stream, so that a file may be larger than memory.
//!
//! ```
//! use tritone_runtime::checkpoint::{Bytes, Value};
//! use tritone_runtime::gguf::{Gguf, Writer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut writer = Writer::new();
//! writer.key("general.architecture", Value::String("bitnet".into()));
//! writer.tensor("output_norm.weight", &[2], 0, 8);
//! let mut data = writer.begin(Vec::new())?;
//! data.write(&1.0_f32.to_le_bytes())?;
//! data.write(&2.0_f32.to_le_bytes())?;
//! let file = data.finish()?;
//!
//! let gguf = Gguf::from_bytes(Bytes::from(file), "memory")?;
//! assert_eq!(gguf.tensor("output_norm.weight")?.to_f32()?, [1.0, 2.0]);
//! # Ok(())
//! # }
//! ```

use crate::checkpoint::{Value, write_string};
use std::io::{self, Write};

const DEFAULT_ALIGNMENT: usize = 32;

/// The header of a file to be written.
///
/// It writes what it is told, so that tests can write wrong files: names, types and sizes are not
/// compared with each other here but by the reader.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Declared>,
    alignment: Option<usize>,
}

#[derive(Debug, Clone)]
struct Declared {
    name: String,
    dims: Vec<usize>,
    type_id: u32,
    len: usize,
}

impl Writer {
    /// A file without metadata and tensors, aligned to 32 bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Aligns tensor data to multiples of `alignment` bytes and says so in the metadata.
    ///
    /// # Panics
    ///
    /// If it is no power of two or less than 8.
    pub fn align(&mut self, alignment: usize) -> &mut Self {
        assert!(alignment.is_power_of_two() && (8..=1 << 30).contains(&alignment));
        self.alignment = Some(alignment);
        self.key("general.alignment", Value::U32(alignment as u32))
    }

    /// Appends a metadata key.
    pub fn key(&mut self, key: &str, value: Value) -> &mut Self {
        self.metadata.push((key.into(), value));
        self
    }

    /// Appends a tensor: dimensions with the fastest first, type number, and the length of its
    /// data in bytes.
    pub fn tensor(&mut self, name: &str, dims: &[usize], type_id: u32, len: usize) -> &mut Self {
        self.tensors.push(Declared { name: name.into(), dims: dims.into(), type_id, len });
        self
    }

    /// Writes the header. The data of the tensors follows, in the order in which they were
    /// declared.
    ///
    /// # Errors
    ///
    /// Those of `out`, and `InvalidInput` if the sizes of the tensors overflow.
    pub fn begin<W: Write>(&self, mut out: W) -> io::Result<DataWriter<W>> {
        let alignment = self.alignment.unwrap_or(DEFAULT_ALIGNMENT);
        let mut header = b"GGUF".to_vec();
        header.extend(3_u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            write_string(key, &mut header);
            header.extend(value.value_type().id().to_le_bytes());
            value.write_le(&mut header);
        }
        let mut offset = 0_usize;
        for tensor in &self.tensors {
            write_string(&tensor.name, &mut header);
            header.extend((tensor.dims.len() as u32).to_le_bytes());
            for &dim in &tensor.dims {
                header.extend((dim as u64).to_le_bytes());
            }
            header.extend(tensor.type_id.to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset = offset
                .checked_add(tensor.len)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| wrong("the tensors are larger than any file"))?;
        }
        header.resize(header.len().next_multiple_of(alignment), 0);
        out.write_all(&header)?;
        let mut data =
            DataWriter { out, alignment, lens: self.tensors.iter().map(|t| t.len).collect(), current: 0, written: 0 };
        data.end_full_tensors()?;
        Ok(data)
    }
}

/// Takes the data of the declared tensors, one after the other, in pieces of any size.
#[derive(Debug)]
pub struct DataWriter<W> {
    out: W,
    alignment: usize,
    lens: Vec<usize>,
    current: usize,
    /// Bytes of the current tensor so far.
    written: usize,
}

impl<W: Write> DataWriter<W> {
    /// Writes the next bytes of the current tensor. When it has all that were declared, padding
    /// follows and the next tensor is the current one; a piece may not reach into it.
    ///
    /// # Errors
    ///
    /// Those of the output, and `InvalidInput` if the piece is longer than what the tensor lacks.
    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        let len = self.lens.get(self.current).copied().unwrap_or(0);
        if piece.len() > len - self.written.min(len) {
            return Err(wrong("a tensor got more data than was declared"));
        }
        self.out.write_all(piece)?;
        self.written += piece.len();
        self.end_full_tensors()
    }

    /// Flushes and gives the output back.
    ///
    /// # Errors
    ///
    /// Those of the output, and `InvalidInput` if data is lacking.
    pub fn finish(mut self) -> io::Result<W> {
        if self.current < self.lens.len() {
            return Err(wrong("a tensor got less data than was declared"));
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn end_full_tensors(&mut self) -> io::Result<()> {
        while self.lens.get(self.current) == Some(&self.written) {
            const ZEROS: [u8; 64] = [0; 64];
            let mut padding = self.written.next_multiple_of(self.alignment) - self.written;
            while padding > 0 {
                let n = padding.min(ZEROS.len());
                self.out.write_all(&ZEROS[..n])?;
                padding -= n;
            }
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_held_to() {
        let mut writer = Writer::new();
        writer.tensor("a", &[2], 0, 8).tensor("none", &[1], 0, 0).tensor("b", &[1], 0, 4);
        let mut data = writer.begin(Vec::new()).unwrap();
        assert!(data.write(&[0; 9]).is_err());
        data.write(&[1; 3]).unwrap();
        data.write(&[1; 5]).unwrap();
        let mut too_short = writer.begin(Vec::new()).unwrap();
        too_short.write(&[1; 8]).unwrap();
        assert!(too_short.finish().is_err());
        data.write(&[2; 4]).unwrap();
        assert!(data.write(&[0]).is_err());
        let file = data.finish().unwrap();
        assert_eq!(file.len() % 32, 0);
        assert_eq!(file[file.len() - 64..][..8], [1; 8]);
        assert_eq!(file[file.len() - 32..][..5], [2, 2, 2, 2, 0]);
    }
}
