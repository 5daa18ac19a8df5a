//! `POST /v1/embeddings`: texts to vectors.
//!
//! They have a thread and a model's workers of their own, which begin with the first request. Texts are taken some at a
//! time, so that a request whose client is gone ends soon.

use super::body;
use super::routes::{apart, respond};
use super::state::State;
use crate::api::completions::Prompt;
use crate::api::embeddings::EmbeddingsRequest;
use crate::api::error::ApiError;
use crate::engine::job::Failure;
use crate::metrics::{Metrics, Outcome};
use axum::extract::Request;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::oneshot;
use tritone_runtime::embedding::{EmbedOptions, Embedder};
use tritone_runtime::error::Error;
use tritone_runtime::model::Model;

/// Requests that wait at most.
pub(super) const MAX_WAITING: usize = 64;

/// Texts are turned together until they have so many tokens.
const BATCH_TOKENS: usize = 512;

/// What a request makes of its texts.
struct Vectors {
    vectors: Vec<Vec<f32>>,
    tokens: usize,
}

struct Task {
    request: EmbeddingsRequest,
    deadline: Option<Instant>,
    answer: oneshot::Sender<Result<Vectors, ApiError>>,
    ticket: Ticket,
}

/// What the thread shares with others.
struct Shared {
    metrics: Arc<Metrics>,
    /// Requests that wait or run.
    under_way: AtomicUsize,
    /// Whether all are to end now.
    closing: AtomicBool,
}

/// Counts a request from its arrival until it is dropped.
struct Ticket {
    shared: Arc<Shared>,
    runs: bool,
    /// A failure unless something else is said.
    outcome: Outcome,
}

impl Ticket {
    fn new(shared: &Arc<Shared>) -> Ticket {
        shared.under_way.fetch_add(1, Ordering::Relaxed);
        shared.metrics.vectors_wait(true);
        Ticket { shared: Arc::clone(shared), runs: false, outcome: Outcome::Failed }
    }

    fn run(&mut self) {
        self.runs = true;
        self.shared.metrics.vectors_run(true);
        self.shared.metrics.vectors_wait(false);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let metrics = &self.shared.metrics;
        metrics.ended(self.outcome);
        if self.runs {
            metrics.vectors_run(false);
        } else {
            metrics.vectors_wait(false);
        }
        self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes vectors, one request after the other.
pub(super) struct Embeddings {
    model: Model,
    context: Option<usize>,
    shared: Arc<Shared>,
    /// To the thread, once there is one.
    tasks: OnceLock<SyncSender<Task>>,
}

impl Embeddings {
    /// Texts have at most `context` tokens, or as many as the model was made for.
    pub(super) fn new(model: Model, context: Option<usize>, metrics: Arc<Metrics>) -> Embeddings {
        let shared = Shared { metrics, under_way: AtomicUsize::new(0), closing: AtomicBool::new(false) };
        Embeddings { model, context, shared: Arc::new(shared), tasks: OnceLock::new() }
    }

    /// Whether requests wait or run.
    pub(super) fn are_under_way(&self) -> bool {
        self.shared.under_way.load(Ordering::Relaxed) > 0
    }

    /// Ends those that wait or run.
    pub(super) fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
    }

    fn begin(
        &self,
        request: EmbeddingsRequest,
        deadline: Option<Instant>,
        answer: oneshot::Sender<Result<Vectors, ApiError>>,
    ) -> Result<(), ApiError> {
        let tasks = self.tasks.get_or_init(|| {
            let (tasks, receiver) = sync_channel(MAX_WAITING);
            let (model, context) = (self.model.clone(), self.context);
            // Without a thread the receiver is gone, which the sender tells.
            let _ = std::thread::Builder::new()
                .name("tritone-embed".to_owned())
                .spawn(move || work(&model, context, &receiver));
            tasks
        });
        let task = Task { request, deadline, answer, ticket: Ticket::new(&self.shared) };
        tasks.try_send(task).map_err(|error| match error {
            TrySendError::Full(mut task) => {
                task.ticket.outcome = Outcome::Refused;
                Failure::QueueFull { waiting: MAX_WAITING }.into()
            }
            TrySendError::Disconnected(_) => Failure::Internal("the thread for vectors has ended".to_owned()).into(),
        })
    }
}

/// Answers a request.
pub(super) async fn embeddings(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let text = body::read(&state, request).await?;
    let value = at_once(state, text).await?;
    apart(move || Ok(respond(&value))).await
}

/// Answers a body, wherever it came from.
pub(super) async fn at_once(state: Arc<State>, text: impl AsRef<str> + Send + 'static) -> Result<Value, ApiError> {
    let (answer, vectors) = oneshot::channel();
    let name = state.options.name.clone();
    let base64 = apart(move || {
        let request = EmbeddingsRequest::decode(text.as_ref())?;
        let base64 = request.base64;
        let ready = state.ready_for(request.model.as_deref())?;
        let deadline = Instant::now().checked_add(state.options.timeout);
        ready.embeddings.begin(request, deadline, answer)?;
        Ok(base64)
    })
    .await?;
    let gone = |_| ApiError::from(Failure::Internal("the thread for vectors failed on this request".to_owned()));
    let Vectors { vectors, tokens } = vectors.await.map_err(gone)??;
    apart(move || {
        let data = vectors.iter().enumerate().map(|(index, vector)| {
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Value::String(STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        });
        let data: Vec<Value> = data.collect();
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
        Ok(json!({"object": "list", "model": name, "data": data, "usage": usage}))
    })
    .await
}

/// Starts what makes vectors.
///
/// # Errors
/// The model has no such context, or the system refuses a thread.
pub(super) fn new_embedder(model: &Model, context_length: Option<usize>) -> Result<Embedder, Error> {
    Embedder::with_options(model, &EmbedOptions { context_length, ..EmbedOptions::default() })
}

/// The thread.
fn work(model: &Model, context: Option<usize>, tasks: &Receiver<Task>) {
    let mut embedder = None;
    for Task { request, deadline, answer, mut ticket } in tasks {
        ticket.run();
        let shared = &*ticket.shared;
        let over = || {
            if shared.closing.load(Ordering::Relaxed) {
                return Some(Failure::ShuttingDown);
            }
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            (late || answer.is_closed()).then_some(Failure::TimedOut)
        };
        let result = match &mut embedder {
            Some(embedder) => turn(embedder, request, &shared.metrics, &over),
            none => match new_embedder(model, context) {
                Ok(new) => {
                    if let Some(warning) = new.warning() {
                        eprintln!("warning: {warning}");
                    }
                    turn(none.insert(new), request, &shared.metrics, &over)
                }
                Err(error) => Err(ApiError::new(500, "server_error", error.to_string())),
            },
        };
        ticket.outcome = match &result {
            _ if answer.is_closed() => Outcome::Cancelled,
            Ok(_) => Outcome::Done,
            Err(_) => Outcome::Failed,
        };
        drop(ticket);
        // The client may be gone.
        let _ = answer.send(result);
    }
}

/// The vectors of a request.
fn turn(
    embedder: &mut Embedder,
    request: EmbeddingsRequest,
    metrics: &Metrics,
    over: &dyn Fn() -> Option<Failure>,
) -> Result<Vectors, ApiError> {
    let (dimensions, context) = (request.dimensions, embedder.context_length());
    if dimensions.is_some_and(|dimensions| dimensions > embedder.dimensions()) {
        let message =
            format!("`dimensions` must be from 1 to {}, what this model's vectors have", embedder.dimensions());
        return Err(ApiError::field("dimensions", message));
    }
    let mut texts = Vec::with_capacity(request.texts.len());
    for (i, text) in request.texts.into_iter().enumerate() {
        let tokens = match text {
            Prompt::Text(text) => embedder.tokens(&text),
            Prompt::Tokens(tokens) => tokens,
        };
        if tokens.is_empty() || tokens.len() > context {
            let n = tokens.len();
            let message = format!("text {i} of `input` has {n} tokens; it must have 1 to {context}");
            let error = ApiError::field("input", message);
            return Err(if n > context { error.coded("context_length_exceeded") } else { error });
        }
        texts.push(tokens);
    }
    let tokens = texts.iter().map(Vec::len).sum();
    metrics.begun(tokens, 0);
    let (mut vectors, mut rest) = (Vec::with_capacity(texts.len()), texts.as_slice());
    while !rest.is_empty() {
        if let Some(failure) = over() {
            return Err(failure.into());
        }
        let mut n_tokens = 0;
        let fits = rest.iter().take_while(|text| {
            n_tokens += text.len();
            n_tokens <= BATCH_TOKENS
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        rest = after;
        let made = embedder.embed(batch).map_err(|error| ApiError::field("input", error.to_string()))?;
        for vector in made {
            vectors.push(match dimensions {
                Some(dimensions) => {
                    let short = embedder.shorten(&vector, dimensions);
                    short.map_err(|error| ApiError::field("dimensions", error.to_string()))?
                }
                None => vector,
            });
        }
    }
    Ok(Vectors { vectors, tokens })
}
