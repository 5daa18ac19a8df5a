//! How an answer can be completed, and in how few tokens.
//!
//! [`Ways`] is a form with the costs of its parts: the fewest tokens that what is left of a lexeme, a rule or a
//! repetition takes. [`Reading`] follows an answer: it holds all the ways in which the text so far can be read, each with
//! what must follow. What must follow costs no more than its parts together, for the best way to cut a text into tokens
//! takes no more tokens than the best ways for its parts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

use super::Refused;
use super::automaton::{Counted, MAX_STATES, NoAutomaton, Table};
use super::rules::{FEW_CHARACTERS, Lexeme, RegexKind, Rules, Symbol};
use super::schema::in_string;
use super::vocabulary::Vocabulary;
use llguidance::derivre::RegexAst;

/// What takes more tokens is as good as impossible.
const MAX_COST: u32 = 100_000;
const NEVER: u32 = u32::MAX;
/// For longer ends of texts, and for larger automata, a token for each byte is reckoned.
const MAX_CUT: usize = 64;
const MAX_CUT_STATES: usize = 2_000;
/// Ways to read one text.
const MAX_READINGS: usize = 2_000;
/// So many are compared one by one.
const FEW_READINGS: usize = 24;

/// A form and its costs.
pub(super) struct Ways {
    /// Alternatives that can be completed.
    rules: Vec<Vec<Vec<Symbol>>>,
    /// Nothing for those that no text belongs to.
    lexemes: Vec<Option<Read>>,
    /// Of rules.
    cost: Vec<u32>,
    /// The cheapest alternative of a rule.
    cheapest: Vec<usize>,
    /// Reading a token makes what is left at most so much dearer for the lexeme it begins in, and so much for each that it
    /// goes on to.
    growth: u32,
}

/// A lexeme.
struct Read {
    texts: Texts,
    /// No state costs more.
    largest: u32,
    kind: RegexKind,
    /// Whether it ends an object or a list.
    closes: bool,
}

enum Texts {
    Table {
        automaton: Table,
        /// Tokens from a state to the nearest end.
        cost: Vec<u32>,
    },
    Counted {
        strings: Counted,
        /// Tokens from the states of a character to its end.
        character: Vec<u32>,
        /// Tokens of a number of characters and the quote.
        missing: Vec<u32>,
    },
}

impl Read {
    fn table(automaton: Table, kind: RegexKind, closes: bool, vocabulary: &Vocabulary) -> Result<Self, Refused> {
        let cost = costs(&automaton, vocabulary)?;
        let largest = cost.iter().copied().max().unwrap_or(0);
        Ok(Self { texts: Texts::Table { automaton, cost }, largest, kind, closes })
    }

    fn counted(strings: Counted, vocabulary: &Vocabulary) -> Result<Self, Refused> {
        let character = costs(strings.character(), vocabulary)?;
        let mut missing = Vec::new();
        let mut text = Vec::new();
        for _ in 0..=strings.missing(0) {
            let end = text.len();
            text.push(b'"');
            missing.push(if end < MAX_CUT { vocabulary.cut(&text)?.len() } else { text.len() } as u32);
            text.truncate(end);
            strings.character().complete(0, &mut text);
        }
        let most = |costs: &[u32]| costs.iter().copied().max().unwrap_or(0);
        // The first quote is a token more.
        let largest = 1 + most(&character) + most(&missing);
        Ok(Self {
            texts: Texts::Counted { strings, character, missing },
            largest,
            kind: RegexKind::Quoted,
            closes: false,
        })
    }

    fn step(&self, state: u32, byte: u8) -> Option<u32> {
        match &self.texts {
            Texts::Table { automaton, .. } => automaton.step(state, byte),
            Texts::Counted { strings, .. } => strings.step(state, byte),
        }
    }

    fn is_end(&self, state: u32) -> bool {
        match &self.texts {
            Texts::Table { automaton, .. } => automaton.is_end(state),
            Texts::Counted { strings, .. } => strings.is_end(state),
        }
    }

    fn complete(&self, state: u32, text: &mut Vec<u8>) {
        match &self.texts {
            Texts::Table { automaton, .. } => automaton.complete(state, text),
            Texts::Counted { strings, .. } => strings.complete(state, text),
        }
    }

    /// Tokens from a state to an end.
    fn cost(&self, state: u32) -> u32 {
        match &self.texts {
            Texts::Table { cost, .. } => cost[state as usize],
            Texts::Counted { strings, .. } if strings.is_end(state) => 0,
            Texts::Counted { strings, character, missing } => match strings.within(state) {
                None => 1 + missing[strings.missing(0) as usize],
                Some((count, 0)) => missing[strings.missing(count) as usize],
                Some((count, begun)) => character[begun as usize] + missing[strings.missing(count + 1) as usize],
            },
        }
    }
}

/// Tokens from each state of a table to the nearest end.
fn costs(automaton: &Table, vocabulary: &Vocabulary) -> Result<Vec<u32>, Refused> {
    let mut text = Vec::new();
    (0..automaton.states() as u32)
        .map(|state| {
            let bytes = automaton.distance(state);
            if bytes as usize > MAX_CUT || automaton.states() > MAX_CUT_STATES {
                return Ok(bytes);
            }
            text.clear();
            automaton.complete(state, &mut text);
            Ok(vocabulary.cut(&text)?.len() as u32)
        })
        .collect()
}

impl Ways {
    /// # Errors
    /// Lexemes that are too large, a form that nothing finite has, and rules that begin with themselves.
    pub(super) fn new(rules: &Rules, vocabulary: &Vocabulary) -> Result<Self, Refused> {
        let too_large =
            || Refused::new("the schema is too large: its texts, numbers and patterns have too many cases together");
        let table = |made: Result<Table, NoAutomaton>| match made {
            Ok(table) => Ok(Some(table)),
            Err(NoAutomaton::Empty) => Ok(None),
            Err(NoAutomaton::TooLarge) => Err(too_large()),
            Err(NoAutomaton::Wrong(why)) => Err(Refused::internal(why)),
        };
        let mut states = 0;
        let mut lexemes = Vec::with_capacity(rules.lexemes.len());
        for lexeme in &rules.lexemes {
            let (made, kind) = match lexeme {
                Lexeme::Literals { texts, space } => (Table::of_texts(texts, *space), RegexKind::Other),
                Lexeme::Regex { regex, kind } => (Table::of_regex(regex), *kind),
                Lexeme::Counted { min, max } => {
                    let character = table(Table::of_regex(&in_string(RegexAst::Regex("(?s:.)".into()))))?;
                    let strings = character.map(|character| Counted::new(character, *min, *max));
                    lexemes.push(strings.map(|strings| Read::counted(strings, vocabulary)).transpose()?);
                    continue;
                }
            };
            let made = table(made)?;
            states += made.as_ref().map_or(0, Table::states);
            if states > MAX_STATES {
                return Err(too_large());
            }
            let closes = matches!(lexeme, Lexeme::Literals { texts, .. } if texts == &["}"] || texts == &["]"]);
            lexemes.push(made.map(|made| Read::table(made, kind, closes, vocabulary)).transpose()?);
        }
        let mut ways = Self {
            rules: rules.rules.clone(),
            lexemes,
            cost: vec![NEVER; rules.rules.len()],
            cheapest: vec![0; rules.rules.len()],
            growth: 0,
        };
        ways.find_costs();
        let never = rules.needed.iter().find(|(symbol, _)| ways.sequence_cost(&[*symbol]) == NEVER);
        if let Some((_, at)) = never {
            return Err(Refused::new(format!(
                "the schema cannot be used: no value that can be written is valid (it excludes itself, goes on without \
                 end, or is too large), at {at}"
            )));
        }
        ways.drop_what_never_ends();
        ways.find_growth()?;
        Ok(ways)
    }

    /// Alternatives of a rule that can be completed.
    pub(super) fn alternatives(&self, rule: usize) -> &[Vec<Symbol>] {
        &self.rules[rule]
    }

    /// The fewest tokens of an answer.
    pub(super) fn smallest(&self) -> usize {
        self.cost[0] as usize
    }

    fn symbol_cost(&self, symbol: Symbol) -> u32 {
        match symbol {
            Symbol::Lexeme(lexeme) => self.lexemes[lexeme].as_ref().map_or(NEVER, |lexeme| lexeme.cost(0)),
            Symbol::Rule(rule) => self.cost[rule],
            Symbol::Repeat { min: 0, .. } => 0,
            Symbol::Repeat { rule, min, .. } => self.cost[rule].saturating_mul(min),
        }
    }

    fn sequence_cost(&self, sequence: &[Symbol]) -> u32 {
        let cost = sequence.iter().fold(0, |cost: u32, &symbol| cost.saturating_add(self.symbol_cost(symbol)));
        if cost > MAX_COST { NEVER } else { cost }
    }

    /// Knuth's way: the cheapest rule of those that are not settled is settled next, since what contains it costs no less.
    fn find_costs(&mut self) {
        let mut users: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.rules.len()];
        let mut unsettled: Vec<Vec<usize>> = Vec::with_capacity(self.rules.len());
        let mut next = BinaryHeap::new();
        for (rule, alternatives) in self.rules.iter().enumerate() {
            let mut counts = Vec::with_capacity(alternatives.len());
            for (i, alternative) in alternatives.iter().enumerate() {
                let mut count = 0;
                for &symbol in alternative {
                    if let Symbol::Rule(used) | Symbol::Repeat { rule: used, min: 1.., .. } = symbol {
                        users[used].push((rule, i));
                        count += 1;
                    }
                }
                if count == 0 {
                    next.push(Reverse((self.sequence_cost(alternative), rule, i)));
                }
                counts.push(count);
            }
            unsettled.push(counts);
        }
        while let Some(Reverse((cost, rule, i))) = next.pop() {
            if cost == NEVER || self.cost[rule] != NEVER {
                continue;
            }
            self.cost[rule] = cost;
            self.cheapest[rule] = i;
            for &(user, i) in &users[rule] {
                unsettled[user][i] -= 1;
                if unsettled[user][i] == 0 {
                    next.push(Reverse((self.sequence_cost(&self.rules[user][i]), user, i)));
                }
            }
        }
    }

    fn drop_what_never_ends(&mut self) {
        for rule in 0..self.rules.len() {
            let alternatives = std::mem::take(&mut self.rules[rule]);
            let cheapest = self.cheapest[rule];
            for (i, alternative) in alternatives.into_iter().enumerate() {
                if self.sequence_cost(&alternative) != NEVER {
                    if i == cheapest {
                        self.cheapest[rule] = self.rules[rule].len();
                    }
                    self.rules[rule].push(alternative);
                }
            }
        }
    }

    /// The symbols of a sequence that a text of it may begin with, and where they stand.
    fn firsts<'s>(&'s self, sequence: &'s [Symbol]) -> impl Iterator<Item = (usize, Symbol)> + 's {
        let needed = sequence.iter().position(|&symbol| self.symbol_cost(symbol) > 0);
        sequence[..needed.map_or(sequence.len(), |i| i + 1)].iter().copied().enumerate()
    }

    /// Rules in an order in which those that a rule begins with come before it.
    fn find_growth(&mut self) -> Result<(), Refused> {
        // What a symbol can cost once its first lexeme has been chosen and read to its dearest state.
        let mut dearest = vec![0_u32; self.rules.len()];
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.rules.len()];
        let mut unsettled = vec![0_usize; self.rules.len()];
        for (rule, alternatives) in self.rules.iter().enumerate() {
            for (_, symbol) in alternatives.iter().flat_map(|alternative| self.firsts(alternative)) {
                if let Symbol::Rule(used) | Symbol::Repeat { rule: used, .. } = symbol {
                    users[used].push(rule);
                    unsettled[rule] += 1;
                }
            }
        }
        let mut ready: Vec<usize> = (0..self.rules.len()).filter(|&rule| unsettled[rule] == 0).collect();
        let mut growth = self.lexemes.iter().flatten().map(|lexeme| lexeme.largest).max().unwrap_or(0);
        let mut settled = 0;
        while let Some(rule) = ready.pop() {
            settled += 1;
            for alternative in &self.rules[rule] {
                for (i, symbol) in self.firsts(alternative) {
                    let (first, more) = match symbol {
                        Symbol::Lexeme(lexeme) => (self.lexemes[lexeme].as_ref().map_or(0, |read| read.largest), 0),
                        Symbol::Rule(rule) => (dearest[rule], 0),
                        Symbol::Repeat { rule, min, .. } => {
                            (dearest[rule], self.cost[rule].saturating_mul(min.saturating_sub(1)))
                        }
                    };
                    let rest = self.sequence_cost(&alternative[i + 1..]);
                    dearest[rule] = dearest[rule].max(first.saturating_add(more).saturating_add(rest));
                }
            }
            growth = growth.max(dearest[rule].saturating_sub(self.cost[rule]));
            for &user in &users[rule] {
                unsettled[user] -= 1;
                if unsettled[user] == 0 {
                    ready.push(user);
                }
            }
        }
        for symbol in self.rules.iter().flatten().flatten() {
            if let Symbol::Repeat { rule, min, max } = *symbol
                && max > min
            {
                // Beyond the minimum all of it is growth.
                growth = growth.max(dearest[rule]);
            }
        }
        self.growth = growth;
        if settled < self.rules.len() {
            return Err(Refused::new("the schema cannot be used: a part of it is itself, with nothing between"));
        }
        Ok(())
    }
}

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

    fn lexeme(&self, lexeme: usize) -> Option<&Read> {
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
                    for alternative in &self.ways.rules[rule] {
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
        let room = |place: &Place| match &self.lexeme(place.lexeme)?.texts {
            Texts::Counted { strings, .. } if strings.max() > FEW_CHARACTERS => strings.room(place.state),
            _ => None,
        };
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
                    let cheapest = self.ways.rules[rule].get(self.ways.cheapest[rule]);
                    open.extend(cheapest.into_iter().flatten().rev());
                }
                Symbol::Repeat { rule, min, .. } => open.extend((0..min).map(|_| Symbol::Rule(rule))),
            }
        }
    }
}
