//! `POST /tokenize` and `POST /detokenize`.

use super::error::ApiError;
use super::fields::Fields;

/// A text to be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizeRequest {
    /// The text.
    pub content: String,
    /// Whether the tokens that begin and end a text come with it, as the model wants them.
    pub add_special: bool,
    /// Whether names of control tokens in the text mean those tokens.
    pub parse_special: bool,
}

impl TokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, and in which field.
    pub fn decode(body: &str) -> Result<TokenizeRequest, ApiError> {
        let mut fields = Fields::of(body)?;
        let content = fields.take("content")?;
        let request = TokenizeRequest {
            content: content.ok_or_else(|| ApiError::field("content", "`content` is missing: the text"))?,
            add_special: fields.take("add_special")?.unwrap_or(false),
            parse_special: fields.take("parse_special")?.unwrap_or(false),
        };
        fields.finish(&["model"])?;
        Ok(request)
    }
}

/// The tokens of a body.
///
/// # Errors
/// What is wrong with it, and in which field.
pub fn decode_tokens(body: &str) -> Result<Vec<u32>, ApiError> {
    let mut fields = Fields::of(body)?;
    let tokens = fields.take("tokens")?;
    fields.finish(&["model"])?;
    tokens.ok_or_else(|| ApiError::field("tokens", "`tokens` is missing: the list of ids"))
}
