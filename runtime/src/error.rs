//! The one error type of the runtime: a kind, where it happened, and one sentence that says what
//! is wrong and how to fix it.

use std::fmt;
use std::path::PathBuf;

/// What every fallible function of the runtime returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Where in a model file something was found: file, byte offset, key or tensor, each if known.
///
/// Displays as ``model.gguf, byte 24, tensor `output.weight` ``. Names come from untrusted files:
/// they are escaped and cut before they are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Path or name of the file.
    pub file: Option<String>,
    /// Bytes from the start of the file.
    pub offset: Option<u64>,
    /// What was being read.
    pub item: Option<Item>,
}

/// A named thing in a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A metadata key.
    Key(String),
    /// A tensor.
    Tensor(String),
}

impl Place {
    /// A place of which only the file is known.
    pub fn file(name: impl Into<String>) -> Self {
        Self { file: Some(name.into()), ..Self::default() }
    }

    /// The same place with a byte offset.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The same place at a metadata key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.item = Some(Item::Key(key.into()));
        self
    }

    /// The same place at a tensor.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        self.item = Some(Item::Tensor(name.into()));
        self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        if let Some(file) = &self.file {
            f.write_str(file)?;
            comma = ", ";
        }
        if let Some(offset) = self.offset {
            write!(f, "{comma}byte {offset}")?;
            comma = ", ";
        }
        match &self.item {
            Some(Item::Key(key)) => write!(f, "{comma}key `{}`", shown(key))?,
            Some(Item::Tensor(name)) => write!(f, "{comma}tensor `{}`", shown(name))?,
            None if comma.is_empty() => f.write_str("model")?,
            None => {}
        }
        Ok(())
    }
}

/// A name from a file as it may be printed: control characters escaped, at most 80 characters.
pub(crate) fn shown(name: &str) -> String {
    const LONGEST: usize = 80;
    let mut text: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
}

/// Everything that can go wrong in the runtime. `Display` is one sentence for the user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), io_fix(source))]
    Io {
        /// A verb: `open`, `map`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A model file breaks the rules of its format.
    #[error("{at}: {what}; {fix}")]
    Malformed {
        /// Where.
        at: Box<Place>,
        /// What is wrong.
        what: String,
        /// What the user can do.
        fix: &'static str,
    },

    /// A file is sound but holds something that Tritone does not read.
    #[error("{at}: {what}; {fix}")]
    Unsupported {
        /// Where.
        at: Box<Place>,
        /// What is not supported.
        what: String,
        /// What the user can do.
        fix: String,
    },

    /// A metadata key that is needed is not in the file.
    #[error("{at}: the key is missing; convert the model again with a converter that writes it")]
    MissingKey {
        /// File and key.
        at: Box<Place>,
    },

    /// A tensor that is needed is not in the file.
    #[error(
        "{at}: the tensor is missing; the file is incomplete or of another architecture, \
         `tritone inspect` lists what it holds"
    )]
    MissingTensor {
        /// File and tensor.
        at: Box<Place>,
    },

    /// A metadata value has the wrong type, or a value that its use cannot have.
    #[error("{at}: found {found}, expected {expected}; convert the model again")]
    Metadata {
        /// File and key.
        at: Box<Place>,
        /// Type and value in the file.
        found: String,
        /// What was expected.
        expected: String,
    },

    /// A tensor has other dimensions than the configuration implies.
    #[error(
        "{at}: shape is {found}, but the model's configuration needs {expected}; \
         the file's metadata and tensors disagree, convert the model again"
    )]
    Shape {
        /// File and tensor.
        at: Box<Place>,
        /// Shape in the file.
        found: String,
        /// Shape that is needed.
        expected: String,
    },

    /// The tokenizer cannot be built or cannot encode.
    #[error("tokenizer: {what}; {fix}")]
    Tokenizer {
        /// What is wrong.
        what: String,
        /// What the user can do.
        fix: String,
    },

    /// The chat template does not compile or does not render.
    #[error("chat template: {what}; {fix}")]
    Template {
        /// What is wrong.
        what: String,
        /// What the user can do.
        fix: String,
    },

    /// The prompt leaves no room in the context.
    #[error(
        "the prompt has {tokens} tokens but the context holds {context}{}", context_fix(*context, *limit)
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// Tokens the context holds.
        context: usize,
        /// The largest context that the model was trained for.
        limit: usize,
    },

    /// A text that is to become a vector has more tokens than the model takes.
    #[error("text {text} has {tokens} tokens but the context holds {context}; shorten it or cut it into parts")]
    TextTooLong {
        /// Which text of those given, from 1.
        text: usize,
        /// Its tokens, those that begin and end it included.
        tokens: usize,
        /// Tokens the context holds.
        context: usize,
    },

    /// A text that is to become a vector has no tokens.
    #[error("text {text} has no tokens; leave it out")]
    EmptyText {
        /// Which text of those given, from 1.
        text: usize,
    },

    /// An option has a value outside its range.
    #[error("{option} is {value}, but {rule}")]
    InvalidOption {
        /// The option as the user knows it: `--temp`.
        option: &'static str,
        /// The value given.
        value: String,
        /// What it must be: `it must lie in 0..=1`.
        rule: String,
    },

    /// The number of threads is not usable, or threads could not be started.
    #[error("cannot run on {threads} threads: {why}")]
    Threads {
        /// The number asked for.
        threads: usize,
        /// Reason and remedy.
        why: String,
    },

    /// The instruction set asked for cannot be used.
    #[error("instruction set: {what}; {fix}")]
    Isa {
        /// What was asked for and why it is impossible.
        what: String,
        /// What can be asked for.
        fix: String,
    },

    /// The model produced a NaN or an infinity.
    #[error(
        "the model's output at position {position} is not finite; \
         the weights are damaged or read in the wrong layout, check the file's sha256"
    )]
    NonFiniteLogits {
        /// Position in the context, from 0.
        position: usize,
    },

    /// Memory that the model needs could not be had.
    #[error("not enough memory for {what} ({bytes} bytes); close other programs or use a smaller model or context")]
    Memory {
        /// What it was for.
        what: String,
        /// How much was asked for.
        bytes: u64,
    },
}

/// What helps where a prompt is too long: a longer context only where there is one.
fn context_fix(context: usize, limit: usize) -> String {
    if context < limit {
        format!("; shorten the prompt or raise the context length (at most {limit} for this model)")
    } else {
        ", the most that this model was made for; shorten the prompt".to_owned()
    }
}

fn io_fix(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotFound => "; check the path",
        ErrorKind::PermissionDenied => "; check the file's permissions",
        ErrorKind::StorageFull => "; free some space or write elsewhere",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_escaped_and_cut() {
        let place = Place::file("a.gguf").at(7).tensor("x\u{1b}[2J\n");
        assert_eq!(place.to_string(), "a.gguf, byte 7, tensor `x\\u{1b}[2J\\n`");
        let long = "é".repeat(100);
        assert_eq!(shown(&long), "é".repeat(80) + "…");
    }

    #[test]
    fn errors_stay_small() {
        assert!(size_of::<Error>() <= 72);
    }

    #[test]
    fn a_missing_file_says_how_to_fix_it() {
        let error = Error::Io { action: "open", path: "no.gguf".into(), source: std::io::ErrorKind::NotFound.into() };
        assert_eq!(error.to_string(), "cannot open no.gguf: entity not found; check the path");
    }
}
