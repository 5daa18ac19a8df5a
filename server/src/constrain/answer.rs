//! One answer under a grammar.
//!
//! `llguidance` says which tokens may come next. Of these, a token stays allowed only if the answer can still be completed
//! in the tokens that are left after it; where none does, the shortest completion is written. So an answer is complete in
//! its budget whatever the model wants, and free of that until the end is near: as long as more is left than any token
//! can take, nothing is checked.

use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;
use llguidance::{TokenParser, panic_utils};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use super::Refused;
use super::reading::{Reading, Within};
use super::vocabulary::Vocabulary;
use crate::engine::job::Constraint;

/// Parsers of JSON take 128 objects and lists within each other; the tokens that open them come in bundles.
const MAX_DEPTH: u32 = 64;
/// Tokens that complete a character in text.
const PART_OF_CHARACTER: usize = 3;
/// So many tokens are tried one by one; more are given up, unless they are known to be all right.
const MAX_TRIED: usize = 4_000;

pub(super) struct Answer {
    parser: TokenParser,
    reading: Reading,
    vocabulary: Arc<Vocabulary>,
    /// Tokens that may still be written.
    left: usize,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// The model chooses.
    Free,
    /// These tokens and then the end.
    Completing(VecDeque<u32>),
    /// After an end token.
    Ended,
}

impl Answer {
    pub(super) fn new(parser: TokenParser, reading: Reading, vocabulary: Arc<Vocabulary>, budget: usize) -> Self {
        Self { parser, reading, vocabulary, left: budget, state: State::Free }
    }

    /// What the grammar allows, and whether the answer may end.
    fn grammatical(&mut self) -> Result<(SimpleVob, bool), String> {
        let none = || self.vocabulary.no_tokens();
        if self.parser.stop_reason() == StopReason::NoExtensionBias {
            return Ok((none(), true));
        }
        let parser = &mut self.parser;
        guarded(|| {
            let complete = parser.is_accepting();
            match parser.compute_mask() {
                Ok(tokens) => Ok((tokens, complete)),
                // Nothing can follow.
                Err(_) if complete && parser.stop_reason() == StopReason::NoExtensionBias => Ok((none(), true)),
                Err(error) => Err(Refused::internal(error).to_string()),
            }
        })
    }

    /// Takes away the tokens after which more tokens than `left` would be needed.
    fn keep_affordable(&self, tokens: &mut SimpleVob, left: usize) {
        let (dearest, growth) = (self.reading.dearest_left(), self.reading.growth().max(1));
        // A token that goes on to `n` lexemes costs at most `n + 1` times the growth.
        let steps = left.checked_sub(dearest).map_or(0, |spare| spare / growth);
        if steps > self.vocabulary.most() {
            return;
        }
        let mut unsure = tokens.clone();
        if let Some(lexemes) = steps.checked_sub(1) {
            unsure.sub(self.vocabulary.with_few(lexemes));
        }
        match self.reading.within() {
            Within::Text { .. } if left >= PART_OF_CHARACTER => unsure.sub(&self.vocabulary.without_tag),
            Within::Text { whole: true } => unsure.sub(&self.vocabulary.whole_without_tag),
            Within::String(dearer) if dearest + dearer as usize <= left => unsure.sub(&self.vocabulary.without_quote),
            _ => {}
        }
        if unsure.num_set() > MAX_TRIED {
            tokens.sub(&unsure);
            return;
        }
        for token in unsure.iter() {
            let more = self.reading.left_after(self.vocabulary.bytes(token));
            if more.is_none_or(|more| more > left) {
                tokens.disallow_token(token);
            }
        }
    }

    fn allow_ends(&self, mask: &mut [u32]) {
        for &end in &self.vocabulary.ends {
            set(mask, end);
        }
    }
}

fn set(mask: &mut [u32], token: u32) {
    if let Some(word) = mask.get_mut(token as usize / 32) {
        *word |= 1 << (token % 32);
    }
}

/// Runs the parser; what it panics on is an error like others.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    caught(work).unwrap_or_else(|refused| Err(refused.to_string()))
}

/// Runs work of the parser, whose panics become errors.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Refused> {
    panic_utils::catch_unwind(AssertUnwindSafe(|| Ok(work()))).map_err(Refused::internal)
}

impl Constraint for Answer {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self {
            parser: self.parser.deep_clone(),
            reading: self.reading.clone(),
            vocabulary: Arc::clone(&self.vocabulary),
            left: self.left,
            state: self.state.clone(),
        })
    }

    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        match &self.state {
            State::Ended => return Ok(()),
            State::Completing(tokens) => {
                match tokens.front() {
                    Some(&token) => set(mask, token),
                    None => self.allow_ends(mask),
                }
                return Ok(());
            }
            State::Free => {}
        }
        let (mut tokens, complete) = self.grammatical()?;
        let end = usize::from(!self.vocabulary.ends.is_empty());
        match self.left.checked_sub(end + 1) {
            Some(left) => self.keep_affordable(&mut tokens, left),
            None => tokens = self.vocabulary.no_tokens(),
        }
        if let Some(fit) = self.reading.uncounted_room().and_then(|room| self.vocabulary.fit(room)) {
            tokens.and(fit);
        }
        if self.reading.depth() >= MAX_DEPTH {
            tokens.and(&self.vocabulary.without_opening);
        }
        if complete {
            self.allow_ends(mask);
        } else if tokens.is_zero() {
            let rest = self.vocabulary.cut(&self.reading.completion()).map_err(|refused| refused.to_string())?;
            if let Some(&token) = rest.first() {
                set(mask, token);
            }
            self.state = State::Completing(rest.into());
            return Ok(());
        }
        for (word, tokens) in mask.iter_mut().zip(tokens.as_slice()) {
            *word |= tokens;
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.left = self.left.saturating_sub(1);
        if self.vocabulary.ends.binary_search(&token).is_ok() {
            self.state = State::Ended;
            return Ok(());
        }
        if let State::Completing(tokens) = &mut self.state {
            return match tokens.pop_front() {
                Some(expected) if expected == token => Ok(()),
                _ => Err(format!("token {token} was not allowed")),
            };
        }
        self.reading.read(self.vocabulary.bytes(token)).map_err(|lost| lost.to_string())?;
        let parser = &mut self.parser;
        guarded(|| parser.consume_token(token).map(drop).map_err(|error| Refused::internal(error).to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::CLASSES;
    use super::super::{Format, Grammars, Tool, ToolChoice, Tools};
    use super::*;
    use serde_json::json;
    use tritone_runtime::tokenizer::{PreTokenizer, Tokenizer, VocabKind, VocabSpec};

    /// All bytes, and words that cross the borders of lexemes.
    fn tokenizer() -> Tokenizer {
        let alphabet: Vec<char> = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').collect();
        let others = (0..256 - alphabet.len() as u32).filter_map(|i| char::from_u32(256 + i));
        let mut words: Vec<String> = alphabet.iter().copied().chain(others).map(String::from).collect();
        let longer = [
            "{\"",
            "\":",
            "\",\"",
            "},{",
            "[[",
            "]]",
            "true",
            "ull",
            "12",
            ",1",
            "\"},",
            "aa",
            "\\\"",
            "<tool",
            "_call>",
            "</tool_call>",
            "{\"a\":",
            "[{",
            "0.5",
            "\"}",
            "Ġ\"",
            ":Ġ",
        ];
        words.extend(longer.map(str::to_owned));
        words.push("<|end|>".into());
        let mut spec = VocabSpec::new(VocabKind::Bpe(PreTokenizer::Gpt2));
        spec.tokens = words.iter().map(String::as_bytes).collect();
        spec.eos = Some(words.len() as u32 - 1);
        Tokenizer::new(&spec).unwrap()
    }

    /// Walks at random and compares what the two readers of the rules say about every token.
    fn compare(format: Format<'_>, tools: Option<&Tools>) {
        let tokenizer = tokenizer();
        let grammar = Grammars::new(&tokenizer).unwrap().compile(format, tools).unwrap().unwrap();
        for walk in 0..12_u64 {
            let reading = Reading::new(Arc::clone(&grammar.ways));
            let mut answer = Answer::new(grammar.parser.deep_clone(), reading, Arc::clone(&grammar.vocabulary), 10_000);
            let mut random = walk.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut text = Vec::new();
            for _ in 0..60 {
                let (tokens, complete) = answer.grammatical().unwrap();
                let written = String::from_utf8_lossy(&text).into_owned();
                assert_eq!(complete, answer.reading.left_after(b"") == Some(0), "{written}");
                check_growth(&answer, &written);
                let mut allowed = Vec::new();
                for token in 0..tokenizer.vocab_size() as u32 {
                    let bytes = tokenizer.token_bytes(token);
                    let fits = !bytes.is_empty() && answer.reading.left_after(bytes).is_some();
                    assert_eq!(tokens.is_allowed(token), fits, "{written} then {}", String::from_utf8_lossy(bytes));
                    allowed.extend(fits.then_some(token));
                }
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let Some(&token) = allowed.get((random >> 33) as usize % allowed.len().max(1)) else {
                    break;
                };
                text.extend_from_slice(tokenizer.token_bytes(token));
                answer.accept(token).unwrap();
            }
        }
    }

    /// Whether tokens make what is left no dearer than is reckoned without trying them.
    fn check_growth(answer: &Answer, written: &str) {
        let (reading, vocabulary) = (&answer.reading, &answer.vocabulary);
        let dearest = reading.dearest_left();
        let check = |tokens: &SimpleVob, limit: usize| {
            for token in tokens.iter() {
                let bytes = vocabulary.bytes(token);
                let left = reading.left_after(bytes).unwrap_or(0);
                assert!(left <= limit, "{written} then {}: {left}, not {limit}", String::from_utf8_lossy(bytes));
            }
        };
        for lexemes in 0..CLASSES {
            check(vocabulary.with_few(lexemes), dearest + reading.growth() * (lexemes + 1));
        }
        match reading.within() {
            Within::Text { whole } => {
                check(&vocabulary.without_tag, PART_OF_CHARACTER);
                if whole {
                    check(&vocabulary.whole_without_tag, 0);
                }
            }
            Within::String(dearer) => check(&vocabulary.without_quote, dearest + dearer as usize),
            Within::Other => {}
        }
    }

    #[test]
    fn both_readers_agree() {
        let schemas = [
            json!({}),
            json!({"type": ["integer", "string", "null"], "minimum": -5, "maxLength": 4}),
            json!({"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 29}),
            json!({"type": "array", "prefixItems": [{"const": 1}, {"enum": ["a", "aa", null]}], "items": {"type": "number"}}),
            json!({"type": "object", "properties": {
                "a": {"type": "string", "pattern": "^a+b?$"}, "b": {"type": "boolean"}, "a\"": {"type": "array"},
            }, "required": ["b"], "additionalProperties": {"type": "string", "minLength": 1, "maxLength": 2}}),
            json!({"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string", "pattern":
                "^[0-9]{7,15}$"}, "minItems": 3}}),
            json!({"type": "array", "items": {"type": "object", "properties": {"a": {"const": "a long text to write"},
                "b": {"type": "array", "items": {"type": "integer", "minimum": 1000}, "minItems": 2}}}}),
            json!({"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "minLength": 3, "maxLength": 12},
                {"type": "object", "properties": {"a": {"$ref": "#"}}, "minProperties": 1}]}),
        ];
        for schema in &schemas {
            compare(Format::JsonSchema(schema), None);
        }
        compare(Format::JsonObject, None);
        let tool = |name: &str, parameters| Tool { name: name.into(), description: None, parameters };
        let tools = vec![tool("a", None), tool("aa", Some(json!({"properties": {"a": {"type": "integer"}}})))];
        for choice in [ToolChoice::Auto, ToolChoice::Required, ToolChoice::Named("aa".into())] {
            let tools = Tools::new(tools.clone(), choice, true).unwrap();
            compare(Format::Text, Some(&tools));
            compare(Format::JsonObject, Some(&tools));
        }
    }
}
