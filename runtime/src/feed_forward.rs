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
use crate::weights::Layer;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tritone_kernels::kernel::Operation;

/// If fewer gates than that would have to be positive for skipping to pay, nobody looks.
const RARELY: f64 = 0.15;

/// Rows of gate and up that one work item multiplies with all tokens.
const ITEM_ROWS: usize = 256;

/// Rows of up that one work item multiplies with several tokens.
const PAIR_ROWS: usize = 64;

impl<O: Observer> Forward<'_, O> {
    /// What down takes: `[token][ffn]`, from `x` before the block's norm.
    pub(crate) fn gated(&mut self, layer: &Layer, x: Vec<f32>) -> Vec<f32> {
        let (gate, up) = (&layer.gate, &layer.up);
        let n = x.len() / gate.cols();
        let activation = self.model.config.activation;
        let skips = activation == Activation::ReluSquared && up.skips_rows();
        if skips && n > 1 {
            return self.gated_several(layer, x);
        }
        let (inputs, which) = self.prepare_all([gate, up], x, Some(&layer.ffn_norm));
        if skips {
            return self.gated_rows(gate, up, inputs, which);
        }
        let [gate, up] = self.product([gate, up], inputs, which);
        self.observer.lap(Part::GateUp);
        let mut gated = self.scratch.take(gate.len());
        match activation {
            Activation::ReluSquared => self.model.float.relu2_gate(&gate, &up, &mut gated),
            Activation::Silu => self.model.float.silu_gate(&gate, &up, &mut gated),
        }
        self.scratch.give(up);
        self.observer.lap(Part::Activation);
        self.count_gates(&gate);
        gated
    }

    /// The same for one token with relu^2: rows of up whose gate is not positive are not read.
    fn gated_rows(
        &mut self,
        gate: &Arc<Linear>,
        up: &Arc<Linear>,
        inputs: Vec<PreparedInput>,
        which: [usize; 2],
    ) -> Vec<f32> {
        let rows = gate.rows();
        let tile_rows = gate.tile_rows();
        let items = items(&[gate], self.pool.n_threads());
        let rows_of = move |tiles: &Range<usize>| tiles.start * tile_rows..(tiles.end * tile_rows).min(rows);
        let placed = items.clone();
        let n_items = items.len();
        let (mut gates, mut gated) = (vec![0.0; rows], vec![0.0; rows]);
        self.pool.run(
            (Arc::clone(self.model), Arc::clone(gate), Arc::clone(up), inputs, items),
            n_items,
            1,
            move |(model, gate, up, inputs, items), range, out: &mut Vec<f32>| {
                let (mut wanted, mut products) = (Vec::new(), Vec::new());
                for (_, tiles) in &items[range] {
                    let start = out.len();
                    gate.product(tiles.clone(), &inputs[which[0]], out);
                    let gates = &out[start..];
                    wanted.clear();
                    let positive = (0u32..).zip(gates).filter(|(_, gate)| **gate > 0.0);
                    let first = rows_of(tiles).start as u32;
                    wanted.extend(positive.map(|(row, _)| first + row));
                    up.row_products(&wanted, &inputs[which[1]], &mut products);
                    let mut ups = vec![0.0; gates.len()];
                    for (row, product) in wanted.iter().zip(&products) {
                        ups[(row - first) as usize] = *product;
                    }
                    // Gates first, then what is made of them.
                    let (n, end) = (gates.len(), out.len());
                    out.resize(end + n, 0.0);
                    let (gates, gated) = out[start..].split_at_mut(n);
                    model.float.relu2_gate(gates, &ups, gated);
                }
            },
            |range, values| {
                let rows = rows_of(&placed[range.start].1);
                let (some_gates, some_gated) = values.split_at(rows.len());
                gates[rows.clone()].copy_from_slice(some_gates);
                gated[rows].copy_from_slice(some_gated);
            },
        );
        self.skipped.rows(gates.iter().filter(|gate| **gate > 0.0).count(), rows);
        self.observer.lap(Part::GateUp);
        self.count_gates(&gates);
        gated
    }

    /// The same for several tokens.
    fn gated_several(&mut self, layer: &Layer, x: Vec<f32>) -> Vec<f32> {
        let (up, norm) = (&layer.up, Some(&layer.ffn_norm));
        if up.skipping_rows_pays_below() < RARELY {
            return self.gated_tiles(layer, x);
        }
        let copy = self.scratch.copy(&x);
        let (inputs, [gate_input, up_input]) = self.prepare_all([&layer.gate, up], copy, norm);
        let ([mut gate], mut inputs) = self.product_and_inputs([&layer.gate], inputs, [gate_input]);
        self.observer.lap(Part::GateUp);
        let gated = if share(&gate, |gate| gate > 0.0) < up.skipping_rows_pays_below() {
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
        gated
    }

    /// All rows of gate and up for several tokens: a work item makes both and what follows from them, so neither
    /// is stored.
    fn gated_tiles(&mut self, layer: &Layer, x: Vec<f32>) -> Vec<f32> {
        let (gate, up) = (&layer.gate, &layer.up);
        let n = x.len() / gate.cols();
        let (inputs, which) = self.prepare_all([gate, up], x, Some(&layer.ffn_norm));
        let (rows, gate_rows, up_rows) = (gate.rows(), gate.tile_rows(), up.tile_rows());
        // Tiles of one are whole tiles of the other.
        let step = gate_rows.max(up_rows) * (ITEM_ROWS / gate_rows.max(up_rows)).max(1);
        let rows_of = move |item: usize| item * step..((item + 1) * step).min(rows);
        let mut gated = self.scratch.take(n * rows);
        let buffers = self.buffers();
        let input = (Arc::clone(self.model), Arc::clone(gate), Arc::clone(up), inputs, AtomicU64::new(0));
        let ((.., positive), buffers) = self.pool.run_in(
            buffers,
            input,
            rows.div_ceil(step),
            1,
            move |(model, gate, up, inputs, positive), items, out: &mut Vec<f32>| {
                let (mut gates, mut ups) = (Vec::new(), Vec::new());
                for item in items {
                    let rows = rows_of(item);
                    let tiles = |tile_rows: usize| rows.start / tile_rows..rows.end.div_ceil(tile_rows);
                    gates.clear();
                    ups.clear();
                    gate.product(tiles(gate_rows), &inputs[which[0]], &mut gates);
                    up.product(tiles(up_rows), &inputs[which[1]], &mut ups);
                    let start = out.len();
                    out.resize(start + gates.len(), 0.0);
                    model.float.relu2_gate(&gates, &ups, &mut out[start..]);
                    if O::COUNTS_GATES {
                        let some = gates.iter().filter(|gate| **gate > 0.0).count();
                        positive.fetch_add(some as u64, Ordering::Relaxed);
                    }
                }
            },
            |items, values| {
                let some = rows_of(items.start);
                for (token, part) in values.chunks_exact(some.len()).enumerate() {
                    gated[token * rows..][some.clone()].copy_from_slice(part);
                }
            },
        );
        self.give_all(buffers);
        self.observer.lap(Part::GateUp);
        self.observer.gates(positive.into_inner(), (n * rows) as u64);
        gated
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
            let positive = gates.iter().filter(|gate| **gate > 0.0).count();
            self.observer.gates(positive as u64, gates.len() as u64);
        }
    }

    /// The second half: `[token][hidden]` from what [`Forward::gated`] made.
    pub(crate) fn down(&mut self, layer: &Layer, gated: Vec<f32>) -> Vec<f32> {
        let down = &layer.down;
        // Rounding makes zeros of more of them.
        let operation = down.operation_for(gated.len() / down.cols(), share(&gated, |x| x != 0.0));
        let input = self.prepare(gated, layer.ffn_sub_norm.as_ref(), down, operation);
        let [product] = self.product([down], vec![input], [0]);
        product
    }
}

/// What share of some numbers is such.
fn share(numbers: &[f32], is: impl Fn(f32) -> bool) -> f64 {
    numbers.iter().filter(|x| is(**x)).count() as f64 / numbers.len().max(1) as f64
}
