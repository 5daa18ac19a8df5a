//! Answers without connections: what the endpoints say, for programs in this process.

use super::embeddings::MAX_WAITING;
use super::options::{ServeError, ServeOptions};
use super::routes::{PANIC, apart};
use super::state::State;
use super::{chat, completions, embeddings, listen, responses};
use crate::api::batch::{Endpoint, Reply};
use crate::api::error::ApiError;
use crate::engine::{Engine, EngineOptions};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tritone_runtime::model::Model;

/// Requests that are read and made into jobs at once.
const REQUEST_THREADS: usize = 2;

/// Takes bodies and gives the answers that the server would give, those first that are complete first. Nothing is refused
/// because much is waiting, and nothing has a time limit: who asks has to see to that.
pub struct Desk {
    runtime: Runtime,
    state: Arc<State>,
    /// None for a model that only makes embeddings.
    engine: Option<Engine>,
    /// The thread for vectors has a queue that can be full.
    vectors: Arc<Semaphore>,
    sender: Sender<(u64, Reply)>,
    replies: Receiver<(u64, Reply)>,
    under_way: usize,
}

impl Desk {
    /// Starts the engine with a model that is called `name`. Of `options` the limit of the queue is not used.
    ///
    /// # Errors
    /// The model cannot be run like that, or the system gives no threads.
    pub fn open(model: Model, name: String, options: EngineOptions) -> Result<Desk, ServeError<Infallible>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(REQUEST_THREADS)
            .thread_name("tritone-desk")
            .build()
            .map_err(ServeError::System)?;
        let options = EngineOptions { max_queue: usize::MAX, ..options };
        let engine = listen::start(&model, &options).map_err(ServeError::Start)?;
        let state = Arc::new(State::new(ServeOptions::without_connections(name, options)));
        state.open(model, engine.clone());
        let vectors = Arc::new(Semaphore::new(MAX_WAITING));
        let (sender, replies) = channel();
        Ok(Desk { runtime, state, engine, vectors, sender, replies, under_way: 0 })
    }

    /// Asks; the answer comes with the same ticket.
    pub fn ask(&mut self, ticket: u64, endpoint: Endpoint, body: String) {
        self.under_way += 1;
        let answer = self.runtime.spawn(answer(Arc::clone(&self.state), Arc::clone(&self.vectors), endpoint, body));
        let sender = self.sender.clone();
        self.runtime.spawn(async move {
            let reply = match answer.await {
                Ok(reply) => reply,
                Err(_) => Reply::from(Err(ApiError::new(500, "server_error", PANIC))),
            };
            // Where nobody listens any more, nobody waits for it.
            let _ = sender.send((ticket, reply));
        });
    }

    /// How many answers are to come.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Waits at most so long for the next answer. With none under way there is none.
    pub fn next(&mut self, patience: Duration) -> Option<(u64, Reply)> {
        if self.under_way == 0 {
            return None;
        }
        // We hold a sender, so that only the time can end it.
        let reply = self.replies.recv_timeout(patience).ok()?;
        self.under_way -= 1;
        Some(reply)
    }

    /// How many answers can be written at once.
    #[must_use]
    pub fn parallel(&self) -> usize {
        self.engine.as_ref().map_or(1, Engine::parallel)
    }

    /// Whether no failure has ended the engine.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.engine.as_ref().is_none_or(Engine::healthy)
    }
}

async fn answer(state: Arc<State>, vectors: Arc<Semaphore>, endpoint: Endpoint, body: String) -> Reply {
    let result: Result<Value, ApiError> = match endpoint {
        Endpoint::Chat => chat::at_once(state, body).await,
        Endpoint::Completions => completions::at_once(state, body).await,
        Endpoint::Responses => responses::at_once(state, body).await,
        Endpoint::Embeddings => {
            // It is never closed.
            let _place = vectors.acquire().await;
            embeddings::at_once(state, body).await
        }
    };
    // Vectors are long to write.
    apart(move || Ok(Reply::from(result))).await.unwrap_or_else(|error| Reply::from(Err(error)))
}
