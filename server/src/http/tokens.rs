//! `POST /tokenize` and `POST /detokenize`: text to tokens and back.

use super::body;
use super::routes::{apart, respond};
use super::state::State;
use crate::api::error::ApiError;
use crate::api::tokenize::{TokenizeRequest, decode_tokens};
use axum::extract::Request;
use axum::response::Response;
use serde_json::json;
use std::sync::Arc;
use tritone_runtime::tokenizer::SpecialTokens;

/// Cuts a text.
pub(super) async fn tokenize(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let text = body::read(&state, request).await?;
    apart(move || {
        let TokenizeRequest { content, add_special, parse_special } = TokenizeRequest::decode(&text.text)?;
        let tokenizer = state.ready()?.model.tokenizer();
        let special = if parse_special { SpecialTokens::Parse } else { SpecialTokens::Plain };
        let mut tokens = tokenizer.encode(&content, special, add_special && tokenizer.adds_bos());
        if add_special && tokenizer.adds_eos() {
            tokens.extend(tokenizer.eos());
        }
        Ok(respond(&json!({"tokens": tokens, "count": tokens.len()})))
    })
    .await
}

/// Puts tokens together.
pub(super) async fn detokenize(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let text = body::read(&state, request).await?;
    apart(move || {
        let tokens = decode_tokens(&text.text)?;
        let tokenizer = state.ready()?.model.tokenizer();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= tokenizer.vocab_size()) {
            let message = format!("`tokens` has {token}, but this model's are below {}", tokenizer.vocab_size());
            return Err(ApiError::field("tokens", message));
        }
        let text = tokenizer.decode(&tokens);
        Ok(respond(&json!({"content": String::from_utf8_lossy(&text)})))
    })
    .await
}
