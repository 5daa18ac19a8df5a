//! Packs the rows of a T5 tensor tile by tile.

use crate::checkpoint::t5::Header;
use half::f16;

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
        let geometry = *header.geometry();
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
        if self.rows_in_tile == self.header.geometry().tile_rows() {
            self.end_tile(out);
        }
    }

    fn end_tile(&mut self, out: &mut Vec<u8>) {
        let trailer = self.trailers.len();
        self.trailers.resize(trailer + self.header.geometry().tile_trailer_bytes(), 0);
        self.header.geometry().pack_tile(&self.trits, &mut self.body, &mut self.trailers[trailer..]);
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
        if self.header.block() == 0 {
            out.extend(scale.to_le_bytes());
        } else {
            out.extend_from_slice(&self.scales);
        }
    }
}
