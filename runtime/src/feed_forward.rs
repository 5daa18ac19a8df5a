//! The first half of a feed-forward block: gate, up, and what stands between them.
//!
//! With relu^2 an element is 0 wherever its gate is not positive, whatever up is
//! ([`tritone_kernels::float::FloatKernels::relu2_gate`] is defined so). Each work item computes some rows of the gate for
//! all tokens and then multiplies those rows of up only with the tokens whose gate is positive there: no approximation,
//! a fraction of up's work and, for a single token, of its bytes, and no barrier between the two. Tokens take their rows one token
//! after the other or, where there are many and the kernel can, rows their tokens, so that a row is unpacked once. Where so many gates
//! are positive that multiplying all is faster, all are multiplied. Down skips its columns by the same rule.

use crate::config::Activation;
use crate::forward::Forward;
use crate::linear::Linear;
use crate::prepared::PreparedInput;
use crate::profile::{Observer, Part};
use crate::states::States;
use crate::weights::Layer;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tritone_kernels::float::FloatKernels;
use tritone_kernels::kernel::Operation;
use tritone_kernels::registry;

/// Rows of gate and up that one work item multiplies with many tokens: few, so that what it makes stays in the second
/// cache.
const ITEM_ROWS: usize = 64;

/// With few tokens an item has more rows, so that each token wants several: at most so many outputs of gate. From gate to up and back
/// memory has to start anew: with a quarter of the layer at a time instead of 512 rows, one thread of a Zen 4 took 8% less for both.
const MAX_ITEM_OUTPUTS: usize = 2048;

thread_local! {
    /// A work item's gates, ups and what is made of them.
    static TILES: RefCell<[Vec<f32>; 3]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

thread_local! {
    /// Rows of up that a work item wants for one token, and their products.
    static WANTED: RefCell<(Vec<u32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Tokens whose vectors of up's input the second cache holds: for so many at a time rows list which they want.
const LISTED_TOKENS: usize = 128;

/// Which tokens want which rows of up.
#[derive(Default)]
struct Lists {
    /// The rows that each token wants, and how many they are.
    rows: Vec<u32>,
    n_rows: Vec<usize>,
    /// Where the tokens of each row end, the tokens, and their products with the row.
    ends: Vec<u32>,
    tokens: Vec<u32>,
    products: Vec<f32>,
}

thread_local! {
    static LISTS: RefCell<Lists> = RefCell::default();
}

/// The share of gates that were positive lately, which is a guess of the next layer's.
#[derive(Debug)]
pub(crate) struct PositiveGates(f64);

impl PositiveGates {
    pub(crate) fn new() -> PositiveGates {
        // Trained models have few; the first layer says how many these are.
        PositiveGates(0.0)
    }

    fn share(&self) -> f64 {
        self.0
    }

    fn saw(&mut self, positive: usize, all: usize) {
        self.0 = positive as f64 / all as f64;
    }
}

/// Gates that are positive, and products of gates and ups that are not 0. Threads count both at once, since a counter that two write
/// goes from core to core each time.
#[derive(Default)]
struct Counts(AtomicU64);

impl Counts {
    /// More than 2^32 would be wrong, and 16 GiB of gates.
    fn add(&self, positive: usize, nonzero: usize) {
        self.0.fetch_add((positive as u64) << 32 | nonzero as u64, Ordering::Relaxed);
    }

    fn into_inner(self) -> (usize, usize) {
        let both = self.0.into_inner();
        ((both >> 32) as usize, both as u32 as usize)
    }
}

impl<O: Observer> Forward<'_, O> {
    /// What down takes, from `x` before the block's norm.
    pub(crate) fn gated(&mut self, layer: &Layer, x: &Arc<States>) -> Gated {
        let (gate, up) = (&layer.gate, &layer.up);
        let activation = self.model.config.activation;
        if activation == Activation::ReluSquared && up.skips_rows() {
            return self.gated_rows(layer, x);
        }
        if x.n_tokens() > 1 {
            return self.gated_tiles(layer, x);
        }
        let (inputs, which) = self.prepare_all([gate, up], x, Some(&layer.ffn_norm));
        let [gate, up] = self.product([gate, up], inputs, which);
        self.observer.lap(Part::GateUp);
        let mut gated = self.scratch.take(gate.len());
        activate(&self.model.float, activation, &gate, &up, &mut gated);
        self.scratch.give(vec![up]);
        self.observer.lap(Part::Activation);
        self.count_gates(&gate);
        Gated::whole(gated, gate.len())
    }

    /// The same with relu^2: rows of up are multiplied with the tokens whose gate is positive there, or with all where
    /// so many are that it is faster.
    fn gated_rows(&mut self, layer: &Layer, x: &Arc<States>) -> Gated {
        let (gate, up, norm) = (&layer.gate, &layer.up, Some(&layer.ffn_norm));
        let (n, rows) = (x.n_tokens(), gate.rows());
        let (mut inputs, [gate_input, up_input]) = self.prepare_all([gate, up], x, norm);
        let pays_below = if n == 1 { 1.0 } else { up.skipping_rows_pays_below(inputs[up_input].operation(), n) };
        let lists = n >= registry::LISTED_FROM && inputs[up_input].operation() == Operation::Gemm && up.lists_vectors();
        // What rows are multiplied with one by one has another form than what a GEMM takes, so it is made only if it
        // seems that it will be used.
        let mut alone = up_input;
        if inputs[up_input].operation() != Operation::Gemv && !lists && self.gates.share() < pays_below {
            inputs.push(self.prepare(x, norm, up, Operation::Gemv));
            alone = inputs.len() - 1;
        }
        let alone = (inputs[alone].operation() == Operation::Gemv).then_some(alone);
        let step = gate.tile_rows().max(up.tile_rows());
        let most = rows.div_ceil(4 * self.pool.n_threads()).min(MAX_ITEM_OUTPUTS / n).max(ITEM_ROWS);
        let step = step * (most / step).max(1);
        let rows_of = move |item: usize| item * step..((item + 1) * step).min(rows);
        let counts = Counts::default();
        let buffers = self.buffers();
        let input = (Arc::clone(self.model), Arc::clone(gate), Arc::clone(up), inputs, counts);
        let ((.., inputs, counts), outputs) = self.pool.run_kept(
            buffers,
            input,
            rows.div_ceil(step),
            1,
            move |(model, gate, up, inputs, counts), items, out: &mut Vec<f32>| {
                TILES.with_borrow_mut(|[gates, ups, gated]| {
                    for item in items {
                        let rows = rows_of(item);
                        // Several tokens want most rows of up, which then come to the cache while gates are multiplied.
                        let next = if alone.is_some() && n > 1 { up.tiles(tiles_of(up, &rows)) } else { &[] };
                        gate.product_asking(tiles_of(gate, &rows), &inputs[gate_input], next, gates);
                        let positive = model.float.count_positive(gates);
                        let few = positive as f64 <= pays_below * gates.len() as f64;
                        match alone {
                            _ if few && lists => {
                                up_listed(&model.float, up, &rows, &inputs[up_input], gates, ups);
                            }
                            Some(alone) if few => {
                                up_where_positive(&model.float, up, &rows, &inputs[alone], gates, n > 1, ups);
                            }
                            _ => up.product_in(tiles_of(up, &rows), &inputs[up_input], ups),
                        }
                        gated.resize(gates.len(), 0.0);
                        model.float.relu2_gate(gates, ups, gated);
                        out.extend_from_slice(gated);
                        counts.add(positive, model.float.count_nonzero(gated));
                    }
                });
            },
        );
        self.give_inputs(inputs);
        self.observer.lap(Part::GateUp);
        let (positive, nonzero) = counts.into_inner();
        self.observer.gates(positive as u64, (n * rows) as u64);
        self.gates.saw(positive, n * rows);
        if n == 1 {
            self.skipped.rows(positive, rows);
        }
        let states = States::of_items(outputs, n, rows, rows_of);
        Gated { states, nonzero: Some(nonzero as f64 / (n * rows) as f64) }
    }

    /// All rows of gate and up for several tokens: a work item makes both and what follows from them, so neither
    /// is stored.
    fn gated_tiles(&mut self, layer: &Layer, x: &Arc<States>) -> Gated {
        let (gate, up) = (&layer.gate, &layer.up);
        let n = x.n_tokens();
        let (inputs, which) = self.prepare_all([gate, up], x, Some(&layer.ffn_norm));
        let (rows, gate_rows, up_rows) = (gate.rows(), gate.tile_rows(), up.tile_rows());
        // Tiles of one are whole tiles of the other.
        let step = gate_rows.max(up_rows) * (ITEM_ROWS / gate_rows.max(up_rows)).max(1);
        let rows_of = move |item: usize| item * step..((item + 1) * step).min(rows);
        let activation = self.model.config.activation;
        let counts_nonzero = layer.down.skips_columns(Operation::Gemv);
        let counts = Counts::default();
        let buffers = self.buffers();
        let input = (Arc::clone(self.model), Arc::clone(gate), Arc::clone(up), inputs, counts);
        let ((.., inputs, counts), outputs) = self.pool.run_kept(
            buffers,
            input,
            rows.div_ceil(step),
            1,
            move |(model, gate, up, inputs, counts), items, out: &mut Vec<f32>| {
                TILES.with_borrow_mut(|[gates, ups, gated]| {
                    for item in items {
                        let rows = rows_of(item);
                        gate.product_in(tiles_of(gate, &rows), &inputs[which[0]], gates);
                        up.product_in(tiles_of(up, &rows), &inputs[which[1]], ups);
                        gated.resize(gates.len(), 0.0);
                        activate(&model.float, activation, gates, ups, gated);
                        out.extend_from_slice(gated);
                        if O::COUNTS_GATES || counts_nonzero {
                            counts.add(model.float.count_positive(gates), model.float.count_nonzero(gated));
                        }
                    }
                });
            },
        );
        self.give_inputs(inputs);
        self.observer.lap(Part::GateUp);
        let (positive, nonzero) = counts.into_inner();
        self.observer.gates(positive as u64, (n * rows) as u64);
        let states = States::of_items(outputs, n, rows, rows_of);
        Gated { states, nonzero: counts_nonzero.then(|| nonzero as f64 / (n * rows) as f64) }
    }

    fn count_gates(&mut self, gates: &[f32]) {
        if O::COUNTS_GATES {
            let positive = self.model.float.count_positive(gates);
            self.observer.gates(positive as u64, gates.len() as u64);
        }
    }

    /// The second half, from what [`Forward::gated`] made.
    pub(crate) fn down(&mut self, layer: &Layer, gated: Gated) -> States {
        let down = &layer.down;
        let Gated { mut states, nonzero } = gated;
        let operation = match nonzero {
            Some(nonzero) => down.operation_for(states.n_tokens(), nonzero),
            None if down.skips_columns(Operation::Gemv) => {
                let gated = states.in_order();
                // Rounding makes zeros of more of them.
                let nonzero = self.model.float.count_nonzero(gated) as f64 / gated.len() as f64;
                down.operation_for(states.n_tokens(), nonzero)
            }
            None => down.operation(states.n_tokens()),
        };
        let states = Arc::new(states);
        let input = self.prepare(&states, layer.ffn_sub_norm.as_ref(), down, operation);
        self.give_shared(states);
        self.product_in_pieces([down], vec![input], [0])
    }
}

/// What down takes.
pub(crate) struct Gated {
    states: States,
    /// The share of it that is not 0, if it was counted.
    nonzero: Option<f64>,
}

impl Gated {
    fn whole(values: Vec<f32>, width: usize) -> Gated {
        Gated { states: States::whole(values, width), nonzero: None }
    }
}

fn activate(float: &FloatKernels, activation: Activation, gates: &[f32], ups: &[f32], out: &mut [f32]) {
    match activation {
        Activation::ReluSquared => float.relu2_gate(gates, ups, out),
        Activation::Silu => float.silu_gate(gates, ups, out),
        Activation::Gelu => float.gelu_gate(gates, ups, out),
    }
}

/// The tiles that hold these rows.
fn tiles_of(linear: &Linear, rows: &Range<usize>) -> Range<usize> {
    rows.start / linear.tile_rows()..rows.end.div_ceil(linear.tile_rows())
}

/// `[token][row]` of up for some rows, 0 where the gate is not positive. `cached`: the rows are in the cache.
fn up_where_positive(
    float: &FloatKernels,
    up: &Linear,
    rows: &Range<usize>,
    input: &PreparedInput,
    gates: &[f32],
    cached: bool,
    ups: &mut Vec<f32>,
) {
    let first = rows.start as u32;
    ups.clear();
    ups.resize(gates.len(), 0.0);
    WANTED.with_borrow_mut(|(wanted, products)| {
        // One token after the other: the rows stay in the cache meanwhile, and several of a token share their sums' end.
        for (token, (gates, ups)) in gates.chunks_exact(rows.len()).zip(ups.chunks_exact_mut(rows.len())).enumerate() {
            wanted.resize(gates.len(), 0);
            let wanted = &mut wanted[..];
            let n = float.positive(gates, wanted);
            let wanted = &mut wanted[..n];
            wanted.iter_mut().for_each(|row| *row += first);
            up.row_products(wanted, input, token, cached, products);
            for (row, product) in wanted.iter().zip(&*products) {
                ups[(row - first) as usize] = *product;
            }
        }
    });
}

/// The same for many tokens, row by row: a row is unpacked once for all tokens that want it. `input` is prepared for a GEMM.
fn up_listed(
    float: &FloatKernels,
    up: &Linear,
    rows: &Range<usize>,
    input: &PreparedInput,
    gates: &[f32],
    ups: &mut Vec<f32>,
) {
    let n = rows.len();
    ups.clear();
    ups.resize(gates.len(), 0.0);
    LISTS.with_borrow_mut(|lists| {
        let groups = gates.chunks(LISTED_TOKENS * n).zip(ups.chunks_mut(LISTED_TOKENS * n));
        for (first, (gates, ups)) in (0..).step_by(LISTED_TOKENS).zip(groups) {
            lists.fill(float, gates, n, first);
            up.listed_products(rows.clone(), &lists.ends, &lists.tokens, input, &mut lists.products);
            let mut start = 0;
            for (row, end) in lists.ends.iter().enumerate() {
                let listed = start..*end as usize;
                start = listed.end;
                for (token, product) in lists.tokens[listed.clone()].iter().zip(&lists.products[listed]) {
                    ups[(token - first) as usize * n + row] = *product;
                }
            }
        }
    });
}

impl Lists {
    /// From the gates `[token][row]` of `n` rows; tokens count from `first`.
    fn fill(&mut self, float: &FloatKernels, gates: &[f32], n: usize, first: u32) {
        self.rows.resize(gates.len(), 0);
        self.n_rows.clear();
        self.ends.clear();
        self.ends.resize(n + 1, 0);
        let mut found = 0;
        for gates in gates.chunks_exact(n) {
            let rows = &mut self.rows[found..][..n];
            let n_rows = float.positive(gates, rows);
            for row in &rows[..n_rows] {
                self.ends[*row as usize + 1] += 1;
            }
            self.n_rows.push(n_rows);
            found += n_rows;
        }
        // Where each row's tokens begin, which moves to where they end.
        for row in 0..n {
            self.ends[row + 1] += self.ends[row];
        }
        self.tokens.resize(found, 0);
        let mut rows = &self.rows[..];
        for (token, n_rows) in (first..).zip(&self.n_rows) {
            let (of_token, others) = rows.split_at(*n_rows);
            rows = others;
            for row in of_token {
                let at = &mut self.ends[*row as usize];
                self.tokens[*at as usize] = token;
                *at += 1;
            }
        }
        self.ends.truncate(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Model, Source};
    use std::path::Path;
    use tritone_kernels::isa::{Detected, Isa, Level};
    use tritone_kernels::line::Line;

    fn prepared(float: &FloatKernels, linear: &Linear, vectors: &[Vec<f32>], operation: Operation) -> PreparedInput {
        let n_lines = PreparedInput::n_lines(linear, vectors.len(), operation);
        let mut lines = vec![Line::ZERO; n_lines];
        let places = lines.chunks_exact_mut(linear.vector_lines(operation));
        let notes: Vec<_> =
            vectors.iter().zip(places).map(|(x, out)| linear.prepare_vector(float, x, operation, out)).collect();
        let mut input = PreparedInput::new(linear, vectors.len(), operation, lines);
        notes.iter().enumerate().for_each(|(i, notes)| input.set_scales(i, notes));
        input
    }

    /// Which rows of up a step multiplies is chosen by speed, so models with many positive gates never take this way where
    /// others are faster: it must have the bits of whole products, for all shares of positive gates, on every level.
    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn rows_where_gates_are_positive_are_those_of_whole_products() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/bitnet-relu2/model-i2_s.gguf");
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        for level in Level::ALL {
            if Isa::with_level(level, Detected::here()).is_err() {
                eprintln!("skipped: this processor lacks {level}");
                continue;
            }
            let options = LoadOptions { level: Some(level), threads: Some(1), ..LoadOptions::default() };
            let model = Model::load(Source::File(path.clone()), &options, &mut |_| {}).unwrap();
            let (up, float) = (&model.inner.weights.layers[0].up, &model.inner.float);
            assert!(up.skips_rows(), "{level}");
            let rows = 16..up.rows().min(80);
            for n in [1, 2, 5, 9, LISTED_TOKENS + 3] {
                let vectors: Vec<Vec<f32>> = (0..n).map(|_| (0..up.cols()).map(|_| random() - 0.5).collect()).collect();
                let alone = prepared(float, up, &vectors, Operation::Gemv);
                let together = prepared(float, up, &vectors, Operation::Gemm);
                let (mut all, mut some) = (Vec::new(), vec![1.0; 3]);
                up.product_in(tiles_of(up, &rows), &together, &mut all);
                for share in [0.0, 0.1, 0.5, 1.0] {
                    let mut gates: Vec<f32> = all.iter().map(|_| if random() < share { 0.5 } else { -0.5 }).collect();
                    if share == 0.5 {
                        gates[1..4].copy_from_slice(&[0.0, -0.0, f32::NAN]);
                    }
                    let mut ways = vec![("alone", &alone)];
                    if up.lists_vectors() {
                        ways.push(("listed", &together));
                    }
                    let expected = all.iter().zip(&gates).map(|(x, gate)| if *gate > 0.0 { *x } else { 0.0 });
                    let expected: Vec<u32> = expected.map(f32::to_bits).collect();
                    for (way, input) in ways {
                        match way {
                            "alone" => up_where_positive(float, up, &rows, input, &gates, n > 2, &mut some),
                            _ => up_listed(float, up, &rows, input, &gates, &mut some),
                        }
                        let some: Vec<u32> = some.iter().map(|x| x.to_bits()).collect();
                        assert!(some == expected, "{level}, {way}, {n} tokens, {share}");
                    }
                }
            }
        }
    }
}
