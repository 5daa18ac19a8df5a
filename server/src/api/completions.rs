//! `POST /v1/completions`.

use super::error::ApiError;
use super::fields::Fields;
use super::sampling::{HARMLESS, MAX_TOP_LOGPROBS, Sampling};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// The most prompts of a request.
pub const MAX_PROMPTS: usize = 128;

/// How many tokens come where nobody says.
const DEFAULT_TOKENS: usize = 16;

/// A text, or the tokens of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Names of control tokens in it are only text.
    Text(String),
    /// Taken as they are.
    Tokens(Vec<u32>),
}

/// Texts to be continued.
#[derive(Clone, Debug)]
pub struct CompletionsRequest {
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Whether answers begin with their prompt.
    pub echo: bool,
    /// Whether tokens come with log-probabilities, and with so many alternatives.
    pub logprobs: Option<usize>,
}

impl CompletionsRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, and in which field.
    pub fn decode(body: &str) -> Result<CompletionsRequest, ApiError> {
        let mut fields = Fields::of(body)?;
        let prompts: Prompts = fields
            .take("prompt")?
            .ok_or_else(|| ApiError::field("prompt", "`prompt` is missing: the text to continue"))?;
        prompts.check("prompt", MAX_PROMPTS)?;
        let mut sampling = Sampling::take(&mut fields, &["max_tokens"], 0)?;
        sampling.max_tokens.get_or_insert(DEFAULT_TOKENS);
        let echo = fields.take("echo")?.unwrap_or(false);
        let logprobs = fields.count("logprobs", 0, MAX_TOP_LOGPROBS)?;
        if echo && logprobs.is_some() {
            let message = "`echo` with `logprobs` asks for those of the prompt, which this server does not give";
            return Err(ApiError::field("echo", message));
        }
        let best_of = fields.take::<usize>("best_of")?;
        if best_of.is_some_and(|best_of| best_of != sampling.n) {
            return Err(ApiError::unsupported("best_of"));
        }
        fields.finish(&HARMLESS)?;
        Ok(CompletionsRequest { prompts: prompts.0, sampling, echo, logprobs })
    }
}

/// One text or the tokens of one, or a list of either.
#[derive(Debug)]
pub(super) struct Prompts(pub(super) Vec<Prompt>);

impl Prompts {
    /// Refuses a list that is empty or too long.
    pub(super) fn check(&self, param: &str, most: usize) -> Result<(), ApiError> {
        match self.0.len() {
            0 => Err(ApiError::field(param, format!("`{param}` is empty"))),
            n if n > most => Err(ApiError::field(param, format!("`{param}` has {n} texts, the limit is {most}"))),
            _ => Ok(()),
        }
    }
}

/// What may be in a list.
enum Entry {
    Token(u32),
    Prompt(Prompt),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TokenOrPrompt;
        impl<'de> Visitor<'de> for TokenOrPrompt {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token or a list of tokens")
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<Entry, E> {
                let token = u32::try_from(token).map_err(|_| E::custom(format_args!("{token} is no token")))?;
                Ok(Entry::Token(token))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry::Prompt(Prompt::Text(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entry, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = list.next_element()? {
                    tokens.push(token);
                }
                Ok(Entry::Prompt(Prompt::Tokens(tokens)))
            }
        }
        deserializer.deserialize_any(TokenOrPrompt)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of tokens, or a list of either")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts, A::Error> {
                let (mut tokens, mut prompts) = (Vec::new(), Vec::new());
                while let Some(entry) = list.next_element()? {
                    match entry {
                        Entry::Token(token) => tokens.push(token),
                        Entry::Prompt(prompt) => prompts.push(prompt),
                    }
                    if !tokens.is_empty() && !prompts.is_empty() {
                        return Err(A::Error::custom("tokens and texts are mixed; give lists of tokens, or texts"));
                    }
                }
                if !tokens.is_empty() {
                    prompts.push(Prompt::Tokens(tokens));
                }
                Ok(Prompts(prompts))
            }
        }
        deserializer.deserialize_any(All)
    }
}
