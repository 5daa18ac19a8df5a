//! Byte-pair merging by rank, in `O(n log n)` for a word of `n` bytes.
//!
//! A word starts as one symbol a byte, kept in a linked list. Every neighbouring pair that a rule joins waits in a heap
//! under (rank, position); the smallest is applied and the new symbol's two pairs are added. A pair whose symbols have
//! changed meanwhile is recognised when it is taken out, because the ids beside that position are no longer the rule's.
//! At most `2n` pairs ever enter the heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

/// `left` and `right` become `merged`; the rule's index in the list is its rank.
#[derive(Debug, Clone, Copy)]
struct Rule {
    left: u32,
    right: u32,
    merged: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Merges {
    rules: Vec<Rule>,
    ranks: HashMap<(u32, u32), u32>,
}

impl Merges {
    pub(super) fn with_capacity(count: usize) -> Self {
        Self { rules: Vec::with_capacity(count), ranks: HashMap::with_capacity(count) }
    }

    /// Adds the rule of the next rank, or returns the rank that already joins this pair.
    pub(super) fn push(&mut self, left: u32, right: u32, merged: u32) -> Result<(), u32> {
        let rank = self.rules.len() as u32;
        if let Some(first) = self.ranks.insert((left, right), rank) {
            return Err(first);
        }
        self.rules.push(Rule { left, right, merged });
        Ok(())
    }
}

const NONE: usize = usize::MAX;
/// The id of a symbol that was joined to its left neighbour.
const GONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Symbol {
    id: u32,
    prev: usize,
    next: usize,
}

/// The buffers of one `encode` call, reused from word to word.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, usize)>>,
}

impl Merger {
    /// Appends the tokens of one word, given as the tokens of its bytes.
    pub(super) fn merge(&mut self, merges: &Merges, bytes: impl Iterator<Item = u32>, out: &mut Vec<u32>) {
        self.symbols.clear();
        self.heap.clear();
        self.symbols.extend(bytes.enumerate().map(|(i, id)| Symbol { id, prev: i.wrapping_sub(1), next: i + 1 }));
        let Some(last) = self.symbols.last_mut() else {
            return;
        };
        last.next = NONE;
        for left in 0..self.symbols.len() {
            self.offer(merges, left);
        }
        while let Some(Reverse((rank, left))) = self.heap.pop() {
            let rule = merges.rules[rank as usize];
            let Symbol { id, next: right, .. } = self.symbols[left];
            if id != rule.left || right == NONE || self.symbols[right].id != rule.right {
                continue;
            }
            let after = self.symbols[right].next;
            self.symbols[right].id = GONE;
            self.symbols[left].id = rule.merged;
            self.symbols[left].next = after;
            if after != NONE {
                self.symbols[after].prev = left;
            }
            self.offer(merges, left);
            let before = self.symbols[left].prev;
            if before != NONE {
                self.offer(merges, before);
            }
        }
        let mut at = 0;
        while at != NONE {
            out.push(self.symbols[at].id);
            at = self.symbols[at].next;
        }
    }

    /// Puts the pair that starts at `left` into the heap if a rule joins it.
    fn offer(&mut self, merges: &Merges, left: usize) {
        let Symbol { id, next, .. } = self.symbols[left];
        if next != NONE
            && let Some(&rank) = merges.ranks.get(&(id, self.symbols[next].id))
        {
            self.heap.push(Reverse((rank, left)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: again and again join the leftmost pair of the lowest rank.
    fn naive(merges: &Merges, mut ids: Vec<u32>) -> Vec<u32> {
        loop {
            let best =
                (1..ids.len()).filter_map(|i| merges.ranks.get(&(ids[i - 1], ids[i])).map(|&rank| (rank, i))).min();
            let Some((rank, i)) = best else {
                return ids;
            };
            ids[i - 1] = merges.rules[rank as usize].merged;
            ids.remove(i);
        }
    }

    proptest::proptest! {
        #[test]
        fn equals_the_definition(
            rules in proptest::collection::vec((0..6u32, 0..6u32, 0..6u32), 0..20),
            word in proptest::collection::vec(0..4u32, 0..60),
        ) {
            // Ids may repeat and rules may be cyclic: stranger than any vocabulary.
            let mut merges = Merges::with_capacity(0);
            for (left, right, merged) in rules {
                if !merges.ranks.contains_key(&(left, right)) {
                    merges.push(left, right, merged).unwrap();
                }
            }
            let mut out = Vec::new();
            Merger::default().merge(&merges, word.iter().copied(), &mut out);
            proptest::prop_assert_eq!(out, naive(&merges, word));
        }
    }
}
