//! Making the copy.

use super::bound::Notes;
use super::{Chunk, ITEM_ROWS, Screen};
use crate::error::{Error, Result};
use crate::head::Head;
use crate::pages::{LARGE, Pages};
use crate::threads::Pool;
use std::ops::Range;
use std::sync::Arc;
use tritone_kernels::float::FloatKernels;
use tritone_kernels::isa::Isa;
use tritone_kernels::screen::{Shape, TILE, pack_row};

/// Bytes of a chunk at most, so that hardly any of its last large page is left over.
const CHUNK_BYTES: usize = 10 * LARGE;

impl Screen {
    /// Copies a head; nothing if there is no memory for it.
    ///
    /// # Errors
    /// A row that can't be decoded.
    pub(crate) fn build(
        head: &Arc<Head>,
        (n_rows, cols): (usize, usize),
        float: FloatKernels,
        isa: Isa,
        pool: &mut Pool,
    ) -> Result<Option<Screen>> {
        let shape = Shape::new(cols);
        let most = (CHUNK_BYTES / (2 * ITEM_ROWS * shape.row_bytes())).max(1) * ITEM_ROWS;
        let chunk_rows = n_rows.div_ceil(4 * pool.n_threads()).next_multiple_of(ITEM_ROWS).min(most);
        let n_chunks = n_rows.div_ceil(chunk_rows);
        let (_, outputs) = pool.run_kept(
            (0..pool.n_threads()).map(|_| Vec::new()).collect(),
            Arc::clone(head),
            n_chunks,
            1,
            move |head, items, out: &mut Vec<(usize, Result<Option<Chunk>>)>| {
                for item in items {
                    let rows = item * chunk_rows..((item + 1) * chunk_rows).min(n_rows);
                    out.push((item, Chunk::new(head, &float, isa, shape, rows)));
                }
            },
        );
        let mut made: Vec<_> = outputs.into_iter().flat_map(|output| output.values).collect();
        made.sort_unstable_by_key(|(item, _)| *item);
        let (mut chunks, mut loose) = (Vec::with_capacity(n_chunks), Vec::new());
        for (_, chunk) in made {
            let chunk = chunk.map_err(|error| Error::Malformed {
                at: Box::default(),
                what: error.to_string(),
                fix: "the file is damaged, download it again",
            })?;
            let Some(mut chunk) = chunk else { return Ok(None) };
            loose.append(&mut chunk.loose);
            chunks.push(chunk);
        }
        let largest_norm = chunks.iter().map(|chunk| chunk.notes.largest_norm()).fold(0.0, f32::max);
        Ok(Some(Screen { head: Arc::clone(head), float, isa, shape, n_rows, chunk_rows, chunks, loose, largest_norm }))
    }
}

impl Chunk {
    /// Copies some rows; nothing if there is no memory for it.
    fn new(head: &Head, float: &FloatKernels, isa: Isa, shape: Shape, rows: Range<usize>) -> Result<Option<Chunk>> {
        let high_bytes = rows.len().div_ceil(TILE) * shape.tile_bytes();
        let Ok(planes) = Pages::zeroed(high_bytes + rows.len() * shape.row_bytes()) else { return Ok(None) };
        let mut chunk = Chunk { planes, high_bytes, notes: Notes::default(), loose: Vec::new() };
        let (high, low) = chunk.planes.split_at_mut(high_bytes);
        let mut weights = vec![0.0; shape.cols()];
        let tiles = high.chunks_exact_mut(shape.tile_bytes());
        for (first, (tile, low)) in rows.clone().step_by(TILE).zip(tiles.zip(low.chunks_mut(TILE * shape.row_bytes())))
        {
            for (place, low) in low.chunks_exact_mut(shape.row_bytes()).enumerate() {
                head.row(float, first + place, &mut weights)?;
                if !chunk.notes.push(pack_row(isa, shape, &weights, place, tile, low)) {
                    chunk.loose.push((first + place) as u32);
                }
            }
        }
        Ok(Some(chunk))
    }
}
