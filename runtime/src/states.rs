//! Vectors of several tokens, `[token][column]`, in the pieces in which threads have made them.
//!
//! A product of a prompt is megabytes. Threads make it some columns at a time, for all tokens, and attention a token and some heads
//! at a time; what follows takes it a token at a time. Putting it in order between the two would be work for one thread and, as fast
//! as products are where tiles multiply, a sixth of their time; and what one core has put in order all others fetch from it.

use crate::threads::Output;
use std::ops::Range;
use tritone_kernels::float::FloatKernels;

/// Vectors of some tokens.
#[derive(Debug)]
pub(crate) struct States {
    n_tokens: usize,
    width: usize,
    buffers: Vec<Vec<f32>>,
    pieces: Pieces,
}

/// What a piece holds.
#[derive(Debug)]
enum Pieces {
    /// Some columns of all tokens; they are in the columns' order.
    OfAll(Vec<Piece>),
    /// `width` columns of one token: buffer and start of each, in the order of tokens and then columns.
    OfOne { width: usize, at: Vec<(usize, usize)> },
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
        let pieces = Pieces::OfAll(vec![Piece { columns: 0..width, buffer: 0, start: 0 }]);
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
        let mut pieces = Vec::new();
        let buffers = each_item(outputs, |item, buffer, start| {
            let columns = columns(item);
            let n_values = n_tokens * columns.len();
            pieces.push(Piece { columns, buffer, start });
            n_values
        });
        pieces.sort_unstable_by_key(|piece| piece.columns.start);
        let end = pieces.iter().try_fold(0, |end, Piece { columns, .. }| (columns.start == end).then_some(columns.end));
        assert_eq!(end, Some(width), "each column once");
        States { n_tokens, width, buffers, pieces: Pieces::OfAll(pieces) }
    }

    /// What threads made, for some tokens at a time: each item is `pieces(item)` of the pieces of `piece` columns of all tokens, in
    /// that order.
    ///
    /// # Panics
    /// A token is not whole pieces, a piece is missing, or an item has not as many values.
    pub(crate) fn of_tokens<I: IntoIterator<Item = usize>>(
        outputs: Vec<Output<f32>>,
        n_tokens: usize,
        width: usize,
        piece: usize,
        pieces: impl Fn(usize) -> I,
    ) -> States {
        assert!(piece > 0 && width.is_multiple_of(piece), "whole pieces");
        let mut at = vec![None; n_tokens * width / piece];
        let buffers = each_item(outputs, |item, buffer, start| {
            let mut end = start;
            for i in pieces(item) {
                at[i] = Some((buffer, end));
                end += piece;
            }
            end - start
        });
        let at = at.into_iter().collect::<Option<_>>().expect("each piece once");
        States { n_tokens, width, buffers, pieces: Pieces::OfOne { width: piece, at } }
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// All columns of a token, in `room` if they are not in order already.
    pub(crate) fn row<'a>(&'a self, token: usize, room: &'a mut Vec<f32>) -> &'a [f32] {
        self.columns(token, 0..self.width, room)
    }

    /// The same for some columns.
    pub(crate) fn columns<'a>(&'a self, token: usize, columns: Range<usize>, room: &'a mut Vec<f32>) -> &'a [f32] {
        let first = self.part(token, columns.start);
        if first.len() >= columns.len() {
            return &first[..columns.len()];
        }
        room.clear();
        self.append(token, columns, room);
        room
    }

    /// Appends some columns of a token.
    pub(crate) fn append(&self, token: usize, columns: Range<usize>, out: &mut Vec<f32>) {
        self.each_part(token, columns, |_, part| out.extend_from_slice(part));
    }

    /// Adds all of them to `x`, which is in order.
    pub(crate) fn add_to(&self, float: &FloatKernels, x: &mut [f32]) {
        for (token, x) in x.chunks_exact_mut(self.width).enumerate() {
            self.each_part(token, 0..self.width, |columns, part| float.add_assign(&mut x[columns], part));
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
        assert!(matches!(&self.pieces, Pieces::OfAll(pieces) if pieces.len() == 1), "in order");
        &mut self.buffers[0]
    }

    /// The memory, for other things.
    pub(crate) fn into_buffers(self) -> Vec<Vec<f32>> {
        self.buffers
    }

    /// Calls `then` with each part of some columns of a token that is in one place, and which columns these are.
    fn each_part(&self, token: usize, columns: Range<usize>, mut then: impl FnMut(Range<usize>, &[f32])) {
        let mut at = columns.start;
        if let Pieces::OfAll(pieces) = &self.pieces {
            // In order, so that the first one alone is looked for.
            let first = pieces.partition_point(|piece| piece.columns.end <= at);
            for piece in pieces[first..].iter().take_while(|piece| piece.columns.start < columns.end) {
                let end = piece.columns.end.min(columns.end);
                let part = &self.of_piece(piece, token)[at - piece.columns.start..end - piece.columns.start];
                then(at..end, part);
                at = end;
            }
            return;
        }
        while at < columns.end {
            let part = self.part(token, at);
            let part = &part[..part.len().min(columns.end - at)];
            then(at..at + part.len(), part);
            at += part.len();
        }
    }

    /// A token's columns in a piece.
    fn of_piece(&self, piece: &Piece, token: usize) -> &[f32] {
        &self.buffers[piece.buffer][piece.start + token * piece.columns.len()..][..piece.columns.len()]
    }

    /// A token's columns from `column` on, as far as they are in one place.
    fn part(&self, token: usize, column: usize) -> &[f32] {
        match &self.pieces {
            Pieces::OfAll(pieces) => {
                let piece = &pieces[pieces.partition_point(|piece| piece.columns.end <= column)];
                &self.of_piece(piece, token)[column - piece.columns.start..]
            }
            Pieces::OfOne { width, at } => {
                let (buffer, start) = at[(token * self.width + column) / width];
                &self.buffers[buffer][start..][..*width][column % width..]
            }
        }
    }
}

/// Calls `item` with each item that threads made, its buffer, and where its values begin there; `item` says how many there are. Returns
/// the buffers.
///
/// # Panics
/// There are more or fewer values.
fn each_item(outputs: Vec<Output<f32>>, mut item: impl FnMut(usize, usize, usize) -> usize) -> Vec<Vec<f32>> {
    let buffers = outputs.into_iter().enumerate().map(|(buffer, output)| {
        let mut start = 0;
        for (items, end) in output.ranges {
            for i in items {
                start += item(i, buffer, start);
            }
            assert_eq!(start, end, "a value for each token and column");
        }
        output.values
    });
    buffers.collect()
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
    fn pieces_of_single_tokens_and_whole_vectors_are_the_same() {
        // Two tokens of two pieces, made by two threads.
        let outputs = vec![
            Output { ranges: vec![(3..4, 2), (0..1, 4)], values: vec![12.0, 13.0, 0.0, 1.0] },
            Output { ranges: vec![(1..3, 4)], values: vec![2.0, 3.0, 10.0, 11.0] },
        ];
        let states = States::of_tokens(outputs, 2, 4, 2, |item| [item]);
        let mut room = Vec::new();
        assert_eq!(states.row(0, &mut room), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(states.row(1, &mut room), [10.0, 11.0, 12.0, 13.0]);
        assert_eq!(states.columns(1, 1..3, &mut room), [11.0, 12.0]);
        assert_eq!(states.columns(1, 3..4, &mut room), [13.0]);
    }

    #[test]
    fn items_of_several_tokens_and_whole_vectors_are_the_same() {
        // Three tokens of two pieces: of the first two tokens the second pieces, then the first ones; the last token.
        let outputs = vec![
            Output { ranges: vec![(1..2, 2)], values: vec![1.0, 11.0] },
            Output { ranges: vec![(0..1, 2), (2..4, 4)], values: vec![0.0, 10.0, 20.0, 21.0] },
        ];
        let pieces = [vec![0, 2], vec![1, 3], vec![4], vec![5]];
        let states = States::of_tokens(outputs, 3, 2, 1, |item| pieces[item].clone());
        let mut room = Vec::new();
        for token in 0..3 {
            let first = 10.0 * token as f32;
            assert_eq!(states.row(token, &mut room), [first, first + 1.0]);
        }
    }

    #[test]
    #[should_panic(expected = "each piece once")]
    fn a_missing_item_is_noticed() {
        let outputs = vec![Output { ranges: vec![(0..1, 1)], values: vec![1.0] }];
        let _ = States::of_tokens(outputs, 1, 2, 1, |item| [item]);
    }

    #[test]
    #[should_panic(expected = "each column once")]
    fn a_gap_is_noticed() {
        let outputs = vec![Output { ranges: vec![(0..1, 1)], values: vec![1.0] }];
        let _ = States::of_items(outputs, 1, 2, |_| 1..2);
    }
}
