//! Answers of a given form: JSON, JSON of a schema, calls of tools.
//!
//! [`Grammars`] is made once for a model, a [`Grammar`] for each request, and a
//! [`Constraint`](crate::engine::job::Constraint) for its answers. `llguidance` says which tokens may come next.

mod answer;
mod tools;
mod vocabulary;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::engine::job::Constraint;
use answer::Answer;
use vocabulary::Vocabulary;

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
    vocabulary: Arc<Vocabulary>,
}

impl Grammars {
    /// Lays out the vocabulary.
    ///
    /// # Errors
    /// A vocabulary with more than 4 MiB of text.
    pub fn new(tokenizer: &tritone_runtime::tokenizer::Tokenizer) -> Result<Self, Refused> {
        Ok(Self { vocabulary: Arc::new(Vocabulary::new(tokenizer)?) })
    }

    /// The grammar of a form; nothing for text without tools, which has none. With tools an answer is of this form or
    /// calls, whatever their choice says.
    ///
    /// # Errors
    /// A schema that is wrong, too large, or says what is not supported.
    pub fn compile(&self, format: Format<'_>, tools: Option<&Tools>) -> Result<Option<Grammar>, Refused> {
        if tools.is_some() {
            return Err(Refused::new("tools are not supported yet"));
        }
        let schema = match format {
            Format::Text => return Ok(None),
            Format::JsonObject => json!({"type": "object"}),
            Format::JsonSchema(schema) => schema.clone(),
        };
        let grammar = TopLevelGrammar::from_json_schema(schema);
        let mut parser = self.vocabulary.factory.create_parser(grammar).map_err(Refused::internal)?;
        parser.start_without_prompt();
        Ok(Some(Grammar { vocabulary: Arc::clone(&self.vocabulary), parser }))
    }
}

/// The form of the answers to a request.
pub struct Grammar {
    vocabulary: Arc<Vocabulary>,
    parser: llguidance::TokenParser,
}

impl Grammar {
    /// For answers of at most `budget` tokens, the end token among them: they are complete by then.
    ///
    /// # Errors
    /// A budget in which no answer of this form can be written.
    pub fn constraint(&self, budget: usize) -> Result<Box<dyn Constraint>, Refused> {
        let _ = budget;
        Ok(Box::new(Answer::new(self.parser.deep_clone(), Arc::clone(&self.vocabulary))))
    }
}
