//! Sequences that are kept because a later job may begin like them.
//!
//! They are in the order of their tokens, as words in a dictionary are. What has most in common with a prompt then
//! stands next to the place where the prompt would be, so that a search is a few comparisons. None is the beginning of
//! another: the longer one serves for both. So each has a last page of its own, and there are never more of them than pages.

use super::limits::common;
use super::pages::Held;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

/// Fewer tokens in common are not worth a page. Many texts begin with the same token or two.
pub(super) const WORTH_KEEPING: usize = 16;

type Tokens = Rc<[u32]>;

struct Entry {
    held: Held,
    /// When it was last of use.
    used: u64,
}

/// What is kept.
#[derive(Default)]
pub(super) struct Prefixes {
    by_tokens: BTreeMap<Tokens, Entry>,
    by_age: BTreeMap<u64, Tokens>,
    /// Counts uses.
    clock: u64,
}

impl Prefixes {
    /// The tokens of the sequence that has most in common with `prompt`, and how many that are.
    pub(super) fn longest(&self, prompt: &[u32]) -> Option<(Tokens, usize)> {
        let before = self.by_tokens.range::<[u32], _>((Bound::Unbounded, Bound::Included(prompt))).next_back();
        let after = self.by_tokens.range::<[u32], _>((Bound::Excluded(prompt), Bound::Unbounded)).next();
        let neighbours = before.into_iter().chain(after);
        neighbours.map(|(tokens, _)| (Rc::clone(tokens), common(tokens, prompt))).max_by_key(|(_, n)| *n)
    }

    /// A sequence that begins with the first `n` of these tokens, which are kept.
    pub(super) fn fork(&mut self, tokens: &Tokens, n: usize) -> Option<Held> {
        self.touch(tokens);
        self.by_tokens.get(tokens).map(|entry| entry.held.fork(n))
    }

    /// Keeps a sequence, if it is of any use.
    pub(super) fn keep(&mut self, mut held: Held) {
        let tokens: Tokens = held.sequence.tokens().into();
        if tokens.len() < WORTH_KEEPING {
            return;
        }
        let after = self.by_tokens.range::<[u32], _>((Bound::Included(&tokens[..]), Bound::Unbounded)).next();
        if let Some((longer, _)) = after.filter(|(other, _)| other.starts_with(&tokens)) {
            let longer = Rc::clone(longer);
            self.touch(&longer);
            return;
        }
        let before = self.by_tokens.range::<[u32], _>((Bound::Unbounded, Bound::Excluded(&tokens[..]))).next_back();
        if let Some((shorter, _)) = before.filter(|(other, _)| tokens.starts_with(other)) {
            let shorter = Rc::clone(shorter);
            self.remove(&shorter);
        }
        held.rest();
        self.clock += 1;
        self.by_age.insert(self.clock, Rc::clone(&tokens));
        self.by_tokens.insert(tokens, Entry { held, used: self.clock });
    }

    /// Forgets the one that was of no use for the longest time; says whether there was one.
    pub(super) fn forget_oldest(&mut self) -> bool {
        let Some((_, tokens)) = self.by_age.pop_first() else { return false };
        self.by_tokens.remove(&tokens);
        true
    }

    fn touch(&mut self, tokens: &Tokens) {
        if let Some(entry) = self.by_tokens.get_mut(tokens) {
            self.clock += 1;
            self.by_age.remove(&entry.used);
            entry.used = self.clock;
            self.by_age.insert(self.clock, Rc::clone(tokens));
        }
    }

    fn remove(&mut self, tokens: &Tokens) {
        if let Some(entry) = self.by_tokens.remove(tokens) {
            self.by_age.remove(&entry.used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pages::Ledger;
    use crate::engine::tests::model;
    use tritone_runtime::batch::{Batch, Feed};

    /// Tokens that are often alike at their beginning.
    fn text(mut seed: usize) -> Vec<u32> {
        let n = 1 + seed * 7 % 60;
        (0..n)
            .map(|_| {
                seed = seed * 1103 % 4093;
                u32::from(seed.is_multiple_of(9))
            })
            .collect()
    }

    #[test]
    fn finds_what_a_scan_finds_and_keeps_no_beginnings() {
        let mut batch = Batch::new(&model()).unwrap();
        let ledger = Ledger::default();
        let mut prefixes = Prefixes::default();
        let mut given: Vec<Vec<u32>> = Vec::new();
        for seed in 1..120 {
            let tokens = text(seed);
            let best = given.iter().map(|other| common(other, &tokens)).max().unwrap_or(0);
            let found = prefixes.longest(&tokens);
            assert_eq!(found.as_ref().map_or(0, |(_, n)| *n), best, "{tokens:?}");
            assert!(found.is_none_or(|(other, n)| common(&other, &tokens) == n));
            let mut held = Held::new(batch.sequence(), &ledger);
            batch.step(&mut [Feed { sequence: &mut held.sequence, tokens: &tokens, need: None }]).unwrap();
            held.update();
            prefixes.keep(held);
            if tokens.len() >= WORTH_KEEPING {
                given.push(tokens);
            }
            assert_eq!(prefixes.by_age.len(), prefixes.by_tokens.len());
        }
        let kept: Vec<_> = prefixes.by_tokens.keys().collect();
        assert!(kept.len() > 20 && kept.len() < given.len(), "{} of {}", kept.len(), given.len());
        for (i, one) in kept.iter().enumerate() {
            assert!(kept.iter().enumerate().all(|(j, other)| i == j || !other.starts_with(one)));
        }
        assert_eq!((ledger.running(), ledger.all()), (0, kept.len()), "each has a page of its own");
        let mut n_kept = kept.len();
        while prefixes.forget_oldest() {
            n_kept -= 1;
            assert_eq!((prefixes.by_tokens.len(), ledger.all()), (n_kept, n_kept));
        }
        assert_eq!(n_kept, 0);
    }

    #[test]
    fn the_one_that_was_used_last_is_forgotten_last() {
        let mut batch = Batch::new(&model()).unwrap();
        let ledger = Ledger::default();
        let mut prefixes = Prefixes::default();
        let texts: Vec<Vec<u32>> = (0..4).map(|i| [i, 1, 2, 3].repeat(10)).collect();
        for tokens in &texts {
            let mut held = Held::new(batch.sequence(), &ledger);
            batch.step(&mut [Feed { sequence: &mut held.sequence, tokens, need: None }]).unwrap();
            held.update();
            prefixes.keep(held);
        }
        let (tokens, n) = prefixes.longest(&texts[1][..30]).unwrap();
        assert_eq!((&*tokens, n), (&texts[1][..], 30));
        let fork = prefixes.fork(&tokens, n).unwrap();
        assert_eq!(fork.sequence.tokens(), &texts[1][..30]);
        // What is the beginning of one that is kept counts as a use of that.
        prefixes.keep(prefixes.by_tokens[&texts[0][..]].held.fork(20));
        for left in [2, 3, 1, 0] {
            assert!(prefixes.by_tokens.contains_key(&texts[left][..]));
            assert!(prefixes.forget_oldest());
            assert!(!prefixes.by_tokens.contains_key(&texts[left][..]), "{left}");
        }
        assert!(!prefixes.forget_oldest());
    }
}
