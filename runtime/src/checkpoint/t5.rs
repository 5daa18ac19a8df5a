//! T5, a tensor type of Tritone's own: five trits in a byte, laid out in a file as the kernels read
//! it, so that it is used in place. `docs/t5.md` describes it for other programs.
//!
//! A tensor is a header of 64 bytes, the packed matrix
//! ([`tritone_kernels::format`], layout T5) and the scales: one f32 for the tensor, or
//! one half-precision number for each block, in the order `[row][block]`.

use std::ops::Range;
use tritone_kernels::format::{Geometry, Layout, t5};

/// The tensor type's number in GGUF: `"T5"` in ASCII.
pub const TYPE_ID: u32 = 0x5435;

/// Files with such tensors are aligned to this many bytes, a cache line.
pub const ALIGNMENT: usize = 64;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"TRITONE5";
const VERSION: u32 = 1;

/// Columns that may share a scale where a tensor has several.
pub const BLOCKS: [usize; 3] = [64, 128, 256];

/// What the header of a tensor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    geometry: Geometry,
    /// 0 for one scale.
    block: usize,
}

impl Header {
    /// The header of a matrix of `rows x cols` with a scale for each `block` columns of a row, or
    /// one for all if `block` is 0.
    ///
    /// # Errors
    /// What is impossible about it, in words.
    pub fn new(rows: usize, cols: usize, block: usize) -> Result<Header, String> {
        if block != 0 && !BLOCKS.contains(&block) {
            return Err(format!("t5 has scales for 64, 128 or 256 weights or for the tensor, not for {block}"));
        }
        let columns = if block == 0 { cols } else { block };
        match Geometry::new(Layout::T5, rows, cols, columns) {
            Ok(geometry) => Ok(Header { geometry, block }),
            Err(error) => Err(format!("a matrix of {rows} x {cols} cannot be packed: {error}")),
        }
    }

    /// Reads the header at the start of a tensor's data.
    ///
    /// # Errors
    /// What is wrong with it, in words: the header contradicts itself or the tensor's shape.
    pub fn read(data: &[u8], rows: usize, cols: usize) -> Result<Header, String> {
        let Some(bytes) = data.first_chunk::<HEADER_BYTES>() else {
            return Err(format!("a T5 tensor starts with {HEADER_BYTES} bytes, {} are there", data.len()));
        };
        if &bytes[..8] != MAGIC {
            return Err("a T5 tensor starts with \"TRITONE5\", this one does not".to_owned());
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u32_at(8) != VERSION {
            return Err(format!("version {} of T5 is unknown, this program reads {VERSION}", u32_at(8)));
        }
        let header = Header::new(rows, cols, u32_at(12) as usize)?;
        // Everything else follows from the shape, and so must be exactly as it is written.
        if *bytes != header.to_bytes() {
            return Err(format!("the header of the T5 tensor does not describe a matrix of {rows} x {cols}"));
        }
        Ok(header)
    }

    /// The header as it stands in a file.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.block as u32).to_le_bytes());
        let numbers = [
            self.geometry.rows,
            self.geometry.cols,
            HEADER_BYTES,
            self.geometry.data_len(),
            self.scales_offset(),
            self.scales_bytes(),
        ];
        for (field, number) in bytes[16..].as_chunks_mut().0.iter_mut().zip(numbers) {
            *field = (number as u64).to_le_bytes();
        }
        bytes
    }

    /// Shape of the packed matrix; its block is `cols` if there is one scale.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Columns that share a scale, or 0 if there is one for the tensor.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Where the scales begin. The packed matrix before them is whole cache lines.
    pub fn scales_offset(&self) -> usize {
        HEADER_BYTES + self.geometry.data_len()
    }

    fn scales_bytes(&self) -> usize {
        if self.block == 0 { 4 } else { self.geometry.rows * self.geometry.n_blocks() * 2 }
    }

    /// Bytes of the tensor.
    pub fn tensor_bytes(&self) -> usize {
        self.scales_offset() + self.scales_bytes()
    }

    /// Checks some rows of a tile of the packed matrix `packed`: every byte is one that packing
    /// writes, padding trits are 0, and the negative groups are counted right.
    ///
    /// # Errors
    /// The first row that is wrong in the first wrong block, and what is wrong.
    ///
    /// # Panics
    /// There is no such tile, or `packed` has another length.
    pub(crate) fn check(&self, packed: &[u8], tile: usize, rows: Range<usize>) -> Result<(), (usize, &'static str)> {
        let geometry = &self.geometry;
        assert_eq!(packed.len(), geometry.data_len(), "a whole packed matrix");
        let groups = geometry.groups();
        // The last group's trits that exist are worth no more than this; others would add 3^k.
        let left = geometry.block - (groups - 1) * t5::GROUP;
        let most_of_last = ((3_u32.pow(left as u32) - 1) / 2) as u8;
        for block in tile * geometry.n_blocks()..(tile + 1) * geometry.n_blocks() {
            let bytes = &packed[block * geometry.tile_block_bytes()..][..geometry.tile_block_bytes()];
            let mut bad = [false; t5::TILE_ROWS];
            let mut negative = [0_u16; t5::TILE_ROWS];
            for (group, line) in bytes.as_chunks::<{ t5::TILE_ROWS }>().0.iter().enumerate() {
                let most = if group + 1 == groups { most_of_last } else { t5::MAX_VALUE };
                let lanes = line[rows.clone()].iter().zip(&mut bad[rows.clone()]).zip(&mut negative[rows.clone()]);
                for ((&byte, bad), negative) in lanes {
                    *bad |= (byte & 0x7f > most) | (byte == 0x80);
                    *negative += u16::from(byte >> 7);
                }
            }
            let counts = packed[geometry.trailer_offset() + block * t5::TILE_ROWS * 2..].as_chunks().0;
            for row in rows.clone() {
                if bad[row] {
                    return Err((tile * t5::TILE_ROWS + row, "holds a byte that stands for no five trits"));
                }
                if negative[row] != u16::from_le_bytes(counts[row]) {
                    return Err((tile * t5::TILE_ROWS + row, "has a wrong count of negative groups"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_wrong_ones_are_refused() {
        for (rows, cols, block) in [(1, 5, 0), (64, 256, 64), (65, 512, 128), (1, 256, 256)] {
            let header = Header::new(rows, cols, block).unwrap();
            let bytes = header.to_bytes();
            assert_eq!(Header::read(&bytes, rows, cols), Ok(header));
            assert!(Header::read(&bytes, rows + 1, cols).is_err());
            assert!(Header::read(&bytes[..63], rows, cols).is_err());
            for at in 0..HEADER_BYTES {
                let mut damaged = bytes;
                damaged[at] ^= 0x40;
                // A block of 64 in place of none is another header, and a sound one.
                if at != 12 {
                    assert!(Header::read(&damaged, rows, cols).is_err(), "byte {at}");
                }
            }
            assert_eq!(header.scales_offset() % ALIGNMENT, 0);
        }
        assert!(Header::new(4, 256, 32).is_err());
        assert!(Header::new(4, 200, 128).is_err());
        assert!(Header::new(4, 0, 0).is_err());
    }
}
