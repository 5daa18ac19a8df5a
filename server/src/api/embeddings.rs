//! `POST /v1/embeddings`.

use super::completions::{Prompt, Prompts};
use super::error::ApiError;
use super::fields::Fields;
use super::sampling::HARMLESS;

/// The most texts of a request.
pub const MAX_TEXTS: usize = 2048;
/// More elements than any vector has.
pub const MAX_DIMENSIONS: usize = 1 << 20;

/// Texts to be made vectors of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingsRequest {
    /// Which model is asked for, if one is named.
    pub model: Option<String>,
    /// At least one.
    pub texts: Vec<Prompt>,
    /// Whether vectors come as base64 of little-endian float32.
    pub base64: bool,
    /// Only so many elements.
    pub dimensions: Option<usize>,
}

impl EmbeddingsRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, and in which field.
    pub fn decode(body: &str) -> Result<EmbeddingsRequest, ApiError> {
        let mut fields = Fields::of(body)?;
        let texts: Prompts =
            fields.take("input")?.ok_or_else(|| ApiError::field("input", "`input` is missing: the texts"))?;
        texts.check("input", MAX_TEXTS)?;
        let base64 = match fields.take::<String>("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                let rule = "`encoding_format` must be \"float\" or \"base64\"";
                return Err(ApiError::field("encoding_format", rule));
            }
        };
        let dimensions = fields.count("dimensions", 1, MAX_DIMENSIONS)?;
        let model = fields.take("model")?;
        fields.finish(&HARMLESS)?;
        Ok(EmbeddingsRequest { model, texts: texts.0, base64, dimensions })
    }
}
