//! A lexeme as whoever completes an answer sees it: its texts as an automaton, and tokens to the nearest end.

use super::Refused;
use super::automaton::{Counted, Table};
use super::rules::{FEW_CHARACTERS, RegexKind};
use super::vocabulary::Vocabulary;

/// For longer ends of texts, and for larger automata, a token for each byte is reckoned.
const MAX_CUT: usize = 64;
const MAX_CUT_STATES: usize = 2_000;

/// A lexeme.
pub(super) struct Spelled {
    texts: Texts,
    /// No state costs more.
    pub(super) largest: u32,
    pub(super) kind: RegexKind,
    /// Whether it ends an object or a list.
    pub(super) closes: bool,
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

impl Spelled {
    pub(super) fn table(
        automaton: Table,
        kind: RegexKind,
        closes: bool,
        vocabulary: &Vocabulary,
    ) -> Result<Self, Refused> {
        let cost = costs(&automaton, vocabulary)?;
        let largest = cost.iter().copied().max().unwrap_or(0);
        Ok(Self { texts: Texts::Table { automaton, cost }, largest, kind, closes })
    }

    pub(super) fn counted(strings: Counted, vocabulary: &Vocabulary) -> Result<Self, Refused> {
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

    pub(super) fn step(&self, state: u32, byte: u8) -> Option<u32> {
        match &self.texts {
            Texts::Table { automaton, .. } => automaton.step(state, byte),
            Texts::Counted { strings, .. } => strings.step(state, byte),
        }
    }

    pub(super) fn is_end(&self, state: u32) -> bool {
        match &self.texts {
            Texts::Table { automaton, .. } => automaton.is_end(state),
            Texts::Counted { strings, .. } => strings.is_end(state),
        }
    }

    pub(super) fn complete(&self, state: u32, text: &mut Vec<u8>) {
        match &self.texts {
            Texts::Table { automaton, .. } => automaton.complete(state, text),
            Texts::Counted { strings, .. } => strings.complete(state, text),
        }
    }

    /// How many more characters a string has room for, within it and where the parser does not count them.
    pub(super) fn uncounted_room(&self, state: u32) -> Option<u32> {
        match &self.texts {
            Texts::Counted { strings, .. } if strings.max() > FEW_CHARACTERS => strings.room(state),
            _ => None,
        }
    }

    /// Tokens from a state to an end.
    pub(super) fn cost(&self, state: u32) -> u32 {
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
