//! What all requests share.

use super::embeddings::Embeddings;
use super::options::ServeOptions;
use super::seats::Seats;
use crate::api::error::ApiError;
use crate::constrain::{Grammars, Refused};
use crate::engine::Engine;
use crate::metrics::Metrics;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tritone_runtime::model::Model;

/// The server's state.
pub(super) struct State {
    pub(super) options: ServeOptions,
    pub(super) seats: Arc<Seats>,
    /// Bytes that the beginnings of bodies may take yet.
    pub(super) small_bodies: Arc<Semaphore>,
    /// Bytes that bodies may take behind their beginnings.
    pub(super) large_bodies: Arc<Semaphore>,
    /// Bytes that large answers may take until their clients have taken them.
    pub(super) answer_bytes: Arc<Semaphore>,
    /// Held by whoever makes a grammar.
    pub(super) grammar_turn: Arc<Semaphore>,
    /// Whether the server is about to end.
    pub(super) closing: AtomicBool,
    ready: OnceLock<Ready>,
    /// Keys random numbers; nobody can tell the next from the last.
    random: RandomState,
    drawn: AtomicU64,
}

/// What there is once the model is loaded.
pub(super) struct Ready {
    pub(super) model: Model,
    /// Nothing where the model only turns texts into vectors.
    engine: Option<Engine>,
    pub(super) metrics: Arc<Metrics>,
    /// How many tokens a request and its answer can have.
    pub(super) context_length: usize,
    /// Grammars, or why this model has none.
    pub(super) grammars: Result<Grammars, Refused>,
    pub(super) embeddings: Embeddings,
    /// When the model was loaded, in seconds of Unix time.
    pub(super) created: u64,
}

impl Ready {
    /// What makes answers.
    ///
    /// # Errors
    /// The model makes none.
    pub(super) fn engine(&self) -> Result<&Engine, ApiError> {
        let message = "this server's model turns texts into vectors and says nothing; ask at /v1/embeddings";
        self.engine.as_ref().ok_or_else(|| ApiError::field("model", message))
    }
}

/// Seconds of Unix time.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl State {
    pub(super) fn new(options: ServeOptions) -> State {
        let limits = &options.limits;
        let small = limits.all_bodies_bytes / 4;
        State {
            seats: Arc::new(Seats::new(limits)),
            small_bodies: Arc::new(Semaphore::new(small)),
            large_bodies: Arc::new(Semaphore::new(limits.all_bodies_bytes - small)),
            answer_bytes: Arc::new(Semaphore::new(limits.all_answers_bytes)),
            grammar_turn: Arc::new(Semaphore::new(1)),
            closing: AtomicBool::new(false),
            options,
            ready: OnceLock::new(),
            random: RandomState::new(),
            drawn: AtomicU64::new(0),
        }
    }

    /// From now on there is a model.
    pub(super) fn open(&self, model: Model, engine: Option<Engine>) {
        let context = self.options.engine.context;
        let context_length = context.unwrap_or(model.config().context_length);
        let metrics = engine.as_ref().map_or_else(|| Arc::new(Metrics::new(0, 0)), |engine| engine.metrics().clone());
        let grammars = Grammars::new(model.tokenizer());
        let embeddings = Embeddings::new(model.clone(), context);
        self.ready.get_or_init(|| Ready {
            model,
            engine,
            metrics,
            context_length,
            grammars,
            embeddings,
            created: now(),
        });
    }

    /// The model at work.
    ///
    /// # Errors
    /// It is not loaded yet.
    pub(super) fn ready(&self) -> Result<&Ready, ApiError> {
        self.ready.get().ok_or_else(|| ApiError::unavailable("the model is being loaded", 2).coded("loading"))
    }

    /// The same, if `model` is none or the name of ours.
    pub(super) fn ready_for(&self, model: Option<&str>) -> Result<&Ready, ApiError> {
        let ready = self.ready()?;
        match model {
            Some(name) if name != self.options.name => Err(ApiError::no_model(name)),
            _ => Ok(ready),
        }
    }

    /// Whether requests are answered.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn health(&self) -> Result<(), ApiError> {
        let ready = self.ready()?;
        if self.closing.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable("the server is shutting down", 1).coded("shutting_down"));
        }
        if ready.engine.as_ref().is_some_and(|engine| !engine.healthy()) {
            return Err(ApiError::unavailable("the engine has ended; restart the server", 10).coded("engine_ended"));
        }
        Ok(())
    }

    /// When the answer to a request has to be complete that has come now. A time beyond what the clock can say is none that
    /// ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.options.timeout)
    }

    /// A number that cannot be guessed.
    pub(super) fn random(&self) -> u64 {
        self.random.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed))
    }

    /// A new name that begins with `prefix`.
    pub(super) fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:016x}", self.random(), self.random())
    }
}
