use super::*;
use crate::isa::Detected;
use crate::testing::{Random, can_run};
use std::vec;
use std::vec::Vec;

/// Every level that has an instance here and that this processor can run.
fn levels() -> Vec<Isa> {
    let levels = [Level::Scalar, Level::Avx2, Level::Avx512Vnni, Level::Neon, Level::NeonDotprod];
    let can_run = levels.into_iter().filter(|level| can_run(*level));
    can_run.map(|level| Isa::with_level(level, Detected::here()).expect("it can run")).collect()
}

/// Rows of a head, packed.
struct Packed {
    shape: Shape,
    tiles: Vec<u8>,
    rows: Vec<u8>,
    notes: Vec<RowNotes>,
}

fn pack(isa: Isa, cols: usize, weights: &[f32]) -> Packed {
    let shape = Shape::new(cols);
    let n_rows = weights.len() / cols;
    let mut packed = Packed {
        shape,
        tiles: vec![0; n_rows.div_ceil(TILE) * shape.tile_bytes()],
        rows: vec![0; n_rows * shape.row_bytes()],
        notes: Vec::new(),
    };
    let rows = packed.rows.chunks_exact_mut(shape.row_bytes());
    for (i, (weights, row)) in weights.chunks_exact(cols).zip(rows).enumerate() {
        let tile = &mut packed.tiles[i / TILE * shape.tile_bytes()..][..shape.tile_bytes()];
        packed.notes.push(pack_row(isa, shape, weights, i % TILE, tile, row));
    }
    packed
}

impl Packed {
    /// Nibbles and scale of a weight, from both planes.
    fn code(&self, row: usize, col: usize) -> (u8, u8, u8) {
        let (shape, block) = (self.shape, col / BLOCK);
        let n_blocks = shape.n_blocks();
        let nibble = |byte: u8| if col % 8 < 4 { byte & 15 } else { byte >> 4 };
        let tile = &self.tiles[row / TILE * shape.tile_bytes()..][..shape.tile_bytes()];
        let group = &tile[block / GROUP * GROUP_LINES * 64..];
        let high = nibble(group[64 + col / 8 % (GROUP * BLOCK_LINES) * 64 + row % TILE * 4 + col % 4]);
        let low = &self.rows[row * shape.row_bytes()..][..shape.row_bytes()];
        assert_eq!(low[block], group[block % GROUP * TILE + row % TILE]);
        (high, nibble(low[n_blocks + col / 8 * 4 + col % 4]), low[block])
    }
}

/// Asserts that a product of plane `which` is that of the definition, as near as it must be.
#[track_caller]
fn check(packed: &Packed, which: usize, row: usize, activations: &[f64], got: f32) {
    let (mut sum, mut magnitude) = (0.0, 0.0);
    for (col, x) in activations.iter().enumerate() {
        let (high, low, part) = packed.code(row, col);
        let product = f64::from(i32::from(part) * (2 * i32::from([high, low][which]) - 15)) * x;
        sum += product;
        magnitude += product.abs();
    }
    let most = magnitude * packed.shape.rounding();
    assert!((f64::from(got) - sum).abs() <= most, "row {row}: {got}, should be {sum}");
}

/// What tiles are multiplied with, as near to the activations as eight bits and a scale for a block allow.
fn short(codes: &[i16]) -> Vec<f64> {
    let steps = steps(codes);
    let short: Vec<f64> = steps.iter().flat_map(Step::short).take(codes.len()).collect();
    for (codes, short) in codes.chunks(BLOCK).zip(short.chunks(BLOCK)) {
        let largest = codes.iter().map(|code| f64::from(*code).abs()).fold(0.0, f64::max);
        let near = |(code, short): (&i16, &f64)| (f64::from(*code) - short).abs() <= largest * 0.5001 / 127.0;
        assert!(codes.iter().zip(short).all(near), "{codes:?}: {short:?}");
    }
    short
}

fn steps(codes: &[i16]) -> Vec<Step> {
    let mut steps = vec![Step::ZERO; codes.len().div_ceil(STEP)];
    prepare(codes, &mut steps);
    steps
}

fn weights(random: &mut Random, n: usize) -> Vec<f32> {
    // Sums of uniform numbers, so that most are small.
    let mut one = || (0..4).map(|_| random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5).sum();
    (0..n).map(|_| one()).collect()
}

/// All instruction sets pack alike and give the same bits, which are the definition's up to the joining of blocks.
#[test]
fn all_instruction_sets_agree() {
    let mut random = Random::new(23);
    let sizes = if cfg!(miri) {
        vec![(1, 1), (100, 17)]
    } else {
        vec![(1, 1), (63, 3), (64, 16), (65, 17), (128, 33), (129, 20), (384, 48), (2560, 21)]
    };
    for (cols, n_rows) in sizes {
        let weights = weights(&mut random, cols * n_rows);
        let packed = pack(Isa::scalar(), cols, &weights);
        let limit = usize::from(LIMIT.unsigned_abs());
        let codes: Vec<Vec<i16>> = (0..7)
            .map(|i| {
                // Some blocks with small activations, and some with none.
                let most = |col: usize| [limit, limit, 40, 0][(i + col / BLOCK) % 4];
                let one = |most: usize, random: &mut Random| (random.below(2 * most + 1) as i32 - most as i32) as i16;
                (0..cols).map(|col| one(most(col), &mut random)).collect()
            })
            .collect();
        let states: Vec<Step> = codes.iter().flat_map(|codes| steps(codes)).collect();
        let n_tiles = n_rows.div_ceil(TILE);
        let wanted: Vec<u32> = (0..n_rows as u32).filter(|row| row % 3 != 1).collect();
        let mut expected = None;
        for isa in levels() {
            let again = pack(isa, cols, &weights);
            assert!(again.tiles == packed.tiles && again.rows == packed.rows && again.notes == packed.notes, "{isa:?}");
            for n_states in 1..=codes.len() {
                let states = &states[..n_states * packed.shape.n_steps()];
                let mut high = vec![7.0; n_states * n_tiles * TILE];
                tiles(isa, packed.shape, &packed.tiles, states, &mut high);
                for (codes, high) in codes.iter().zip(high.chunks_exact(n_tiles * TILE)) {
                    let short = short(codes);
                    for (row, high) in high[..n_rows].iter().enumerate() {
                        check(&packed, 0, row, &short, *high);
                    }
                }
                let state = &states[(n_states - 1) * packed.shape.n_steps()..];
                let mut low = vec![7.0; wanted.len()];
                rows(isa, packed.shape, &packed.rows, &wanted, state, &mut low);
                crate::testing::on_each_processor(|| {
                    let (mut high_again, mut low_again) = (vec![7.0; high.len()], vec![7.0; low.len()]);
                    tiles(isa, packed.shape, &packed.tiles, states, &mut high_again);
                    rows(isa, packed.shape, &packed.rows, &wanted, state, &mut low_again);
                    assert!(high_again == high && low_again == low, "{isa:?}, {n_rows} x {cols}, another processor");
                });
                let whole: Vec<f64> = codes[n_states - 1].iter().map(|code| f64::from(*code)).collect();
                for (row, low) in wanted.iter().zip(&low) {
                    check(&packed, 1, *row as usize, &whole, *low);
                }
                if n_states == codes.len() {
                    let bits: Vec<u32> = high.iter().chain(&low).map(|product| product.to_bits()).collect();
                    assert_eq!(*expected.get_or_insert(bits.clone()), bits, "{isa:?}, {n_rows} x {cols}");
                }
            }
        }
    }
}

/// The largest nibbles, scales and activations there can be.
#[test]
fn extremes_fit() {
    for cols in [128, 2560] {
        let shape = Shape::new(cols);
        for (byte, x) in [(0xff, LIMIT), (0xff, -LIMIT), (0, LIMIT), (0, -LIMIT), (0xf0, LIMIT), (0x0f, -LIMIT)] {
            let state = steps(&vec![x; cols]);
            let nibble = |byte: u8| i64::from(2 * (byte & 15)) + i64::from(2 * (byte >> 4)) - 30;
            let expected = (255 * nibble(byte) * i64::from(x) * cols as i64 / 2) as f64;
            let right = |got: f32| (f64::from(got) - expected).abs() <= expected.abs() * shape.rounding();
            let mut plane = vec![byte; shape.tile_bytes()];
            plane.chunks_mut(64 * GROUP_LINES).for_each(|group| group[..64].fill(255));
            let mut row = vec![byte; shape.row_bytes()];
            row[..shape.n_blocks()].fill(255);
            for isa in levels() {
                let mut out = [1.0; TILE];
                tiles(isa, shape, &plane, &state, &mut out);
                assert!(out.iter().all(|got| right(*got)), "{isa:?}: {out:?}, {expected}");
                rows(isa, shape, &row, &[0], &state, &mut out[..1]);
                assert!(right(out[0]), "{isa:?}: {}, {expected}", out[0]);
            }
        }
    }
}

/// Norms are at least what they say, and not much more; what is left after each plane is as small as it should be.
#[test]
fn notes_are_bounds() {
    let mut random = Random::new(5);
    for cols in [1, 64, 100, 384] {
        let mut all = weights(&mut random, cols * 20);
        all[..cols].fill(0.0);
        all[cols..2 * cols].fill(1e-35);
        all[2 * cols] = 1e4;
        all[3 * cols] = f32::INFINITY;
        all[4 * cols] = f32::NAN;
        all[5 * cols] = -3e38;
        all[6 * cols..7 * cols].iter_mut().for_each(|weight| *weight *= 1e-22);
        all[7 * cols..8 * cols].iter_mut().for_each(|weight| *weight *= 1e15);
        let packed = pack(Isa::detect(), cols, &all);
        for (row, (weights, notes)) in all.chunks_exact(cols).zip(&packed.notes).enumerate() {
            if [3, 4, 5].contains(&row) {
                assert!(!notes.norm.is_finite(), "{notes:?}");
                continue;
            }
            let mut squares = [0.0f64; 3];
            for (col, weight) in weights.iter().enumerate() {
                let (high, low, part) = packed.code(row, col);
                let unit = f64::from(notes.scale) * f64::from(part);
                let from_high = unit * (16.0 * f64::from(high) - 120.0);
                let from_both = unit * (16.0 * f64::from(high) + f64::from(low) - 127.5);
                for (square, value) in squares.iter_mut().zip([0.0, from_high, from_both]) {
                    *square += (f64::from(*weight) - value).powi(2);
                }
                if row > 7 {
                    assert!((f64::from(*weight) - from_both).abs() <= unit * 0.5001, "row {row}");
                }
            }
            for (square, bound) in squares.into_iter().zip([notes.norm, notes.after_high, notes.after_low]) {
                let (norm, bound) = (square.sqrt(), f64::from(bound));
                let most = norm * 1.002 + squares[0].sqrt() * 1e-6 + 1e-20;
                assert!((norm..most).contains(&bound), "row {row}: {norm}, {bound}");
            }
        }
    }
}

#[test]
fn rounding_is_to_the_nearest_step() {
    let x = [0.5, -1.0, 0.25, 0.0, 1.0];
    let mut out = [9; 5];
    let unit = round(&x, &mut out);
    assert_eq!(out, [8192, -LIMIT, 4096, 0, LIMIT]);
    assert!((unit - 1.0 / f64::from(LIMIT)).abs() < 1e-12);
    assert_eq!(round(&[0.0; 3], &mut out[..3]), 0.0);
    assert_eq!(out[..3], [0; 3]);
}
