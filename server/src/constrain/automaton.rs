//! The texts of a lexeme as a deterministic automaton, and the shortest way to an end from each of its states.
//!
//! Every state can reach an end. A state of a [`Table`] has few transitions, in ranges of bytes, so that even long lists
//! of words stay small. Strings of which only the length matters are [`Counted`] instead: one table for a character, and
//! the number of characters.

use llguidance::derivre::{RegexAst, RegexBuilder, StateID};
use std::collections::HashMap;

/// States of all lexemes of a form together: some 30 bytes each.
pub(super) const MAX_STATES: usize = 300_000;
/// States of a regular expression, which cost the parser much more.
const MAX_REGEX_STATES: usize = 20_000;
/// Work of the derivatives, in their own unit: some nodes of an expression.
const MAX_COST: u64 = 1_000_000;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u8,
    last: u8,
    to: u32,
}

/// An automaton of transitions; state 0 is where a text begins.
#[derive(Debug)]
pub(super) struct Table {
    /// Transitions of state `i` are `ranges[begins[i]..begins[i + 1]]`.
    begins: Vec<u32>,
    ranges: Vec<Range>,
    /// Bytes from a state to the nearest end.
    distance: Vec<u32>,
    /// The transition that is the first of them.
    way: Vec<u32>,
}

/// Why there is no automaton.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoAutomaton {
    /// No text belongs to it.
    Empty,
    /// It would be too large.
    TooLarge,
    /// The expression is wrong or has what is not supported.
    Wrong(String),
}

impl Table {
    /// Of one of `texts`; with `space` one may follow it.
    pub(super) fn of_texts(texts: &[String], space: bool) -> Result<Self, NoAutomaton> {
        let mut states: Vec<Vec<Range>> = vec![Vec::new()];
        let mut ends = vec![false];
        let mut from_byte = HashMap::new();
        for text in texts {
            let mut state = 0;
            for &byte in text.as_bytes() {
                state = *from_byte.entry((state, byte)).or_insert_with(|| {
                    let to = states.len() as u32;
                    states.push(Vec::new());
                    ends.push(false);
                    states[state as usize].push(Range { first: byte, last: byte, to });
                    to
                });
                if states.len() > MAX_STATES {
                    return Err(NoAutomaton::TooLarge);
                }
            }
            ends[state as usize] = true;
        }
        if space {
            let after = states.len() as u32;
            for (ranges, _) in states.iter_mut().zip(&ends).filter(|(_, end)| **end) {
                ranges.push(Range { first: b' ', last: b' ', to: after });
            }
            states.push(Vec::new());
            ends.push(true);
        }
        Self::trimmed(states, &ends)
    }

    /// Of what a regular expression matches.
    pub(super) fn of_regex(regex: &RegexAst) -> Result<Self, NoAutomaton> {
        let wrong = |error: String| NoAutomaton::Wrong(error.lines().last().unwrap_or_default().trim().to_owned());
        let mut builder = RegexBuilder::new();
        let expression = builder.mk(regex).map_err(|error| wrong(error.to_string()))?;
        if builder.exprset().cost() > MAX_COST {
            return Err(NoAutomaton::TooLarge);
        }
        let mut regex = builder.into_regex_limited(expression, MAX_COST).map_err(|_| NoAutomaton::TooLarge)?;
        // Bytes that no expression tells apart go together.
        let mut classes: Vec<(u8, u8)> = Vec::new();
        for byte in 0..=255_u8 {
            match classes.last_mut() {
                Some((first, last)) if regex.alpha().map(*first) == regex.alpha().map(byte) => *last = byte,
                _ => classes.push((byte, byte)),
            }
        }
        let initial = regex.initial_state();
        if initial.is_dead() {
            return Err(NoAutomaton::Empty);
        }
        let mut number = HashMap::from([(initial, 0_u32)]);
        let mut found: Vec<StateID> = vec![initial];
        let mut states: Vec<Vec<Range>> = Vec::new();
        while let Some(&state) = found.get(states.len()) {
            let mut ranges: Vec<Range> = Vec::new();
            for &(first, last) in &classes {
                let to = regex.transition(state, first);
                if to.is_dead() {
                    continue;
                }
                let to = *number.entry(to).or_insert_with(|| {
                    found.push(to);
                    found.len() as u32 - 1
                });
                match ranges.last_mut() {
                    Some(range) if range.to == to && range.last + 1 == first => range.last = last,
                    _ => ranges.push(Range { first, last, to }),
                }
            }
            states.push(ranges);
            if found.len() > MAX_REGEX_STATES || regex.cost() > MAX_COST {
                return Err(NoAutomaton::TooLarge);
            }
        }
        let ends: Vec<bool> = found.iter().map(|&state| regex.is_accepting(state)).collect();
        Self::trimmed(states, &ends)
    }

    /// Drops what leads nowhere, and finds the shortest ways: a breadth-first search from the ends.
    fn trimmed(states: Vec<Vec<Range>>, ends: &[bool]) -> Result<Self, NoAutomaton> {
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); states.len()];
        for (from, ranges) in states.iter().enumerate() {
            for range in ranges {
                before[range.to as usize].push(from as u32);
            }
        }
        let mut distance: Vec<u32> = ends.iter().map(|&end| if end { 0 } else { NONE }).collect();
        let mut reached: Vec<u32> = (0..states.len() as u32).filter(|&state| ends[state as usize]).collect();
        let mut done = 0;
        while let Some(&to) = reached.get(done) {
            done += 1;
            for &from in &before[to as usize] {
                if distance[from as usize] == NONE {
                    distance[from as usize] = distance[to as usize] + 1;
                    reached.push(from);
                }
            }
        }
        if distance[0] == NONE {
            return Err(NoAutomaton::Empty);
        }
        let mut automaton = Self { begins: vec![0], ranges: Vec::new(), way: Vec::new(), distance };
        for state in &states {
            let begin = automaton.ranges.len();
            automaton.ranges.extend(state.iter().filter(|range| automaton.distance[range.to as usize] != NONE));
            let nearest = (begin..automaton.ranges.len()).min_by_key(|&i| automaton.distance_after(i));
            automaton.way.push(nearest.unwrap_or_default() as u32);
            automaton.begins.push(automaton.ranges.len() as u32);
        }
        Ok(automaton)
    }

    fn distance_after(&self, range: usize) -> u32 {
        self.distance[self.ranges[range].to as usize]
    }

    pub(super) fn states(&self) -> usize {
        self.distance.len()
    }

    /// Bytes from a state to the nearest end.
    pub(super) fn distance(&self, state: u32) -> u32 {
        self.distance[state as usize]
    }

    /// The state after a byte.
    pub(super) fn step(&self, state: u32, byte: u8) -> Option<u32> {
        let (begin, end) = (self.begins[state as usize] as usize, self.begins[state as usize + 1] as usize);
        let found = self.ranges[begin..end].iter().find(|range| (range.first..=range.last).contains(&byte));
        found.map(|range| range.to)
    }

    /// Whether a text may end here.
    pub(super) fn is_end(&self, state: u32) -> bool {
        self.distance[state as usize] == 0
    }

    /// Appends the shortest way to an end.
    pub(super) fn complete(&self, mut state: u32, text: &mut Vec<u8>) {
        while !self.is_end(state) {
            // A state that is no end has a transition to one that is nearer to an end.
            let range = self.ranges[self.way[state as usize] as usize];
            text.push(range.first);
            state = range.to;
        }
    }
}

/// JSON strings of `min` to `max` characters.
///
/// State 0 is before the first quote and 1 after the last. Between them state `2 + n * states + s` is after `n` whole
/// characters and at state `s` of the next, which is 0 where none has begun.
#[derive(Debug)]
pub(super) struct Counted {
    /// A character as it is written in a string. None is the beginning of another.
    character: Table,
    min: u32,
    max: u32,
}

impl Counted {
    /// `max`, at most 2^24, is no less than `min`; without it there is no end.
    pub(super) fn new(character: Table, min: u32, max: Option<u32>) -> Self {
        // Beyond the minimum an endless count need not be known.
        Self { character, min, max: max.unwrap_or(u32::MAX) }
    }

    /// Characters that are whole, and the state of the next; nothing outside the quotes.
    pub(super) fn within(&self, state: u32) -> Option<(u32, u32)> {
        let states = self.character.states() as u32;
        state.checked_sub(2).map(|inner| (inner / states, inner % states))
    }

    fn state(&self, count: u32, character: u32) -> u32 {
        let count = if self.max == u32::MAX { count.min(self.min) } else { count };
        2 + count * self.character.states() as u32 + character
    }

    /// Characters that a string within its quotes has room for; nothing if that is without end.
    pub(super) fn room(&self, state: u32) -> Option<u32> {
        let (count, _) = self.within(state)?;
        (self.max != u32::MAX).then(|| self.max - count)
    }

    pub(super) fn max(&self) -> u32 {
        self.max
    }

    /// Characters that are needed after `count`.
    pub(super) fn missing(&self, count: u32) -> u32 {
        self.min.saturating_sub(count)
    }

    pub(super) fn character(&self) -> &Table {
        &self.character
    }

    pub(super) fn step(&self, state: u32, byte: u8) -> Option<u32> {
        let Some((count, character)) = self.within(state) else {
            return (state == 0 && byte == b'"').then(|| self.state(0, 0));
        };
        if character == 0 && byte == b'"' {
            return (self.missing(count) == 0).then_some(1);
        }
        let next = self.character.step(character, byte).filter(|_| count < self.max)?;
        Some(if self.character.is_end(next) { self.state(count + 1, 0) } else { self.state(count, next) })
    }

    pub(super) fn is_end(&self, state: u32) -> bool {
        state == 1
    }

    /// Appends the shortest way to an end.
    pub(super) fn complete(&self, state: u32, text: &mut Vec<u8>) {
        if self.is_end(state) {
            return;
        }
        let (mut count, character) = self.within(state).unwrap_or_else(|| {
            text.push(b'"');
            (0, 0)
        });
        if character != 0 {
            self.character.complete(character, text);
            count += 1;
        }
        for _ in 0..self.missing(count) {
            self.character.complete(0, text);
        }
        text.push(b'"');
    }
}
