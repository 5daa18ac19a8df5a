//! Counts the pages of keys and values that sequences hold, shared ones once.
//!
//! A sequence registers its pages ([`Held`]) and says again after each step what has changed, which can only be pages
//! from the one on that was not full. So a step costs a look at a page or two of each sequence, whatever else there is.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use tritone_runtime::batch::{PAGE_TOKENS, Sequence};

/// All pages that are held.
#[derive(Clone, Default)]
pub(super) struct Ledger {
    counts: Rc<RefCell<Counts>>,
}

#[derive(Default)]
struct Counts {
    /// Who holds a page, by its number.
    holders: HashMap<usize, Holders>,
    /// Pages that a running sequence holds.
    running: usize,
}

#[derive(Clone, Copy, Default)]
struct Holders {
    running: u32,
    idle: u32,
}

impl Counts {
    fn add(&mut self, page: usize, idle: bool) {
        let holders = self.holders.entry(page).or_default();
        if idle {
            holders.idle += 1;
        } else {
            self.running += usize::from(holders.running == 0);
            holders.running += 1;
        }
    }

    fn remove(&mut self, page: usize, idle: bool) {
        let holders = self.holders.get_mut(&page).expect("who removes a page has added it");
        if idle {
            holders.idle -= 1;
        } else {
            holders.running -= 1;
            self.running -= usize::from(holders.running == 0);
        }
        if holders.running + holders.idle == 0 {
            self.holders.remove(&page);
        }
    }
}

impl Ledger {
    /// Pages that anyone holds.
    pub(super) fn all(&self) -> usize {
        self.counts().holders.len()
    }

    /// Pages that a running sequence holds.
    pub(super) fn running(&self) -> usize {
        self.counts().running
    }

    fn counts(&self) -> Ref<'_, Counts> {
        self.counts.borrow()
    }
}

/// Whether what rests counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Idle {
    Counts,
    /// As if it were gone already.
    Gone,
}

/// A sequence whose pages are counted, until it is dropped.
pub(super) struct Held {
    pub(super) sequence: Sequence,
    ledger: Ledger,
    pages: Vec<usize>,
    /// Pages that were full when they were last looked at: no step changes them.
    full: usize,
    idle: bool,
}

impl Held {
    /// Counts a running sequence.
    pub(super) fn new(sequence: Sequence, ledger: &Ledger) -> Held {
        let mut held = Held { sequence, ledger: ledger.clone(), pages: Vec::new(), full: 0, idle: false };
        held.update();
        held
    }

    /// Another one that begins with the first `n` tokens.
    pub(super) fn fork(&self, n: usize) -> Held {
        Held::new(self.sequence.fork(n), &self.ledger)
    }

    /// Counts again, after the sequence was fed.
    pub(super) fn update(&mut self) {
        let mut counts = self.ledger.counts.borrow_mut();
        for (i, page) in self.sequence.pages().enumerate().skip(self.full) {
            match self.pages.get_mut(i) {
                Some(old) if *old == page => {}
                Some(old) => {
                    counts.add(page, self.idle);
                    counts.remove(std::mem::replace(old, page), self.idle);
                }
                None => {
                    counts.add(page, self.idle);
                    self.pages.push(page);
                }
            }
        }
        self.full = self.sequence.tokens().len() / PAGE_TOKENS;
    }

    /// From now on it is only kept.
    pub(super) fn rest(&mut self) {
        let mut counts = self.ledger.counts.borrow_mut();
        for page in &self.pages {
            counts.add(*page, true);
            counts.remove(*page, self.idle);
        }
        self.idle = true;
    }

    /// How many pages it holds.
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How many pages it copies when it is fed: its last one, if that is not full and others hold it too.
    pub(super) fn copies(&self, idle: Idle) -> usize {
        if self.sequence.tokens().len().is_multiple_of(PAGE_TOKENS) {
            return 0;
        }
        let counts = self.ledger.counts();
        let holders = self.pages.last().and_then(|page| counts.holders.get(page)).copied().unwrap_or_default();
        let others = if idle == Idle::Counts { holders.idle } else { 0 };
        usize::from(holders.running + others > 1)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.ledger.counts.borrow_mut();
        for page in self.pages.drain(..) {
            counts.remove(page, self.idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::model;
    use tritone_runtime::batch::{Batch, Feed};

    fn feed(batch: &mut Batch, held: &mut Held, n: usize) {
        let tokens = vec![5; n];
        batch.step(&mut [Feed { sequence: &mut held.sequence, tokens: &tokens, need: None }]).unwrap();
        held.update();
    }

    #[test]
    fn shared_pages_count_once_and_copies_are_foreseen() {
        let mut batch = Batch::new(&model()).unwrap();
        let ledger = Ledger::default();
        let counts = || (ledger.running(), ledger.all());
        let mut first = Held::new(batch.sequence(), &ledger);
        assert_eq!((counts(), first.copies(Idle::Counts)), ((0, 0), 0));
        feed(&mut batch, &mut first, PAGE_TOKENS + 10);
        assert_eq!((counts(), first.pages()), ((2, 2), 2));
        let mut second = first.fork(PAGE_TOKENS + 5);
        let whole = first.fork(PAGE_TOKENS);
        assert_eq!((counts(), second.pages(), whole.pages()), ((2, 2), 2, 1));
        // Whoever is fed first makes a copy, and then nobody needs one.
        assert_eq!([&first, &second, &whole].map(|held| held.copies(Idle::Gone)), [1, 1, 0]);
        feed(&mut batch, &mut second, 1);
        assert_eq!((counts(), first.copies(Idle::Counts), second.copies(Idle::Counts)), ((3, 3), 0, 0));
        feed(&mut batch, &mut first, 1);
        assert_eq!(counts(), (3, 3));
        // What rests is counted apart, but where a running one has the page too.
        let mut third = second.fork(PAGE_TOKENS + 6);
        second.rest();
        assert_eq!(counts(), (3, 3));
        assert_eq!((third.copies(Idle::Counts), third.copies(Idle::Gone)), (1, 0));
        feed(&mut batch, &mut third, 1);
        assert_eq!(counts(), (3, 4));
        drop((first, third));
        assert_eq!(counts(), (1, 2));
        drop(whole);
        assert_eq!(counts(), (0, 2));
        drop(second);
        assert_eq!(counts(), (0, 0));
    }
}
