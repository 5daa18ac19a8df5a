//! How large a logit can be, from what the copy of the head says of it.
//!
//! Row `w`, hidden state `x`. `w = p + h = p + l + r`: the high nibbles of the codes say `p`, the low ones `l`, and what the
//! codes do not say is `r`. `x = c + d = s + e`: the high nibbles are multiplied with `s`, activations of 8 bits, the low ones
//! with `c`, activations of 15. Then
//!
//! ```text
//! w . x = p . s  +  p . e  +  h . x            =  p . s  +  p . e  +  l . c  +  l . d  +  r . x
//! |w . x - p . s|                <=  (|w| + |h|) |e|  +  |h| |x|        (Cauchy-Schwarz, |p| <= |w| + |h|)
//! |w . x - p . s - l . c|        <=  (|w| + |h|) |e|  +  (|h| + |r|) |d|  +  |r| |x|
//! |estimate - p . s|             <=  f (|w| + |h|) (|x| + |e|)           (rounding where blocks are joined)
//! |estimate - l . c|             <=  f (|h| + |r|) (|x| + |d|)
//! |logit - w . x|                <=  g |w| |x|,   g = (columns / 32 + 16) 2^-24   (rounding in 32 lanes)
//! ```
//!
//! `f` is the kernels' (`Shape::rounding`). The computed logit is a sum in 32 lanes and a tree of 5
//! (`tritone_kernels::float`): each product takes part in at most `columns / 32 + 7` roundings, so `g` has room for the
//! second-order terms. The bound is widened by some millionths for the arithmetic here, which is in single
//! precision. Rows whose norm is not finite or so large that a sum could overflow are *loose*: always computed. A hidden state
//! with which a product could overflow, or is so small that it could vanish, is not screened.
//!
//! One norm for a row and one for the state are used. Norms of blocks of them (`sum |r_b| |x_b|`) are hardly tighter where energy is
//! spread as in trained models: of the story model's rows 0.37% instead of 0.40% were left for a greedy choice.

use super::ITEM_ROWS;
use tritone_kernels::screen::{self, RowNotes, STEP, Shape, Step};

/// Rows with a larger norm are loose.
const LARGEST_NORM: f32 = 1e25;

/// Products of norms above this could overflow single precision somewhere.
const LARGEST_PRODUCT: f64 = 1e30;

/// Below this the norm of a state says too little of what was lost.
const SMALLEST_NORM: f64 = 1e-20;

/// What is known of rows, one value for each.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Multiplies the blocks' scales.
    scale: Vec<f32>,
    /// At least the norm.
    norm: Vec<f32>,
    /// At least the norm of what the high nibbles do not say.
    after_high: Vec<f32>,
    /// At least the norm of what the codes do not say.
    after_low: Vec<f32>,
    /// Of each [`ITEM_ROWS`] rows the largest of `norm` and of `after_high`.
    largest: Vec<[f32; 2]>,
}

impl Notes {
    /// Bytes of a row.
    pub(super) const ROW_BYTES: usize = 4 * size_of::<f32>();

    /// Adds a row; false if it is loose.
    pub(super) fn push(&mut self, row: RowNotes) -> bool {
        let tight = row.norm < LARGEST_NORM;
        // A loose row's estimate is 0: it has to be something.
        let row = if tight { row } else { RowNotes::default() };
        if self.norm.len().is_multiple_of(ITEM_ROWS) {
            self.largest.push([0.0; 2]);
        }
        if let Some([norm, after_high]) = self.largest.last_mut() {
            (*norm, *after_high) = (norm.max(row.norm), after_high.max(row.after_high));
        }
        self.scale.push(row.scale);
        self.norm.push(row.norm);
        self.after_high.push(row.after_high);
        self.after_low.push(row.after_low);
        tight
    }

    /// The largest norm.
    pub(super) fn largest_norm(&self) -> f32 {
        self.largest.iter().map(|[norm, _]| *norm).fold(0.0, f32::max)
    }

    pub(super) fn len(&self) -> usize {
        self.norm.len()
    }

    /// Makes estimates of the logits of rows from `first` on of their products of high nibbles.
    pub(super) fn estimate(&self, state: &Hidden, first: usize, products: &mut [f32]) {
        for (product, scale) in products.iter_mut().zip(&self.scale[first..]) {
            *product = *product * scale * state.high;
        }
    }

    /// Calls `each` with the rows from `first` on, where an item begins, whose logits may reach `threshold`, by their
    /// estimates and the largest of these.
    pub(super) fn reaching(
        &self,
        state: &Hidden,
        first: usize,
        (estimates, largest): (&[f32], f32),
        threshold: f32,
        mut each: impl FnMut(usize),
    ) {
        const TOGETHER: usize = 32;
        let n = estimates.len();
        let (norm, after) = (&self.norm[first..first + n], &self.after_high[first..first + n]);
        let [of_norm, of_after, _] = state.errors(Plane::High);
        let [largest_norm, largest_after] = self.largest[first / ITEM_ROWS];
        // Of hardly any item does a row reach. With room for the rounding of the other rows' bounds.
        let error = (largest_norm * of_norm + largest_after * of_after) * 1.0001 + largest.abs() * 1e-6;
        if most(largest, error) < threshold {
            return;
        }
        let reaches = |i: usize| most(estimates[i], norm[i] * of_norm + after[i] * of_after) >= threshold;
        for start in (0..n).step_by(TOGETHER) {
            let some = start..(start + TOGETHER).min(n);
            // Without a branch for each, since hardly any does.
            let (estimates, norm, after) = (&estimates[some.clone()], &norm[some.clone()], &after[some.clone()]);
            let mut any = false;
            for ((estimate, norm), after) in estimates.iter().zip(norm).zip(after) {
                any |= most(*estimate, norm * of_norm + after * of_after) >= threshold;
            }
            if any {
                some.filter(|i| reaches(*i)).for_each(|i| each(first + i));
            }
        }
    }

    /// The most that a logit can be, by its estimate and its product of low nibbles.
    pub(super) fn most(&self, state: &Hidden, row: usize, estimate: f32, product: f32) -> f32 {
        let [of_norm, of_after_high, of_after_low] = state.errors(Plane::Low);
        let error =
            self.norm[row] * of_norm + self.after_high[row] * of_after_high + self.after_low[row] * of_after_low;
        most(estimate + product * self.scale[row] * state.low, error + estimate.abs() * 1e-6)
    }
}

/// The most that a logit can be, with room for how this was computed.
fn most(estimate: f32, error: f32) -> f32 {
    estimate + (error * 1.00001 + estimate.abs() * 1e-6 + 1e-36)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plane {
    High,
    Low,
}

/// A hidden state as the copy is multiplied with it.
pub(super) struct Hidden {
    /// What products of high and of low nibbles are multiplied by, beside the row's scale.
    high: f32,
    low: f32,
    /// Norms of the state, and of what its codes of 8 and of 15 bits do not say.
    norm: f64,
    after_short: f64,
    after_long: f64,
    /// Of the kernels' sums, and of the logits.
    rounding: [f64; 2],
}

impl Hidden {
    /// Nothing if `x` can't be screened with rows whose norms are at most `largest`; else what products read of it is added
    /// to `steps`.
    pub(super) fn new(x: &[f32], shape: Shape, largest: f32, steps: &mut Vec<Step>) -> Option<Hidden> {
        let norm = sum_of_squares(x.iter().map(|x| f64::from(*x))).sqrt();
        // So that a NaN is caught as well.
        if !(norm > SMALLEST_NORM && norm * f64::from(largest).max(1.0) < LARGEST_PRODUCT) {
            return None;
        }
        let mut codes = vec![0; x.len()];
        let unit = screen::round(x, &mut codes);
        let start = steps.len();
        steps.resize(start + shape.n_steps(), Step::ZERO);
        screen::prepare(&codes, &mut steps[start..]);
        let (mut after_short, mut after_long) = (0.0, 0.0);
        for ((x, codes), step) in x.chunks(STEP).zip(codes.chunks(STEP)).zip(&steps[start..]) {
            let lost = |x: &f32, code: f64| f64::from(*x) - unit * code;
            after_short += sum_of_squares(x.iter().zip(step.short()).map(|(x, code)| lost(x, code)));
            after_long += sum_of_squares(x.iter().zip(codes).map(|(x, code)| lost(x, f64::from(*code))));
        }
        // Above what double precision loses in any number of columns there can be.
        let up = 1.0 + 1e-9;
        Some(Hidden {
            high: (8.0 * unit) as f32,
            low: (0.5 * unit) as f32,
            norm: norm * up,
            after_short: after_short.sqrt() * up + norm * 1e-15,
            after_long: after_long.sqrt() * up + norm * 1e-15,
            rounding: [shape.rounding(), (x.len() / 32 + 16) as f64 / f64::from(1 << 24)],
        })
    }

    /// What the norms of a row and of what its nibbles do not say add to the error of its estimate: `[row, after the high
    /// nibbles, after the low ones]`.
    fn errors(&self, plane: Plane) -> [f32; 3] {
        let [of_sums, of_logit] = self.rounding;
        // What `p` and `l` are off by, and how their products are rounded.
        let short = self.after_short + of_sums * (self.norm + self.after_short);
        let long = self.after_long + of_sums * (self.norm + self.after_long);
        let of_row = short + of_logit * self.norm;
        // Rounded to single precision and up.
        let up = |error: f64| (error * (1.0 + 1e-6)) as f32;
        match plane {
            Plane::High => [up(of_row), up(short + self.norm), 0.0],
            Plane::Low => [up(of_row), up(short + long), up(long + self.norm)],
        }
    }
}

/// In some sums side by side, so that none of them waits for the last.
fn sum_of_squares(values: impl Iterator<Item = f64>) -> f64 {
    let mut sums = [0.0; 8];
    for (i, value) in values.enumerate() {
        sums[i % 8] += value * value;
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tritone_kernels::isa::Isa;
    use tritone_kernels::screen::TILE;

    proptest! {
        /// Both bounds hold, and are as tight as they claim.
        #[test]
        #[cfg_attr(miri, ignore = "too slow")]
        fn bounds_hold(
            cols in 1usize..400,
            size in prop::sample::select(vec![1e-12f32, 1e-3, 1.0, 50.0, 1e20]),
            row_size in prop::sample::select(vec![1e-28f32, 1e-5, 1.0, 1e3]),
            spike in prop::option::of((0usize..400, -300.0f32..300.0)),
            worst: bool,
            seed: u32,
        ) {
            let mut state = seed | 1;
            let mut noise = || {
                state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            let shape = Shape::new(cols);
            let weights: Vec<f32> = (0..cols).map(|_| noise() * row_size).collect();
            let (mut tile, mut row) = (vec![0; shape.tile_bytes()], vec![0; shape.row_bytes()]);
            let isa = Isa::detect();
            let row_notes = screen::pack_row(isa, shape, &weights, 5, &mut tile, &mut row);
            let mut notes = Notes::default();
            prop_assert!(notes.push(row_notes));
            let mut x: Vec<f32> = (0..cols).map(|_| noise() * size).collect();
            if worst {
                // Along what the high nibbles do not say, where the bound is nearly reached.
                for (col, x) in x.iter_mut().enumerate() {
                    // A line of scales stands before those of a group.
                    let line = col / 8 + col / (screen::GROUP * screen::BLOCK) + 1;
                    let byte = tile[line * 64 + 5 * 4 + col % 4];
                    let high = f32::from(if col % 8 < 4 { byte & 15 } else { byte >> 4 });
                    let unit = row_notes.scale * f32::from(row[col / 64]);
                    *x = (weights[col] - unit * (16.0 * high - 120.0)) / row_size * size;
                }
            }
            if let Some((at, factor)) = spike {
                x[at % cols] = size * factor;
            }
            let mut steps = Vec::new();
            let Some(hidden) = Hidden::new(&x, shape, notes.largest_norm(), &mut steps) else { return Ok(()) };
            let mut high = [0.0; TILE];
            screen::tiles(isa, shape, &tile, &steps, &mut high);
            let mut low = [0.0];
            screen::rows(isa, shape, &row, &[0], &steps, &mut low);
            let mut estimate = [high[5]];
            notes.estimate(&hidden, 0, &mut estimate);
            let float = tritone_kernels::float::FloatKernels::new(isa);
            let logit = float.dot_f32(&weights, &x);
            let reaches = |threshold: f32| {
                let mut reaches = false;
                notes.reaching(&hidden, 0, (&estimate, estimate[0]), threshold, |row| reaches = row == 0);
                reaches
            };
            prop_assert!(reaches(logit), "{logit} is above the bound of estimate {estimate:?}");
            let norms = f64::from(row_notes.norm) * hidden.norm;
            let slack = 2.01 * f64::from(row_notes.after_high) * (hidden.norm + hidden.after_short)
                + 2.01 * f64::from(row_notes.norm) * hidden.after_short
                + norms * 1e-3
                + 1e-30;
            prop_assert!(!reaches((f64::from(logit) + slack) as f32), "{logit}, {estimate:?}");
            let most = notes.most(&hidden, 0, estimate[0], low[0]);
            prop_assert!(most >= logit, "{logit} is above {most}");
            let slack = 2.01 * f64::from(row_notes.after_low) * hidden.norm
                + 2.01 * f64::from(row_notes.norm + row_notes.after_high) * hidden.after_short
                + norms * 1e-3
                + 1e-30;
            prop_assert!(f64::from(most) <= f64::from(logit) + slack, "{logit}, {most}");
        }
    }

    #[test]
    fn what_could_overflow_or_vanish_is_not_screened() {
        let (shape, mut steps) = (Shape::new(2), Vec::new());
        let mut screened = |x: [f32; 2], largest: f32| Hidden::new(&x, shape, largest, &mut steps).is_some();
        for x in [[0.0, 0.0], [1e-30, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0], [1e38, 1.0]] {
            assert!(!screened(x, 1.0), "{x:?}");
        }
        assert!(screened([1.0, 2.0], 1.0) && screened([1e8, 2.0], 1e21) && !screened([1e8, 2.0], 1e23));
        assert_eq!(steps.len(), 2);
        let mut notes = Notes::default();
        let row = |norm: f32| RowNotes { norm, scale: 1.0, ..RowNotes::default() };
        assert_eq!([1.0, f32::NAN, f32::INFINITY, 1e26].map(|norm| notes.push(row(norm))), [true, false, false, false]);
        assert_eq!((notes.len(), notes.largest_norm()), (4, 1.0));
    }
}
