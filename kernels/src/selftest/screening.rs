//! Screening of an output head's rows against the portable instance.

use super::{Outcome, Random, same_bits};
use crate::isa::Isa;
use crate::screen::{self, LIMIT, RowNotes, STEP, Shape, Step, TILE};
use core::array;

/// Weights of a row: two groups of blocks, the last one short.
const COLS: usize = 300;
const N_STEPS: usize = COLS.div_ceil(STEP);
const N_TILES: usize = 2;
const N_ROWS: usize = N_TILES * TILE;
/// Bytes of the plane of tiles and of that of rows.
const TILES: usize = N_TILES * 3200;
const ROWS: usize = N_ROWS * 198;
/// States: the kernels take four, two and one at a time.
const N_STATES: usize = 7;

/// Packs rows and multiplies both planes as compiled for `isa` and as portable code. Calls `each` once for every operation.
#[inline(never)]
pub(super) fn all(isa: Isa, each: &mut dyn FnMut(Outcome)) {
    let mut random = Random(0x7363_7265_656e);
    let portable = Isa::scalar();
    let weights: [f32; COLS] = array::from_fn(|_| (random.next() >> 40) as f32 / (1 << 20) as f32 - 1.0);
    let packed = Packed::new(portable, &weights);
    let states = states(&mut random);
    let mut outcome = |name, agrees| each(Outcome { name, level: screen::level(isa).name(), preferred: true, agrees });
    outcome("screen-pack", Packed::new(isa, &weights) == packed);
    let tiles = |isa, n_states| packed.tiles(isa, &states[..n_states * N_STEPS]);
    outcome("screen-tiles", [1, N_STATES].into_iter().all(|n| same_bits(&tiles(isa, n), &tiles(portable, n))));
    let rows = |isa, state| packed.rows(isa, &states[state * N_STEPS..][..N_STEPS]);
    outcome("screen-rows", [0, N_STATES - 1].into_iter().all(|n| same_bits(&rows(isa, n), &rows(portable, n))));
}

/// States with activations that are random, but the largest there can be in the last one.
fn states(random: &mut Random) -> [Step; N_STATES * N_STEPS] {
    let mut states = [Step::ZERO; N_STATES * N_STEPS];
    for (i, state) in states.chunks_exact_mut(N_STEPS).enumerate() {
        let codes: [i16; COLS] = array::from_fn(|_| match random.next() {
            _ if i == N_STATES - 1 => LIMIT,
            random => (random % (2 * LIMIT as u64 + 1)) as i16 - LIMIT,
        });
        screen::prepare(&codes, state);
    }
    states
}

/// Rows of a head in both planes.
#[derive(PartialEq)]
struct Packed {
    tiles: [u8; TILES],
    rows: [u8; ROWS],
    notes: [RowNotes; N_ROWS],
}

impl Packed {
    /// Each row has the weights in another order.
    #[inline(never)]
    fn new(isa: Isa, weights: &[f32; COLS]) -> Packed {
        let shape = Shape::new(COLS);
        let mut packed = Packed { tiles: [0; TILES], rows: [0; ROWS], notes: [RowNotes::default(); N_ROWS] };
        let rows = packed.rows.chunks_exact_mut(shape.row_bytes()).zip(&mut packed.notes);
        for (i, (row, notes)) in rows.enumerate() {
            let mut weights = *weights;
            weights.rotate_left(7 * i);
            let tile = &mut packed.tiles[i / TILE * shape.tile_bytes()..][..shape.tile_bytes()];
            *notes = screen::pack_row(isa, shape, &weights, i % TILE, tile, row);
        }
        packed
    }

    /// Products of all tiles; behind those of the states there are zeros.
    #[inline(never)]
    fn tiles(&self, isa: Isa, states: &[Step]) -> [f32; N_STATES * N_ROWS] {
        let mut out = [0.0; N_STATES * N_ROWS];
        let n = states.len() / N_STEPS * N_ROWS;
        screen::tiles(isa, Shape::new(COLS), &self.tiles, states, &mut out[..n]);
        out
    }

    /// Products of every third row, from the last one on.
    #[inline(never)]
    fn rows(&self, isa: Isa, state: &[Step]) -> [f32; N_ROWS / 3] {
        let wanted: [u32; N_ROWS / 3] = array::from_fn(|i| (N_ROWS - 1 - 3 * i) as u32);
        let mut out = [0.0; N_ROWS / 3];
        screen::rows(isa, Shape::new(COLS), &self.rows, &wanted, state, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_have_their_sizes_and_products_are_some() {
        let shape = Shape::new(COLS);
        assert_eq!((TILES, ROWS), (N_TILES * shape.tile_bytes(), N_ROWS * shape.row_bytes()));
        let mut random = Random(3);
        let weights = array::from_fn(|i| i as f32 - 100.0);
        let (packed, states) = (Packed::new(Isa::scalar(), &weights), states(&mut random));
        assert!(packed.tiles(Isa::scalar(), &states).iter().all(|product| *product != 0.0));
        assert!(packed.rows(Isa::scalar(), &states[..N_STEPS]).iter().all(|product| *product != 0.0));
    }
}
