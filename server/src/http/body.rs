//! Reads bodies: JSON in UTF-8, not too much and not too slow.

use super::limits::{LARGE, MAX_THROWN_AWAY};
use super::seats::{Mark, Stage};
use super::state::State;
use crate::api::error::ApiError;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use std::future::poll_fn;
use std::pin::Pin;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

/// A body, and its place among those in memory.
pub(super) struct Text {
    pub(super) text: String,
    _place: Place,
}

/// Permits for the first bytes of a body, and for those behind them.
#[derive(Default)]
struct Place {
    first: Option<OwnedSemaphorePermit>,
    rest: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Takes room for `more` bytes behind `have` that there are already. Small bodies and the beginnings of large ones
    /// have room of their own: whoever fills the rest leaves them theirs.
    async fn grow(&mut self, state: &State, mark: Option<&Mark>, have: usize, more: usize) -> Result<(), ApiError> {
        let first = more.min(LARGE.saturating_sub(have));
        for (place, pool, bytes, held) in [
            (&mut self.first, &state.small_bodies, first, 0),
            (&mut self.rest, &state.large_bodies, more - first, LARGE),
        ] {
            if bytes == 0 {
                continue;
            }
            let Some(permit) = state.seats.memory(pool, bytes, held, mark).await else {
                return Err(ApiError::unavailable("too much is being sent at once; try again in a moment", 1));
            };
            match place {
                Some(place) => place.merge(permit),
                None => *place = Some(permit),
            }
        }
        Ok(())
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

/// Reads the body of a request.
///
/// # Errors
/// 415 for what is not called JSON or is compressed, 413, 408, 503 where all bodies together are too much, and 400.
pub(super) async fn read(state: &State, request: Request) -> Result<Text, ApiError> {
    read_up_to(state, request, state.options.limits.body_bytes).await
}

/// The same where a body may have at most `most` bytes.
pub(super) async fn read_up_to(state: &State, request: Request, most: usize) -> Result<Text, ApiError> {
    let limits = &state.options.limits;
    check_headers(request.headers())?;
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    // Every connection has one.
    let mark = request.extensions().get::<Mark>().cloned();
    let mut body = request.into_body();
    let began = Instant::now();
    let end = began + limits.body_time;
    let late = |_| ApiError::new(408, "invalid_request_error", "the body did not come in time").coded("timeout");
    let too_large = || {
        let message = format!("the body has more than {most} bytes, the limit of this server for this path");
        ApiError::new(413, "invalid_request_error", message)
    };
    if length.is_some_and(|length| length > most) {
        timeout_at(end, throw_away(&mut body)).await.map_err(late)?;
        return Err(too_large());
    }
    let (mut bytes, mut place) = (Vec::new(), Place::default());
    // When the client last got on, and with how many bytes.
    let (mut got_on, mut with) = (began, 0);
    while let Some(data) = timeout_at(end.min(got_on + limits.piece_time), next(&mut body)).await.map_err(late)? {
        let data = data?;
        if bytes.len() + data.len() > most {
            drop((bytes, place));
            timeout_at(end, throw_away(&mut body)).await.map_err(late)?;
            return Err(too_large());
        }
        if let Err(error) = place.grow(state, mark.as_ref(), bytes.len(), data.len()).await {
            drop((bytes, place));
            if let Some(mark) = &mark {
                mark.holds(0, true);
            }
            let end = end.min(Instant::now() + limits.piece_time);
            timeout_at(end, throw_away(&mut body)).await.map_err(late)?;
            return Err(error);
        }
        bytes.extend_from_slice(&data);
        let gets_on = bytes.len() - with >= LARGE;
        if gets_on {
            (got_on, with) = (Instant::now(), bytes.len());
        }
        if let Some(mark) = &mark {
            mark.holds(bytes.len(), gets_on);
        }
    }
    if let Some(mark) = &mark {
        mark.stage(Stage::Work);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Text { text, _place: place }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Err(ApiError::invalid(format!("the body is not UTF-8 at byte {at}; JSON must be")))
        }
    }
}

/// Refuses what is not JSON as it stands.
fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = |message: &str| Err(ApiError::new(415, "invalid_request_error", message));
    // A page of another origin can send a form or a plain text unasked, but not this.
    let named = headers.get(CONTENT_TYPE).and_then(|name| name.to_str().ok());
    let essence = named.and_then(|name| name.split(';').next()).unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return refused("the body must be JSON and say so: Content-Type: application/json");
    }
    let plain = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity") || coding.is_empty();
    if !headers.get_all(CONTENT_ENCODING).iter().all(plain) {
        return refused("this server reads no compressed bodies; leave the header Content-Encoding out");
    }
    Ok(())
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
