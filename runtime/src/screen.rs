//! A copy of the output head in 8 bits that says how large each logit can be.
//!
//! The head is the largest matrix of most models and a token needs few of its rows. The copy is half as large
//! as halves; a pass over it leaves, for greedy choice or top-k, a handful of rows that could matter, and only these are
//! computed from the head itself. So the logits that come out have the bits of the whole head's.
//!
//! **The bound.** Row `w`, hidden state `x`; `w = s q + r` with int8 `q`, and `x = t c + d` with int16 `c`. Then
//!
//! ```text
//! w . x = s t (q . c)  +  r . x  +  s q . d
//! |w . x - s t (q . c)|  <=  |r| |x|  +  (|w| + |r|) |d|                      (Cauchy-Schwarz)
//! |computed - w . x|     <=  g |w| |x|,   g = (columns / 32 + 16) 2^-24       (rounding in 32 lanes)
//! ```
//!
//! The computed logit is a sum in 32 lanes and a tree of 5 (`tritone_kernels::float`): each product takes part in
//! at most `columns / 32 + 7` roundings, so `g` has room for the second-order terms. Norms are rounded up by more than
//! their own error, and the bound is widened by a millionth for the arithmetic here. Rows whose norm is not
//! finite or large enough that a sum could overflow are always computed.

use crate::error::Result;
use crate::head::Head;
use crate::pages::Pages;
use crate::scores::Need;
use crate::threads::Pool;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;
use tritone_kernels::float::FloatKernels;
use tritone_kernels::isa::Isa;
use tritone_kernels::screen;

/// Rows that all hidden states are multiplied with while they are in the cache.
const ROWS: usize = 64;

/// As many of them are one work item.
const ITEMS: usize = 16;

/// Rows that are made at once: what the threads hand over must not take as much memory as the copy.
const ROWS_AT_ONCE: usize = 16_384;

/// Below this a row is taken for zeros, and its norm says how wrong that is.
const TINY: f32 = 1e-30;

/// Products of norms above this could overflow single precision somewhere.
const LARGEST_PRODUCT: f64 = 1e30;

/// What is known of a row.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// Multiplies the codes.
    scale: f32,
    /// At least the norm of the row.
    norm: f32,
    /// At least the norm of what the codes do not say.
    residual: f32,
}

/// The copy.
#[derive(Debug)]
pub(crate) struct Screen {
    /// `[row][column]`
    codes: Pages,
    rows: Vec<Row>,
    cols: usize,
}

/// A hidden state as the copy is multiplied with it.
struct Hidden {
    codes: Vec<i16>,
    scale: f64,
    norm: f64,
    /// Norm of what the codes do not say.
    residual: f64,
}

impl Screen {
    /// Copies a head; nothing if there is no memory for it.
    ///
    /// # Errors
    /// A row that can't be decoded.
    pub(crate) fn build(
        head: &Arc<Head>,
        (n_rows, cols): (usize, usize),
        float: FloatKernels,
        pool: &mut Pool,
    ) -> Result<Option<Screen>> {
        let Ok(codes) = Pages::zeroed(n_rows * cols) else { return Ok(None) };
        let mut screen = Screen { codes, rows: Vec::new(), cols };
        if screen.rows.try_reserve_exact(n_rows).is_err() {
            return Ok(None);
        }
        screen.rows.resize(n_rows, Row::default());
        let mut failed = None;
        for start in (0..n_rows).step_by(ROWS_AT_ONCE) {
            let end = (start + ROWS_AT_ONCE).min(n_rows);
            pool.run(
                Arc::clone(head),
                (end - start).div_ceil(ROWS),
                1,
                move |head, items, out: &mut Vec<Result<(Vec<i8>, Vec<Row>)>>| {
                    for item in items {
                        let first = start + item * ROWS;
                        out.push(copy_rows(head, &float, first..(first + ROWS).min(end), cols));
                    }
                },
                |items, parts| {
                    for (item, part) in items.zip(parts) {
                        let first = start + item * ROWS;
                        match part {
                            Ok((codes, rows)) => {
                                screen.codes[first * cols..][..codes.len()]
                                    .copy_from_slice(bytemuck::cast_slice(codes));
                                screen.rows[first..][..rows.len()].copy_from_slice(rows);
                            }
                            Err(error) => failed = Some(error.to_string()),
                        }
                    }
                },
            );
        }
        match failed {
            None => Ok(Some(screen)),
            Some(what) => Err(crate::error::Error::Malformed {
                at: Box::default(),
                what,
                fix: "the file is damaged, download it again",
            }),
        }
    }

    /// Bytes that a pass reads.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + self.rows.len() * size_of::<Row>()
    }

    /// For each of some hidden states (`[state][column]`) the tokens whose logits can be among those that are needed,
    /// rising; nothing if all are needed or the state is not finite. The copy is read once.
    pub(crate) fn select(
        self: &Arc<Screen>,
        isa: Isa,
        pool: &mut Pool,
        states: &[f32],
        need: &Need,
    ) -> Vec<Option<Vec<u32>>> {
        let (n_rows, n_states) = (self.rows.len(), states.len() / self.cols);
        let mut selected = vec![None; n_states];
        match need {
            Need::All => return selected,
            Need::Top { count, .. } if *count >= n_rows => return selected,
            Need::Top { .. } | Need::Within { .. } => {}
        }
        let states = states.chunks_exact(self.cols).enumerate();
        let (which, states): (Vec<usize>, Vec<Hidden>) = states
            .filter(|(_, state)| state.iter().all(|x| x.is_finite()))
            .map(|(i, state)| (i, Hidden::new(state)))
            .unzip();
        let mut bounds = vec![[0.0f32; 2]; states.len() * n_rows];
        pool.run(
            (Arc::clone(self), states),
            n_rows.div_ceil(ROWS),
            ITEMS,
            move |(screen, states), items, out: &mut Vec<[f32; 2]>| {
                let rows = items.start * ROWS..(items.end * ROWS).min(screen.rows.len());
                screen.bounds(isa, rows, states, out);
            },
            |items, part| {
                let rows = items.start * ROWS..(items.end * ROWS).min(n_rows);
                for (bounds, part) in bounds.chunks_exact_mut(n_rows).zip(part.chunks_exact(rows.len())) {
                    bounds[rows.clone()].copy_from_slice(part);
                }
            },
        );
        for (i, bounds) in which.into_iter().zip(bounds.chunks_exact(n_rows)) {
            selected[i] = Some(chosen(bounds, need));
        }
        selected
    }

    /// The least and the most that the computed logits of some rows can be: `[state][row]`.
    fn bounds(&self, isa: Isa, rows: Range<usize>, states: &[Hidden], out: &mut Vec<[f32; 2]>) {
        let rounding = (self.cols / 32 + 16) as f64 / f64::from(1 << 24);
        let start = out.len();
        out.resize(start + states.len() * rows.len(), [0.0; 2]);
        let out = &mut out[start..];
        let mut sums = [0; ROWS];
        for first in rows.clone().step_by(ROWS) {
            let some = first..(first + ROWS).min(rows.end);
            let sums = &mut sums[..some.len()];
            for (state, out) in states.iter().zip(out.chunks_exact_mut(rows.len())) {
                let codes = &self.codes[some.start * self.cols..some.end * self.cols];
                screen::dots(isa, bytemuck::cast_slice(codes), &state.codes, sums);
                let places = &mut out[some.start - rows.start..some.end - rows.start];
                for ((place, row), sum) in places.iter_mut().zip(&self.rows[some.clone()]).zip(&*sums) {
                    *place = row.bound(*sum, state, rounding);
                }
            }
        }
    }
}

impl Row {
    /// The least and the most that the computed logit can be if the codes' product is `sum`.
    fn bound(&self, sum: i32, state: &Hidden, rounding: f64) -> [f32; 2] {
        let (norm, residual) = (f64::from(self.norm), f64::from(self.residual));
        let largest = norm * state.norm;
        // So that a NaN is caught as well.
        if !matches!(largest.partial_cmp(&LARGEST_PRODUCT), Some(Ordering::Less)) {
            return [f32::NEG_INFINITY, f32::INFINITY];
        }
        let middle = f64::from(self.scale) * state.scale * f64::from(sum);
        let error = residual * state.norm + (norm + residual) * state.residual + rounding * largest;
        let error = error * (1.0 + 1e-6) + middle.abs() * 1e-6 + 1e-36;
        [(middle - error) as f32, (middle + error) as f32]
    }
}

/// The rows that can be among those that are needed, rising.
fn chosen(bounds: &[[f32; 2]], need: &Need) -> Vec<u32> {
    let mut lower: Vec<f32> = bounds.iter().map(|bound| bound[0]).collect();
    let (threshold, tokens) = match need {
        Need::All => (f32::NEG_INFINITY, &[][..]),
        Need::Top { count: 0, tokens } => (f32::INFINITY, &tokens[..]),
        Need::Top { count, tokens } => (*lower.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1, &tokens[..]),
        Need::Within { below } => (lower.iter().copied().fold(f32::NEG_INFINITY, f32::max) - below, &[][..]),
    };
    let possible = (0u32..).zip(bounds).filter(|(_, bound)| bound[1] >= threshold).map(|(id, _)| id);
    let mut ids: Vec<u32> = possible.collect();
    if !tokens.is_empty() {
        ids.extend(tokens.iter().filter(|id| (**id as usize) < bounds.len()));
        ids.sort_unstable();
        ids.dedup();
    }
    ids
}

impl Hidden {
    /// `x` is finite.
    fn new(x: &[f32]) -> Hidden {
        let mut codes = vec![0; x.len()];
        let scale = screen::round(x, screen::limit(x.len()), &mut codes);
        let norm = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        let lost = x.iter().zip(&codes).map(|(x, code)| f64::from(*x) - scale * f64::from(*code));
        let residual = lost.map(|lost| lost * lost).sum::<f64>().sqrt();
        // Above what double precision loses in any number of columns there can be.
        let up = 1.0 + 1e-9;
        Hidden { codes, scale, norm: norm * up, residual: residual * up + norm * 1e-15 }
    }
}

/// Codes and what is known of some rows.
fn copy_rows(head: &Head, float: &FloatKernels, rows: Range<usize>, cols: usize) -> Result<(Vec<i8>, Vec<Row>)> {
    let mut codes = vec![0i8; rows.len() * cols];
    let mut known = Vec::with_capacity(rows.len());
    let (mut weights, mut lost) = (vec![0.0f32; cols], vec![0.0f32; cols]);
    for (row, codes) in rows.zip(codes.chunks_exact_mut(cols)) {
        head.row(float, row, &mut weights)?;
        let largest = float.absmax(&weights);
        let scale = if largest > TINY { largest / 127.0 } else { 0.0 };
        if scale > 0.0 {
            float.quantize(&weights, 127.0 / largest, codes);
        }
        for ((lost, weight), code) in lost.iter_mut().zip(&weights).zip(&*codes) {
            *lost = weight - scale * f32::from(*code);
        }
        let norm = norm_at_least(float, &weights);
        // Each difference was rounded twice.
        let residual = norm_at_least(float, &lost) + norm * 2e-7;
        known.push(Row { scale, norm, residual });
    }
    Ok((codes, known))
}

/// At least the norm of a vector; infinite or NaN if an element is, or a square overflows.
fn norm_at_least(float: &FloatKernels, x: &[f32]) -> f32 {
    // The sum of squares is off by less than 1e-5 of itself, and by what is lost below the smallest number.
    float.dot_f32(x, x).sqrt() * (1.0 + 1e-4) + (x.len() as f32).sqrt() * 1e-22
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Bytes, Tensor, TensorType};
    use proptest::prelude::*;
    use tritone_kernels::float::FloatFormat;

    fn head(weights: &[f32], cols: usize) -> Arc<Head> {
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let n = bytes.len();
        let data = Bytes::from(bytes).view(0..n).unwrap();
        let dims = vec![cols, weights.len() / cols];
        let tensor = Tensor::new("test".into(), "output.weight".to_owned(), TensorType::F32, dims, 0, n, data);
        Arc::new(Head::Float { tensor, format: FloatFormat::F32 })
    }

    /// For one state, which comes out alike beside others.
    fn select(screen: &Arc<Screen>, isa: Isa, pool: &mut Pool, x: &[f32], need: &Need) -> Option<Vec<u32>> {
        let [one] = &screen.select(isa, pool, x, need)[..] else { unreachable!("one state") };
        let zeros = vec![0.0; x.len()];
        let three = screen.select(isa, pool, &[&zeros, x, x].concat(), need);
        assert!(three[1] == *one && three[2] == *one && three.len() == 3);
        one.clone()
    }

    /// Asserts that what is selected has all that is needed.
    fn check(weights: &[f32], x: &[f32], needs: &[Need]) {
        let (cols, n_rows) = (x.len(), weights.len() / x.len());
        let head = head(weights, cols);
        let isa = Isa::detect();
        let float = FloatKernels::new(isa);
        let mut logits = vec![0.0; n_rows];
        head.rows_dot(&float, 0..n_rows, x, &mut logits);
        let mut order: Vec<u32> = (0..n_rows as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        let mut pool = Pool::new(2).unwrap();
        let screen = Arc::new(Screen::build(&head, (n_rows, cols), float, &mut pool).unwrap().unwrap());
        for need in needs {
            let Some(ids) = select(&screen, isa, &mut pool, x, need) else { continue };
            assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
            // What must be reported as an error is always among them.
            for (id, logit) in (0u32..).zip(&logits) {
                assert!(logit.is_finite() || ids.contains(&id), "row {id} has logit {logit}");
            }
            if logits.iter().any(|logit| !logit.is_finite()) {
                continue;
            }
            let wanted: Vec<u32> = match need {
                Need::All => unreachable!("nothing is selected then"),
                Need::Top { count, tokens } => order.iter().take(*count).chain(tokens).copied().collect(),
                Need::Within { below } => {
                    let least = logits[order[0] as usize] - below;
                    order.iter().copied().filter(|id| logits[*id as usize] >= least).collect()
                }
            };
            for id in wanted {
                assert!(ids.contains(&id), "{need:?}: {id} with {} is not in {ids:?}", logits[id as usize]);
            }
        }
    }

    fn needs(n_rows: usize) -> Vec<Need> {
        let top = |count, tokens: &[u32]| Need::Top { count, tokens: tokens.to_vec() };
        let mut needs = vec![top(1, &[]), top(2, &[0]), top(40, &[3, 1, 3]), top(n_rows - 1, &[]), top(0, &[2])];
        needs.extend([0.0, 0.5, 3.0, 100.0].map(|below| Need::Within { below }));
        needs
    }

    /// A row of one of many kinds.
    fn row(kind: u8, cols: usize, first: &[f32], noise: &[f32]) -> Vec<f32> {
        let scaled = |factor: f32| noise.iter().map(|x| x * factor).collect::<Vec<f32>>();
        let with = |at: usize, value: f32| {
            let mut row = scaled(1.0);
            row[at % cols] = value;
            row
        };
        match kind {
            0 => vec![0.0; cols],
            1 => first.to_vec(),
            2 => scaled(1e18),
            3 => scaled(1e-36),
            4 => with(1, 1e4),
            5 => with(2, -3e38),
            6 => with(3, f32::INFINITY),
            7 => with(4, f32::NAN),
            8 => first.iter().zip(noise).map(|(first, noise)| first + noise * 1e-6).collect(),
            9 => with(0, 1e-40),
            _ => scaled(1.0),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        #[cfg_attr(miri, ignore = "too slow")]
        fn nothing_that_matters_is_left_out(
            kinds in prop::collection::vec(0u8..40, 45..700),
            cols in 1usize..200,
            spike in prop::option::of(0usize..200),
            size in prop::sample::select(vec![1e-30f32, 1e-3, 1.0, 50.0, 1e20]),
            seed: u32,
        ) {
            let mut state = seed | 1;
            // Sums of uniform numbers, so that most are small.
            let mut noise = || {
                let mut sum = 0.0f32;
                for _ in 0..4 {
                    state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                    sum += (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
                }
                sum
            };
            let first: Vec<f32> = (0..cols).map(|_| noise()).collect();
            let mut weights = Vec::new();
            for kind in &kinds {
                let noise: Vec<f32> = (0..cols).map(|_| noise()).collect();
                weights.extend(row(*kind, cols, &first, &noise));
            }
            let mut x: Vec<f32> = (0..cols).map(|_| noise() * size).collect();
            if let Some(at) = spike {
                x[at % cols] = size * 300.0;
            }
            check(&weights, &x, &needs(kinds.len()));
        }
    }

    /// Without rows that stand out or are huge, few are left for a greedy choice.
    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn little_is_left() {
        let (n_rows, cols) = (4096, 384);
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
        let weights: Vec<f32> = (0..n_rows * cols).map(value).collect();
        let x: Vec<f32> = (0..cols).map(|i| value(i * 7919 + 5)).collect();
        let head = head(&weights, cols);
        let (isa, mut pool) = (Isa::detect(), Pool::new(1).unwrap());
        let screen = Screen::build(&head, (n_rows, cols), FloatKernels::new(isa), &mut pool).unwrap().unwrap();
        let ids = select(&Arc::new(screen), isa, &mut pool, &x, &Need::top(1)).unwrap();
        assert!(ids.len() < n_rows / 50, "{} rows", ids.len());
        check(&weights, &x, &needs(n_rows));
    }

    #[test]
    fn what_cannot_be_screened_is_not() {
        let weights = [1.0, 2.0, 3.0, 4.0];
        let head = head(&weights, 2);
        let (isa, mut pool) = (Isa::scalar(), Pool::new(1).unwrap());
        let screen = Screen::build(&head, (2, 2), FloatKernels::new(isa), &mut pool).unwrap().unwrap();
        let screen = Arc::new(screen);
        assert_eq!(select(&screen, isa, &mut pool, &[1.0, 1.0], &Need::All), None);
        assert_eq!(select(&screen, isa, &mut pool, &[1.0, 1.0], &Need::top(2)), None);
        assert_eq!(select(&screen, isa, &mut pool, &[1.0, f32::NAN], &Need::top(1)), None);
        assert_eq!(select(&screen, isa, &mut pool, &[1.0, f32::INFINITY], &Need::top(1)), None);
        assert_eq!(select(&screen, isa, &mut pool, &[1.0, 1.0], &Need::top(1)), Some(vec![1]));
    }
}
