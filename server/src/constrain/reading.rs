//! An answer as it is read: all the ways in which the text so far fits a form, each with what must follow, and how it is
//! completed.

use std::collections::HashSet;
use std::sync::Arc;

use super::rules::{RegexKind, Symbol};
use super::spelled::Spelled;
use super::ways::{NEVER, Ways};

/// Ways to read one text.
const MAX_READINGS: usize = 2_000;
/// So many are compared one by one.
const FEW_READINGS: usize = 24;

/// What must follow, from the next symbol on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Next {
    symbol: Symbol,
    after: After,
    /// Of this and what is after it.
    cost: u32,
    /// Objects and lists that are open.
    depth: u32,
}

type After = Option<Arc<Next>>;

/// One way to read a text: within a lexeme, and what follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    lexeme: usize,
    state: u32,
    after: After,
}

/// All ways to read the text so far.
#[derive(Clone)]
pub(super) struct Reading {
    ways: Arc<Ways>,
    places: Vec<Place>,
}

/// Why text cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lost {
    #[error("the text does not fit the grammar")]
    DoesNotFit,
    #[error("the text fits the schema in too many ways to know how to complete it: use fewer `anyOf` that begin alike")]
    TooManyWays,
}

/// What a token may hold and change little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Within {
    /// Text before calls of tools, which may end here unless a character is not whole.
    Text {
        whole: bool,
    },
    /// A string: what has no quote can make what is left dearer by this.
    String(u32),
    Other,
}

impl Reading {
    pub(super) fn new(ways: Arc<Ways>) -> Self {
        let mut reading = Self { ways, places: Vec::new() };
        for (lexeme, after) in reading.starts(reading.followed(Symbol::Rule(0), &None).as_ref()) {
            reading.places.push(Place { lexeme, state: 0, after });
        }
        reading
    }

    fn lexeme(&self, lexeme: usize) -> Option<&Spelled> {
        self.ways.lexemes[lexeme].as_ref()
    }

    fn followed(&self, symbol: Symbol, after: &After) -> After {
        let (cost, depth) = after.as_ref().map_or((0, 0), |next| (next.cost, next.depth));
        let closes = matches!(symbol, Symbol::Lexeme(lexeme) if self.lexeme(lexeme).is_some_and(|read| read.closes));
        Some(Arc::new(Next {
            symbol,
            after: after.clone(),
            cost: cost.saturating_add(self.ways.symbol_cost(symbol)),
            depth: depth + u32::from(closes),
        }))
    }

    /// The lexemes that may come next, and what follows each.
    fn starts(&self, next: Option<&Arc<Next>>) -> Vec<(usize, After)> {
        let mut starts = Vec::new();
        let mut open: Vec<Arc<Next>> = next.into_iter().cloned().collect();
        let mut seen = HashSet::new();
        while let Some(next) = open.pop() {
            let after = &next.after;
            if !seen.insert((next.symbol, after.as_ref().map(Arc::as_ptr))) {
                continue;
            }
            match next.symbol {
                Symbol::Lexeme(lexeme) => starts.push((lexeme, after.clone())),
                Symbol::Rule(rule) => {
                    for alternative in self.ways.alternatives(rule) {
                        let all = alternative.iter().rev();
                        open.extend(all.fold(after.clone(), |after, &symbol| self.followed(symbol, &after)));
                    }
                }
                Symbol::Repeat { rule, min, max } => {
                    if min == 0 {
                        open.extend(after.clone());
                    }
                    if max > 0 {
                        let max = if max == u32::MAX { max } else { max - 1 };
                        let rest = Symbol::Repeat { rule, min: min.saturating_sub(1), max };
                        open.extend(self.followed(Symbol::Rule(rule), &self.followed(rest, after)));
                    }
                }
            }
        }
        starts
    }

    /// The ways to read a byte after those ways.
    fn step(&self, places: &[Place], byte: u8) -> Result<Vec<Place>, Lost> {
        let mut ways: Vec<Place> = Vec::new();
        let mut known = HashSet::new();
        let mut add = |lexeme: usize, state: u32, after: &After| {
            let Some(state) = self.lexeme(lexeme).and_then(|read| read.step(state, byte)) else {
                return;
            };
            let place = Place { lexeme, state, after: after.clone() };
            if ways.len() < FEW_READINGS {
                if !ways.contains(&place) {
                    ways.push(place);
                }
                return;
            }
            if known.is_empty() {
                known.extend(ways.iter().cloned());
            }
            if known.insert(place.clone()) {
                ways.push(place);
            }
        };
        for place in places {
            add(place.lexeme, place.state, &place.after);
            if self.lexeme(place.lexeme).is_some_and(|read| read.is_end(place.state)) {
                for (lexeme, after) in self.starts(place.after.as_ref()) {
                    add(lexeme, 0, &after);
                }
            }
        }
        match ways.len() {
            0 => Err(Lost::DoesNotFit),
            1..=MAX_READINGS => Ok(ways),
            _ => Err(Lost::TooManyWays),
        }
    }

    /// The ways to read `text` after what is read.
    fn after(&self, text: &[u8]) -> Result<Vec<Place>, Lost> {
        let Some((&first, rest)) = text.split_first() else {
            return Ok(self.places.clone());
        };
        rest.iter().try_fold(self.step(&self.places, first)?, |places, &byte| self.step(&places, byte))
    }

    /// Reads text.
    ///
    /// # Errors
    /// Text that does not fit, and more ways to read it than are followed.
    pub(super) fn read(&mut self, text: &[u8]) -> Result<(), Lost> {
        self.places = self.after(text)?;
        Ok(())
    }

    fn cost(&self, place: &Place) -> u32 {
        let within = self.lexeme(place.lexeme).map_or(NEVER, |read| read.cost(place.state));
        place.after.as_ref().map_or(within, |next| within.saturating_add(next.cost))
    }

    /// The fewest tokens to an end; 0 where the answer may end.
    fn left(&self) -> usize {
        self.places.iter().map(|place| self.cost(place)).min().unwrap_or(NEVER) as usize
    }

    /// The fewest tokens to an end after more text, if it fits; 0 where the answer may end.
    pub(super) fn left_after(&self, text: &[u8]) -> Option<usize> {
        let places = self.after(text).ok()?;
        places.iter().map(|place| self.cost(place) as usize).min()
    }

    /// The fewest tokens to an end in the dearest way to read the text so far.
    pub(super) fn dearest_left(&self) -> usize {
        self.places.iter().map(|place| self.cost(place)).max().unwrap_or(NEVER) as usize
    }

    /// A token makes what is left dearer by no more than this for the lexeme it begins in, and for each it goes on to.
    pub(super) fn growth(&self) -> usize {
        self.ways.growth as usize
    }

    /// Where the text so far ends.
    pub(super) fn within(&self) -> Within {
        let mut dearer = 0;
        for place in &self.places {
            let Some(read) = self.lexeme(place.lexeme) else { continue };
            let begun = place.state > 0 && !read.is_end(place.state);
            match read.kind {
                RegexKind::Text => return Within::Text { whole: self.left() == 0 },
                RegexKind::Quoted if begun => dearer = dearer.max(read.largest - read.cost(place.state)),
                _ => return Within::Other,
            }
        }
        Within::String(dearer)
    }

    /// How many more characters the string has room for that the text ends in, where the parser does not count them.
    pub(super) fn uncounted_room(&self) -> Option<usize> {
        let room = |place: &Place| self.lexeme(place.lexeme)?.uncounted_room(place.state);
        self.places.iter().filter_map(room).min().map(|room| room as usize)
    }

    /// How many objects and lists are open.
    pub(super) fn depth(&self) -> u32 {
        let depth = |place: &Place| place.after.as_ref().map_or(0, |next| next.depth);
        self.places.iter().map(depth).max().unwrap_or(0)
    }

    /// What completes the answer in the fewest tokens that are known.
    pub(super) fn completion(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let Some(place) = self.places.iter().min_by_key(|place| self.cost(place)) else {
            return text;
        };
        if let Some(read) = self.lexeme(place.lexeme) {
            read.complete(place.state, &mut text);
        }
        let mut next = place.after.as_ref();
        while let Some(part) = next {
            self.write(part.symbol, &mut text);
            next = part.after.as_ref();
        }
        text
    }

    /// The cheapest text of a symbol.
    fn write(&self, symbol: Symbol, text: &mut Vec<u8>) {
        let mut open = vec![symbol];
        while let Some(symbol) = open.pop() {
            match symbol {
                Symbol::Lexeme(lexeme) => {
                    if let Some(read) = self.lexeme(lexeme) {
                        read.complete(0, text);
                    }
                }
                Symbol::Rule(rule) => {
                    let cheapest = self.ways.alternatives(rule).get(self.ways.cheapest[rule]);
                    open.extend(cheapest.into_iter().flatten().rev());
                }
                Symbol::Repeat { rule, min, .. } => open.extend((0..min).map(|_| Symbol::Rule(rule))),
            }
        }
    }
}
