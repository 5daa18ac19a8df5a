//! T5, a tensor type of Tritone's own: five trits in a byte, laid out in a file as the kernels read
//! it, so that it is used in place. `docs/t5.md` describes it for other programs.
//!
//! A tensor is a header of 64 bytes, the packed matrix
//! ([`tritone_kernels::format`], layout T5) and the scales: one f32 for the tensor, or
//! one half-precision number for each block, in the order `[row][block]`.

use half::f16;
use tritone_kernels::format::{Geometry, Layout};

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
}

/// Collects rows until a tile is full.
#[derive(Debug)]
pub(super) struct TileWriter {
    header: Header,
    /// The tile's trits; rows not yet given are zeros.
    trits: Vec<i8>,
    rows_in_tile: usize,
    started: bool,
    body: Vec<u8>,
    /// The trailers of the tiles so far.
    trailers: Vec<u8>,
    /// Scales of blocks so far.
    scales: Vec<u8>,
}

impl TileWriter {
    pub(super) fn new(header: Header) -> TileWriter {
        let geometry = header.geometry;
        TileWriter {
            header,
            trits: vec![0; geometry.tile_rows() * geometry.cols],
            rows_in_tile: 0,
            started: false,
            body: vec![0; geometry.tile_bytes()],
            trailers: Vec::new(),
            scales: Vec::new(),
        }
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn push_row(&mut self, trits: &[i8], scales: &[f16], out: &mut Vec<u8>) {
        if !self.started {
            out.extend(self.header.to_bytes());
            self.started = true;
        }
        self.trits[self.rows_in_tile * trits.len()..][..trits.len()].copy_from_slice(trits);
        self.scales.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
        self.rows_in_tile += 1;
        if self.rows_in_tile == self.header.geometry.tile_rows() {
            self.end_tile(out);
        }
    }

    fn end_tile(&mut self, out: &mut Vec<u8>) {
        let trailer = self.trailers.len();
        self.trailers.resize(trailer + self.header.geometry.tile_trailer_bytes(), 0);
        self.header.geometry.pack_tile(&self.trits, &mut self.body, &mut self.trailers[trailer..]);
        out.extend_from_slice(&self.body);
        self.trits.fill(0);
        self.rows_in_tile = 0;
    }

    /// `scale` is the tensor's, if it has one.
    pub(super) fn finish(mut self, scale: f32, out: &mut Vec<u8>) {
        if self.rows_in_tile > 0 {
            self.end_tile(out);
        }
        out.extend_from_slice(&self.trailers);
        if self.header.block == 0 {
            out.extend(scale.to_le_bytes());
        } else {
            out.extend_from_slice(&self.scales);
        }
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
