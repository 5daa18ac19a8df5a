//! How an answer can be completed, and in how few tokens.
//!
//! [`Ways`] is a form with the costs of its parts: the fewest tokens that what is left of a lexeme, a rule or a
//! repetition takes. A sequence is taken to cost its parts together; it costs no more, for the best way to cut a text into
//! tokens takes no more tokens than the best ways for its parts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Refused;
use super::automaton::{Counted, MAX_STATES, NoAutomaton, Table};
use super::rules::{Lexeme, RegexKind, Rules, Symbol};
use super::schema::in_string;
use super::spelled::Spelled;
use super::vocabulary::Vocabulary;
use llguidance::derivre::RegexAst;

/// What takes more tokens is as good as impossible.
const MAX_COST: u32 = 100_000;
pub(super) const NEVER: u32 = u32::MAX;

/// A form and its costs.
pub(super) struct Ways {
    /// Alternatives that can be completed.
    rules: Vec<Vec<Vec<Symbol>>>,
    /// Nothing for those that no text belongs to.
    pub(super) lexemes: Vec<Option<Spelled>>,
    /// Of rules.
    cost: Vec<u32>,
    /// The cheapest alternative of a rule.
    pub(super) cheapest: Vec<usize>,
    /// Reading a token makes what is left at most so much dearer for the lexeme it begins in, and so much for each that it
    /// goes on to.
    pub(super) growth: u32,
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
                    lexemes.push(strings.map(|strings| Spelled::counted(strings, vocabulary)).transpose()?);
                    continue;
                }
            };
            let made = table(made)?;
            states += made.as_ref().map_or(0, Table::states);
            if states > MAX_STATES {
                return Err(too_large());
            }
            let closes = matches!(lexeme, Lexeme::Literals { texts, .. } if texts == &["}"] || texts == &["]"]);
            lexemes.push(made.map(|made| Spelled::table(made, kind, closes, vocabulary)).transpose()?);
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

    /// The fewest tokens of a symbol.
    pub(super) fn symbol_cost(&self, symbol: Symbol) -> u32 {
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
