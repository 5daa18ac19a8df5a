//! Follows requests and answers of a connection, so that it is known who is waiting for whom.
//!
//! A connection asks for more of an answer only when the client has taken most of what came before. So it is the client who
//! is waited for from one piece to the next, and we are where there is none. A complete answer that is large goes out in
//! pieces, and its bytes stay counted until the last has been asked for.

use super::limits::LARGE;
use super::seats::{Mark, Stage};
use super::state::State;
use crate::api::error::ApiError;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse, Response};
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::OwnedSemaphorePermit;

/// Answers a request; `mark` is told how it gets on.
pub(super) async fn answer(
    state: Arc<State>,
    router: Router,
    mark: Mark,
    mut request: Request<Incoming>,
) -> Result<Response, Infallible> {
    mark.stage(if request.body().is_end_stream() { Stage::Work } else { Stage::Body });
    request.extensions_mut().insert(mark.clone());
    let response = TowerToHyperService::new(router).call(request).await?;
    Ok(watched(&state, mark, response).await)
}

/// The same response, whose bytes are counted if they are many.
async fn watched(state: &State, mark: Mark, response: Response) -> Response {
    let size = response.body().size_hint().exact().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    let (mut response, mut place) = (response, None);
    if size > LARGE {
        // One that is larger than all room takes all of it.
        let wanted = size.min(state.options.limits.all_answers_bytes);
        place = state.seats.memory(&state.answer_bytes, wanted, LARGE, None).await;
        if place.is_some() {
            mark.stage(Stage::Answer);
            mark.holds(size, true);
        } else {
            let busy = "too many large answers wait to be taken; try again in a moment";
            response = ApiError::unavailable(busy, 1).into_response();
        }
    }
    response.map(|body| Body::new(Watched { body, rest: Bytes::new(), mark, place, size }))
}

struct Watched {
    body: Body,
    /// What of the last frame has not been given out.
    rest: Bytes,
    mark: Mark,
    /// The place of a large answer among all.
    place: Option<OwnedSemaphorePermit>,
    /// Bytes of a large answer.
    size: usize,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Watched { body, rest, mark, place, size } = self.get_mut();
        if rest.is_empty() {
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                // All there is has been asked for: now the client waits.
                mark.stage(Stage::Work);
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = rest.split_to(rest.len().min(LARGE));
        // Until it is asked for more.
        mark.stage(Stage::Answer);
        if place.is_some() {
            // All of it is in memory until the last piece is gone.
            mark.holds(*size, true);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(inner.lower() + rest);
        hint
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.mark.stage(Stage::Idle);
    }
}
