//! Answers in parts: server-sent events.
//!
//! A stream makes bytes only when the connection asks for them, so a slow reader holds what his answers can have at most,
//! and nobody waits for him. When the connection is gone, the stream is dropped, and its jobs with it.

use super::jobs::Jobs;
use crate::api::error::ApiError;
use crate::engine::job::Event;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde_json::Value;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Interval, interval_at};

/// Parts that are ready go out together up to about so many bytes.
const PIECE: usize = 16 << 10;

/// Writes what happens to jobs as the events of one protocol.
pub(super) trait Writer: Send + Unpin + 'static {
    /// What comes before all.
    fn begin(&mut self, out: &mut Events);

    /// Something happened to a job; not its failure.
    fn event(&mut self, job: usize, event: Event, out: &mut Events);

    /// All jobs are done.
    fn end(&mut self, out: &mut Events);

    /// A job failed; nothing comes after it.
    fn fail(&mut self, error: &ApiError, out: &mut Events);
}

/// Bytes of events.
#[derive(Default)]
pub(super) struct Events(Vec<u8>);

impl Events {
    /// An event without a name.
    pub(super) fn data(&mut self, data: &Value) {
        self.0.extend_from_slice(format!("data: {data}\n\n").as_bytes());
    }

    /// An event with a name.
    pub(super) fn named(&mut self, name: &str, data: &Value) {
        self.0.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
    }

    /// The mark of the end.
    pub(super) fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }
}

struct Stream<W> {
    jobs: Jobs,
    writer: W,
    out: Events,
    ping: Interval,
    ended: bool,
}

/// The refusal of a stream where there is no connection that could carry it.
pub(super) fn no_stream() -> ApiError {
    ApiError::field("stream", "`stream` is true, but answers of a batch come whole; leave it out")
}

/// The answer that tells of jobs as they go on.
pub(super) fn stream(jobs: Jobs, mut writer: impl Writer, ping: Duration) -> Response {
    let mut out = Events::default();
    writer.begin(&mut out);
    let ping = interval_at(tokio::time::Instant::now() + ping, ping);
    let body = Body::new(Stream { jobs, writer, out, ping, ended: false });
    // Proxies hold answers back unless they are told not to.
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    (headers, [("x-accel-buffering", "no")], body).into_response()
}

impl<W: Writer> HttpBody for Stream<W> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Stream { jobs, writer, out, ping, ended } = self.get_mut();
        while !*ended && out.0.len() < PIECE {
            match jobs.poll_next(cx) {
                Poll::Ready(Some((_, Event::Failed(failure)))) => {
                    writer.fail(&ApiError::from(failure), out);
                    *ended = true;
                }
                Poll::Ready(Some((job, event))) => writer.event(job, event, out),
                Poll::Ready(None) => {
                    writer.end(out);
                    *ended = true;
                }
                Poll::Pending => break,
            }
        }
        if out.0.is_empty() && !*ended && ping.poll_tick(cx).is_ready() {
            // A comment, which readers leave out.
            out.0.extend_from_slice(b": still here\n\n");
        }
        if !out.0.is_empty() {
            ping.reset();
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from(std::mem::take(&mut out.0))))));
        }
        if *ended { Poll::Ready(None) } else { Poll::Pending }
    }
}
