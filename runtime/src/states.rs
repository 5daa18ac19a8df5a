//! Vectors of several tokens, `[token][column]`, in the pieces in which threads have made them.
//!
//! A product of a prompt is megabytes. Threads make it some columns at a time, for all tokens; what follows takes it a
//! token at a time. Putting it in order between the two would be work for one thread and, as fast as products are
//! where tiles multiply, a sixth of their time.

use crate::threads::Output;
use std::ops::Range;
use tritone_kernels::float::FloatKernels;

/// Vectors of some tokens.
#[derive(Debug)]
pub(crate) struct States {
    n_tokens: usize,
    width: usize,
    buffers: Vec<Vec<f32>>,
    pieces: Vec<Piece>,
}

/// Some columns of all tokens: `[token][column]` from `start` on in a buffer.
#[derive(Debug)]
struct Piece {
    columns: Range<usize>,
    buffer: usize,
    start: usize,
}

impl States {
    /// All columns of all tokens in order.
    ///
    /// # Panics
    /// They are not whole tokens.
    pub(crate) fn whole(values: Vec<f32>, width: usize) -> States {
        assert!(width > 0 && values.len().is_multiple_of(width), "whole tokens");
        let pieces = vec![Piece { columns: 0..width, buffer: 0, start: 0 }];
        States { n_tokens: values.len() / width, width, buffers: vec![values], pieces }
    }

    /// What threads made, `columns(item)` by `columns(item)`.
    ///
    /// # Panics
    /// The items' columns are not `0..width`, each once, or an item has not as many values.
    pub(crate) fn of_items(
        outputs: Vec<Output<f32>>,
        n_tokens: usize,
        width: usize,
        columns: impl Fn(usize) -> Range<usize>,
    ) -> States {
        let (mut pieces, mut buffers) = (Vec::new(), Vec::with_capacity(outputs.len()));
        for (buffer, output) in outputs.into_iter().enumerate() {
            let mut start = 0;
            for (items, end) in output.ranges {
                for item in items {
                    let columns = columns(item);
                    let n_values = n_tokens * columns.len();
                    pieces.push(Piece { columns, buffer, start });
                    start += n_values;
                }
                assert_eq!(start, end, "a value for each token and column");
            }
            buffers.push(output.values);
        }
        pieces.sort_unstable_by_key(|piece| piece.columns.start);
        let end = pieces.iter().try_fold(0, |end, Piece { columns, .. }| (columns.start == end).then_some(columns.end));
        assert_eq!(end, Some(width), "each column once");
        States { n_tokens, width, buffers, pieces }
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The columns of a token, in `room` if they are not in order already.
    pub(crate) fn row<'a>(&'a self, token: usize, room: &'a mut Vec<f32>) -> &'a [f32] {
        if let [piece] = self.pieces.as_slice() {
            return self.part(piece, token);
        }
        room.clear();
        self.pieces.iter().for_each(|piece| room.extend_from_slice(self.part(piece, token)));
        room
    }

    /// Adds all of them to `x`, which is in order.
    pub(crate) fn add_to(&self, float: &FloatKernels, x: &mut [f32]) {
        for (token, x) in x.chunks_exact_mut(self.width).enumerate() {
            for piece in &self.pieces {
                float.add_assign(&mut x[piece.columns.clone()], self.part(piece, token));
            }
        }
    }

    /// Adds each token's vector after a norm.
    pub(crate) fn add_normed_to(&self, float: &FloatKernels, weight: &[f32], eps: f32, x: &mut [f32]) {
        let (mut room, mut normed) = (Vec::new(), vec![0.0; self.width]);
        for (token, x) in x.chunks_exact_mut(self.width).enumerate() {
            float.rms_norm(self.row(token, &mut room), weight, eps, &mut normed);
            float.add_assign(x, &normed);
        }
    }

    /// The values of [`States::whole`].
    ///
    /// # Panics
    /// They are in pieces.
    pub(crate) fn in_order(&mut self) -> &mut Vec<f32> {
        assert_eq!(self.pieces.len(), 1, "in order");
        &mut self.buffers[0]
    }

    /// The memory, for other things.
    pub(crate) fn into_buffers(self) -> Vec<Vec<f32>> {
        self.buffers
    }

    fn part(&self, piece: &Piece, token: usize) -> &[f32] {
        &self.buffers[piece.buffer][piece.start + token * piece.columns.len()..][..piece.columns.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tritone_kernels::isa::Isa;

    #[test]
    fn pieces_and_whole_vectors_are_the_same() {
        // Two tokens of five columns, made by two threads: columns 2-3, then 0-1; and column 4.
        let outputs = vec![
            Output { ranges: vec![(1..2, 4), (0..1, 8)], values: vec![2.0, 3.0, 12.0, 13.0, 0.0, 1.0, 10.0, 11.0] },
            Output { ranges: vec![(2..3, 2)], values: vec![4.0, 14.0] },
        ];
        let pieces = States::of_items(outputs, 2, 5, |item| item * 2..(item * 2 + 2).min(5));
        let values = vec![0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 11.0, 12.0, 13.0, 14.0];
        let mut whole = States::whole(values.clone(), 5);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for token in 0..2 {
            assert_eq!(pieces.row(token, &mut a), whole.row(token, &mut b));
        }
        assert_eq!((pieces.n_tokens(), whole.n_tokens()), (2, 2));
        let float = FloatKernels::new(Isa::scalar());
        pieces.add_to(&float, whole.in_order());
        assert_eq!(whole.into_buffers()[0], values.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "each column once")]
    fn a_gap_is_noticed() {
        let outputs = vec![Output { ranges: vec![(0..1, 1)], values: vec![1.0] }];
        let _ = States::of_items(outputs, 1, 2, |_| 1..2);
    }
}
