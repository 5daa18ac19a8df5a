//! Vectors quantised and brought into a kernel's form, and how each thread comes to have them.
//!
//! What one core has made the others fetch from its cache, line by line, and on some machines that takes as long as fetching from
//! memory. So few vectors stay where threads have made them, and each thread puts them in order for itself, once for each product: a
//! thread between them would fetch half of them, and all others would fetch all of them again. A single vector in a form that is
//! much larger than the vector is made anew by each thread.

use crate::linear::{Linear, VectorNotes};
use crate::threads::Output;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use tritone_kernels::float::FloatKernels;
use tritone_kernels::kernel::Operation;
use tritone_kernels::line::Line;
use tritone_kernels::matrix::MatrixPlan;

/// Vectors that stay where threads have made them are at most so many. Each thread has room twice for all of them (35 KB a vector of
/// down in 2B-4T's shape), so they are fewer where threads are many.
pub(crate) fn few(n_threads: usize) -> usize {
    (512 / n_threads).clamp(16, 64)
}

/// Prepared vectors.
pub(crate) struct PreparedInput {
    operation: Operation,
    n_vectors: usize,
    /// Of each vector, or of its blocks.
    scales: Vec<f32>,
    lines: Lines,
}

/// Where lines are.
enum Lines {
    /// Those of one vector after those of the other.
    InOrder(Vec<Line>),
    /// Nowhere yet: each thread makes its own of a single quantised vector.
    OfCodes { id: u64, codes: Vec<i8> },
    /// Those in use, where threads have made them: of each vector the buffer and its lines there.
    Apart { id: u64, buffers: Vec<Vec<Line>>, at: Vec<(usize, Range<usize>)> },
}

/// Lines that a thread has put in order or made, and of which input they are. There are two: gate and up can take different
/// ones in turns.
#[derive(Default)]
struct Own {
    inputs: [(u64, Vec<Line>); 2],
    /// Which of them is the older one.
    older: usize,
}

thread_local! {
    static OWN: RefCell<Own> = RefCell::new(Own::default());
}

/// No other input has it; none has 0.
fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl PreparedInput {
    /// Room for `n_vectors` vectors for `linear` in `lines`, [`PreparedInput::n_lines`] of them.
    pub(crate) fn new(linear: &Linear, n_vectors: usize, operation: Operation, lines: Vec<Line>) -> PreparedInput {
        assert_eq!(lines.len(), PreparedInput::n_lines(linear, n_vectors, operation), "lines for each vector");
        PreparedInput::with(linear, n_vectors, operation, Lines::InOrder(lines))
    }

    /// A single vector of which each thread makes its own lines; `x` after the norm.
    pub(crate) fn for_each_thread(
        linear: &Linear,
        operation: Operation,
        float: &FloatKernels,
        x: &[f32],
    ) -> PreparedInput {
        let mut codes = vec![0; linear.cols()];
        let notes = linear.quantise(float, x, &mut codes);
        let mut input = PreparedInput::with(linear, 1, operation, Lines::OfCodes { id: new_id(), codes });
        input.set_scales(0, &notes);
        input
    }

    /// What threads have made: each item is the lines in use of one vector.
    ///
    /// # Panics
    /// A vector is missing.
    pub(crate) fn apart(
        linear: &Linear,
        n_vectors: usize,
        operation: Operation,
        outputs: Vec<Output<Line>>,
    ) -> PreparedInput {
        let mut at = vec![(0, 0..0); n_vectors];
        let buffers = outputs.into_iter().enumerate().map(|(buffer, output)| {
            let mut start = 0;
            for (item, end) in output.ranges {
                at[item.start] = (buffer, start..end);
                start = end;
            }
            output.values
        });
        let buffers = buffers.collect();
        assert!(at.iter().all(|(_, lines)| !lines.is_empty()), "lines of each vector");
        PreparedInput::with(linear, n_vectors, operation, Lines::Apart { id: new_id(), buffers, at })
    }

    fn with(linear: &Linear, n_vectors: usize, operation: Operation, lines: Lines) -> PreparedInput {
        PreparedInput { operation, n_vectors, scales: vec![0.0; n_vectors * linear.activation_scales()], lines }
    }

    /// Lines of `n_vectors` vectors.
    pub(crate) fn n_lines(linear: &Linear, n_vectors: usize, operation: Operation) -> usize {
        n_vectors * linear.vector_lines(operation)
    }

    pub(crate) fn n_vectors(&self) -> usize {
        self.n_vectors
    }

    pub(crate) fn operation(&self) -> Operation {
        self.operation
    }

    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }

    pub(crate) fn set_scales(&mut self, i: usize, notes: &VectorNotes) {
        let scales = notes.scales.len();
        self.scales[i * scales..(i + 1) * scales].copy_from_slice(&notes.scales);
    }

    /// The lines of [`PreparedInput::new`].
    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        match &mut self.lines {
            Lines::InOrder(lines) => lines,
            Lines::OfCodes { .. } | Lines::Apart { .. } => unreachable!("they are not in order"),
        }
    }

    /// Sets neighbouring vectors, the first of which is vector `i`.
    pub(crate) fn set_lines(&mut self, i: usize, lines: &[Line]) {
        let n_vectors = self.n_vectors;
        let all = self.lines_mut();
        let per_vector = all.len() / n_vectors;
        all[i * per_vector..][..lines.len()].copy_from_slice(lines);
    }

    /// Calls `product` with the lines of all vectors, one after the other; what is not in use of them may be anything.
    pub(crate) fn with_lines<R>(&self, plan: &MatrixPlan, product: impl FnOnce(&[Line]) -> R) -> R {
        let per_vector = plan.prepared_lines(self.operation);
        match &self.lines {
            Lines::InOrder(lines) => product(lines),
            Lines::OfCodes { id, codes } => {
                own(*id, per_vector, |lines| plan.prepare(self.operation, codes, lines), product)
            }
            Lines::Apart { id, buffers, at } => {
                let in_order = |lines: &mut [Line]| {
                    for (lines, (buffer, from)) in lines.chunks_exact_mut(per_vector).zip(at) {
                        lines[..from.len()].copy_from_slice(&buffers[*buffer][from.clone()]);
                    }
                };
                own(*id, self.n_vectors * per_vector, in_order, product)
            }
        }
    }

    /// The memory of the lines, for others.
    pub(crate) fn into_buffers(self) -> Vec<Vec<Line>> {
        match self.lines {
            Lines::InOrder(lines) => vec![lines],
            Lines::OfCodes { .. } => Vec::new(),
            Lines::Apart { buffers, .. } => buffers,
        }
    }
}

/// Calls `product` with this thread's `n` lines of an input, which `make` makes if it has none yet.
fn own<R>(id: u64, n: usize, make: impl FnOnce(&mut [Line]), product: impl FnOnce(&[Line]) -> R) -> R {
    OWN.with_borrow_mut(|Own { inputs, older }| {
        let known = inputs.iter().position(|(other, _)| *other == id);
        let which = known.unwrap_or(*older);
        *older = 1 - which;
        let (of, lines) = &mut inputs[which];
        if known.is_none() {
            // Never shorter, so that nothing is cleared again.
            if lines.len() < n {
                lines.resize(n, Line::ZERO);
            }
            make(&mut lines[..n]);
            *of = id;
        }
        product(&lines[..n])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Model, Source};
    use std::path::Path;
    use tritone_kernels::isa::{Detected, Isa, Level};

    /// Two threads have made some vectors each, out of order, and kept what is in use of them: products are those of the same
    /// vectors in order, also where inputs of two matrices take turns.
    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn vectors_that_lie_apart_have_the_products_of_vectors_in_order() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/bitnet-relu2/model-i2_s.gguf");
        for level in Level::ALL {
            if Isa::with_level(level, Detected::here()).is_err() {
                eprintln!("skipped: this processor lacks {level}");
                continue;
            }
            let options = LoadOptions { level: Some(level), threads: Some(1), ..LoadOptions::default() };
            let model = Model::load(Source::File(path.clone()), &options, &mut |_| {}).unwrap();
            let (layer, float) = (&model.inner.weights.layers[0], &model.inner.float);
            let inputs = [&layer.up, &layer.down].map(|linear| {
                // The first vector has no column that is not 0, the others ever more.
                let vector = |v: usize| -> Vec<f32> {
                    (0..linear.cols()).map(|c| if c % 7 < 2 * v { (c % 13) as f32 - 5.0 } else { 0.0 }).collect()
                };
                let n_lines = linear.vector_lines(Operation::Gemv);
                let made: Vec<_> = (0..4)
                    .map(|v| {
                        let mut lines = vec![Line::ZERO; n_lines];
                        let notes = linear.prepare_vector(float, &vector(v), Operation::Gemv, &mut lines);
                        (lines, notes)
                    })
                    .collect();
                let outputs = [[3, 0], [2, 1]].map(|vectors| {
                    let (mut ranges, mut values) = (Vec::new(), Vec::new());
                    for v in vectors {
                        let used = linear.used_lines(Operation::Gemv, &made[v].0);
                        values.extend_from_slice(&made[v].0[..used]);
                        ranges.push((v..v + 1, values.len()));
                    }
                    Output { ranges, values }
                });
                let lines = made.iter().flat_map(|(lines, _)| lines).copied().collect();
                let mut in_order = PreparedInput::new(linear, 4, Operation::Gemv, lines);
                let mut apart = PreparedInput::apart(linear, 4, Operation::Gemv, outputs.into());
                for (v, (_, notes)) in made.iter().enumerate() {
                    in_order.set_scales(v, notes);
                    apart.set_scales(v, notes);
                }
                (linear, in_order, apart)
            });
            for _ in 0..2 {
                for (linear, in_order, apart) in &inputs {
                    let [mut expected, mut found] = [const { Vec::new() }; 2];
                    linear.product(0..linear.n_tiles(), in_order, &mut expected);
                    linear.product(0..linear.n_tiles(), apart, &mut found);
                    assert!(expected.iter().any(|x| *x != 0.0));
                    assert_eq!(expected, found, "{level}");
                }
            }
        }
    }
}
