//! `POST /tokenize` and `POST /detokenize`: text to tokens and back.

use super::body;
use super::routes::{apart, respond, respond_text};
use super::state::State;
use crate::api::error::ApiError;
use crate::api::tokenize::{TokenizeRequest, decode_tokens};
use axum::extract::Request;
use axum::response::Response;
use serde_json::json;
use std::fmt::Write;
use std::sync::Arc;
use tritone_runtime::tokenizer::SpecialTokens;

/// The longest body, and the longest text that comes of tokens. More than fits into any context, and little enough that
/// the answers, which are several times as long, are harmless.
const MAX_BYTES: usize = 2 << 20;

/// Cuts a text.
pub(super) async fn tokenize(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let text = body::read_up_to(&state, request, MAX_BYTES).await?;
    apart(move || {
        let TokenizeRequest { content, add_special, parse_special } = TokenizeRequest::decode(&text.text)?;
        let tokenizer = state.ready()?.model.tokenizer();
        let special = if parse_special { SpecialTokens::Parse } else { SpecialTokens::Plain };
        let mut tokens = tokenizer.encode(&content, special, add_special && tokenizer.adds_bos());
        if add_special && tokenizer.adds_eos() {
            tokens.extend(tokenizer.eos());
        }
        Ok(respond_text(written(&tokens)))
    })
    .await
}

/// The answer as JSON. A tree of values would take many times as much memory.
fn written(tokens: &[u32]) -> String {
    let mut text = String::with_capacity(tokens.len() * "123456,".len() + 64);
    let count = tokens.len();
    // Writing to a string cannot fail.
    let _ = write!(text, r#"{{"count":{count},"tokens":["#);
    for (i, token) in tokens.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{token}");
    }
    text.push_str("]}");
    text
}

/// Puts tokens together.
pub(super) async fn detokenize(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let text = body::read_up_to(&state, request, MAX_BYTES).await?;
    apart(move || {
        let tokens = decode_tokens(&text.text)?;
        let tokenizer = state.ready()?.model.tokenizer();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= tokenizer.vocab_size()) {
            let message = format!("`tokens` has {token}, but this model's are below {}", tokenizer.vocab_size());
            return Err(ApiError::field("tokens", message));
        }
        let bytes: usize = tokens.iter().map(|token| tokenizer.token_bytes(*token).len()).sum();
        if bytes > MAX_BYTES {
            let message = format!("`tokens` are {bytes} bytes of text, the limit is {MAX_BYTES}; send them in parts");
            return Err(ApiError::field("tokens", message));
        }
        let text = tokenizer.decode(&tokens);
        Ok(respond(&json!({"content": String::from_utf8_lossy(&text)})))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_written_as_json() {
        for tokens in [&[][..], &[7], &[0, 128_255, u32::MAX]] {
            let value: serde_json::Value = serde_json::from_str(&written(tokens)).unwrap();
            assert_eq!(value, json!({"count": tokens.len(), "tokens": tokens}));
        }
    }
}
