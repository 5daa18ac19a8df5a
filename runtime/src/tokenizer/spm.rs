//! SentencePiece merging by score (Llama-2, Gemma), in `O(n log n)` for a text of `n` characters.
//!
//! The text starts as one symbol a character. Of all neighbouring symbols whose joined text is a token, the pair of the
//! highest score is joined, the leftmost among equals, until no pair is left. A pair waiting in the heap is out of date
//! when the text from its position over two symbols no longer has the length noted; if it has, it is the same text and
//! hence the same token. What is no token in the end is spelled in byte tokens.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NONE: usize = usize::MAX;

#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    /// Bytes; 0 once joined to the left neighbour.
    len: usize,
    prev: usize,
    next: usize,
}

/// A float's bits in the order of its value. -0 and 0 are equal.
pub(super) fn score_order(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// Cuts `text` into pieces. `score` gives the order of a token, by its text, or `None` if the text is no token; `piece`
/// is called for each piece, in order.
pub(super) fn merge(text: &str, score: impl Fn(&str) -> Option<u32>, mut piece: impl FnMut(&str)) {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(i, (start, c))| Symbol { start, len: c.len_utf8(), prev: i.wrapping_sub(1), next: i + 1 })
        .collect();
    let Some(last) = symbols.last_mut() else {
        return;
    };
    last.next = NONE;
    let mut heap = BinaryHeap::new();
    let offer = |symbols: &[Symbol], heap: &mut BinaryHeap<_>, left: usize| {
        let Symbol { start, len, next, .. } = symbols[left];
        if next != NONE {
            let len = len + symbols[next].len;
            if let Some(score) = score(&text[start..start + len]) {
                heap.push((score, Reverse(left), len));
            }
        }
    };
    for left in 0..symbols.len() {
        offer(&symbols, &mut heap, left);
    }
    while let Some((_, Reverse(left), len)) = heap.pop() {
        let right = symbols[left].next;
        if symbols[left].len == 0 || right == NONE || symbols[left].len + symbols[right].len != len {
            continue;
        }
        symbols[left].len = len;
        symbols[right].len = 0;
        let after = symbols[right].next;
        symbols[left].next = after;
        if after != NONE {
            symbols[after].prev = left;
        }
        offer(&symbols, &mut heap, left);
        let before = symbols[left].prev;
        if before != NONE {
            offer(&symbols, &mut heap, before);
        }
    }
    let mut at = 0;
    while at != NONE {
        let Symbol { start, len, next, .. } = symbols[at];
        piece(&text[start..start + len]);
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, step by step.
    fn naive(text: &str, score: impl Fn(&str) -> Option<u32>) -> Vec<String> {
        let mut pieces: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let best = (1..pieces.len())
                .filter_map(|i| score(&(pieces[i - 1].clone() + &pieces[i])).map(|s| (s, Reverse(i))))
                .max();
            let Some((_, Reverse(i))) = best else {
                return pieces;
            };
            let right = pieces.remove(i);
            pieces[i - 1] += &right;
        }
    }

    proptest::proptest! {
        #[test]
        fn equals_the_definition(
            tokens in proptest::collection::hash_map("[ab é]{2,5}", 0..4u32, 0..40),
            text in "[ab é]{0,40}",
        ) {
            let score = |text: &str| tokens.get(text).copied();
            let mut pieces = Vec::new();
            merge(&text, score, |piece| pieces.push(piece.to_owned()));
            proptest::prop_assert_eq!(pieces, naive(&text, score));
        }
    }

    #[test]
    fn scores_keep_their_order() {
        let scores = [f32::NEG_INFINITY, -31740.0, -1.5, -1e-40, 0.0, 1e-40, 2.0, f32::INFINITY];
        assert!(scores.map(score_order).is_sorted_by(|a, b| a < b));
        assert_eq!(score_order(-0.0), score_order(0.0));
    }
}
