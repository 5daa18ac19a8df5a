//! The transformer's forward pass: from token ids to logits.
//!
//! [`Forward::layers`] reads from top to bottom like the papers. Every product of a ternary matrix
//! is exact in integers, every float step has one order (`tritone_kernels::float`), and each
//! token is treated alone, so a hidden state depends only on the tokens up to it.

use crate::error::Result;
use crate::feed_forward::PositiveGates;
use crate::kv_cache::Span;
use crate::linear::Linear;
use crate::model::Inner;
use crate::prepared::{PreparedInput, few};
use crate::profile::{Observer, Part};
use crate::rope::RopeTables;
use crate::scratch::Scratch;
use crate::skipped::Skipped;
use crate::states::States;
use crate::threads::Pool;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tritone_kernels::ask;
use tritone_kernels::float::FloatKernels;
use tritone_kernels::kernel::Operation;
use tritone_kernels::line::Line;

/// Everything that one step needs.
pub(crate) struct Forward<'a, O> {
    pub(crate) model: &'a Arc<Inner>,
    pub(crate) pool: &'a mut Pool,
    /// Whose tokens are computed, in their order.
    pub(crate) spans: Vec<&'a mut Span>,
    pub(crate) rope: &'a mut Arc<RopeTables>,
    /// Counts what need not be read.
    pub(crate) skipped: &'a mut Skipped,
    /// What was seen of gates that may be 0 or less.
    pub(crate) gates: &'a mut PositiveGates,
    pub(crate) scratch: &'a mut Scratch,
    /// Hears which part of the work is done.
    pub(crate) observer: &'a mut O,
}

impl<O: Observer> Forward<'_, O> {
    /// Hidden states `[token][hidden]` after the last layer of `tokens`, those of one span after those of the
    /// other; their keys and values are stored.
    pub(crate) fn layers(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        debug_assert_eq!(tokens.len(), self.spans.iter().map(|span| span.n_tokens).sum::<usize>());
        let model = Arc::clone(self.model);
        let (config, weights, float) = (&model.config, &model.weights, &model.float);
        self.observer.start();
        let end = self.spans.iter().map(|span| span.position + span.n_tokens).max();
        Arc::make_mut(self.rope).extend(end.unwrap_or_default());
        if tokens.len() == 1 {
            self.scratch.keep_small();
        }
        let mut x = Arc::new(States::whole(weights.embedding.rows(tokens)?, config.hidden));
        self.observer.lap(Part::Other);
        for (i, layer) in weights.layers.iter().enumerate() {
            let qkv = [&layer.q, &layer.k, &layer.v];
            let (inputs, which) = self.prepare_all(qkv, &x, Some(&layer.attn_norm));
            let projected = self.product_in_pieces(qkv, inputs, which);
            self.observer.lap(Part::Qkv);
            let attention = Arc::new(self.attention(i, projected));
            let input = self.prepare_for(&layer.output, &attention, layer.attn_sub_norm.as_ref());
            self.give_shared(attention);
            let output = self.product_in_pieces([&layer.output], vec![input], [0]);
            self.observer.lap(Part::Output);
            match &layer.post_attn_norm {
                None => output.add_to(float, alone(&mut x)),
                Some(norm) => output.add_normed_to(float, norm, config.rms_eps, alone(&mut x)),
            }
            self.give_all(output.into_buffers());
            self.observer.lap(Part::Other);

            let gated = self.gated(layer, &x);
            let down = self.down(layer, gated);
            self.observer.lap(Part::Down);
            match &layer.post_ffn_norm {
                None => down.add_to(float, alone(&mut x)),
                Some(norm) => down.add_normed_to(float, norm, config.rms_eps, alone(&mut x)),
            }
            self.give_all(down.into_buffers());
            self.observer.lap(Part::Other);
        }
        Ok(std::mem::take(alone(&mut x)))
    }

    /// The products of several matrices with the same rows of `x`, after a norm if one is given: each
    /// `[token][rows]`.
    pub(crate) fn project<const N: usize>(
        &mut self,
        linears: [&Arc<Linear>; N],
        x: &Arc<States>,
        norm: Option<&Arc<[f32]>>,
    ) -> [Vec<f32>; N] {
        let (inputs, which) = self.prepare_all(linears, x, norm);
        self.product(linears, inputs, which)
    }

    /// Prepared inputs for several matrices, and which of them each matrix takes.
    pub(crate) fn prepare_all<const N: usize>(
        &mut self,
        linears: [&Arc<Linear>; N],
        x: &Arc<States>,
        norm: Option<&Arc<[f32]>>,
    ) -> (Vec<PreparedInput>, [usize; N]) {
        let mut which = [0; N];
        let mut distinct: Vec<&Arc<Linear>> = Vec::with_capacity(1);
        for (which, linear) in which.iter_mut().zip(linears) {
            *which = distinct.iter().position(|other| other.shares_input(linear)).unwrap_or_else(|| {
                distinct.push(linear);
                distinct.len() - 1
            });
        }
        let inputs = distinct.into_iter().map(|linear| self.prepare_for(linear, x, norm)).collect();
        (inputs, which)
    }

    /// [`Forward::prepare`] for what multiplies so many vectors fastest.
    fn prepare_for(&mut self, linear: &Arc<Linear>, x: &Arc<States>, norm: Option<&Arc<[f32]>>) -> PreparedInput {
        self.prepare(x, norm, linear, linear.operation(x.n_tokens()))
    }

    /// Norms (if `norm` is given), quantises and prepares each row of `x` for `linear` and for all
    /// matrices that share its input.
    pub(crate) fn prepare(
        &mut self,
        x: &Arc<States>,
        norm: Option<&Arc<[f32]>>,
        linear: &Arc<Linear>,
        operation: Operation,
    ) -> PreparedInput {
        let (n, cols, n_threads) = (x.n_tokens(), linear.cols(), self.pool.n_threads());
        let eps = self.model.config.rms_eps;
        if n == 1 && n_threads > 1 && linear.has_large_lines(operation) {
            let float = &self.model.float;
            let (input, nanos) = of_row::<O, _>(float, norm, eps, x, 0, |row| {
                PreparedInput::for_each_thread(linear, operation, float, row)
            });
            self.observer.lap_shared([(Part::Norms, nanos[0]), (Part::Quantise, nanos[1])]);
            return input;
        }
        // Vector `i` to its lines.
        let one =
            move |model: &Inner, linear: &Linear, norm: Option<&Arc<[f32]>>, x: &States, i: usize, out: &mut [Line]| {
                let prepare = |row: &[f32]| linear.prepare_vector(&model.float, row, operation, out);
                let (note, nanos) = of_row::<O, _>(&model.float, norm, eps, x, i, prepare);
                (i, nanos, note)
            };
        let in_order = |scratch: &mut Scratch| {
            let lines = scratch.take_lines(PreparedInput::n_lines(linear, n, operation));
            PreparedInput::new(linear, n, operation, lines)
        };
        let (mut prepared, notes) = if n == 1 {
            let mut prepared = in_order(self.scratch);
            let note = one(self.model, linear, norm, x, 0, prepared.lines_mut());
            (prepared, vec![note])
        } else {
            let buffers = self.scratch.take_empty_lines(n_threads);
            let notes = Mutex::new(Vec::with_capacity(n));
            let input = (Arc::clone(self.model), Arc::clone(linear), norm.cloned(), Arc::clone(x), notes);
            let few = n <= few(n_threads);
            let grain = if few { 1 } else { n.div_ceil(4 * n_threads) };
            let ((.., notes), outputs) = self.pool.run_kept(
                buffers,
                input,
                n,
                grain,
                move |(model, linear, norm, x, notes), items, out: &mut Vec<Line>| {
                    VECTOR.with_borrow_mut(|vector| {
                        let n_lines = linear.vector_lines(operation);
                        if vector.len() < n_lines {
                            vector.resize(n_lines, Line::ZERO);
                        }
                        let vector = &mut vector[..n_lines];
                        for i in items {
                            let note = one(model, linear, norm.as_ref(), x, i, vector);
                            let used = if few { linear.used_lines(operation, vector) } else { vector.len() };
                            out.extend_from_slice(&vector[..used]);
                            notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
                        }
                    });
                },
            );
            let prepared = if few {
                PreparedInput::apart(linear, n, operation, outputs)
            } else {
                let mut prepared = in_order(self.scratch);
                let mut buffers = Vec::with_capacity(outputs.len());
                for output in outputs {
                    let mut start = 0;
                    for (items, end) in output.ranges {
                        prepared.set_lines(items.start, &output.values[start..end]);
                        start = end;
                    }
                    buffers.push(output.values);
                }
                self.scratch.give_lines(buffers);
                prepared
            };
            (prepared, notes.into_inner().unwrap_or_else(PoisonError::into_inner))
        };
        let (mut norm_nanos, mut quantise_nanos, mut n_nonzero) = (0, 0, 0);
        for (i, [norm, quantise], notes) in notes {
            prepared.set_scales(i, &notes);
            n_nonzero += notes.n_nonzero;
            norm_nanos += norm;
            quantise_nanos += quantise;
        }
        if linear.skips_columns(operation) {
            self.skipped.columns(n_nonzero, n * cols);
        }
        self.observer.lap_shared([(Part::Norms, norm_nanos), (Part::Quantise, quantise_nanos)]);
        prepared
    }

    /// The products of several matrices, each with the input that `which` names: each `[token][rows]`.
    pub(crate) fn product<const N: usize>(
        &mut self,
        linears: [&Arc<Linear>; N],
        inputs: Vec<PreparedInput>,
        which: [usize; N],
    ) -> [Vec<f32>; N] {
        let n = inputs[0].n_vectors();
        let linears = linears.map(Arc::clone);
        let mut outputs: [Vec<f32>; N] = std::array::from_fn(|i| self.scratch.take(n * linears[i].rows()));
        let items = items(&linears, self.pool.n_threads(), n);
        let shape: Vec<_> = linears.iter().map(|linear| (linear.rows(), linear.tile_rows())).collect();
        let placed = items.clone();
        let n_items = items.len();
        let buffers = self.buffers();
        let ((_, inputs, _), buffers) = self.pool.run_in(
            buffers,
            (linears, inputs, items),
            n_items,
            1,
            move |(linears, inputs, items), range, out| {
                for (i, tiles) in &items[range] {
                    linears[*i].product(tiles.clone(), &inputs[which[*i]], out);
                }
            },
            |range, values| {
                let (i, tiles) = &placed[range.start];
                let (rows, tile_rows) = shape[*i];
                let range = tiles.start * tile_rows..(tiles.end * tile_rows).min(rows);
                for (token, part) in values.chunks(range.len()).enumerate() {
                    outputs[*i][token * rows..][range.clone()].copy_from_slice(part);
                }
            },
        );
        self.give_all(buffers);
        self.give_inputs(inputs);
        outputs
    }

    /// The same as the work items made them: the rows of one matrix behind those of the other.
    pub(crate) fn product_in_pieces<const N: usize>(
        &mut self,
        linears: [&Arc<Linear>; N],
        inputs: Vec<PreparedInput>,
        which: [usize; N],
    ) -> States {
        let n = inputs[0].n_vectors();
        let linears = linears.map(Arc::clone);
        let items = items(&linears, self.pool.n_threads(), n);
        let mut width = 0;
        let shape = linears.each_ref().map(|linear| {
            let first = width;
            width += linear.rows();
            (first, linear.rows(), linear.tile_rows())
        });
        let placed = items.clone();
        let n_items = items.len();
        let buffers = self.buffers();
        let ((_, inputs, _), outputs) = self.pool.run_kept(
            buffers,
            (linears, inputs, items),
            n_items,
            1,
            move |(linears, inputs, items), range, out| {
                for (i, tiles) in &items[range] {
                    linears[*i].product(tiles.clone(), &inputs[which[*i]], out);
                }
            },
        );
        self.give_inputs(inputs);
        States::of_items(outputs, n, width, |item| {
            let (i, tiles) = &placed[item];
            let (first, rows, tile_rows) = shape[*i];
            first + tiles.start * tile_rows..first + (tiles.end * tile_rows).min(rows)
        })
    }

    /// Keeps the memory of inputs for others.
    pub(crate) fn give_inputs(&mut self, inputs: Vec<PreparedInput>) {
        inputs.into_iter().for_each(|input| self.scratch.give_lines(input.into_buffers()));
    }

    /// Keeps the memory of what work shared.
    pub(crate) fn give_shared(&mut self, states: Arc<States>) {
        if let Ok(states) = Arc::try_unwrap(states) {
            self.give_all(states.into_buffers());
        }
    }

    /// A buffer for each thread.
    pub(crate) fn buffers(&mut self) -> Vec<Vec<f32>> {
        self.scratch.take_empty(self.pool.n_threads())
    }

    /// Keeps buffers for others, those of the first thread first.
    pub(crate) fn give_all(&mut self, buffers: Vec<Vec<f32>>) {
        self.scratch.give(buffers);
    }
}

/// What `then` makes of row `i` of `x`, after a norm if one is given, and the nanoseconds that each of the two took.
fn of_row<O: Observer, R>(
    float: &FloatKernels,
    norm: Option<&Arc<[f32]>>,
    eps: f32,
    x: &States,
    i: usize,
    then: impl FnOnce(&[f32]) -> R,
) -> (R, [u64; 2]) {
    ROOM.with_borrow_mut(|(room, normed)| {
        let began = O::now();
        // Once in a step: other rows find the weights in the cache.
        if let (0, Some(weight)) = (i, norm) {
            ask::soon(weight);
        }
        let row = x.row(i, room);
        let normed = norm.map(|weight| {
            normed.resize(row.len(), 0.0);
            float.rms_norm(row, weight, eps, normed);
            &*normed
        });
        let norm_nanos = O::nanos_since(began);
        let began = O::now();
        let made = then(normed.map_or(row, |x| x));
        (made, [norm_nanos, O::nanos_since(began)])
    })
}

/// What no work shares any more.
fn alone(x: &mut Arc<States>) -> &mut Vec<f32> {
    Arc::get_mut(x).expect("work gives its inputs back before it ends").in_order()
}

thread_local! {
    /// One prepared vector.
    static VECTOR: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    /// A vector, and the same after its norm.
    static ROOM: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// No work item has more rows: enough to pay for handing it out, few enough to share evenly.
const MAX_GROUP_ROWS: usize = 512;

/// Nor more outputs, if [`MIN_GROUP_ROWS`] are fewer: its sums and what becomes of them stay in the second cache.
const MAX_GROUP_OUTPUTS: usize = 1 << 15;
const MIN_GROUP_ROWS: usize = 64;

/// Rows that kernels like to take together: four tiles of T5 share one pass over its tables, a tile of C2 has as many.
const SHARING_ROWS: usize = 256;

/// Work items that cover all rows of some matrices for so many vectors: a group of neighbouring tiles of one matrix each.
pub(crate) fn items<L: AsRef<Linear>>(linears: &[L], n_threads: usize, n_vectors: usize) -> Vec<(usize, Range<usize>)> {
    let total_rows: usize = linears.iter().map(|linear| linear.as_ref().rows()).sum();
    let most = (MAX_GROUP_OUTPUTS / n_vectors.max(1)).clamp(MIN_GROUP_ROWS, MAX_GROUP_ROWS);
    let mut group_rows = (total_rows / (4 * n_threads)).clamp(1, most);
    if most >= SHARING_ROWS && group_rows >= SHARING_ROWS / 2 {
        group_rows = (group_rows / SHARING_ROWS).max(1) * SHARING_ROWS;
    }
    let mut items = Vec::new();
    for (i, linear) in linears.iter().enumerate() {
        let linear = linear.as_ref();
        let step = (group_rows / linear.tile_rows()).max(1);
        for start in (0..linear.n_tiles()).step_by(step) {
            items.push((i, start..(start + step).min(linear.n_tiles())));
        }
    }
    items
}
