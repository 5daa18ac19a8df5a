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
