//! Answers of a given form: JSON, JSON of a schema, calls of tools.
//!
//! [`Grammars`] is made once for a model, a [`Grammar`] for each request, and a
//! [`Constraint`] for its answers. `llguidance` says which tokens may come next.
//!
//! A form becomes rules (`form`, `schema`, `rules`), which are read in two ways: `llguidance` finds in them the tokens
//! that may come next (`parser`), and `ways` how an answer is completed in the fewest tokens, which it does not know. From
//! both `answer` makes a constraint whose answers are not only valid but complete when their tokens are used up.

mod answer;
mod automaton;
mod form;
mod parser;
mod reading;
mod rules;
mod schema;
mod spelled;
mod tools;
mod vocabulary;
mod ways;

use llguidance::TokenParser;
use serde_json::Value;
use std::sync::{Arc, OnceLock};
use tritone_runtime::tokenizer::Tokenizer;

use crate::engine::job::Constraint;
use answer::{Answer, caught};
use reading::Reading;
use rules::Rules;
use vocabulary::{Vocabulary, Words};
use ways::Ways;

pub use tools::{Piece, Tool, ToolCall, ToolChoice, ToolReader, Tools};

/// Why a form cannot be asked for: a sentence for whoever sent the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Refused {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    fn internal(error: impl ToString) -> Self {
        Self(format!("the grammar failed: {}", error.to_string().lines().next().unwrap_or_default()))
    }
}

/// What an answer must be.
#[derive(Clone, Copy, Debug)]
pub enum Format<'a> {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that is valid under this schema.
    JsonSchema(&'a Value),
}

/// Makes grammars for the vocabulary of one model.
pub struct Grammars {
    words: Words,
    vocabulary: OnceLock<Result<Arc<Vocabulary>, Refused>>,
}

impl Grammars {
    /// Takes the tokens. They are laid out when the first grammar is made, in some 0.3 seconds for 128 thousand.
    ///
    /// # Errors
    /// A vocabulary with more than 4 MiB of text.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, Refused> {
        Ok(Self { words: Words::new(tokenizer)?, vocabulary: OnceLock::new() })
    }

    /// The grammar of a form; nothing for text without tools, which has none. With tools an answer is calls, or also of
    /// this form if the choice of tools leaves that open. Takes milliseconds, for the largest schemas up to a second.
    ///
    /// # Errors
    /// A schema that is wrong, too large, or says what is not supported.
    pub fn compile(&self, format: Format<'_>, tools: Option<&Tools>) -> Result<Option<Grammar>, Refused> {
        // The parser's own parts know no other way to say that a number has become too large.
        caught(|| match form::rules(format, tools)? {
            Some(rules) => self.grammar(&rules).map(Some),
            None => Ok(None),
        })?
    }

    fn grammar(&self, rules: &Rules) -> Result<Grammar, Refused> {
        let laid_out = self.vocabulary.get_or_init(|| Vocabulary::new(&self.words).map(Arc::new));
        let vocabulary = Arc::clone(laid_out.as_ref().map_err(Refused::clone)?);
        let ways = Arc::new(Ways::new(rules, &vocabulary)?);
        let init = parser::grammar(rules, &ways)?;
        let mut parser = vocabulary.factory.create_parser_from_init(init, 0, 0).map_err(Refused::internal)?;
        parser.start_without_prompt();
        Ok(Grammar { vocabulary, ways, parser })
    }
}

/// The form of the answers to a request.
pub struct Grammar {
    vocabulary: Arc<Vocabulary>,
    ways: Arc<Ways>,
    parser: TokenParser,
}

impl Grammar {
    /// For answers of at most `budget` tokens, the end token among them: they are complete by then.
    ///
    /// # Errors
    /// A budget in which no answer of this form can be written.
    pub fn constraint(&self, budget: usize) -> Result<Box<dyn Constraint>, Refused> {
        let end = usize::from(!self.vocabulary.ends.is_empty());
        let smallest = self.ways.smallest() + end;
        if smallest > budget {
            return Err(Refused::new(format!(
                "the smallest answer of the form asked for may take {smallest} tokens, and there are {budget}; raise \
                 `max_tokens`, or shorten the prompt or the schema"
            )));
        }
        let reading = Reading::new(Arc::clone(&self.ways));
        Ok(Box::new(Answer::new(self.parser.deep_clone(), reading, Arc::clone(&self.vocabulary), budget)))
    }
}
