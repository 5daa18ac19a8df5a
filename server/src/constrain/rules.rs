//! A form as rules: what a schema or a list of tools becomes.
//!
//! A rule is a choice of sequences of symbols; a symbol is a lexeme, a rule, or a counted repetition of one. Two readers
//! share the rules, so that they cannot disagree: `parser` hands them to `llguidance`, which says what may come next,
//! and `ways` knows how an answer is completed.

use llguidance::derivre::RegexAst;
use std::collections::HashMap;

use super::Refused;

/// More rules are refused: the parser numbers its symbols in 16 bits.
const MAX_RULES: usize = 12_000;

/// A part of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Symbol {
    Lexeme(usize),
    Rule(usize),
    /// A rule `min` to `max` times.
    Repeat {
        rule: usize,
        min: u32,
        /// `u32::MAX` for no end.
        max: u32,
    },
}

/// A set of texts that are read as one piece.
#[derive(Clone, Debug)]
pub(super) enum Lexeme {
    /// One of these texts, and after it a space if `space` says that one may follow.
    Literals { texts: Vec<String>, space: bool },
    /// What a regular expression matches.
    Regex { regex: RegexAst, kind: RegexKind },
    /// JSON strings of so many characters.
    Counted { min: u32, max: Option<u32> },
}

/// The parser counts characters up to this many, at a few states each; up to larger limits they are counted with `ways`.
pub(super) const FEW_CHARACTERS: u32 = 1_000;

/// What is known of the texts of a regular expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegexKind {
    /// JSON strings: a quote ends one, and nothing else does.
    Quoted,
    /// Text before, and without, calls of tools.
    Text,
    Other,
}

/// Rules in the making.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) lexemes: Vec<Lexeme>,
    lexeme_of: HashMap<String, usize>,
    /// Alternatives of each rule. The first is the form itself.
    pub(super) rules: Vec<Vec<Vec<Symbol>>>,
    /// Symbols that must have a text, and what to call them where they have none.
    pub(super) needed: Vec<(Symbol, String)>,
}

impl Rules {
    /// A rule that has no alternatives yet.
    pub(super) fn reserve(&mut self) -> Result<usize, Refused> {
        if self.rules.len() == MAX_RULES {
            return Err(Refused::new(format!("the schema is too large: it takes more than {MAX_RULES} rules")));
        }
        self.rules.push(Vec::new());
        Ok(self.rules.len() - 1)
    }

    /// A rule of these alternatives.
    pub(super) fn rule(&mut self, alternatives: Vec<Vec<Symbol>>) -> Result<Symbol, Refused> {
        let rule = self.reserve()?;
        self.rules[rule] = alternatives;
        Ok(Symbol::Rule(rule))
    }

    /// A sequence `min` to `max` times.
    pub(super) fn repeat(&mut self, sequence: Vec<Symbol>, min: u32, max: u32) -> Result<Symbol, Refused> {
        let rule = self.reserve()?;
        self.rules[rule] = vec![sequence];
        Ok(Symbol::Repeat { rule, min, max })
    }

    /// The lexeme of this name, which must say all there is to know about it.
    pub(super) fn lexeme(&mut self, name: String, make: impl FnOnce() -> Lexeme) -> Symbol {
        let next = self.lexemes.len();
        let lexeme = *self.lexeme_of.entry(name).or_insert(next);
        if lexeme == next {
            self.lexemes.push(make());
        }
        Symbol::Lexeme(lexeme)
    }

    /// One of these texts; `space`: and perhaps a space.
    pub(super) fn literals(&mut self, texts: Vec<String>, space: bool) -> Symbol {
        self.lexeme(format!("{space}{texts:?}"), || Lexeme::Literals { texts, space })
    }

    /// This text; `space`: and perhaps a space.
    pub(super) fn literal(&mut self, text: &str, space: bool) -> Symbol {
        self.literals(vec![text.to_owned()], space)
    }
}
