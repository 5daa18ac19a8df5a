//! Reads bodies: JSON in UTF-8, not too much and not too slow.

use super::limits::MAX_THROWN_AWAY;
use super::state::State;
use crate::api::error::ApiError;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

/// A body, and its place among those in memory.
pub(super) struct Text {
    pub(super) text: String,
    _place: Vec<OwnedSemaphorePermit>,
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

/// Reads the body of a request.
///
/// # Errors
/// 415 for what is not called JSON, 413, 408, 503 where all bodies together are too much, and 400.
pub(super) async fn read(state: &State, request: Request) -> Result<Text, ApiError> {
    let limits = &state.options.limits;
    // A page of another origin can send a form or a plain text unasked, but not this.
    let named = request.headers().get(CONTENT_TYPE).and_then(|name| name.to_str().ok());
    let essence = named.and_then(|name| name.split(';').next()).unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "the body must be JSON and say so: Content-Type: application/json";
        return Err(ApiError::new(415, "invalid_request_error", message));
    }
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let mut body = request.into_body();
    let end = Instant::now() + limits.body_time;
    let late = |_| ApiError::new(408, "invalid_request_error", "the body did not come in time").coded("timeout");
    let too_large = || {
        let message = format!("the body has more than {} bytes, the limit of this server", limits.body_bytes);
        ApiError::new(413, "invalid_request_error", message)
    };
    if length.is_some_and(|length| length > limits.body_bytes) {
        timeout_at(end, throw_away(&mut body)).await.map_err(late)?;
        return Err(too_large());
    }
    let (mut bytes, mut place) = (Vec::new(), Vec::new());
    while let Some(data) = timeout_at(end, next(&mut body)).await.map_err(late)? {
        let data = data?;
        if bytes.len() + data.len() > limits.body_bytes {
            drop((bytes, place));
            timeout_at(end, throw_away(&mut body)).await.map_err(late)?;
            return Err(too_large());
        }
        // A piece is at most what was read at once, far below 4 GB.
        let wanted = u32::try_from(data.len()).unwrap_or(u32::MAX);
        match Arc::clone(&state.body_bytes).try_acquire_many_owned(wanted) {
            Ok(permit) => place.push(permit),
            Err(_) => return Err(ApiError::unavailable("too much is being sent at once; try again in a moment", 1)),
        }
        bytes.extend_from_slice(&data);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Text { text, _place: place }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Err(ApiError::invalid(format!("the body is not UTF-8 at byte {at}; JSON must be")))
        }
    }
}

/// The next piece of a body.
async fn next(body: &mut Body) -> Option<Result<axum::body::Bytes, ApiError>> {
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame {
            Ok(frame) => {
                // Trailers say nothing to us.
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(_) => return Some(Err(ApiError::invalid("the body broke off"))),
        }
    }
}

async fn throw_away(body: &mut Body) {
    let mut thrown = 0;
    while let Some(Ok(data)) = next(body).await {
        thrown += data.len();
        if thrown > MAX_THROWN_AWAY {
            return;
        }
    }
}
