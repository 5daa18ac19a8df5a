//! The first half of a feed-forward block: gate, up, and what stands between them.
//!
//! With relu^2 an element is 0 wherever its gate is not positive, whatever up is
//! ([`tritone_kernels::float::FloatKernels::relu2_gate`] is defined so). For a single token each work item computes some
//! rows of the gate and then only those rows of up whose gate is positive: no approximation, a
//! fraction of up's bytes, and no barrier between the two. For several tokens all gates come first; if few are positive,
//! each row of up is then multiplied with the tokens whose gate is positive there, a fraction of the work. Where so many
//! are that multiplying all is faster, all are multiplied. Down skips its columns by the same rule.

use crate::config::Activation;
use crate::forward::{Forward, items};
use crate::linear::{Linear, PreparedInput};
use crate::profile::{Observer, Part};
use crate::states::States;
use crate::weights::Layer;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tritone_kernels::float::FloatKernels;
use tritone_kernels::kernel::Operation;

/// If fewer gates than that would have to be positive for skipping to pay, nobody looks.
const RARELY: f64 = 0.15;

/// Rows of gate and up that one work item multiplies with all tokens: few, so that what it makes stays in the
/// second cache.
const ITEM_ROWS: usize = 64;

thread_local! {
    /// A work item's gates, ups and what is made of them.
    static TILES: RefCell<[Vec<f32>; 3]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

thread_local! {
    /// Rows of up that a work item wants for one token, their products, and these where they belong.
    static WANTED: RefCell<(Vec<u32>, Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new(), Vec::new())) };
}

/// Rows of up that one work item multiplies with several tokens.
const PAIR_ROWS: usize = 64;

impl<O: Observer> Forward<'_, O> {
    /// What down takes, from `x` before the block's norm.
    pub(crate) fn gated(&mut self, layer: &Layer, x: &Arc<States>) -> Gated {
        let (gate, up) = (&layer.gate, &layer.up);
        let activation = self.model.config.activation;
        let skips = activation == Activation::ReluSquared && up.skips_rows();
        if x.n_tokens() > 1 {
            return if skips && up.skipping_rows_pays_below() >= RARELY {
                self.gated_if_positive(layer, x)
            } else {
                self.gated_tiles(layer, x)
            };
        }
        let (inputs, which) = self.prepare_all([gate, up], x, Some(&layer.ffn_norm));
        if skips {
            return self.gated_rows(gate, up, inputs, which);
        }
        let [gate, up] = self.product([gate, up], inputs, which);
        self.observer.lap(Part::GateUp);
        let mut gated = self.scratch.take(gate.len());
        activate(&self.model.float, activation, &gate, &up, &mut gated);
        self.scratch.give(up);
        self.observer.lap(Part::Activation);
        self.count_gates(&gate);
        Gated::whole(gated, gate.len())
    }

    /// The same for one token with relu^2: rows of up whose gate is not positive are not read.
    fn gated_rows(
        &mut self,
        gate: &Arc<Linear>,
        up: &Arc<Linear>,
        inputs: Vec<PreparedInput>,
        which: [usize; 2],
    ) -> Gated {
        let rows = gate.rows();
        let tile_rows = gate.tile_rows();
        let items = items(&[gate], self.pool.n_threads(), 1);
        let rows_of = move |tiles: &Range<usize>| tiles.start * tile_rows..(tiles.end * tile_rows).min(rows);
        let placed = items.clone();
        let n_items = items.len();
        let (mut gates, mut gated) = (self.scratch.take(rows), self.scratch.take(rows));
        let buffers = self.buffers();
        let ((_, _, _, inputs, _), buffers) = self.pool.run_in(
            buffers,
            (Arc::clone(self.model), Arc::clone(gate), Arc::clone(up), inputs, items),
            n_items,
            1,
            move |(model, gate, up, inputs, items), range, out: &mut Vec<f32>| {
                WANTED.with_borrow_mut(|(wanted, products, ups)| {
                    for (_, tiles) in &items[range] {
                        let start = out.len();
                        gate.product(tiles.clone(), &inputs[which[0]], out);
                        let gates = &out[start..];
                        let first = rows_of(tiles).start as u32;
                        let wanted = positive(gates, first, wanted);
                        up.row_products(wanted, &inputs[which[1]], products);
                        ups.clear();
                        ups.resize(gates.len(), 0.0);
                        for (row, product) in wanted.iter().zip(&*products) {
                            ups[(row - first) as usize] = *product;
                        }
                        // Gates first, then what is made of them.
                        let (n, end) = (gates.len(), out.len());
                        out.resize(end + n, 0.0);
                        let (gates, gated) = out[start..].split_at_mut(n);
                        model.float.relu2_gate(gates, ups, gated);
                    }
                });
            },
            |range, values| {
                let rows = rows_of(&placed[range.start].1);
                let (some_gates, some_gated) = values.split_at(rows.len());
                gates[rows.clone()].copy_from_slice(some_gates);
                gated[rows].copy_from_slice(some_gated);
            },
        );
        self.give_inputs(inputs);
        self.give_all(buffers);
        self.skipped.rows(count(&gates, |gate| gate > 0.0), rows);
        self.observer.lap(Part::GateUp);
        self.count_gates(&gates);
        self.scratch.give(gates);
        Gated::whole(gated, rows)
    }

    /// The same for several tokens: the gates first, and then what they leave of up.
    fn gated_if_positive(&mut self, layer: &Layer, x: &Arc<States>) -> Gated {
        let (up, norm) = (&layer.up, Some(&layer.ffn_norm));
        let (inputs, [gate_input, up_input]) = self.prepare_all([&layer.gate, up], x, norm);
        let ([mut gate], mut inputs) = self.product_and_inputs([&layer.gate], inputs, [gate_input]);
        self.observer.lap(Part::GateUp);
        let gated = if (count(&gate, |gate| gate > 0.0) as f64) < gate.len() as f64 * up.skipping_rows_pays_below() {
            let mut input = inputs.swap_remove(up_input);
            if input.operation() != Operation::Gemv {
                input = self.prepare(x, norm, up, Operation::Gemv);
            }
            let gated;
            (gated, gate) = self.gated_pairs(up, gate, input);
            gated
        } else {
            let [ups] = self.product([up], inputs, [up_input]);
            let mut gated = self.scratch.take(gate.len());
            self.model.float.relu2_gate(&gate, &ups, &mut gated);
            self.scratch.give(ups);
            gated
        };
        self.observer.lap(Part::GateUp);
        self.count_gates(&gate);
        self.scratch.give(gate);
        Gated::whole(gated, up.rows())
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
        let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let buffers = self.buffers();
        let input = (Arc::clone(self.model), Arc::clone(gate), Arc::clone(up), inputs, counts);
        let ((.., inputs, counts), outputs) = self.pool.run_kept(
            buffers,
            input,
            rows.div_ceil(step),
            1,
            move |(model, gate, up, inputs, [positive, nonzero]), items, out: &mut Vec<f32>| {
                TILES.with_borrow_mut(|[gates, ups, gated]| {
                    for item in items {
                        let rows = rows_of(item);
                        let tiles = |tile_rows: usize| rows.start / tile_rows..rows.end.div_ceil(tile_rows);
                        gate.product_in(tiles(gate_rows), &inputs[which[0]], gates);
                        up.product_in(tiles(up_rows), &inputs[which[1]], ups);
                        gated.resize(gates.len(), 0.0);
                        activate(&model.float, activation, gates, ups, gated);
                        out.extend_from_slice(gated);
                        if O::COUNTS_GATES {
                            positive.fetch_add(count(gates, |gate| gate > 0.0), Ordering::Relaxed);
                        }
                        if counts_nonzero {
                            nonzero.fetch_add(count(gated, |x| x != 0.0), Ordering::Relaxed);
                        }
                    }
                });
            },
        );
        self.give_inputs(inputs);
        self.observer.lap(Part::GateUp);
        let [positive, nonzero] = counts.map(AtomicUsize::into_inner);
        self.observer.gates(positive as u64, (n * rows) as u64);
        let states = States::of_items(outputs, n, rows, rows_of);
        Gated { states, nonzero: counts_nonzero.then(|| nonzero as f64 / (n * rows) as f64) }
    }

    /// Multiplies only the pairs of a row of up and a token whose gate is positive; `gate` is `[token][ffn]` and
    /// comes back.
    fn gated_pairs(&mut self, up: &Arc<Linear>, gate: Vec<f32>, input: PreparedInput) -> (Vec<f32>, Vec<f32>) {
        let n = input.n_vectors();
        let rows = up.rows();
        let mut gated = vec![0.0; gate.len()];
        let (_, _, gate, _) = self.pool.run(
            (Arc::clone(self.model), Arc::clone(up), gate, input),
            rows.div_ceil(PAIR_ROWS),
            1,
            move |(model, up, gate, input), items, out: &mut Vec<f32>| {
                let (mut wanted, mut products) = (Vec::new(), Vec::new());
                for item in items {
                    let some = item * PAIR_ROWS..((item + 1) * PAIR_ROWS).min(rows);
                    let mut ups = vec![0.0; n * some.len()];
                    for (i, row) in some.clone().enumerate() {
                        wanted.clear();
                        wanted.extend((0..n).filter(|token| gate[token * rows + row] > 0.0).map(|token| token as u32));
                        up.row_products_for(row as u32, &wanted, input, &mut products);
                        for (token, product) in wanted.iter().zip(&products) {
                            ups[*token as usize * some.len() + i] = *product;
                        }
                    }
                    for (token, ups) in ups.chunks_exact(some.len()).enumerate() {
                        let start = out.len();
                        out.resize(start + some.len(), 0.0);
                        model.float.relu2_gate(&gate[token * rows..][some.clone()], ups, &mut out[start..]);
                    }
                }
            },
            |items, values| {
                let some = items.start * PAIR_ROWS..(items.end * PAIR_ROWS).min(rows);
                for (token, part) in values.chunks_exact(some.len()).enumerate() {
                    gated[token * rows..][some.clone()].copy_from_slice(part);
                }
            },
        );
        (gated, gate)
    }

    fn count_gates(&mut self, gates: &[f32]) {
        if O::COUNTS_GATES {
            let positive = count(gates, |gate| gate > 0.0);
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
                let nonzero = count(gated, |x| x != 0.0) as f64 / gated.len() as f64;
                down.operation_for(states.n_tokens(), nonzero)
            }
            None => down.operation(states.n_tokens()),
        };
        let states = Arc::new(states);
        let input = self.prepare(&states, layer.ffn_sub_norm.as_ref(), down, operation);
        self.give_shared(states);
        self.product_in_pieces(down, input)
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

/// The rows, the first of which is `first`, whose gate is positive.
fn positive<'w>(gates: &[f32], first: u32, wanted: &'w mut Vec<u32>) -> &'w [u32] {
    // Each place is written and then counted if it is to stay: half of all branches on a sign would be guessed wrong.
    wanted.resize(gates.len(), 0);
    let mut n = 0;
    for (row, gate) in (first..).zip(gates) {
        wanted[n] = row;
        n += usize::from(*gate > 0.0);
    }
    &wanted[..n]
}

/// How many of some numbers are such.
fn count(numbers: &[f32], is: impl Fn(f32) -> bool) -> usize {
    // In runs that a byte can count: the compiler makes vectors of it.
    numbers.chunks(128).map(|run| usize::from(run.iter().map(|x| u8::from(is(*x))).sum::<u8>())).sum()
}
