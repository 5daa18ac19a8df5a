//! A copy of the output head in 8 bits that says how large each logit can be, read in steps.
//!
//! The head is the largest matrix of most models and a token needs few of its rows. The copy is two planes of four
//! bits (`tritone_kernels::screen`). A choice among the logits takes four steps:
//!
//! 1. The high nibbles of all rows give an estimate of every logit.
//! 2. The rows with the best estimates are computed from the head itself: whoever is to be among the chosen has to
//!    reach what these have. That is half of the gap that two bounds would leave between them.
//! 3. The rows that can reach it (`bound.rs`) are looked at again, with their low nibbles.
//! 4. Those that still can are computed from the head itself.
//!
//! So a greedy choice reads a quarter of a head of halves and a handful of its rows, and the logits that come out have
//! the bits of the whole head's. Rows of the second plane are read in order, so that even if all of them are left, both
//! planes are read as fast as one of 8 bits.

mod bound;
mod copy;

#[cfg(test)]
mod tests;

use crate::head::Head;
use crate::pages::Pages;
use crate::scores::Need;
use crate::threads::{Output, Pool};
use bound::{Hidden, Notes};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tritone_kernels::float::FloatKernels;
use tritone_kernels::isa::Isa;
use tritone_kernels::screen::{self, Shape, Step, TILE};

/// Rows of a work item; all hidden states are multiplied with them while they are in the cache.
const ITEM_ROWS: usize = 16 * TILE;

/// The copy.
#[derive(Debug)]
pub(crate) struct Screen {
    head: Arc<Head>,
    float: FloatKernels,
    isa: Isa,
    shape: Shape,
    n_rows: usize,
    /// Rows of all chunks but the last; whole items.
    chunk_rows: usize,
    chunks: Vec<Chunk>,
    /// Rows that are always computed, rising.
    loose: Vec<u32>,
    /// Of the others.
    largest_norm: f32,
}

/// Some rows of both planes.
#[derive(Debug)]
struct Chunk {
    /// Tiles of high nibbles, then rows of low ones.
    planes: Pages,
    high_bytes: usize,
    notes: Notes,
    loose: Vec<u32>,
}

/// What is chosen for one hidden state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chosen {
    /// The tokens whose logits can be among those that are needed, rising, and their logits.
    pub(crate) ids: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    /// Rows whose low nibbles were read.
    pub(crate) low_rows: usize,
    /// Rows of the head that were computed.
    pub(crate) rows: usize,
}

/// Estimates of logits where threads have made them: each item's are `[state][row]`, and behind them is the largest for each
/// state.
struct Estimates {
    buffers: Vec<Vec<f32>>,
    /// Of each item its buffer and where it begins there.
    items: Vec<(usize, usize)>,
}

/// Hidden states, and what products read of them.
struct States {
    hidden: Vec<Hidden>,
    steps: Vec<Step>,
}

/// What the second look at the rows is given.
struct Second {
    screen: Arc<Screen>,
    states: States,
    estimates: Estimates,
    /// Of each state what a logit has to reach.
    thresholds: Vec<f32>,
    /// Of each state how many rows were looked at.
    counts: Vec<AtomicUsize>,
}

impl Screen {
    /// Bytes of the high nibbles of all rows, which every pass reads, with what is known of the rows.
    pub(crate) fn high_bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.high_bytes).sum::<usize>() + self.n_rows * Notes::ROW_BYTES
    }

    /// Bytes of the low nibbles of all rows.
    pub(crate) fn low_bytes(&self) -> usize {
        self.n_rows * self.shape.row_bytes()
    }

    /// For each of some hidden states (`[state][column]`) the logits that can be among those that are needed; nothing
    /// if all are, or the state can't be screened. Each plane is read once for all of them.
    ///
    /// `buffers`, empty ones for each thread, are used for what is large and come back.
    pub(crate) fn choose(
        self: &Arc<Screen>,
        pool: &mut Pool,
        buffers: &mut Vec<Vec<f32>>,
        states: &[f32],
        need: &Need,
    ) -> Vec<Option<Chosen>> {
        let vectors = states.chunks_exact(self.shape.cols());
        let mut chosen = vec![None; vectors.len()];
        match need {
            Need::All => return chosen,
            Need::Top { count, .. } if *count >= self.n_rows => return chosen,
            Need::Top { .. } | Need::Within { .. } => {}
        }
        let mut states = States { hidden: Vec::new(), steps: Vec::new() };
        let (mut which, mut screened) = (Vec::new(), Vec::new());
        for (i, x) in vectors.enumerate() {
            if let Some(hidden) = Hidden::new(x, self.shape, self.largest_norm, &mut states.steps) {
                states.hidden.push(hidden);
                which.push(i);
                screened.push(x);
            }
        }
        if which.is_empty() {
            return chosen;
        }
        let mut known = vec![(Vec::new(), Vec::new()); which.len()];
        let (mut low_rows, mut left) = (vec![0; which.len()], vec![Vec::new(); which.len()]);
        if !matches!(need, Need::Top { count: 0, .. }) {
            let (states, estimates) = self.first_look(pool, std::mem::take(buffers), states);
            let mut thresholds = Vec::with_capacity(which.len());
            for (i, known) in known.iter_mut().enumerate() {
                let mut ids = estimates.best(i, which.len(), candidates(need));
                ids.retain(|id| (*id as usize) < self.n_rows);
                ids.sort_unstable();
                let logits = self.head.some_logits(&self.float, pool, &ids, screened[i]);
                thresholds.push(threshold(&logits, need));
                *known = (ids, logits);
            }
            (low_rows, left, *buffers) = self.second_look(pool, states, estimates, thresholds);
        }
        for (i, state) in which.into_iter().enumerate() {
            let (known, left) = (std::mem::take(&mut known[i]), std::mem::take(&mut left[i]));
            chosen[state] = Some(self.finish(pool, need, known, left, screened[i], low_rows[i]));
        }
        chosen
    }

    /// Estimates of all logits.
    fn first_look(self: &Arc<Screen>, pool: &mut Pool, buffers: Vec<Vec<f32>>, states: States) -> (States, Estimates) {
        let n_items = self.n_rows.div_ceil(ITEM_ROWS);
        let ((_, states), outputs) =
            pool.run_kept(buffers, (Arc::clone(self), states), n_items, 1, |(screen, states), items, out| {
                for item in items {
                    let (chunk, rows) = screen.item(item);
                    let tiles = rows.start / TILE..rows.end.div_ceil(TILE);
                    let bytes = tiles.start * screen.shape.tile_bytes()..tiles.end * screen.shape.tile_bytes();
                    let (start, n, n_states) = (out.len(), tiles.len() * TILE, states.hidden.len());
                    out.resize(start + n_states * (n + 1), 0.0);
                    let (out, most) = out[start..].split_at_mut(n_states * n);
                    screen::tiles(screen.isa, screen.shape, &chunk.planes[bytes], &states.steps, out);
                    for ((state, out), most) in states.hidden.iter().zip(out.chunks_exact_mut(n)).zip(most) {
                        chunk.notes.estimate(state, rows.start, &mut out[..rows.len()]);
                        // Places behind the last row are no candidates.
                        out[rows.len()..].fill(f32::NEG_INFINITY);
                        *most = largest(out);
                    }
                }
            });
        (states, Estimates::new(outputs, n_items))
    }

    /// Of each state how many rows were looked at again, and the rows that are left.
    #[allow(clippy::type_complexity, reason = "three lists, and the buffers")]
    fn second_look(
        self: &Arc<Screen>,
        pool: &mut Pool,
        states: States,
        estimates: Estimates,
        thresholds: Vec<f32>,
    ) -> (Vec<usize>, Vec<Vec<u32>>, Vec<Vec<f32>>) {
        let n_states = states.hidden.len();
        let counts = states.hidden.iter().map(|_| AtomicUsize::new(0)).collect();
        let n_items = estimates.items.len();
        let mut left = vec![Vec::new(); n_states];
        let second = pool.run(
            Second { screen: Arc::clone(self), states, estimates, thresholds, counts },
            n_items,
            1,
            Second::look,
            |_, found: &[(usize, u32)]| found.iter().for_each(|(state, id)| left[*state].push(*id)),
        );
        let counts = second.counts.into_iter().map(AtomicUsize::into_inner).collect();
        let mut buffers = second.estimates.buffers;
        buffers.iter_mut().for_each(Vec::clear);
        (counts, left, buffers)
    }

    /// Computes what is left and was not before.
    fn finish(
        &self,
        pool: &mut Pool,
        need: &Need,
        known: (Vec<u32>, Vec<f32>),
        mut left: Vec<u32>,
        x: &[f32],
        low_rows: usize,
    ) -> Chosen {
        left.extend(&self.loose);
        if let Need::Top { tokens, .. } = need {
            left.extend(tokens.iter().filter(|id| (**id as usize) < self.n_rows));
        }
        left.retain(|id| known.0.binary_search(id).is_err());
        left.sort_unstable();
        left.dedup();
        let logits = self.head.some_logits(&self.float, pool, &left, x);
        let mut all: Vec<(u32, f32)> = left.into_iter().zip(logits).chain(known.0.into_iter().zip(known.1)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        let rows = all.len();
        let (ids, logits) = all.into_iter().unzip();
        Chosen { ids, logits, low_rows, rows }
    }

    /// An item's chunk and its rows there.
    fn item(&self, item: usize) -> (&Chunk, Range<usize>) {
        let first = item * ITEM_ROWS;
        let chunk = &self.chunks[first / self.chunk_rows];
        let start = first % self.chunk_rows;
        (chunk, start..(start + ITEM_ROWS).min(chunk.notes.len()))
    }
}

impl Second {
    /// Looks at the low nibbles of an item's rows whose estimates reach; hands on those that still do, as state and row.
    fn look(&self, items: Range<usize>, out: &mut Vec<(usize, u32)>) {
        let screen = &self.screen;
        let (mut rows, mut products) = (Vec::with_capacity(ITEM_ROWS), Vec::new());
        for item in items {
            let (chunk, range) = screen.item(item);
            let plane = &chunk.planes[chunk.high_bytes..];
            let before = (item * ITEM_ROWS - range.start) as u32;
            let states = self.states.hidden.iter().zip(self.states.steps.chunks_exact(screen.shape.n_steps()));
            for (i, ((state, steps), threshold)) in states.zip(&self.thresholds).enumerate() {
                let n = range.len().next_multiple_of(TILE);
                let estimates = &self.estimates.item(item, i, n)[..range.len()];
                let largest = self.estimates.largest(item, i, self.thresholds.len() * n);
                rows.clear();
                chunk.notes.reaching(state, range.start, (estimates, largest), *threshold, |row| rows.push(row as u32));
                if rows.is_empty() {
                    continue;
                }
                self.counts[i].fetch_add(rows.len(), Ordering::Relaxed);
                products.resize(rows.len(), 0.0);
                screen::rows(screen.isa, screen.shape, plane, &rows, steps, &mut products);
                let reaching = rows.iter().zip(&products).filter(|(row, product)| {
                    let row = **row as usize;
                    chunk.notes.most(state, row, estimates[row - range.start], **product) >= *threshold
                });
                out.extend(reaching.map(|(row, _)| (i, before + row)));
            }
        }
    }
}

impl Estimates {
    fn new(outputs: Vec<Output<f32>>, n_items: usize) -> Estimates {
        let (mut buffers, mut items) = (Vec::with_capacity(outputs.len()), vec![(0, 0); n_items]);
        for (buffer, output) in outputs.into_iter().enumerate() {
            let mut start = 0;
            for (range, end) in output.ranges {
                // One item is handed out at a time.
                items[range.start] = (buffer, start);
                start = end;
            }
            buffers.push(output.values);
        }
        Estimates { buffers, items }
    }

    /// An item's `n` estimates for a state.
    fn item(&self, item: usize, state: usize, n: usize) -> &[f32] {
        let (buffer, start) = self.items[item];
        &self.buffers[buffer][start + state * n..][..n]
    }

    /// The largest of an item's estimates for a state; `n` are those for all states.
    fn largest(&self, item: usize, state: usize, n: usize) -> f32 {
        let (buffer, start) = self.items[item];
        self.buffers[buffer][start + n + state]
    }

    /// The rows with the `count` best estimates for one of `n_states` states.
    fn best(&self, state: usize, n_states: usize, count: usize) -> Vec<u32> {
        let n_items = self.items.len();
        let total: usize = self.buffers.iter().map(Vec::len).sum();
        // All items but the last are whole; each has its largest estimate as well.
        let rows_of = |item: usize| {
            if item + 1 < n_items { ITEM_ROWS } else { total / n_states - n_items - (n_items - 1) * ITEM_ROWS }
        };
        let estimates = |item: usize| self.item(item, state, rows_of(item));
        let largest = |item: usize| self.largest(item, state, n_states * rows_of(item));
        let most: Vec<f32> = (0..n_items).map(largest).collect();
        // So many items have a row that is as good, so the best ones are at least that.
        let enough = most.clone();
        let least = if count <= n_items { nth_largest(enough, count) } else { f32::NEG_INFINITY };
        let mut best: Vec<(f32, u32)> = Vec::new();
        for item in (0..n_items).filter(|item| most[*item] >= least) {
            let rows = (0u32..).zip(estimates(item)).filter(|(_, estimate)| **estimate >= least);
            best.extend(rows.map(|(row, estimate)| (*estimate, (item * ITEM_ROWS) as u32 + row)));
        }
        if best.len() > count {
            best.select_nth_unstable_by(count - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            best.truncate(count);
        }
        best.into_iter().map(|(_, row)| row).collect()
    }
}

/// The largest of whole tiles' estimates; NaNs are passed over.
fn largest(estimates: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; TILE];
    for tile in estimates.as_chunks::<TILE>().0 {
        for (lane, estimate) in lanes.iter_mut().zip(tile) {
            *lane = if *estimate > *lane { *estimate } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |most, lane| if lane > most { lane } else { most })
}

/// How many rows with good estimates are computed to find the threshold: some more than are needed, since the order of
/// estimates is not quite that of the logits.
fn candidates(need: &Need) -> usize {
    match need {
        Need::Top { count, .. } => count + count / 2 + 3,
        Need::All | Need::Within { .. } => 4,
    }
}

/// What logits have to reach, given some of them.
fn threshold(known: &[f32], need: &Need) -> f32 {
    // A NaN says nothing.
    let known: Vec<f32> = known.iter().map(|logit| if logit.is_nan() { f32::NEG_INFINITY } else { *logit }).collect();
    match need {
        Need::Top { count, .. } if *count <= known.len() => nth_largest(known, *count),
        Need::All | Need::Top { .. } => f32::NEG_INFINITY,
        Need::Within { below } => known.into_iter().fold(f32::NEG_INFINITY, f32::max) - below,
    }
}

/// The `n`th largest of at least so many values, from 1 on.
fn nth_largest(mut values: Vec<f32>, n: usize) -> f32 {
    *values.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
}
